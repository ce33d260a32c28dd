"""The table of all commands in docs/machines.md: each row is executed, and no command is missing."""

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from octopii.errors import CommandError
from octopii.machines import (
    CompositeStateMachine,
    CounterStateMachine,
    DeferredWorkStateMachine,
    EventLogStateMachine,
    KvStateMachine,
    RegistryStateMachine,
    ShardedStateMachine,
    TaskQueueStateMachine,
    TimeSeriesStateMachine,
    VersionedStateMachine,
)
from octopii.state_machine import StateMachine
from tests.machines.specimens import SPECIMENS, written

PAGE = Path(__file__).resolve().parents[2] / "docs" / "machines.md"
START = 1_700_000_000.0

MACHINES: dict[str, Callable[[], StateMachine]] = {
    "KV": KvStateMachine,
    "Counter": CounterStateMachine,
    "TimeSeries": TimeSeriesStateMachine,
    "EventLog": EventLogStateMachine,
    "Registry": RegistryStateMachine,
    "TaskQueue": TaskQueueStateMachine,
    "Versioned": VersionedStateMachine,
    "DeferredWork": DeferredWorkStateMachine,
    "Composite": lambda: CompositeStateMachine({"kv": KvStateMachine, "counter": CounterStateMachine}),
    "Sharded": ShardedStateMachine,
}


class Row(msgspec.Struct):
    """One line of the table."""

    machine: str
    command: str
    answer: str
    example: str
    gives: str
    as_query: str


def rows() -> list[Row]:
    """The lines of the page's table, without its head."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip(" ") for cell in line.strip("|").split("|")] for line in lines]
    return [Row(*line) for line in cells if line[0] in MACHINES]


def result(call: Callable[[bytes], bytes], command: bytes) -> str:
    """An outcome as the table shows it."""
    try:
        return f"`{call(command).decode()}`"
    except CommandError as error:
        return f"refused: {str(error).replace('<', chr(92) + '<')}"


@pytest.mark.parametrize("name", MACHINES)
def test_each_row_of_the_table_is_what_the_machine_does(name: str) -> None:
    """From top to bottom every example gives what stands beside it; as a query the same, or it is refused."""
    machine = MACHINES[name]()
    machine.clock.set(START)
    examples = [row for row in rows() if row.machine == name]
    assert examples
    for row in examples:
        example = re.fullmatch("`(.*)`", row.example)
        command = (example[1] if example else "").replace(r"\t", "\t").encode()
        assert example or row.example == "(empty)"
        before = written(machine)
        asked = result(machine.query, command)
        assert written(machine) == before
        assert result(machine.apply, command) == row.gives, row
        assert (asked == row.gives) == (row.as_query == "same"), row
        assert row.as_query in ("same", "")
        if row.gives.startswith("refused"):
            assert written(machine) == before


def test_no_command_is_missing_in_the_table() -> None:
    """Every verb that the tests know of a machine has its grammar in the table."""
    for name, specimen in (
        ("KV", "kv"),
        ("Counter", "counter"),
        ("TimeSeries", "time_series"),
        ("EventLog", "event_log"),
        ("Registry", "registry"),
        ("TaskQueue", "task_queue"),
        ("Versioned", "versioned"),
        ("DeferredWork", "deferred_work"),
    ):
        grammars = {re.split(r"[ `\\]", row.command.strip("`"))[0] for row in rows() if row.machine == name}
        assert {verb.decode().strip() for verb in SPECIMENS[specimen].verbs} <= grammars


def test_every_machine_has_a_malformed_command_in_the_table() -> None:
    """What is refused, and with which words, is documented for each."""
    for name in MACHINES:
        assert any(row.gives.startswith("refused: ") for row in rows() if row.machine == name)


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_empty_no_text_or_unknown_is_refused(name: str) -> None:
    """Empty commands, bytes that are no text where a verb belongs, unknown verbs: `CommandError` in all machines."""
    machine = MACHINES[name]()
    before = written(machine)
    for command in (
        b"",
        b" ",
        b"\t",
        b"\n",
        b"\xff",
        b"\xff\xfe \x00",
        b"NONSENSE",
        b"NONSENSE a b",
        b"NONSENSE\ta\tb",
    ):
        for call in (machine.apply, machine.query):
            with pytest.raises(CommandError):
                call(command)
    assert written(machine) == before


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("TimeSeries", b"PUT \xff 1 1"),
        ("EventLog", b"LOG\t\xff\tx\ty"),
        ("EventLog", b"LOG\tx\ty\t\xff"),
        ("Registry", b"REGISTER web \xff 80"),
        ("TaskQueue", b"SUBMIT\t\xff"),
        ("TaskQueue", b"CLAIM\t\xff"),
        ("DeferredWork", b"REQUEST\t\xff"),
        ("Composite", b"\xff:GET a"),
    ],
)
def test_text_has_to_be_utf_8(name: str, command: bytes) -> None:
    """Where an answer shows a text as JSON, other bytes are refused and change nothing."""
    machine = MACHINES[name]()
    before = written(machine)
    with pytest.raises(CommandError):
        machine.apply(command)
    assert written(machine) == before
