"""Chapters 7 and 8 of the specification: performance, gotchas, best practices; and the table of all chapters."""

import asyncio
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import machine_strategies
from octopii import CommandError, Config, OctopiiNode
from octopii.machines import (
    CompositeStateMachine,
    CounterStateMachine,
    DeferredWorkStateMachine,
    InstrumentedStateMachine,
    KvStateMachine,
    RegistryStateMachine,
    TaskQueueStateMachine,
)
from octopii.state_machine import SnapshotSource, restore_snapshot
from octopii.testing import Cause, NotDeterministic, check_determinism
from tests.machines.replicas import ThreeReplicas
from tests.node.cluster import free_addresses
from tests.specification.steps import ROOT, run, written

# --- chapter 7: performance -------------------------------------------------------------------------------------


def test_7_measurement_points() -> None:
    """What an apply takes is measured from outside, without code in the machine."""
    times = iter([0.0, 0.001, 1.0, 1.005])
    machine = InstrumentedStateMachine(KvStateMachine(), timer=times.__next__)
    run(machine, (b"SET a 1", b"OK"), (b"GET a", b"1"))
    assert machine.apply_latency.longest_seconds == pytest.approx(0.005)


class OneThread(KvStateMachine):
    """Notes which threads call it."""

    threads: set[int] = set()

    def apply(self, command: bytes) -> bytes:
        self.threads.add(threading.get_ident())
        return super().apply(command)

    def query(self, command: bytes) -> bytes:
        self.threads.add(threading.get_ident())
        return super().query(command)


async def _calls_of_one_node(folder: Path) -> None:
    config = Config(bind_addr=free_addresses(1)[0], wal_dir=str(folder / "node"), is_initial_leader=True)
    async with OctopiiNode(config, OneThread()) as node:
        await asyncio.gather(*(node.propose(b"SET a %d" % n) for n in range(50)))
        await asyncio.gather(*(node.query(b"GET a") for _ in range(50)))


def test_7_reduce_lock_contention(tmp_path: Path) -> None:
    """There is nothing to lock: one thread calls a machine, one call at a time."""
    OneThread.threads.clear()
    asyncio.run(_calls_of_one_node(tmp_path))
    assert len(OneThread.threads) == 1
    assert threading.get_ident() not in OneThread.threads


STRATEGIES = dict(machine_strategies.agreeing())


def all_agree(*names: str) -> bool:
    """Whether what is measured against each other does the same."""
    return all(result == STRATEGIES[name][0] for name in names for result in STRATEGIES[name])


def test_7_use_efficient_data_structures() -> None:
    """Dicts and bisection give what lists and looking at all give; how much faster is measured."""
    assert all_agree("lookups", "ranges", "immutable state")


def test_7_minimize_allocations() -> None:
    """Splitting bytes once gives what decoding and joining give, and so do the three ways of reading fields."""
    assert all_agree("locks and parsing", "parsing fields")


def test_7_optimize_snapshots() -> None:
    """A snapshot in blocks is the same state as one in a single call, and no block holds the interpreter for long."""
    assert all_agree("snapshot format")
    assert max(map(len, machine_strategies.kv_of_the_state().snapshot()())) <= 1 << 20


# --- chapter 8: gotchas and best practices ----------------------------------------------------------------------


class WallClock(KvStateMachine):
    """Reads the wall clock in `apply`."""

    def apply(self, command: bytes) -> bytes:
        import time

        return b"%d" % (time.time() // 3600)


def test_8_gotcha_1_non_determinism() -> None:
    """Time comes from the log; a machine that reads the wall clock is found, and the cause named."""
    with pytest.raises(NotDeterministic) as caught:
        check_determinism(WallClock, [b"SET a 1"])
    assert caught.value.cause is Cause.WALL_CLOCK
    check_determinism(RegistryStateMachine, [b"REGISTER web h 80", b"HEARTBEAT web"], queries=[b"DESCRIBE web"])


def test_8_gotcha_2_blocking_operations() -> None:
    """Applying for seconds costs no leadership; and heavy work can be deferred: noted in the state, done elsewhere."""
    cluster = ThreeReplicas(DeferredWorkStateMachine)
    cluster.ask(b"REQUEST\theavy")
    terms = {node.replica.raft.term for node in cluster.nodes}
    cluster.world.weather.job_time = (2.0, 3.0)  # five times the election timeout
    assert cluster.ask(b"TAKE\tworker") is not None
    assert cluster.ask(b"FINISH\t1\t1\tdone") == b"OK"
    assert {node.replica.raft.term for node in cluster.nodes} == terms


def test_8_gotcha_3_snapshot_inconsistency() -> None:
    """Nothing is applied while a snapshot is captured, and parts of a composite are captured at one index."""
    machine = CompositeStateMachine({"a": CounterStateMachine, "b": CounterStateMachine})
    run(machine, (b"a:INC n", b"1"), (b"b:INC n", b"1"))
    view = SnapshotSource(machine.snapshot())
    pieces = iter(view)
    early = bytes(next(pieces))
    run(machine, (b"a:INC n", b"2"), (b"b:INC n", b"2"))
    copy = CompositeStateMachine({"a": CounterStateMachine, "b": CounterStateMachine})
    copy.restore(memoryview(early + b"".join(pieces)))
    run(copy, (b"a:GET n", b"1"), (b"b:GET n", b"1"))


def test_8_best_practice_1_validate_input() -> None:
    """What is malformed is refused, and has then changed nothing; what is too large never reaches the log."""
    machine = TaskQueueStateMachine()
    before = written(machine)
    for command in (b"", b"SUBMIT", b"SUBMIT\t\xff", b"CLAIM\t", b"COMPLETE\tx", b"FLY\t1"):
        run(machine, (command, CommandError))
    assert written(machine) == before
    assert Config(bind_addr="127.0.0.1:1").max_command_bytes > 0


class CounterV2(CounterStateMachine):
    """The next version, whose snapshots begin with a mark."""

    snapshot_version = 2

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        view = super().snapshot()
        return lambda: itertools.chain([b"v2"], view())

    def restore(self, data: memoryview) -> None:
        super().restore(data[2:])

    def migrate(self, version: int, data: memoryview) -> bytes:
        assert version == 1
        return b"v2" + bytes(data)


def test_8_best_practice_2_version_snapshots() -> None:
    """Each snapshot carries its version; an older one goes through `migrate`, a newer one is refused by name."""
    old, new = CounterStateMachine(), CounterV2()
    run(old, (b"INC n", b"1"))
    restore_snapshot(new, version=old.snapshot_version, data=memoryview(written(old)))
    run(new, (b"INC n", b"2"))
    with pytest.raises(ValueError, match="reads snapshots of version 1, this one has version 2"):
        restore_snapshot(old, version=2, data=memoryview(written(new)))


def test_8_best_practice_3_instrument_performance(caplog: pytest.LogCaptureFixture) -> None:
    """An apply over 10 ms is logged with its size and index; latencies are counted from outside."""
    cluster = ThreeReplicas(KvStateMachine)
    cluster.ask(b"SET a 1")

    class Slow(KvStateMachine):
        def apply(self, command: bytes) -> bytes:
            cluster.world.now += 0.02  # the world's clock goes on meanwhile
            return super().apply(command)

    measured = [InstrumentedStateMachine(Slow(), timer=lambda: cluster.world.now) for _ in cluster.nodes]
    for node, machine in zip(cluster.nodes, measured, strict=True):
        cluster.restart(node, lambda machine=machine: machine)  # type: ignore[misc]
        cluster.world.run(1.0)
    caplog.clear()
    cluster.ask(b"SET a 12345")
    cluster.come_to_rest()
    slow = [record.getMessage() for record in caplog.records if "applying a command" in record.getMessage()]
    assert len(slow) == 3
    assert all(re.fullmatch(r"applying a command of 11 bytes in entry \d+ took 20 ms", message) for message in slow)
    assert all(machine.apply_latency.longest_seconds == pytest.approx(0.02) for machine in measured)


# --- the table --------------------------------------------------------------------------------------------------


def test_every_section_in_the_table_has_its_test() -> None:
    """Each test that docs/specification.md names is there, and each test of a section is in the table."""
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (ROOT / "docs" / "specification.md").read_text(encoding="utf-8"))
    assert len(named) > 50
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (file, test)
    here = {
        (f"tests/specification/{file.name}", test)
        for file in Path(__file__).parent.glob("test_*.py")
        for test in re.findall(r"^def (test_\d\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert here <= set(named)
