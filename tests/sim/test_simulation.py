"""The simulator: fixed seeds of every profile, that a seed decides everything, and that what is wrong is found."""

import logging
import os
import random
import subprocess
import sys

import msgspec
import pytest

from octopii.errors import ConfigError
from octopii.machines import CounterStateMachine, RegistryStateMachine
from octopii.sim import PROFILES, Report, Simulation, SimulationFailed, Workload, shrink
from octopii.sim.faults import KINDS
from octopii.sim.plan import draw
from octopii.state_machine import StateMachine
from tests.sim.specimens import (
    Counting,
    Fickle,
    Forgetful,
    NeverRight,
    NextStock,
    Restocking,
    Returning,
    Slotted,
    Stock,
    Transfers,
)

SEEDS = 4
"""Of each of the ten profiles; `make sim` runs many more."""


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_is_lost(profile: str) -> None:
    """Whatever goes wrong under a profile: every rule holds at every step, and the history is linearizable."""
    for seed in range(SEEDS):
        outcome = Simulation(seed=seed, profile=profile).run()
        assert outcome.calls > 0
        assert outcome.shown is None or PROFILES[profile].shows


def test_a_seed_decides_everything() -> None:
    """Two processes with different hash seeds come to the same trace, byte for byte, and another seed to another."""
    program = (
        "import logging; logging.disable(50)\n"
        "from octopii.sim import Simulation\n"
        "for profile in ('chaos', 'membership', 'upgrade'):\n"
        "    for seed in (3, 4): print(Simulation(seed=seed, profile=profile).run().digest)\n"
    )
    digests = []
    for hash_seed in ("1", "4242"):
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(ran.stdout.split())
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 6


def test_every_kind_of_fault_is_injected_by_some_profile() -> None:
    """No kind of fault is dead code, and no profile names one that does not exist."""
    named = {kind for profile in PROFILES.values() for kind in profile.rates}
    assert named == set(KINDS)


def test_a_plan_can_be_cut_down() -> None:
    """Fewer members, less time and chosen faults leave all else of a plan as it was drawn."""
    whole = draw(5, "chaos")
    cut = draw(5, "chaos", members=1, seconds=3.0, faults=frozenset({0, 1}))
    assert cut.members == 1
    assert sum(cut.rounds) == pytest.approx(3.0)
    assert set(cut.faults) <= {fault for fault in whole.faults if fault.number in (0, 1)}
    same = msgspec.structs.replace(cut, members=whole.members, rounds=whole.rounds, faults=whole.faults)
    assert same == whole


def test_a_seed_means_the_same_alone_and_among_all() -> None:
    """`all` goes round the profiles; the seed of one of them is the seed of that profile."""
    names = [draw(seed, "all").profile for seed in range(len(PROFILES))]
    assert names == list(PROFILES)
    assert draw(7, "all") == draw(7, names[7])


def test_a_profile_that_does_not_exist_is_an_error() -> None:
    """The error names the profiles that there are."""
    with pytest.raises(ConfigError, match="choose from calm, network"):
        draw(0, "weather")
    with pytest.raises(ConfigError, match="1 to 7"):
        draw(0, "calm", members=8)
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="0 seconds or more"):
            draw(0, "calm", seconds=seconds)


def test_a_machine_without_a_workload_is_an_error() -> None:
    """The simulator does not guess what clients would say."""
    with pytest.raises(ConfigError, match="Fickle"):
        Simulation(Fickle)


def test_a_machine_of_ones_own_runs() -> None:
    """A machine and a workload are all it takes, and without a model the history is not judged."""
    outcome = Simulation(CounterStateMachine, workload=Transfers, seed=1, profile="crashes").run()
    assert isinstance(outcome, Report)
    assert outcome.verdict == "not judged"


@pytest.mark.parametrize("machine", [CounterStateMachine, RegistryStateMachine])
def test_the_machines_of_the_package_have_workloads(machine: type[StateMachine]) -> None:
    """Counters and registries are run and judged like the key-value store."""
    for seed in range(2):
        assert Simulation(machine, seed=seed, profile="chaos").run().verdict == "linearizable"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_typed_machine_runs_under_every_profile(profile: str) -> None:
    """Typed commands, queries, declared errors and snapshots: nothing is found wrong with a machine that is right."""
    for seed in range(2):
        outcome = Simulation(Stock, workload=Restocking, upgrade=NextStock, seed=seed, profile=profile).run()
        assert outcome.calls > 0
        assert outcome.verdict in ("linearizable", "unknown") or PROFILES[profile].shows


def test_the_next_version_of_a_machine_may_have_more_commands_and_more_state() -> None:
    """A rolling upgrade makes a new command active: all follow, the copy by which they are judged included."""
    Simulation(Stock, workload=Returning, upgrade=NextStock, seed=1, profile="upgrade").run()
    assert len(Returning.returned) > 1
    assert min(Returning.returned) == max(Returning.returned) > 0


@pytest.mark.parametrize("profile", PROFILES)
def test_the_machines_that_are_looked_at_stay_as_they_are(profile: str) -> None:
    """A machine that takes no attribute but its own runs: the simulator sets none on it."""
    assert Simulation(Slotted, workload=Counting, seed=1, profile=profile, seconds=3.0).run().calls > 0


def failure_of(simulation: Simulation, seeds: int = 30) -> SimulationFailed:
    """The first failure of so many seeds."""
    for seed in range(seeds):
        plan = draw(seed, simulation.plan.profile)
        try:
            simulation.replay(plan).run()
        except SimulationFailed as failure:
            return failure
    raise AssertionError("no seed failed")


def test_a_snapshot_that_forgets_is_found() -> None:
    """A machine whose `restore` loses something fails, and the story says how to see it again."""
    failure = failure_of(Simulation(Forgetful, workload=Transfers, profile="crashes"))
    assert failure.rule == "state-machine safety"
    assert str(failure).endswith(f"to see it again: {failure.story.command}")
    assert "--machine tests.sim.specimens:Forgetful --workload tests.sim.specimens:Transfers" in failure.story.command


def test_a_machine_that_is_not_deterministic_is_found() -> None:
    """Answers that differ between replicas fail the run at the command where they do."""
    failure = failure_of(Simulation(Fickle, workload=Counting, profile="crashes"))
    assert failure.rule == "state-machine safety"
    assert "b'count' came to" in str(failure)


def test_a_check_of_the_workload_is_run_in_the_quiet() -> None:
    """What a user's `check` raises fails the run."""
    with pytest.raises(SimulationFailed, match="the books do not balance") as caught:
        Simulation(CounterStateMachine, workload=NeverRight, seed=2, profile="calm").run()
    assert "the quiet begins" in str(caught.value)


class Words(Transfers):
    """Gives text where bytes are meant."""

    def command(self, rng: random.Random) -> str:  # type: ignore[override]
        """Count a name up, in words."""
        return "INC name-1"


class Nothing(Transfers):
    """Gives nothing."""

    def command(self, rng: random.Random) -> None:  # type: ignore[override]
        """Forgot to return."""


class Broken(Transfers):
    """Raises on its own account."""

    def command(self, rng: random.Random) -> bytes:
        """Divide by nothing."""
        return b"%d" % (1 // 0)


def run_briefly(workload: type[Workload]) -> Report:
    """A short run of counters."""
    return Simulation(CounterStateMachine, workload=workload, seed=1, profile="calm", seconds=1.0).run()


def test_a_workload_may_say_its_commands_in_text() -> None:
    """Text is taken as UTF-8, as a node and a client take it."""
    assert run_briefly(Words).calls > 0


def test_what_a_workload_returns_and_is_no_command_is_named() -> None:
    """The error names the workload, its method, and what that returned."""
    with pytest.raises(SimulationFailed, match=r"Nothing\.command\(\) returned None"):
        run_briefly(Nothing)
    with pytest.raises(SimulationFailed, match=r"Workload has no command\(\)"):
        run_briefly(Workload)


def test_an_error_in_a_workload_is_told_with_its_place() -> None:
    """The story shows the line of the user's own code that raised, and none of the simulator's."""
    with pytest.raises(SimulationFailed) as caught:
        run_briefly(Broken)
    text = str(caught.value)
    assert "ZeroDivisionError" in text.splitlines()[0]
    assert "test_simulation.py" in text
    assert 'return b"%d" % (1 // 0)' in text
    assert "sim/workload.py" not in text


def test_what_simulated_nodes_log_is_dropped_unless_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """A run logs nothing; once the logger has a level, it logs; and no level is left behind."""
    logger = logging.getLogger("octopii")
    Simulation(seed=3, profile="membership").run()
    assert caplog.records == []
    assert logger.level == logging.NOTSET
    with caplog.at_level(logging.WARNING, logger="octopii"):
        Simulation(seed=3, profile="membership").run()
        assert logger.level == logging.WARNING
    assert "was removed from the cluster" in caplog.text


def test_a_failure_shrinks_to_what_it_needs() -> None:
    """The smallest failure breaks the same rule, with fewer faults or machines, and its plan fails again."""
    simulation = Simulation(Forgetful, workload=Transfers, profile="crashes")
    failure = failure_of(simulation)
    smallest = shrink(simulation, failure)
    assert smallest.rule == failure.rule
    assert len(smallest.plan.faults) <= 2 < len(failure.plan.faults)
    assert smallest.plan.members <= failure.plan.members
    with pytest.raises(SimulationFailed) as again:
        simulation.replay(smallest.plan).run()
    assert str(again.value) == str(smallest)
