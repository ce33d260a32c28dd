"""What a call comes to: not applied, unknown, or answered; and what a session has to do with it."""

import math

import pytest

from octopii.errors import (
    CallTimeout,
    ConnectionLost,
    DiskFull,
    NoLeader,
    OctopiiError,
    OutcomeUnknown,
    Overloaded,
    QueryNotSupported,
    SessionExpired,
    ShuttingDown,
)
from octopii.wire.call import CallLimits
from octopii.wire.requests import (
    Consistency,
    FailureKind,
    Propose,
    SessionEnd,
    TransferLeader,
)
from tests.wire.model_cluster import Faults, cluster, proposals, silent

# --- outcomes ---------------------------------------------------------------------------------------------------


def test_a_call_that_was_never_sent_was_not_applied() -> None:
    """No node, no doubt."""
    model = cluster()
    model.faults = Faults(no_dial=1.0)
    calls = [
        model.machine.propose([b"x"], deadline=1.0),
        model.machine.query([b"q"], consistency=Consistency.STALE, deadline=1.0, now=0.0),
    ]
    model.run(2.0)
    assert all(type(model.outcomes[call]) is NoLeader for call in calls)


def test_a_call_that_was_refused_each_time_was_not_applied() -> None:
    """The error is that of the last refusal, with its hint."""
    model = silent()
    call = model.machine.propose([b"x"], deadline=2.0)
    model.run(0.5)
    for turn in range(1, 100):
        if len(model.outcomes):
            break
        if isinstance(model.sent[-1][1], Propose):
            model.fail(FailureKind.NO_LEADER)
        model.run(0.5 + turn / 10)
    assert type(model.outcomes[call]) is NoLeader
    assert len(proposals(model)) > 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FailureKind.OVERLOADED, Overloaded),
        (FailureKind.DISK_FULL, DiskFull),
        (FailureKind.OUTCOME_UNKNOWN, OutcomeUnknown),
        (FailureKind.INTERNAL, OutcomeUnknown),
        (FailureKind.CONFIG_ERROR, OutcomeUnknown),
    ],
)
def test_a_first_refusal_of_the_call_itself_is_the_outcome(kind: FailureKind, error: type[OctopiiError]) -> None:
    """What trying again would not mend is said at once, to each call of the group with an exception of its own."""
    model = silent()
    calls = [model.machine.propose([b"x"], deadline=10.0), model.machine.propose([b"y"], deadline=10.0)]
    model.run(0.5)
    model.fail(kind)
    model.run(0.7)
    errors = [model.outcomes[call] for call in calls]
    assert [type(found) for found in errors] == [error, error]
    assert errors[0] is not errors[1]
    model.machine.propose([b"z"], deadline=10.0)
    model.run(1.0)
    assert model.last().group.acked == model.last().group.first, "the failed calls are not waited for"


@pytest.mark.parametrize(
    "kind", [FailureKind.DISK_FULL, FailureKind.OVERLOADED, FailureKind.NO_LEADER, FailureKind.TOO_LARGE]
)
def test_a_refusal_after_a_lost_try_never_becomes_not_applied(kind: FailureKind) -> None:
    """The lost try may have counted: the refusal of a later one is no proof, so it is tried until the deadline."""
    model = silent()
    call = model.machine.propose([b"x"], deadline=3.0)
    model.run(0.5)
    model.break_link(model.sent[-1][0])
    for turn in range(1, 30):
        model.run(0.5 + turn / 10)
        if isinstance(model.sent[-1][1], Propose) and not model.outcomes:
            model.fail(kind)
    assert type(model.outcomes[call]) is CallTimeout
    assert isinstance(model.outcomes[call], OutcomeUnknown)
    assert len({request.group.first for request in proposals(model)}) == 1


def test_a_call_without_an_answer_times_out_as_unknown() -> None:
    """It was sent, so it may have been applied."""
    model = silent()
    call = model.machine.propose([b"x"], deadline=0.5)
    model.run(0.6)
    assert isinstance(model.outcomes[call], CallTimeout)
    assert isinstance(model.outcomes[call], TimeoutError)


def test_what_may_not_be_repeated_fails_with_the_node_s_own_words() -> None:
    """A request that changes something is not sent again: its caller reads why it has no answer."""
    model = silent()
    call = model.machine.ask(TransferLeader(0, 2), deadline=5.0)
    model.run(0.5)
    model.fail(FailureKind.CALL_TIMEOUT, text="the leader did not change in time")
    model.run(0.6)
    assert isinstance(model.outcomes[call], CallTimeout)
    assert str(model.outcomes[call]) == "the leader did not change in time"


def test_calls_of_one_group_have_their_own_deadlines() -> None:
    """One gives up, the other goes on; the group is sent again whole, because its numbers are fixed."""
    model = silent()
    short = model.machine.propose([b"short"], deadline=0.5)
    long = model.machine.propose([b"long"], deadline=10.0)
    model.run(0.6)
    assert list(model.outcomes) == [short]
    model.break_link(model.sent[-1][0])
    model.silent = False
    model.run(2.0)
    assert model.outcomes[long] == [b"ok:long"]
    assert model.last().group.commands == [b"short", b"long"]


def test_a_call_that_was_told_that_it_was_not_applied_never_goes_out_with_the_others() -> None:
    """A refused group is taken apart: what still waits gets new numbers, and what gave up is not among them."""
    model = silent()
    short = model.machine.propose([b"short"], deadline=0.6)
    long = model.machine.propose([b"long"], deadline=10.0)
    model.run(0.5)
    model.leader = 0
    model.silent = False
    model.fail(FailureKind.NO_LEADER)
    model.run(0.7)
    assert isinstance(model.outcomes[short], NoLeader)
    model.leader = 1
    model.run(5.0)
    assert model.outcomes[long] == [b"ok:long"]
    assert model.applied == [b"long"]


def test_a_group_that_nobody_waits_for_is_not_sent_again() -> None:
    """Its numbers count as acknowledged, so that the window and the nodes' tables do not fill with it."""
    model = silent()
    model.machine.propose([b"given up"], deadline=0.5)
    model.run(0.6)
    model.break_link(model.sent[-1][0])
    model.machine.propose([b"next"], deadline=10.0)
    model.silent = False
    model.run(2.0)
    assert [request.group.commands for request in proposals(model)] == [[b"given up"], [b"next"]]
    assert model.last().group.acked == 1


def test_cancelled_calls_have_no_outcome() -> None:
    """Waiting or sent, a cancelled call is not heard of again, and is not sent if it was not yet."""
    model = silent()
    waiting = model.machine.propose([b"waiting"], deadline=10.0)
    model.machine.cancel(waiting)
    sent = model.machine.propose([b"sent"], deadline=10.0)
    query = model.machine.query([b"q"], consistency=Consistency.STALE, deadline=10.0, now=0.0)
    model.run(0.5)
    model.machine.cancel(sent)
    model.machine.cancel(query)
    model.machine.cancel(12345)
    model.run(20.0)
    assert model.outcomes == {}
    assert [request.group.commands for request in proposals(model)] == [[b"sent"]]
    assert model.machine.pending == 0


def test_an_error_of_the_state_machine_is_the_outcome_of_a_query() -> None:
    """A query that is not supported is not tried again."""
    model = silent()
    call = model.machine.query([b"q"], consistency=Consistency.STALE, deadline=10.0, now=0.0)
    model.run(0.5)
    model.fail(FailureKind.QUERY_NOT_SUPPORTED, text="KvStateMachine answers no queries")
    model.run(1.0)
    assert isinstance(model.outcomes[call], QueryNotSupported)


def test_calls_that_the_window_held_back_until_their_deadline_are_overloaded() -> None:
    """They were not applied, and the error names the limit."""
    model = silent(limits=CallLimits(window_calls=1, try_timeout=60.0))
    model.machine.propose([b"x"], deadline=20.0)
    model.run(0.5)
    call = model.machine.propose([b"y"], deadline=1.0)
    model.run(2.0)
    error = model.outcomes[call]
    assert isinstance(error, Overloaded)
    assert error.limit == "window_calls"


def test_no_deadline_waits_for_ever() -> None:
    """An infinite deadline sets no timer of its own."""
    model = silent()
    model.machine.propose([b"x"], deadline=math.inf)
    model.run(100.0)
    assert model.outcomes == {}
    model.silent = False
    model.run(110.0)
    assert len(model.outcomes) == 1


# --- sessions ---------------------------------------------------------------------------------------------------


def test_a_first_try_goes_on_under_a_fresh_session() -> None:
    """The session had expired before the call was ever sent: it certainly was not applied, so nobody is bothered."""
    model = cluster()
    model.machine.propose([b"x"], deadline=10.0)
    model.run(1.0)
    model._sessions.clear()
    model._by_nonce.clear()
    call = model.machine.propose([b"y"], deadline=10.0)
    model.run(2.0)
    assert model.outcomes[call] == [b"ok:y"]
    assert len({request.group.session for request in proposals(model)}) == 2


def test_a_later_try_under_an_expired_session_is_of_unknown_outcome() -> None:
    """An earlier try may have counted before the session expired, so it is not sent under another one."""
    model = silent()
    call = model.machine.propose([b"x"], deadline=10.0)
    model.run(0.5)
    model._apply(0, model.last().group)
    model._sessions.clear()
    model._by_nonce.clear()
    model.break_link(model.sent[-1][0])
    model.silent = False
    after = model.machine.propose([b"y"], deadline=10.0)
    model.run(3.0)
    assert isinstance(model.outcomes[call], SessionExpired)
    assert model.outcomes[after] == [b"ok:y"]
    assert model.applied == [b"x", b"y"]


def test_a_long_idle_session_is_replaced_before_it_is_used() -> None:
    """After half its time to live without a call the client opens another, and does not find out the hard way."""
    model = cluster()
    model.machine.propose([b"x"], deadline=10.0)
    model.run(1.0)
    model.run(60.0)
    model.machine.propose([b"y"], deadline=70.0)
    model.run(62.0)
    assert model.applied == [b"x", b"y"]
    assert len({request.group.session for request in proposals(model)}) == 2


def test_closing_ends_the_session_and_every_call() -> None:
    """Sent calls are of unknown outcome, unsent ones not applied; the cluster is told that the session is over."""
    model = silent(limits=CallLimits(window_calls=1))
    sent = model.machine.propose([b"x"], deadline=10.0)
    model.run(0.5)
    unsent = model.machine.propose([b"y"], deadline=10.0)
    model.run(0.6)
    model.machine.close()
    model.run(1.0)
    assert isinstance(model.outcomes[sent], ConnectionLost)
    assert isinstance(model.outcomes[unsent], ShuttingDown)
    assert isinstance(model.sent[-1][1], SessionEnd)
    assert not model._links
    with pytest.raises(ShuttingDown):
        model.machine.propose([b"z"], deadline=10.0)
