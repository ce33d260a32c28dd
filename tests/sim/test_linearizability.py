"""The checker of histories: against brute force, against hand-made histories, and at its limits."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from octopii.errors import CommandError
from octopii.machines import CounterStateMachine, KvStateMachine, RegistryStateMachine, TaskQueueStateMachine
from octopii.sim import (
    CounterModel,
    KvModel,
    Model,
    Operation,
    Outcome,
    Query,
    QueueModel,
    RegisterModel,
    RegistryModel,
    check_history,
)
from octopii.state_machine import StateMachine
from tests.sim.histories import brute_force, live, operation

QUEUE_VERBS = ("SUBMIT", "CLAIM", "START", "COMPLETE", "FAIL", "RELEASE", "STATUS", "DESCRIBE", "EXTEND")

Request = Callable[[random.Random], bytes]


def kv_request(keys: int, values: int = 3) -> Request:
    """Requests of a key-value store, one half reads."""

    def make(rng: random.Random) -> bytes:
        key = rng.randrange(keys)
        verb = rng.choices(("GET", "SET", "DELETE"), (5, 4, 1))[0]
        return f"{verb} key-{key}{f' {rng.randrange(values)}' if verb == 'SET' else ''}".encode()

    return make


def counter_request(counters: int) -> Request:
    """Requests of counters."""
    return lambda rng: rng.choice(["INC {}", "INC {} 2", "GET {}"]).format(f"c-{rng.randrange(counters)}").encode()


def registry_request(services: int) -> Request:
    """Requests of a registry."""

    def make(rng: random.Random) -> bytes:
        verb = rng.choice(["REGISTER", "HEARTBEAT", "DEREGISTER", "LOOKUP", "DESCRIBE"])
        place = f" 10.0.0.{rng.randrange(3)} {rng.randrange(1, 4)} zone=z" if verb == "REGISTER" else ""
        return f"{verb} s-{rng.randrange(services)}{place}".encode()

    return make


def queue_request(ids: int) -> Request:
    """Requests of a queue."""

    def make(rng: random.Random) -> bytes:
        verb = rng.choices(
            ["SUBMIT", "CLAIM", "START", "COMPLETE", "FAIL", "RELEASE", "STATUS"], (6, 5, 1, 2, 1, 1, 1)
        )[0]
        argument = {"SUBMIT": f"p{rng.randrange(3)}", "CLAIM": f"w{rng.randrange(3)}"}.get(
            verb, str(rng.randint(1, ids))
        )
        return f"{verb}\t{argument}".encode()

    return make


KINDS: dict[str, tuple[Callable[[], StateMachine], Model, Request]] = {
    "kv": (KvStateMachine, KvModel(), kv_request(2)),
    "counter": (CounterStateMachine, CounterModel(), counter_request(1)),
    "registry": (RegistryStateMachine, RegistryModel(), registry_request(1)),
    "queue": (TaskQueueStateMachine, QueueModel(), queue_request(3)),
}


def spoiled(history: list[Operation], rng: random.Random) -> list[Operation]:
    """The same history with some answers exchanged, or calls moved in time: of either verdict."""
    history = list(history)
    for _ in range(rng.randrange(3)):
        first, second = rng.randrange(len(history)), rng.randrange(len(history))
        one, other = history[first], history[second]
        if one.returned is None or other.returned is None:
            continue
        if rng.random() < 0.5:
            history[first] = operation(one.client, one.invoked, one.returned, one.request, other.answer)
        else:
            by = rng.uniform(-3.0, 3.0)
            history[first] = operation(one.client, one.invoked + by, one.returned + by, one.request, one.answer)
    return history


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_are_those_of_trying_every_order(kind: str) -> None:
    """On 1,000 small random histories of each kind of machine, both verdicts among them, the two checkers agree."""
    factory, model, request = KINDS[kind]
    rng = random.Random(f"brute force {kind}")
    verdicts: Counter[bool] = Counter()
    for _ in range(1_000):
        size = rng.randint(2, 6)
        history = live(factory(), request, rng, operations=size, clients=rng.randint(1, 4), unknown=0.25)
        history = spoiled(history, rng)
        verdict = check_history(history, model)
        assert verdict.outcome is not Outcome.UNKNOWN
        assert verdict.is_linearizable == brute_force(history, model), (history, str(verdict))
        verdicts[verdict.is_linearizable] += 1
    assert min(verdicts[True], verdicts[False]) >= 100, verdicts


@pytest.mark.parametrize("kind", KINDS)
def test_the_core_of_a_violation_is_one_and_no_operation_of_it_can_be_spared(kind: str) -> None:
    """The operations that a verdict names cannot be ordered with all others unknown, and all are needed for that."""
    factory, model, request = KINDS[kind]
    rng = random.Random(f"core {kind}")
    violations = 0
    while violations < 100:
        history = spoiled(live(factory(), request, rng, operations=12, clients=3, unknown=0.1), rng)
        verdict = check_history(history, model)
        if verdict.outcome is not Outcome.VIOLATION:
            continue
        violations += 1
        assert verdict.core
        assert not check_history(known_only(history, verdict.core), model).is_linearizable
        for one in verdict.core:
            rest = [other for other in verdict.core if other is not one]
            assert check_history(known_only(history, rest), model).is_linearizable, (str(verdict), one)


def known_only(history: list[Operation], known: list[Operation] | tuple[Operation, ...]) -> list[Operation]:
    """The history with the outcomes of all but some operations unknown."""
    return [one if one in known else operation(one.client, one.invoked, None, one.request, None) for one in history]


class Diary(Model):
    """Text that is written on; an answer does not say behind what, only the empty request reads."""

    def initial(self) -> bytes:
        return b""

    def apply(self, state: bytes, request: bytes) -> tuple[bytes, bytes]:
        return state + request, b"OK" if request else state


# --- histories of which the verdict is known --------------------------------------------------------------------

SET_1 = operation(1, 0.0, 1.0, b"SET x 1", b"OK")
SET_2 = operation(2, 2.0, 3.0, b"SET x 2", b"OK")
MAYBE_SET_2 = operation(2, 2.0, None, b"SET x 2")

BY_HAND: dict[str, tuple[bool, Model, list[Operation]]] = {
    "a read of the newest value": (True, KvModel(), [SET_1, SET_2, operation(3, 4.0, 5.0, b"GET x", b"2")]),
    "a stale read": (False, KvModel(), [SET_1, SET_2, operation(3, 4.0, 5.0, b"GET x", b"1")]),
    "a read beside the write sees the old value": (
        True,
        KvModel(),
        [SET_1, SET_2, operation(3, 2.5, 5.0, b"GET x", b"1")],
    ),
    "two reads beside a write that go back in time": (
        False,
        KvModel(),
        [
            SET_1,
            operation(2, 2.0, 9.0, b"SET x 2", b"OK"),
            operation(3, 3.0, 4.0, b"GET x", b"2"),
            operation(4, 5.0, 6.0, b"GET x", b"1"),
        ],
    ),
    "a lost update": (
        False,
        CounterModel(),
        [
            operation(1, 0.0, 2.0, b"INC c", b"1"),
            operation(2, 1.0, 3.0, b"INC c", b"2"),
            operation(1, 4.0, 5.0, b"GET c", b"1"),
        ],
    ),
    "two updates of one value": (
        False,
        CounterModel(),
        [operation(1, 0.0, 2.0, b"INC c", b"1"), operation(2, 1.0, 3.0, b"INC c", b"1")],
    ),
    "a call that was applied twice": (
        False,
        CounterModel(),
        [operation(1, 0.0, 1.0, b"INC c", b"1"), operation(1, 2.0, 3.0, b"GET c", b"2")],
    ),
    "an unknown call that was applied twice": (
        False,
        CounterModel(),
        [operation(1, 0.0, None, b"INC c"), operation(1, 2.0, 3.0, b"GET c", b"2")],
    ),
    "a read from the future": (
        False,
        KvModel(),
        [operation(3, 0.0, 1.0, b"GET x", b"2"), operation(2, 2.0, 3.0, b"SET x 2", b"OK")],
    ),
    "an unknown outcome that happened late": (
        True,
        KvModel(),
        [
            SET_1,
            MAYBE_SET_2,
            operation(3, 4.0, 5.0, b"GET x", b"1"),
            operation(3, 6.0, 7.0, b"GET x", b"2"),
        ],
    ),
    "an unknown outcome that never happened": (
        True,
        KvModel(),
        [SET_1, MAYBE_SET_2, operation(3, 4.0, 5.0, b"GET x", b"1")],
    ),
    "an unknown outcome that happened, and then had not": (
        False,
        KvModel(),
        [
            SET_1,
            MAYBE_SET_2,
            operation(3, 4.0, 5.0, b"GET x", b"2"),
            operation(3, 6.0, 7.0, b"GET x", b"1"),
        ],
    ),
    "an unknown outcome seen before its invocation": (
        False,
        KvModel(),
        [SET_1, operation(3, 1.2, 1.8, b"GET x", b"2"), MAYBE_SET_2],
    ),
    "a task claimed twice": (
        False,
        QueueModel(),
        [
            operation(1, 0.0, 1.0, b"SUBMIT\tp", b"1"),
            operation(2, 2.0, 4.0, b"CLAIM\ta", b'{"id":1,"payload":"p","status":"Assigned","assigned_to":"a"}'),
            operation(3, 2.0, 4.0, b"CLAIM\tb", b'{"id":1,"payload":"p","status":"Assigned","assigned_to":"b"}'),
        ],
    ),
    "tasks claimed out of order": (
        False,
        QueueModel(),
        [
            operation(1, 0.0, 1.0, b"SUBMIT\tp", b"1"),
            operation(1, 2.0, 3.0, b"SUBMIT\tq", b"2"),
            operation(2, 4.0, 5.0, b"CLAIM\ta", b'{"id":2,"payload":"q","status":"Assigned","assigned_to":"a"}'),
        ],
    ),
    "an empty queue that has a task": (
        False,
        QueueModel(),
        [
            operation(1, 0.0, 1.0, b"SUBMIT\tp", b"1"),
            operation(2, 4.0, 5.0, b"CLAIM\ta", CommandError("no task is pending")),
        ],
    ),
    "a swap that failed without reason": (
        False,
        RegisterModel(),
        [operation(1, 0.0, 1.0, b"WRITE a", b"OK"), operation(2, 2.0, 3.0, b"CAS a b", b"FAILED")],
    ),
    "two swaps of which both won": (
        False,
        RegisterModel(),
        [
            operation(1, 0.0, 1.0, b"WRITE a", b"OK"),
            operation(2, 2.0, 4.0, b"CAS a b", b"OK"),
            operation(3, 2.0, 4.0, b"CAS a c", b"OK"),
        ],
    ),
    "a service that was found after it left": (
        False,
        RegistryModel(),
        [
            operation(1, 0.0, 1.0, b"REGISTER s 10.0.0.1 80", b"REGISTERED"),
            operation(1, 2.0, 3.0, b"DEREGISTER s", b"OK"),
            operation(2, 4.0, 5.0, b"LOOKUP s", b"10.0.0.1:80"),
        ],
    ),
    "two unknown outcomes, of which only one could have come later": (
        True,
        RegisterModel(),
        [
            operation(1, 0.0, 1.0, b"WRITE b", b"OK"),
            operation(2, 2.0, None, b"WRITE a"),
            operation(3, 2.1, None, b"CAS b a"),
            operation(1, 3.0, 4.0, b"READ", b"a"),
            operation(1, 5.0, 6.0, b"WRITE c", b"OK"),
            operation(1, 7.0, 8.0, b"READ", b"a"),
        ],
    ),
    "an unknown outcome that shows only after the next answer": (
        True,
        Diary(),
        [
            operation(1, 0.0, None, b"a"),
            operation(2, 1.0, 2.0, b"b", b"OK"),
            operation(2, 3.0, 4.0, b"", b"ab"),
        ],
    ),
    "an unknown outcome in a place where it cannot have been": (
        False,
        Diary(),
        [
            operation(1, 2.5, None, b"a"),
            operation(2, 1.0, 2.0, b"b", b"OK"),
            operation(2, 3.0, 4.0, b"", b"ab"),
        ],
    ),
    "nothing at all": (True, KvModel(), []),
    "nothing but unknown outcomes": (True, KvModel(), [MAYBE_SET_2, operation(1, 0.0, None, b"GET x")]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_histories_made_by_hand(name: str) -> None:
    """Each history gets the verdict that its name says, from both checkers."""
    expected, model, history = BY_HAND[name]
    assert brute_force(history, model) is expected
    assert check_history(history, model).is_linearizable is expected


def test_a_violation_names_the_operations_that_matter_and_no_others() -> None:
    """Among hundreds of operations the text names the three of a stale read, and when each of them ran."""
    rng = random.Random(1)
    history = live(KvStateMachine(), kv_request(5), rng, operations=600, clients=6, unknown=0.02)
    end = max(one.returned or 0.0 for one in history)
    history += [
        operation(41, end + 1, end + 2, b"SET key-3 old", b"OK"),
        operation(42, end + 3, end + 4, b"SET key-3 new", b"OK"),
        operation(43, end + 5, end + 6, b"GET key-3", b"old"),
        operation(44, end + 7, end + 8, b"GET key-3", b"new"),
    ]
    verdict = check_history(history, KvModel())
    assert verdict.outcome is Outcome.VIOLATION
    assert [one.client for one in verdict.core] == [41, 42, 43]
    text = str(verdict)
    assert "part key-3" in text
    assert "these 3 operations" in text
    for line in ("client 41", "client 42", "client 43", "SET key-3 old -> OK", "SET key-3 new -> OK", "-> old"):
        assert line in text, text


def test_an_operation_that_returned_before_it_was_invoked_is_refused() -> None:
    """A history that is none is an error, not a verdict."""
    with pytest.raises(ValueError, match="before it was invoked"):
        check_history([operation(1, 2.0, 1.0, b"GET x", b"1")], KvModel())


def test_a_query_of_unknown_outcome_is_never_mistaken_for_a_command() -> None:
    """It has no effect, also where the same bytes as a command of unknown outcome have one."""
    history = [
        operation(1, 0.0, None, Query(b"INC c"), None),
        operation(2, 1.0, None, b"INC c", None),
        operation(3, 2.0, 3.0, b"GET c", b"1"),
    ]
    assert check_history(history, CounterModel()).is_linearizable
    assert not check_history([history[0], history[2]], CounterModel()).is_linearizable


# --- size, and the limit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "request_", "operations"),
    [
        ("kv", kv_request(50, 1_000), 10_000),
        ("counter", counter_request(50), 10_000),
        ("registry", registry_request(50), 10_000),
        ("queue", queue_request(200), 500),
    ],
)
def test_long_histories_of_16_clients_take_few_steps(kind: str, request_: Request, operations: int) -> None:
    """The search does little more than it must: fewer than ten steps an operation, unknown outcomes included."""
    factory, model, _ = KINDS[kind]
    history = live(factory(), request_, random.Random(kind), operations=operations, clients=16, unknown=0.01)
    verdict = check_history(history, model)
    assert verdict.is_linearizable, str(verdict)
    assert verdict.operations == verdict.ordered == operations
    assert verdict.steps < 10 * operations, verdict.steps


def test_at_its_limit_the_verdict_is_unknown_and_says_what_was_checked() -> None:
    """A part that takes too many steps is named with how far it came; the other parts are judged all the same."""
    writes = [operation(one, 0.0, 10.0, f"SET x {one}".encode(), b"OK") for one in range(16)]
    hard = [*writes, operation(20, 11.0, 12.0, b"GET x", b"thin air")]
    easy = [operation(1, 0.0, 1.0, b"SET y 1", b"OK"), operation(1, 2.0, 3.0, b"GET y", b"1")]
    verdict = check_history([*hard, *easy], KvModel(), max_steps=1_000)
    assert verdict.outcome is Outcome.UNKNOWN
    assert not verdict.is_linearizable
    assert str(verdict) == (
        "unknown: 1 of 2 parts are linearizable; part x: the first 16 of 17 completed operations, in the order of "
        "their return, can be ordered; the search ended after 1000 steps"
    )
    wrong = [*easy, operation(1, 4.0, 5.0, b"GET y", b"2")]
    assert check_history([*hard, *wrong], KvModel(), max_steps=1_000).outcome is Outcome.VIOLATION
