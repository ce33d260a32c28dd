"""Random schedules over 3 to 7 nodes: whatever is lost, doubled, overtaken or crashed, Raft's properties hold.

The schedules and what they do are in `harness_schedule`, the properties in `harness_checks`.
"""

import re
from pathlib import Path

import pytest

from tests.mutants.planting import planted
from tests.mutants.raft import MUTANTS
from tests.raft.harness_scenario import parse
from tests.raft.harness_schedule import Schedule, replay, run_seed, shrink

FIXED_SEEDS = 500
CHUNK = 25
HEAVY_SEEDS = 10_000


@pytest.mark.parametrize("first", range(0, FIXED_SEEDS, CHUNK))
def test_schedules(first: int) -> None:
    """All properties hold after every step of each schedule, and afterwards every member comes to the same state."""
    for seed in range(first, first + CHUNK):
        story = run_seed(seed)
        assert story is None, story


@pytest.mark.heavy
@pytest.mark.parametrize("first", range(FIXED_SEEDS, FIXED_SEEDS + HEAVY_SEEDS, 500))
def test_many_schedules(first: int) -> None:
    """The same for thousands of schedules."""
    for seed in range(first, first + 500):
        story = run_seed(seed)
        assert story is None, story


def test_a_seed_is_one_schedule() -> None:
    """The same seed draws the same commands and ends in the same states; the commands alone do as well."""
    one, other = Schedule(5), Schedule(5)
    assert one.run() is None
    assert other.run() is None
    assert one.lines == other.lines
    states = [(peer.applied, peer.digest, peer.term, peer.role) for peer in one.cluster.live()]
    assert states == [(peer.applied, peer.digest, peer.term, peer.role) for peer in other.cluster.live()]
    assert replay(one.lines) is None


def test_schedules_reach_deep_states() -> None:
    """Schedules elect leaders, commit, change members, install snapshots, answer reads: they test what they claim."""
    elections = committed = memberships = snapshots = reads = lost = 0
    for seed in range(40):
        schedule = Schedule(seed)
        assert schedule.run() is None
        checker = schedule.cluster.checker
        elections += len(checker.elections)
        committed += checker.commit
        memberships += len(checker.memberships)
        snapshots += schedule.cluster.installed
        reads += len(schedule.cluster.answered)
        lost += sum(line.startswith("crash") for line in schedule.lines)
    assert elections > 100
    assert committed > 1000
    assert memberships > 60
    assert snapshots > 20
    assert reads > 50
    assert lost > 40


def test_a_failing_schedule_is_shrunk_to_a_scenario() -> None:
    """With a known bug in place a failure says how to replay it, and shrinks to a scenario that fails alike."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "vote forgotten on restart")
    with planted(mutant):
        for seed in range(FIXED_SEEDS):
            failure = Schedule(seed).run()
            if failure is not None:
                break
        assert failure is not None
        story = run_seed(seed)
        assert story is not None
        assert f"--seed {seed}" in story
        small = shrink(failure)
        assert small.rule == failure.rule
        assert len(small.lines) < len(failure.lines) / 2
        path = re.search(r"scenario file: (\S+)", story)
        assert path is not None
        commands = [block.command for block in parse(Path(path[1]).read_text(encoding="utf-8")) if block.command]
        again = replay(commands)
        assert again is not None
        assert again.rule == failure.rule
    assert replay(small.lines) is None
