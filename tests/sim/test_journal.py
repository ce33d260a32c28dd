"""Runs of a machine that remembers everything, so that each call can be compared with what became of it.

`Journal` mixes replicated time and random numbers into its state: replicas that differ in these differ in their states.
"""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from octopii.errors import ApplyFailed, CommandError
from octopii.sim import Operation, Query, Simulation, SimulationFailed, Workload
from tests.replica.journal import Journal, Ledger

KIB = 1024


class Entries(Workload):
    """Appends names, each of them once; some are refused and some raise."""

    def __init__(self) -> None:
        self._count = 0

    def command(self, rng: random.Random) -> bytes:
        """A name that was not used before."""
        self._count += 1
        kind = rng.choice((b"name", b"name", b"name", b"name", b"refuse", b"raise"))
        return b"%b-%d" % (kind, self._count)

    def query(self, rng: random.Random) -> bytes:
        """How many there are."""
        return b""

    def check(self, states: Sequence[Journal]) -> None:
        """Every replica has gone through the same."""
        assert len({(tuple(state.state.names), state.state.digest, state.state.compactions) for state in states}) == 1

    def judge(self, history: Sequence[Operation], states: Sequence[Journal]) -> None:
        """What was acknowledged is there once, at the place that was told; what is unknown at most once."""
        names = states[0].state.names
        counts = Counter(names)
        assert set(counts.values()) <= {1}
        asked = {operation.request for operation in history if not isinstance(operation.request, Query)}
        assert set(names) <= asked, "a call that was not applied is there, or one that nobody made"
        for operation in history:
            if isinstance(operation.request, Query) or operation.returned is None:
                continue
            if isinstance(operation.answer, CommandError | ApplyFailed):
                assert operation.request not in counts
            else:
                assert names[int(operation.answer) - 1] == operation.request


PROFILES = ("network", "crashes", "disk", "clocks", "membership", "chaos")


def _run(seed: int, profile: str, *, seconds: float | None = None) -> None:
    filler, frozen = (0, 3 * KIB, 20 * KIB)[seed % 3], seed % 2 == 0

    def machine() -> Journal:
        return Journal(Ledger(), filler=filler, frozen=frozen)

    Simulation(machine, workload=Entries, seed=seed, profile=profile, seconds=seconds).run()


@pytest.mark.parametrize("profile", PROFILES)
def test_each_call_has_the_fate_that_its_caller_was_told(profile: str) -> None:
    """Acknowledged is applied once and everywhere, not applied is absent, unknown at most once; time agrees."""
    for seed in range(4):
        _run(100 + seed, profile)


@pytest.mark.parametrize("block", range(20))
def test_each_call_has_its_fate_in_500_short_runs(block: int) -> None:
    """The same in five hundred shorter runs, 25 in each block."""
    _run_short(range(block * 25, block * 25 + 25))


@pytest.mark.heavy
@pytest.mark.timeout(0)
@pytest.mark.parametrize("block", range(200))
def test_each_call_has_its_fate_in_20_000_short_runs(block: int) -> None:
    """The same in twenty thousand, 100 in each block."""
    _run_short(range(10_000 + block * 100, 10_100 + block * 100))


def _run_short(seeds: range) -> None:
    """Run them all, and then tell of all that failed."""
    failed = []
    for seed in seeds:
        try:
            _run(seed, PROFILES[seed % len(PROFILES)], seconds=2.0)
        except SimulationFailed as failure:
            failed.append(str(failure))
    assert not failed, "\n\n".join(failed)
