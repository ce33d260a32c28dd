"""Each ready-made machine does what its model does: by itself, and as three replicas that lose power now and then."""

import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopii.errors import CommandError
from octopii.state_machine import StateMachine
from tests.machines.models import MODELS, Model
from tests.machines.replicas import ThreeReplicas
from tests.machines.specimens import written

START = 1_700_000_000.0
MONTH = 30 * 24 * 3600

Case = tuple[Callable[[], StateMachine], Callable[[], Model], st.SearchStrategy[bytes]]

pytestmark = pytest.mark.parametrize("case", MODELS.values(), ids=MODELS.keys())


def outcome(call: Callable[[bytes], bytes], command: bytes) -> bytes | None:
    try:
        return call(command)
    except CommandError:
        return None


@given(data=st.data())
@settings(max_examples=150)
def test_it_does_what_its_model_does(case: Case, data: st.DataObject) -> None:
    """Any commands, any passing of time, compactions, snapshots and restores in between: the same answers."""
    factory, make_model, commands = case
    machine, model = factory(), make_model()
    machine.clock.set(START)
    model.now = START
    acts = st.one_of(
        commands, commands, commands, st.sampled_from([1.0, 15.0, 3000.0, MONTH - 1.0, "compact", "restore"])
    )
    for act in data.draw(st.lists(acts, max_size=40)):
        if isinstance(act, bytes):
            asked = outcome(machine.query, act)
            answer = outcome(machine.apply, act)
            assert answer == model.apply(act), act
            assert asked in (None, answer)
        elif isinstance(act, float):
            machine.clock.advance(act)
            model.now += act
        elif act == "compact":
            machine.compact()
            model.compact()
        else:
            restored = factory()
            restored.restore(memoryview(written(machine)))
            assert written(restored) == written(machine)
            restored.clock.set(machine.clock.now())
            machine = restored


def without_times(answer: bytes | None) -> bytes | None:
    """The answer with replicated times taken out: the cluster's clock is its own."""
    return None if answer is None else re.sub(rb'"(\w+_at|last_heartbeat|lease_until|timestamp)":[\d.]+', b"", answer)


@given(data=st.data())
@settings(max_examples=8)
def test_it_does_what_its_model_does_on_three_nodes(case: Case, data: st.DataObject) -> None:
    """Through a client, with replicas that lose power in between, every answer is the model's, and all states agree."""
    factory, make_model, commands = case
    model, rng = make_model(), random.Random(data.draw(st.integers(0, 1000)))
    cluster = ThreeReplicas(factory, seed=rng.randrange(10**6))
    # Time is the cluster's: a lease of seconds may run out or not.
    timeless = commands.map(lambda command: re.sub(rb"^(CLAIM\t\w+)\t\d+$", rb"\1", command))
    sent = data.draw(st.lists(timeless, min_size=20, max_size=40))
    for number, command in enumerate(sent):
        if number % 12 == 7:
            cluster.crash_one(rng)
        answer = cluster.settled(cluster.client.propose(command, timeout=60.0))
        expected = model.apply(command)
        assert without_times(answer) == without_times(expected), command
        reads = outcome(factory().query, command) is not None
        if reads:
            asked = cluster.settled(cluster.client.query(command=command, timeout=60.0))
            assert without_times(asked) == without_times(expected)
    cluster.come_to_rest()
    assert len({written(node.machine) for node in cluster.nodes}) == 1
