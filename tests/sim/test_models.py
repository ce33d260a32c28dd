"""The models of the checker, beside the machines that they are the specifications of."""

import random

import pytest

from octopii.errors import CommandError
from octopii.machines import CompositeStateMachine, CounterStateMachine, KvStateMachine, TaskQueueStateMachine
from octopii.sim import (
    CompositeModel,
    CounterModel,
    KvModel,
    MachineModel,
    Model,
    Query,
    QueueModel,
    RegisterModel,
    check_history,
)
from octopii.sim.models import IMPOSSIBLE, REFUSED
from octopii.state_machine import StateMachine
from tests.sim.histories import answer_of, live, operation
from tests.sim.test_linearizability import KINDS, counter_request, kv_request, queue_request

ODD: dict[str, list[bytes]] = {
    "kv": b"|SET|SET a|SET  x|SET a |SET a b c\x00|GET|GET a b|DELETE a b|get a|GET ".split(b"|"),
    "counter": [
        *b"|INC|INC a b|INC a 1 2|INC a +7|INC a -007|INC a 1_0|GET a b|INC a 9223372036854775807|INC b 1".split(b"|"),
        *b"INC b 9223372036854775807|INC c -9223372036854775808|INC c -1|INC a 9223372036854775808".split(b"|"),
        *(b"INC \xff 1", b"INC a " + b"0" * 64 + b"1", b" INC  a "),
    ],
    "registry": [
        *b"|REGISTER a|REGISTER a b 70000|REGISTER a b -1|REGISTER a b 080|LOOKUP a|REGISTER a b 1 x".split(b"|"),
        *b"REGISTER a b 1 =x|REGISTER a b 1 x=1 x=2|REGISTER a b 1 x=1=2 y=|DESCRIBE a|HEARTBEAT".split(b"|"),
        *b"DEREGISTER a b|LOOKUP \xff|REGISTER \xff b 1|NOSUCH a".split(b"|"),
        b"REGISTER c d 2 " + b" ".join(b"k%d=v" % n for n in range(65)),
    ],
    "queue": [
        *b"|SUBMIT|SUBMIT\t|SUBMIT\tp\t1|SUBMIT\tp\t-1\t1|SUBMIT\tp\t1\t0|SUBMIT\tp\t\t1|SUBMIT\tp\t1\t2\t3".split(
            b"|"
        ),
        *b"CLAIM\t|CLAIM\tw|CLAIM\tv\t60|CLAIM\tu\t0|CLAIM\tu\tx|START\t0|START\t+1|START\tx|START\t1\tv".split(b"|"),
        *b"STATUS\t1|DESCRIBE\t1|RELEASE\t1|CLAIM\tz|COMPLETE\t1\tz|COMPLETE\t1\ty|FAIL\t1|FAIL\t2|CLAIM\tw".split(
            b"|"
        ),
        *b"FAIL\t2\tw|FAIL\t2|EXTEND\t2|EXTEND\t2\tw\t60|EXTEND\t2\tw\t0|NOSUCH\t1|STATUS\t99|STATUS\t1\tw".split(b"|"),
        *(b"SUBMIT\t\xff", b"CLAIM\t\xff", b"CLAIM\tw", *(b"EXTEND\t%d" % task for task in range(1, 7))),
    ],
}
"""Requests at the edges of what each machine takes."""


def agrees(model: Model, machine: StateMachine, requests: list[bytes]) -> None:
    """Put the same requests to both, one after the other."""
    states: dict[object, object] = {}
    for request in requests:
        part = model.part_of(request)
        states[part], expected = model.apply(states.get(part, model.initial()), request)
        answer = answer_of(machine, request)
        assert model.accepts(expected, answer), (request, expected, answer)
        assert not model.accepts(expected, b"an answer of no machine")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_answers_what_its_machine_answers(kind: str) -> None:
    """On thousands of random requests, and on those that a machine refuses, model and machine give the same answers."""
    factory, model, request = KINDS[kind]
    rng = random.Random(kind)
    agrees(model, factory(), [request(rng) if rng.random() < 0.7 else rng.choice(ODD[kind]) for _ in range(5_000)])
    agrees(model, factory(), ODD[kind])


def test_a_register_reads_writes_and_swaps() -> None:
    """READ gives the last value written, CAS writes only over the value that it names."""
    model = RegisterModel()
    state = model.initial()
    answers: list[object] = []
    for request in [
        b"READ",
        b"WRITE a b",
        b"READ",
        b"CAS x y",
        b"READ",
        b"WRITE a",
        b"CAS a c",
        b"READ",
        b"CAS a",
        b"NO",
    ]:
        state, answer = model.apply(state, request)
        answers.append(answer)
    assert answers == [b"", b"OK", b"a b", b"FAILED", b"a b", b"OK", b"OK", b"c", REFUSED, REFUSED]


def test_a_model_never_says_that_a_request_changes_nothing_when_it_does() -> None:
    """What is put in order without a choice leaves the state as it was: reads, and what was refused."""
    for kind, (_, model, request) in KINDS.items():
        rng = random.Random(kind)
        state = model.initial()
        harmless = 0
        for _ in range(3_000):
            asked = request(rng) if rng.random() < 0.7 else rng.choice(ODD[kind])
            after, expected = model.apply(state, asked)
            answer = CommandError("no") if expected is REFUSED else None
            if model.changes_nothing(asked, answer):
                harmless += 1
                assert after == state, asked
            state = after
        assert harmless > 100


def test_a_composite_routes_to_the_models_of_its_parts() -> None:
    """Parts of different names and keys are independent, each judged by its own model, looking ahead included."""
    factories = {"kv": KvStateMachine, "n": CounterStateMachine, "q": TaskQueueStateMachine}
    model = CompositeModel({"kv": KvModel(), "n": CounterModel(), "q": QueueModel()})
    makers = {"kv": kv_request(3), "n": counter_request(2), "q": queue_request(4)}

    def request(rng: random.Random) -> bytes:
        name = rng.choice([*makers])
        return f"{name}:".encode() + makers[name](rng)

    rng = random.Random(3)
    agrees(model, CompositeStateMachine(factories), [request(rng) for _ in range(2_000)] + [b"x:GET a", b"kv", b""])
    history = live(CompositeStateMachine(factories), request, rng, operations=600, clients=6, unknown=0.03)
    verdict = check_history(history, model)
    assert verdict.is_linearizable, str(verdict)
    assert verdict.parts == 3 + 2 + 1
    stale = [operation(1, 1e6, 1e6 + 1, b"n:INC c-0", b"1")]
    assert not check_history([*history, *stale], model).is_linearizable


def test_any_machine_is_its_own_model() -> None:
    """A history of a machine is judged by the machine; queries go to `query`, and may be parted by key."""
    model = MachineModel(KvStateMachine, lambda request: request.split()[1])
    history = live(KvStateMachine(), kv_request(8), random.Random(5), operations=800, clients=5, unknown=0.02)
    assert check_history(history, model).is_linearizable
    late = [operation(1, 1e6, 1e6 + 1, b"SET new 1", b"OK"), operation(1, 1e6 + 2, 1e6 + 3, Query(b"GET new"), b"1")]
    assert check_history([*history, *late], model).is_linearizable
    wrong = operation(1, 1e6 + 4, 1e6 + 5, Query(b"GET new"), b"2")
    assert not check_history([*history, *late, wrong], model).is_linearizable
    refused = operation(1, 1e6 + 4, 1e6 + 5, Query(b"SET new 1"), CommandError("GET only"))
    assert check_history([*history, *late, refused], model).is_linearizable


def test_a_queue_looks_ahead_at_what_answers_show() -> None:
    """An unknown SUBMIT of another payload than a task is shown to have is not tried as that task."""
    shown = operation(2, 4.0, 5.0, b"CLAIM\ta", b'{"id":1,"payload":"q","status":"Assigned","assigned_to":"a"}')
    model = QueueModel().informed_by([shown])
    assert model.apply(model.initial(), b"SUBMIT\tp")[1] is IMPOSSIBLE
    state, answer = model.apply(model.initial(), b"SUBMIT\tq")
    assert answer == b"1"
    assert model.apply(state, b"CLAIM\tb")[1] is IMPOSSIBLE
    assert model.accepts(model.apply(state, b"CLAIM\ta")[1], shown.answer)
