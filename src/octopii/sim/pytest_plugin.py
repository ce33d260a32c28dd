"""The fixture `simulation` for pytest, there wherever this package is installed.

    def test_my_machine(simulation):
        simulation(MyMachine, workload=MyWorkload)

It runs a few seeds; `pytest --sim-seeds 1000` runs more, `--sim-seed 17` that one alone.
"""

from collections.abc import Callable

import pytest

from octopii.sim.simulation import Report, Simulation
from octopii.sim.workload import Workload
from octopii.state_machine import StateMachine

default_seeds = 20
"""Seeds of one call: some seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many seeds, which one."""
    group = parser.getgroup("octopii", "simulated clusters of octopii")
    group.addoption("--sim-seeds", type=int, default=None, help="seeds that each use of `simulation` runs")
    group.addoption("--sim-seed", type=int, default=None, help="the one seed that each use of `simulation` runs")


class SimulationRunner:
    """What the fixture gives: call it with a state machine."""

    def __init__(self, seeds: int | None, seed: int | None) -> None:
        self._seeds = seeds
        self._seed = seed

    def __call__(
        self,
        machine: Callable[[], StateMachine],
        *,
        workload: Callable[[], Workload] | None = None,
        profile: str = "chaos",
        upgrade: Callable[[], StateMachine] | None = None,
        seeds: int = default_seeds,
    ) -> list[Report]:
        """Run seeds from 0 on; raises `SimulationFailed` at the first that fails, with its story."""
        count = seeds if self._seeds is None else self._seeds
        numbers = range(count) if self._seed is None else [self._seed]
        return [
            Simulation(machine, workload=workload, seed=seed, profile=profile, upgrade=upgrade).run()
            for seed in numbers
        ]


@pytest.fixture
def simulation(request: pytest.FixtureRequest) -> SimulationRunner:
    """Run a state machine in simulated clusters."""
    return SimulationRunner(request.config.getoption("--sim-seeds"), request.config.getoption("--sim-seed"))
