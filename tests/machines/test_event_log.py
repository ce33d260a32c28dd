"""The event log."""

import json

import pytest

from octopii.errors import CommandError
from octopii.machines import EventLogStateMachine
from octopii.machines.event_log import DEFAULT_LIMIT, MAX_ANSWER_CHARACTERS


def ids(answer: bytes) -> list[int]:
    return [event["id"] for event in json.loads(answer)]


def test_events_have_dense_ids_and_replicated_time() -> None:
    """LOG answers the id; the event carries the clock's time in whole seconds, and details keep their tabs."""
    machine = EventLogStateMachine()
    machine.clock.set(1_700_000_000.9)
    assert machine.apply("LOG\tann\tlogin\tfrom\tMünchen".encode()) == b"1"
    assert machine.apply(b"LOG\t\t\t") == b"2"
    assert json.loads(machine.query(b"QUERY\t1\t1")) == [
        {"id": 1, "timestamp": 1_700_000_000, "user": "ann", "action": "login", "details": "from\tMünchen"}
    ]


def test_queries_page_through_the_log() -> None:
    """A query starts at an id, takes 100 events unless told otherwise, and is empty behind the end."""
    machine = EventLogStateMachine()
    for _ in range(DEFAULT_LIMIT + 20):
        machine.apply(b"LOG\tu\ta\td")
    assert ids(machine.query(b"QUERY\t0")) == list(range(1, DEFAULT_LIMIT + 1))
    assert ids(machine.apply(b"QUERY\t118")) == [118, 119, 120]
    assert ids(machine.query(b"QUERY\t5\t2")) == [5, 6]
    assert ids(machine.query(b"QUERY\t121")) == ids(machine.query(b"QUERY\t1\t0")) == []


def test_a_page_of_large_events_ends_early_but_never_empty() -> None:
    """An answer stays near its limit of characters, and its first event is there whatever its size."""
    machine = EventLogStateMachine()
    for size in (MAX_ANSWER_CHARACTERS * 2, MAX_ANSWER_CHARACTERS // 2 - 100, MAX_ANSWER_CHARACTERS // 2 - 100, 200):
        machine.apply(b"LOG\tu\ta\t" + b"d" * size)
    assert ids(machine.query(b"QUERY\t1")) == [1]
    assert ids(machine.query(b"QUERY\t2")) == [2, 3]


@pytest.mark.parametrize(
    "command", [b"LOG\tu\ta", b"LOG u a d", b"LOG\tu\ta\t\xff", b"QUERY", b"QUERY\tx", b"QUERY\t1\t99999"]
)
def test_wrong_commands_are_refused(command: bytes) -> None:
    """Missing parts, text that is no UTF-8 and wrong numbers raise CommandError; no id is used up."""
    machine = EventLogStateMachine()
    with pytest.raises(CommandError):
        machine.apply(command)
    assert machine.apply(b"LOG\tu\ta\td") == b"1"
