"""Latencies measured from outside of a machine."""

import itertools

import pytest

from octopii.errors import CommandError
from octopii.machines import CompositeStateMachine, InstrumentedStateMachine, KvStateMachine
from octopii.machines.instrumented import BUCKETS, Histogram
from tests.machines.specimens import written


def test_each_command_and_query_is_counted_with_its_time() -> None:
    """Refused commands count too, and the machine inside knows nothing of it."""
    ticks = itertools.count(0, 0.004)
    machine = InstrumentedStateMachine(KvStateMachine(), timer=ticks.__next__)
    machine.apply(b"SET a 1")
    with pytest.raises(CommandError):
        machine.apply(b"SET")
    assert machine.query(b"GET a") == b"1"
    assert (len(machine.apply_latency), len(machine.query_latency)) == (2, 1)
    assert machine.apply_latency.total_seconds == pytest.approx(0.008)
    assert machine.apply_latency.quantile(0.5) == pytest.approx(0.004)
    plain = KvStateMachine()
    plain.apply(b"SET a 1")
    assert written(machine) == written(plain)


def test_quantiles_are_upper_bounds_within_a_factor_of_two() -> None:
    """For any share the answer is not below the exact quantile and at most twice it."""
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0.0
    durations = [n * 7e-6 for n in range(1, 1000)]
    for duration in durations:
        histogram.record(duration)
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = durations[round(share * len(durations)) - 1]
        assert exact <= histogram.quantile(share) <= 2 * exact


def test_extreme_durations_have_a_bucket() -> None:
    """None is lost: what is below a microsecond, negative, or longer than the last bucket's beginning."""
    histogram = Histogram()
    for duration in (0.0, -1.0, 1e12):
        histogram.record(duration)
    assert (histogram.counts[0], histogram.counts[BUCKETS - 1], len(histogram)) == (2, 1, 3)
    assert histogram.quantile(1.0) <= histogram.longest_seconds == 1e12


def test_a_version_and_its_migration_are_the_inner_machine_s() -> None:
    """A wrapped machine of a later version reads earlier snapshots, and the clock goes inside."""

    class Newer(KvStateMachine):
        snapshot_version = 2
        command_version = 3

        def digest(self) -> bytes:
            return b"digest of %d" % len(self)

        def migrate(self, version: int, data: memoryview) -> bytes:
            return bytes(data)

    machine = InstrumentedStateMachine(Newer(), timer=lambda: 0.0)
    assert (machine.snapshot_version, machine.command_version, machine.digest()) == (2, 3, b"digest of 0")
    assert machine.migrate(1, memoryview(b"abc")) == b"abc"
    outer = CompositeStateMachine({"kv": lambda: machine})
    outer.clock.set(5.0)
    assert machine.inner.clock.now() == 5.0
