"""Counters."""

import pytest

from octopii.errors import CommandError
from octopii.machines import CounterStateMachine


def test_counting() -> None:
    """INC answers the new value, by 1 or by a delta of either sign; GET answers 0 for an unknown name."""
    machine = CounterStateMachine()
    assert machine.apply(b"INC hits") == b"1"
    assert machine.apply(b"INC hits 41") == b"42"
    assert machine.apply(b"INC hits -50") == b"-8"
    assert machine.apply(b"GET hits") == machine.query(b"GET hits") == b"-8"
    assert machine.query(b"GET other") == b"0"


@pytest.mark.parametrize(
    "delta", [b"x", b"1.5", b"1_000", "\u0661".encode(), b"9223372036854775808", b"9" * 5000, b"-", b"1 2", b"\xff"]
)
def test_a_wrong_delta_is_refused(delta: bytes) -> None:
    """What is no whole number of 64 bits raises CommandError and counts nothing."""
    machine = CounterStateMachine()
    with pytest.raises(CommandError):
        machine.apply(b"INC hits " + delta)
    assert machine.query(b"GET hits") == b"0"


def test_a_counter_never_leaves_64_bits() -> None:
    """At the limit counting is refused and the value stays."""
    machine = CounterStateMachine()
    assert machine.apply(b"INC up 9223372036854775807") == b"9223372036854775807"
    assert machine.apply(b"INC down -9223372036854775808") == b"-9223372036854775808"
    for command in (b"INC up", b"INC down -1"):
        with pytest.raises(CommandError, match="64 bits"):
            machine.apply(command)
    assert machine.query(b"GET up") == b"9223372036854775807"
