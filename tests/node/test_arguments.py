"""Arguments of the constructors of nodes and clients that cannot be: refused before a thread or a folder is made."""

from pathlib import Path
from typing import Any

import pytest

from octopii import BlockingClient, BlockingNode, Client, Config, ConfigError, OctopiiNode, OctopiiRuntime, StateMachine
from octopii.machines import AsyncStateMachine, KvStateMachine


class _Echo(StateMachine):
    def apply(self, command: bytes) -> bytes:
        return command

    def snapshot(self) -> bytes:
        return b""

    def restore(self, data: memoryview) -> None:
        pass


class _AsyncApply(_Echo):
    async def apply(self, command: bytes) -> bytes:  # type: ignore[override]
        return command


class _AsyncQuery(_Echo):
    async def query(self, command: bytes) -> bytes:  # type: ignore[override]
        return command


class _AsyncSnapshot(_Echo):
    async def snapshot(self):  # type: ignore[no-untyped-def]
        yield b""


class _Coroutines(AsyncStateMachine):
    async def apply(self, command: bytes) -> bytes:
        return command

    async def query(self, command: bytes) -> bytes:
        return command

    def snapshot(self) -> bytes:
        return b""

    def restore(self, data: memoryview) -> None:
        pass


def _by_runtime(config: Config, machine: Any) -> BlockingNode:
    with OctopiiRuntime() as runtime:
        return runtime.node(config, machine)


@pytest.mark.parametrize("make", [OctopiiNode, BlockingNode, _by_runtime])
@pytest.mark.parametrize(
    ("machine", "text"),
    [
        (KvStateMachine, "an instance of a StateMachine, not the class KvStateMachine: give KvStateMachine(...)"),
        (None, "an instance of a StateMachine, not None"),
        ({"a": 1}, "an instance of a StateMachine, not {'a': 1}"),
        (_AsyncApply(), "_AsyncApply.apply is async, .* derive the class from octopii.machines.AsyncStateMachine"),
        (_AsyncQuery(), "_AsyncQuery.query is async, .* derive the class from octopii.machines.AsyncStateMachine"),
        (_AsyncSnapshot(), "_AsyncSnapshot.snapshot is async, .*: it has to be a plain method$"),
    ],
)
def test_what_is_no_state_machine_is_refused(make: Any, machine: object, text: str, tmp_path: Path) -> None:
    """A class, another object or a machine with coroutines is a `TypeError` of the constructor; no folder is made."""
    config = Config(wal_dir=tmp_path / "node", is_initial_leader=True)
    with pytest.raises(TypeError, match=text.replace("(...)", r"\(\.\.\.\)")):
        make(config, machine)
    assert not (tmp_path / "node").exists()


def test_machines_made_for_coroutines_are_taken() -> None:
    """`AsyncStateMachine` runs its coroutines by itself."""
    OctopiiNode(Config(), _Coroutines())


def test_the_settings_are_a_config() -> None:
    """Arguments in the wrong order are a `TypeError` that says so."""
    with pytest.raises(TypeError, match=r"config is an octopii\.Config, not <"):
        OctopiiNode(_Echo(), Config())  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 65, True, 1.0, "2"])
def test_a_runtime_has_a_number_of_threads(count: Any) -> None:
    """Anything but a whole number from 1 to 64 is a `ConfigError`."""
    with pytest.raises(ConfigError, match="worker_threads has to be a whole number from 1 to 64, not ") as caught:
        OctopiiRuntime(count)
    assert caught.value.field == "worker_threads"


@pytest.mark.parametrize("kind", [Client, BlockingClient])
@pytest.mark.parametrize(
    ("arguments", "field", "text"),
    [
        ({"addresses": 7201}, "addresses", 'addresses has to be "host:port", or several of these .*, not 7201'),
        ({"addresses": b"127.0.0.1:7201"}, "addresses", r'addresses has to be "host:port", .*, not b\'127'),
        ({"addresses": [7201]}, "addresses", 'addresses: an address is "host:port", not 7201'),
        ({"addresses": []}, "addresses", "at least one node's address"),
        ({"addresses": "127.0.0.1"}, "addresses", "addresses: an address is"),
        ({"addresses": "127.0.0.1:1", "timeout": "5"}, "timeout", "a number of seconds above 0, not '5'"),
        ({"addresses": "127.0.0.1:1", "timeout": 0}, "timeout", "a number of seconds above 0, not 0"),
        ({"addresses": "127.0.0.1:1", "timeout": float("nan")}, "timeout", "a number of seconds above 0, not nan"),
        ({"addresses": "127.0.0.1:1", "limits": {}}, "limits", r"limits has to be CallLimits\(\.\.\.\), not {}"),
    ],
)
def test_what_no_client_can_be_made_of_is_refused(kind: Any, arguments: dict[str, Any], field: str, text: str) -> None:
    """A `ConfigError` says which argument it is, what it has to be, and what was given."""
    with pytest.raises(ConfigError, match=text) as caught:
        kind(**arguments)
    assert caught.value.field == field
