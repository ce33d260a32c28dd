"""Cutting a failing run down: the same rule broken with less time, fewer machines, fewer faults.

Each step runs the simulation again with a smaller plan and keeps it when the same rule breaks. Faults are taken out in
ever smaller groups (delta debugging; Zeller and Hildebrandt, 2002). The number of runs is limited; the smallest plan so
far is the result.
"""

import msgspec

from octopii.sim.plan import Fault, Plan, draw
from octopii.sim.simulation import Simulation, SimulationFailed

max_runs = 120
"""Runs that one shrinking takes at most: a minute or so."""


class Shrinker:
    """The smallest failure found so far, and how many runs are left."""

    def __init__(self, simulation: Simulation, failure: SimulationFailed, *, runs: int = max_runs) -> None:
        self._simulation = simulation
        self.failure = failure
        self.runs = 0
        self._limit = runs

    def shrink(self) -> SimulationFailed:
        """Try everything once, and return the smallest failure."""
        self._shorten()
        self._take_out_machines()
        self._take_out_faults()
        self._shorten()
        return self.failure

    def _fails(self, plan: Plan) -> bool:
        """Whether the same rule breaks under a smaller plan; if so, it is the one to go on from."""
        if self.runs >= self._limit:
            return False
        self.runs += 1
        try:
            self._simulation.replay(plan).run()
        except SimulationFailed as failure:
            if failure.rule == self.failure.rule:
                self.failure = failure
                return True
        return False

    def _shorten(self) -> None:
        for share in (0.25, 0.5, 0.75, 0.9):
            plan = self.failure.plan
            shorter = draw(plan.seed, plan.profile, seconds=round(sum(plan.rounds) * share, 2))
            kept = {fault.number for fault in plan.faults}
            faults = tuple(fault for fault in shorter.faults if fault.number in kept)
            if self._fails(msgspec.structs.replace(shorter, members=plan.members, faults=faults)):
                return

    def _take_out_machines(self) -> None:
        for members in (1, 2, 3, 5):
            if members >= self.failure.plan.members:
                return
            if self._fails(msgspec.structs.replace(self.failure.plan, members=members)):
                return

    def _take_out_faults(self) -> None:
        groups = 1
        while self.failure.plan.faults and self.runs < self._limit:
            faults = self.failure.plan.faults
            size = max(1, len(faults) // groups)
            if not any(self._fails(self._without(faults[at : at + size])) for at in range(0, len(faults), size)):
                if size == 1:
                    return
                groups *= 2

    def _without(self, faults: tuple[Fault, ...]) -> Plan:
        plan = self.failure.plan
        return msgspec.structs.replace(plan, faults=tuple(fault for fault in plan.faults if fault not in faults))


def shrink(simulation: Simulation, failure: SimulationFailed, *, runs: int = max_runs) -> SimulationFailed:
    """The smallest failure of the same rule that was found within `runs` runs; its story has the command for it."""
    return Shrinker(simulation, failure, runs=runs).shrink()
