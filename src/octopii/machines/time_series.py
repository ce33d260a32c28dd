"""Replicated time series.

    PUT <name> <timestamp> <value>   -> OK
    QUERY <name> <start> <end>       -> JSON list of {"timestamp", "value"} with start <= timestamp <= end, by time
                                        (as a command or as a query)

Timestamps are whole UTC seconds, values finite numbers. Points of one timestamp stay in the order in which they came.
Points older than the retention time are dropped by compaction, measured by replicated time.
"""

import itertools
import math
import operator
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

import msgspec

from octopii.blocks import MAX_BLOCK_ITEMS, read_blocks, write_blocks
from octopii.errors import CommandError
from octopii.machines.parsing import finite_number, unknown, whole_number, words
from octopii.state_machine import StateMachine

RETENTION_SECONDS = 30 * 24 * 3600
"""How long points are kept, unless the constructor says otherwise: 30 days."""

MAX_ANSWER_POINTS = 10_000
"""Most points in one answer; a range with more is refused by `CommandError`."""

MAX_TIMESTAMP = (1 << 63) - 1

_KIND = "time-series/1"
_SHAPE = msgspec.msgpack.Decoder(tuple[str, list[int], list[float]])
_encoder = msgspec.json.Encoder()


class DataPoint(msgspec.Struct, frozen=True):
    """One point as answers show it; `timestamp` in UTC seconds."""

    timestamp: int
    value: float


class _Series:
    """Points in time order, 16 bytes each."""

    __slots__ = ("timestamps", "values")

    def __init__(self, timestamps: "array[int] | None" = None, values: "array[float] | None" = None) -> None:
        self.timestamps = array("q") if timestamps is None else timestamps
        self.values = array("d") if values is None else values

    def put(self, timestamp: int, value: float) -> None:
        at = bisect_right(self.timestamps, timestamp)
        self.timestamps.insert(at, timestamp)
        self.values.insert(at, value)

    def copy(self) -> "_Series":
        return _Series(self.timestamps[:], self.values[:])


class TimeSeriesStateMachine(StateMachine):
    """Points by series name. `retention_seconds` belongs to the replicated logic: the same on every node."""

    def __init__(self, *, retention_seconds: float = RETENTION_SECONDS) -> None:
        self._series: dict[str, _Series] = {}
        self._retention_seconds = retention_seconds

    def apply(self, command: bytes) -> bytes:
        """Run one command; raises `CommandError` and changes nothing for one that does not fit."""
        if command.split(None, 1)[:1] != [b"PUT"]:
            return self.query(command)
        _, name, at, number = words(command, least=4, most=4, usage="PUT <name> <timestamp> <value>")
        timestamp = whole_number(at, name="timestamp", least=0, most=MAX_TIMESTAMP)
        value = finite_number(number, name="value")
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = _Series()
        series.put(timestamp, value)
        return b"OK"

    def query(self, command: bytes) -> bytes:
        """Answer QUERY; raises `CommandError` for anything else, and for more than `MAX_ANSWER_POINTS` points."""
        verb = command.split(None, 1)[:1]
        if verb != [b"QUERY"]:
            raise unknown(verb[0] if verb else b"")
        _, name, first, last = words(command, least=4, most=4, usage="QUERY <name> <start> <end>")
        start = whole_number(first, name="start", least=0, most=MAX_TIMESTAMP)
        end = whole_number(last, name="end", least=0, most=MAX_TIMESTAMP)
        series = self._series.get(name, _Series())
        low, high = bisect_left(series.timestamps, start), bisect_right(series.timestamps, end)
        if high - low > MAX_ANSWER_POINTS:
            raise CommandError(f"{high - low} points are in this range; ask for at most {MAX_ANSWER_POINTS} at a time")
        points = map(DataPoint, series.timestamps[low:high], series.values[low:high])
        return _encoder.encode(list(points))

    def compact(self) -> None:
        """Drop points older than the retention time, and series that are left empty."""
        cutoff = self.clock.now() - self._retention_seconds
        for name in list(self._series):
            series = self._series[name]
            old = bisect_left(series.timestamps, cutoff)
            del series.timestamps[:old]
            del series.values[:old]
            if not series.timestamps:
                del self._series[name]

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Copy the points (plain memory copies) and return the function that encodes the copy."""
        copied = {name: series.copy() for name, series in self._series.items()}

        def blocks() -> Iterator[tuple[str, list[int], list[float]]]:
            for name, series in copied.items():
                for start in range(0, len(series.values), MAX_BLOCK_ITEMS):
                    span = slice(start, start + MAX_BLOCK_ITEMS)
                    yield name, series.timestamps[span].tolist(), series.values[span].tolist()

        return lambda: write_blocks(_KIND, blocks())

    def restore(self, data: memoryview) -> None:
        """Replace all series; raises `ValueError` and changes nothing when the snapshot is not sound."""
        restored: dict[str, _Series] = {}
        for name, timestamps, values in read_blocks(_KIND, data, _SHAPE):
            if not timestamps or len(timestamps) != len(values) or not all(map(math.isfinite, values)):
                raise ValueError(f"{_KIND} snapshot has timestamps of {name!r} without a finite value each")
            series = restored.setdefault(name, _Series())
            ordered = itertools.chain(series.timestamps[-1:] or [0], timestamps)
            if not all(itertools.starmap(operator.le, itertools.pairwise(ordered))) or timestamps[-1] > MAX_TIMESTAMP:
                raise ValueError(f"{_KIND} snapshot has points of {name!r} out of order")
            series.timestamps.extend(timestamps)
            series.values.extend(values)
        self._series = restored
