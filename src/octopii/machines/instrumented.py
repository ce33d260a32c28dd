"""Latencies of any state machine, measured from outside: a histogram for `apply`, one for `query`.

    machine = InstrumentedStateMachine(KvStateMachine(), timer=time.perf_counter)
    ...
    machine.apply_latency.quantile(0.99)      # seconds, from any thread

What is measured is about this replica alone, belongs to no state and to no snapshot, and is never seen by the machine
inside. The timer is an argument so that the machine stays free of clocks, and tests of noise.
"""

from collections.abc import Callable

from octopii.state_machine import Buffer, Clock, Snapshot, StateMachine

BUCKETS = 36
"""Buckets of a histogram: the last one begins at 2**34 microseconds, which is nearly five hours."""


class Histogram:
    """Counts of durations in buckets that double: the first is under 1 us, the second under 2 us, then 4 us, ..."""

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.total_seconds = 0.0
        self.longest_seconds = 0.0

    def __len__(self) -> int:
        """How many durations were recorded."""
        return sum(self.counts)

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[min(int(max(seconds, 0.0) * 1e6).bit_length(), BUCKETS - 1)] += 1
        self.total_seconds += seconds
        if seconds > self.longest_seconds:
            self.longest_seconds = seconds

    def quantile(self, share: float) -> float:
        """Seconds that `share` (0 to 1) of the durations did not exceed: the upper end of their bucket; 0.0 for none.

        At most the longest duration, and at most twice the exact value.
        """
        counts = list(self.counts)
        wanted = share * sum(counts)
        seen = 0
        for bucket, count in enumerate(counts):
            seen += count
            if count and seen >= wanted:
                return min(2.0**bucket / 1e6, self.longest_seconds)
        return 0.0


class InstrumentedStateMachine(StateMachine):
    """Passes everything on to `machine`, and measures how long each command and query takes, refused ones too."""

    def __init__(self, machine: StateMachine, *, timer: Callable[[], float]) -> None:
        """Wrap `machine`; `timer` returns seconds and never goes back."""
        self.inner = machine
        self.snapshot_version = machine.snapshot_version
        self.command_version = machine.command_version
        self.apply_latency = Histogram()
        self.query_latency = Histogram()
        self._timer = timer
        machine.use_clock(self.clock)

    def digest(self) -> Buffer | None:
        """That of the machine inside."""
        return self.inner.digest()

    def use_clock(self, clock: Clock) -> None:
        """Follow `clock`, the machine inside included."""
        super().use_clock(clock)
        self.inner.use_clock(clock)

    def apply(self, command: bytes) -> bytes:
        """Pass the command on and record how long it took."""
        before = self._timer()
        try:
            return self.inner.apply(command)
        finally:
            self.apply_latency.record(self._timer() - before)

    def query(self, command: bytes) -> bytes:
        """Pass the query on and record how long it took."""
        before = self._timer()
        try:
            return self.inner.query(command)
        finally:
            self.query_latency.record(self._timer() - before)

    def compact(self) -> None:
        """Compact the machine inside."""
        self.inner.compact()

    def snapshot(self) -> Snapshot:
        """Return the inner machine's snapshot, byte for byte: a replica that measures and one that does not agree."""
        return self.inner.snapshot()

    def restore(self, data: memoryview) -> None:
        """Restore the machine inside."""
        self.inner.restore(data)

    def migrate(self, version: int, data: memoryview) -> Buffer:
        """Let the machine inside migrate its snapshot."""
        return self.inner.migrate(version, data)
