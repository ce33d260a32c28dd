"""Time series."""

import json

import pytest

from octopii.blocks import MAX_BLOCK_ITEMS
from octopii.errors import CommandError
from octopii.machines import TimeSeriesStateMachine
from octopii.machines.time_series import MAX_ANSWER_POINTS, RETENTION_SECONDS
from tests.machines.specimens import written


def points(machine: TimeSeriesStateMachine, command: bytes) -> list[tuple[int, float]]:
    answer = json.loads(machine.query(command))
    return [(point["timestamp"], point["value"]) for point in answer]


def test_ranges_are_inclusive_and_by_time() -> None:
    """Points come back ordered by time, those of one second in order of arrival, both ends of the range included."""
    machine = TimeSeriesStateMachine()
    for timestamp, value in [(30, 3.0), (10, 1.0), (20, 2.0), (20, 2.5)]:
        assert machine.apply(b"PUT cpu %d %f" % (timestamp, value)) == b"OK"
    assert points(machine, b"QUERY cpu 10 20") == [(10, 1.0), (20, 2.0), (20, 2.5)]
    assert points(machine, b"QUERY cpu 21 29") == points(machine, b"QUERY cpu 30 10") == []
    assert points(machine, b"QUERY other 0 99") == []
    assert machine.apply(b"QUERY cpu 30 30") == b'[{"timestamp":30,"value":3.0}]'


def test_compaction_drops_points_older_than_the_retention_time() -> None:
    """The cut-off is replicated time minus 30 days; a point at the cut-off stays; an empty series goes."""
    machine = TimeSeriesStateMachine()
    now = 1_700_000_000
    machine.clock.set(now)
    for name, age in [(b"a", 1), (b"a", 0), (b"b", 1)]:
        machine.apply(b"PUT %b %d 1" % (name, now - RETENTION_SECONDS - age))
    machine.apply(b"PUT a %d 2" % now)
    machine.compact()
    assert points(machine, b"QUERY a 0 9999999999") == [(now - RETENTION_SECONDS, 1.0), (now, 2.0)]
    assert points(machine, b"QUERY b 0 9999999999") == []
    fresh = TimeSeriesStateMachine()
    fresh.restore(memoryview(written(machine)))
    assert b"\xa1b" not in written(fresh)


@pytest.mark.parametrize("value", [b"nan", b"inf", b"-Infinity", b"1e999", b"1_0", b"x", b"", b"1 2"])
def test_only_finite_values_are_taken(value: bytes) -> None:
    """What JSON cannot say, and what is no number, is refused."""
    machine = TimeSeriesStateMachine()
    with pytest.raises(CommandError):
        machine.apply(b"PUT cpu 1 " + value)
    assert points(machine, b"QUERY cpu 0 9") == []


def test_a_long_series_is_answered_in_parts_and_survives_a_snapshot() -> None:
    """More points than an answer may have are refused, never cut silently; snapshots span blocks."""
    machine = TimeSeriesStateMachine()
    count = MAX_ANSWER_POINTS + 1
    assert count > 2 * MAX_BLOCK_ITEMS
    for n in range(count):
        machine.apply(b"PUT cpu %d %d" % (n, n))
    copy = TimeSeriesStateMachine()
    copy.restore(memoryview(written(machine)))
    with pytest.raises(CommandError, match="10001 points"):
        copy.query(b"QUERY cpu 0 20000")
    assert len(points(copy, b"QUERY cpu 1 20000")) == MAX_ANSWER_POINTS
