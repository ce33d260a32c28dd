"""Runs of a machine that remembers everything, so that each call can be compared with what became of it.

`Journal` mixes replicated time and random numbers into its state: replicas that differ in these differ in their states.
"""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from octopii.errors import ApplyFailed, CommandError
from octopii.sim import Operation, Query, Simulation, Workload
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


@pytest.mark.parametrize("profile", ["network", "crashes", "disk", "clocks", "membership", "chaos"])
def test_each_call_has_the_fate_that_its_caller_was_told(profile: str) -> None:
    """Acknowledged is applied once and everywhere, not applied is absent, unknown at most once; time agrees."""
    for seed in range(4):
        filler, frozen = (0, 3 * KIB, 20 * KIB)[seed % 3], seed % 2 == 0

        def machine(filler: int = filler, frozen: bool = frozen) -> Journal:
            return Journal(Ledger(), filler=filler, frozen=frozen)

        Simulation(machine, workload=Entries, seed=100 + seed, profile=profile).run()
