"""Machines that hold others tell of them: the version of their commands, and the digest of their state."""

import time
from collections.abc import Callable

import pytest

from octopii.errors import CommandError
from octopii.machines import (
    CompositeStateMachine,
    IncrementalStateMachine,
    InstrumentedStateMachine,
    KvStateMachine,
    ShardedStateMachine,
)
from octopii.state_machine import ClockDriver, StateMachine
from octopii.typed import TypedStateMachine, command


class Inner(TypedStateMachine):
    def __init__(self) -> None:
        self.total: int = 0

    @command
    def add(self, n: int) -> int:
        self.total += n
        return self.total

    @command(since=3)
    def double(self) -> int:
        self.total *= 2
        return self.total

    def digest(self) -> bytes:
        return b"%d" % self.total


HOLDERS: dict[str, tuple[Callable[[], StateMachine], bytes]] = {
    "composite": (lambda: CompositeStateMachine({"kv": KvStateMachine, "in": Inner}), b"in:"),
    "sharded": (lambda: ShardedStateMachine(shards=4, factory=Inner, key_of=lambda _command: b"key"), b""),
    "incremental": (lambda: IncrementalStateMachine(Inner), b""),
    "instrumented": (lambda: InstrumentedStateMachine(Inner(), timer=time.perf_counter), b""),
}


@pytest.mark.parametrize("name", list(HOLDERS))
def test_a_machine_inside_another_follows_the_cluster_s_version(name: str) -> None:
    """The holder has the version of what it holds, and what it holds follows the active one."""
    make, prefix = HOLDERS[name]
    machine = make()
    assert machine.command_version == machine.active_version == 3
    driver = ClockDriver(machine)
    driver.activate(2)
    call = prefix + Inner.double.encode()
    with pytest.raises(CommandError, match="there is no command 'double'"):
        machine.apply(call)
    driver.activate(3)
    assert Inner.double.decode(machine.apply(call)) == 0


@pytest.mark.parametrize("name", list(HOLDERS))
def test_a_digest_inside_counts(name: str) -> None:
    """Equal states have equal digests, different ones different."""
    make, prefix = HOLDERS[name]
    one, other = make(), make()
    assert one.digest() is not None
    assert one.digest() == other.digest()
    one.apply(prefix + Inner.add.encode(1))
    assert one.digest() != other.digest()


def test_what_holds_machines_without_digest_has_none() -> None:
    """The ready-made machines have no digest of their state: their answers are compared."""
    assert CompositeStateMachine({"a": KvStateMachine, "b": KvStateMachine}).digest() is None
    assert ShardedStateMachine().digest() is None
    assert IncrementalStateMachine(KvStateMachine).digest() is None
