"""Calls against a cluster in trouble, from seeds: no outcome may be untrue, and a seed replays exactly."""

import random
from collections import Counter

import pytest

from octopii.errors import (
    NotApplied,
    OutcomeUnknown,
)
from octopii.wire.call import CallLimits
from octopii.wire.links import LinkLimits
from tests.wire.model_cluster import Faults, ModelCluster, cluster

CALLS = 60


def run_schedule(seed: int) -> tuple[ModelCluster, dict[int, list[bytes]]]:
    """Run calls against a cluster in trouble, then in good order; return it with the commands of each call."""
    rng = random.Random(seed)
    limits = CallLimits(
        try_timeout=rng.choice([0.1, 0.5, 2.0]),
        window_calls=rng.choice([5, 50, 1000]),
        group_calls=rng.choice([1, 3, 100]),
        session_ttl=rng.choice([1.0, 100.0]),
        links=LinkLimits(dial_timeout=0.5),
    )
    model = cluster(limits=limits, seed=seed)
    calls: dict[int, list[bytes]] = {}
    for number in range(CALLS):
        if rng.random() < 0.3:
            chances = {name: rng.choice([0.0, 0.0, 0.05, 0.3]) for name in vars(Faults())}
            model.faults = Faults(**chances)
            model.leader = rng.randrange(4)
        if rng.random() < 0.1:
            for address in list(model._links):
                model.break_link(address)
        commands = [b"%d.%d" % (number, part) for part in range(rng.choice([1, 1, 1, 2, 5]))]
        calls[model.machine.propose(commands, deadline=model.now + rng.choice([0.2, 1.0, 5.0]))] = commands
        if rng.random() < 0.6:
            model.run(model.now + rng.expovariate(5))
    model.faults, model.leader = Faults(), 1
    model.run(model.now + 30.0)
    return model, calls


@pytest.mark.parametrize("block", range(20))
def test_every_outcome_is_true(block: int) -> None:
    """Over many schedules of refusals, losses, expiries and broken links, each outcome is what really happened.

    Answered: applied exactly once, with its own answers, commands side by side. Not applied: never. Unknown: at most
    once, all or nothing.
    """
    seen: Counter[str] = Counter()
    for seed in range(block * 20, block * 20 + 20):
        model, calls = run_schedule(seed)
        assert set(model.outcomes) == set(calls), f"seed {seed}: every call has an outcome"
        times = Counter(model.applied)
        for call, commands in calls.items():
            outcome = model.outcomes[call]
            seen[type(outcome).__name__] += 1
            counts = {times[command] for command in commands}
            assert len(counts) == 1, f"seed {seed}: call {call} was applied in part"
            if isinstance(outcome, list):
                assert outcome == [b"ok:" + command for command in commands], f"seed {seed}: call {call}"
                assert counts == {1}, f"seed {seed}: call {call} was answered and applied {counts} times"
            elif isinstance(outcome, NotApplied):
                assert counts == {0}, f"seed {seed}: call {call} failed with {outcome!r} and was applied"
            else:
                assert isinstance(outcome, OutcomeUnknown), f"seed {seed}: {outcome!r}"
                assert counts <= {0, 1}, f"seed {seed}: call {call} was applied {counts} times"
            if counts != {0}:
                at = model.applied.index(commands[0])
                assert model.applied[at : at + len(commands)] == commands
        assert model.machine.pending == 0
    assert seen["list"] > 100
    assert sum(seen.values()) - seen["list"] > 50, "the schedules have to hurt"


def test_a_schedule_replays_exactly() -> None:
    """The same seed gives the same requests in the same order: nothing depends on a clock or on hashing."""
    first, second = run_schedule(7)[0], run_schedule(7)[0]
    assert first.sent == second.sent
    assert list(map(str, first.outcomes.values())) == list(map(str, second.outcomes.values()))
