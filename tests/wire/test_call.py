"""The client without sockets: what it sends, when it sends it again, and that each outcome is true."""

import random

import pytest

from octopii.errors import (
    ApplyFailed,
    CallTimeout,
    CommandError,
    ConfigError,
    ConnectionLost,
    Overloaded,
    RemovedNode,
    TooLarge,
)
from octopii.wire.attempts import REQUEST_BYTES
from octopii.wire.call import CallLimits, CallMachine, unwrap
from octopii.wire.codec import ApplyFailedAnswer, CallGroup, CommandErrorAnswer
from octopii.wire.links import LinkLimits
from octopii.wire.requests import (
    Campaign,
    Consistency,
    Done,
    Failure,
    FailureKind,
    ForceSnapshot,
    Propose,
    ProposeAnswers,
    ProposeSince,
    Query,
    ReadIndex,
    Report,
    SessionRequest,
    StatusRequest,
    encode_request,
)
from tests.wire.model_cluster import Faults, cluster, proposals, silent

# --- the ordinary course ----------------------------------------------------------------------------------------


def test_a_call_is_answered() -> None:
    """Dial, open a session, propose, answer."""
    model = cluster()
    call = model.machine.propose([b"SET a 1"], deadline=5.0)
    model.run(1.0)
    assert model.outcomes == {call: [b"ok:SET a 1"]}
    assert model.applied == [b"SET a 1"]
    assert model.machine.pending == 0


def test_calls_made_together_go_as_one_group_and_get_their_own_answers() -> None:
    """Concurrent calls cost one message; a batch keeps its commands together."""
    model = cluster()
    model.machine.propose([b"first"], deadline=5.0)
    model.run(1.0)
    calls = [model.machine.propose([b"%d" % number], deadline=5.0) for number in range(10)]
    batch = model.machine.propose([b"x", b"y", b"z"], deadline=5.0)
    model.run(2.0)
    assert [len(request.group.commands) for request in proposals(model)] == [1, 13]
    assert [model.outcomes[call] for call in calls] == [[b"ok:%d" % number] for number in range(10)]
    assert model.outcomes[batch] == [b"ok:x", b"ok:y", b"ok:z"]


def test_numbers_are_consecutive_and_acked_follows_the_answers() -> None:
    """Each group begins where the one before ended, and acknowledges what was answered."""
    model = cluster()
    for turn in range(3):
        model.machine.propose([b"a", b"b"], deadline=10.0)
        model.run(float(turn + 1))
    assert [(request.group.first, request.group.acked) for request in proposals(model)] == [(0, 0), (2, 2), (4, 4)]


def test_an_empty_batch_is_answered_without_anybody() -> None:
    """Nothing to replicate needs no cluster."""
    model = cluster()
    call = model.machine.propose([], deadline=5.0)
    model.run(0.1)
    assert model.outcomes == {call: []}
    assert not model.sent


def test_queries_and_other_requests_need_no_session() -> None:
    """They are answered by the struct that belongs to them."""
    model = cluster()
    query = model.machine.query([b"GET a"], consistency=Consistency.STALE, deadline=5.0, now=0.0)
    other = model.machine.ask(Campaign(0), deadline=5.0)
    model.run(1.0)
    assert model.outcomes[query] == [b"answer"]
    assert isinstance(model.outcomes[other], Done)
    assert not any(isinstance(request, SessionRequest) for _, request in model.sent)
    assert model.sent[0][1] == Query(
        request_id=1, consistency=Consistency.STALE, commands=[b"GET a"], timeout_ns=5_000_000_000
    )


def test_unwrap_gives_what_users_see() -> None:
    """Bytes stay bytes; rejections become exceptions with their fields."""
    assert unwrap(b"x") == b"x"
    assert isinstance(unwrap(CommandErrorAnswer("no")), CommandError)
    failed = unwrap(ApplyFailedAnswer("KeyError"))
    assert isinstance(failed, ApplyFailed)
    assert failed.exception == "KeyError"
    assert str(failed) == "KeyError"
    assert str(unwrap(ApplyFailedAnswer("ZeroDivisionError", "division by zero"))) == (
        "ZeroDivisionError: division by zero"
    )


def test_a_client_needs_an_address() -> None:
    """An empty list is a configuration error, at once."""
    with pytest.raises(ConfigError):
        CallMachine([], rng=random.Random(1))


# --- trying again -----------------------------------------------------------------------------------------------


def test_a_lost_group_goes_out_again_as_it_was() -> None:
    """After a broken link the same numbers and the same commands are sent, and later calls do not join them."""
    model = silent()
    calls = [model.machine.propose([b"a"], deadline=10.0), model.machine.propose([b"b"], deadline=10.0)]
    model.run(0.5)
    first = model.last().group
    model.break_link(model.sent[-1][0])
    calls.append(model.machine.propose([b"c"], deadline=10.0))
    model.silent = False
    model.run(3.0)
    again = [request.group for request in proposals(model)[1:]]
    assert again[0] == first
    assert again[1].commands == [b"c"]
    assert [model.outcomes[call] for call in calls] == [[b"ok:a"], [b"ok:b"], [b"ok:c"]]


def test_a_lost_answer_is_fetched_not_applied_twice() -> None:
    """The command was applied, its answer lost: the second try gets the first one's answer."""
    model = silent()
    call = model.machine.propose([b"x"], deadline=10.0)
    model.run(0.5)
    model._apply(0, model.last().group)
    model.break_link(model.sent[-1][0])
    model.silent = False
    model.run(3.0)
    assert model.outcomes == {call: [b"ok:x"]}
    assert model.applied == [b"x"]


@pytest.mark.parametrize(("leader", "stays"), [(0, False), (1, True)])
def test_a_call_that_a_node_lost_track_of_goes_elsewhere_if_that_node_knows_no_leader(leader: int, stays: bool) -> None:
    """A leader that was cut off says that it lost the call: the next try goes to another node, at once, as it was."""
    model = silent()
    call = model.machine.propose([b"x"], deadline=10.0)
    model.run(0.5)
    address, first = model.sent[-1][0], model.last().group
    model.fail(FailureKind.CONNECTION_LOST, leader=leader and model.node_of(address))
    model.silent = False
    model.run(1.0)
    tries = [(where, request.group) for where, request in model.sent if isinstance(request, Propose)]
    assert tries[1][1] == first
    assert (tries[1][0] == address) is stays
    assert model.outcomes == {call: [b"ok:x"]}


def test_a_silent_link_is_left() -> None:
    """A node that takes requests and says nothing is left after `try_timeout`, and another gets them."""
    model = silent()
    call = model.machine.propose([b"x"], deadline=10.0)
    model.run(0.5)
    address = model.sent[-1][0]
    model.run(1.2)
    model.silent = False
    model.leader = model.node_of(address)
    model.run(5.0)
    assert model.outcomes == {call: [b"ok:x"]}
    assert model.sent[-1][0] != address, "and a hint does not lead back at once"


def test_one_missing_answer_on_a_lively_link_is_asked_for_again_there() -> None:
    """The link stays; only the request that was lost goes out again."""
    model = silent()
    call = model.machine.propose([b"x"], deadline=10.0)
    model.run(0.5)
    first = model.sent[-1]
    for turn in range(1, 6):
        model.reply(first[0], Done(10_000))
        model.run(0.5 + turn / 5)
    model.silent = False
    model.run(3.0)
    assert model.outcomes == {call: [b"ok:x"]}
    assert {address for address, request in model.sent if isinstance(request, Propose)} == {first[0]}


def test_the_opening_of_a_session_is_repeated_with_its_nonce() -> None:
    """A lost opening does not leave a second session behind."""
    model = cluster()
    model.faults = Faults(swallow=1.0)
    call = model.machine.propose([b"x"], deadline=20.0)
    model.run(2.5)
    model.faults = Faults()
    model.run(6.0)
    nonces = [request.nonce for _, request in model.sent if isinstance(request, SessionRequest)]
    assert len(nonces) >= 2
    assert len(set(nonces)) == 1
    assert model.outcomes == {call: [b"ok:x"]}


def test_reads_are_repeated_and_changes_are_not() -> None:
    """After a lost link a query goes out again; a request that changes something ends as of unknown outcome."""
    model = silent()
    reads = [
        model.machine.query([b"q"], consistency=Consistency.LINEARIZABLE, deadline=10.0, now=0.0),
        model.machine.ask(ReadIndex(0), deadline=10.0),
        model.machine.ask(StatusRequest(0), deadline=10.0),
    ]
    change = model.machine.ask(Campaign(0), deadline=10.0)
    model.run(0.5)
    model.break_link(model.sent[-1][0])
    model.silent = False
    model.run(3.0)
    assert all(not isinstance(model.outcomes[read], Exception) for read in reads)
    assert isinstance(model.outcomes[change], ConnectionLost)
    assert sum(isinstance(request, Campaign) for _, request in model.sent) == 1


def test_a_change_that_takes_long_is_waited_for() -> None:
    """A snapshot may take minutes: while its link is up and its deadline ahead, nobody gives it up or asks again."""
    model = silent()
    change = model.machine.ask(ForceSnapshot(0), deadline=60.0)
    model.run(40.0)
    assert change not in model.outcomes
    [(address, request)] = [sent for sent in model.sent if isinstance(sent[1], ForceSnapshot)]
    model.machine.receive(address, Done(request.request_id, 7), 40.0)
    model.silent = False
    model.run(41.0)
    assert model.outcomes[change] == Done(request.request_id, 7)


def test_a_node_does_not_leave_itself() -> None:
    """Where no network lies between, silence is no broken link: calls are tried again, a long change is not lost."""
    limits = CallLimits(try_timeout=1.0, links=LinkLimits(follow_leader=False, leave_silent=False))
    model = silent(limits=limits, nodes=1)
    change = model.machine.ask(ForceSnapshot(0), deadline=60.0)
    read = model.machine.ask(StatusRequest(0), deadline=60.0)
    model.run(10.0)
    assert model.outcomes == {}
    assert sum(isinstance(request, StatusRequest) for _, request in model.sent) > 3
    [(address, request)] = [sent for sent in model.sent if isinstance(sent[1], ForceSnapshot)]
    model.machine.receive(address, Done(request.request_id, 7), 10.0)
    model.silent = False
    model.run(12.0)
    assert model.outcomes[change] == Done(request.request_id, 7)
    assert read in model.outcomes


def test_calls_of_a_node_that_is_out_fail_at_once() -> None:
    """A node's own calls go nowhere else: removed, it says so without waiting for a deadline."""
    model = silent(limits=CallLimits(links=LinkLimits(follow_leader=False)), nodes=1)
    call = model.machine.propose([b"x"], deadline=60.0)
    query = model.machine.query([b"q"], consistency=Consistency.LINEARIZABLE, deadline=60.0, now=0.0)
    model.run(0.5)
    for address, request in list(model.sent):
        failure = Failure(request_id=request.request_id, kind=FailureKind.REMOVED_NODE, text="removed")
        model.machine.receive(address, failure, 0.5)
    model.run(1.0)
    assert isinstance(model.outcomes[call], RemovedNode)
    assert isinstance(model.outcomes[query], RemovedNode)


@pytest.mark.parametrize("kind", [FailureKind.INTERNAL, FailureKind.CONFIG_ERROR, FailureKind.REFUSED])
def test_a_session_that_is_refused_for_whatever_reason_is_asked_for_again_after_a_delay(kind: FailureKind) -> None:
    """No refusal of a session makes the client ask in a circle: it waits, longer each time, until the deadline."""
    model = silent(nodes=1)
    model.machine.propose([b"x"], deadline=4.0)
    model.refuse_sessions = kind
    model.run(5.0)
    assert 2 < sum(isinstance(request, SessionRequest) for _, request in model.sent) < 40


def test_an_answer_to_another_question_ends_the_link() -> None:
    """A node whose replies do not fit is left; the call goes on elsewhere and is not confused."""
    model = silent()
    call = model.machine.propose([b"a", b"b"], deadline=10.0)
    model.run(0.5)
    address, request = model.sent[-1]
    model.reply(address, ProposeAnswers(request.request_id, [b"only one"]))
    model.silent = False
    model.run(3.0)
    assert model.outcomes == {call: [b"ok:a", b"ok:b"]}
    assert model.sent[-1][0] != address


def test_replies_that_nobody_asked_for_are_dropped() -> None:
    """Unknown numbers, second answers and answers from another address change nothing."""
    model = silent()
    call = model.machine.propose([b"x"], deadline=10.0)
    model.run(0.5)
    address, request = model.sent[-1]
    model.machine.receive("elsewhere", ProposeAnswers(request.request_id, [b"forged"]), model.now)
    model.machine.receive(address, Report(999, b"{}"), model.now)
    model.machine.receive(address, ProposeAnswers(request.request_id, [b"ok"]), model.now)
    model.machine.receive(address, ProposeAnswers(request.request_id, [b"again"]), model.now)
    model.run(1.0)
    assert model.outcomes == {call: [b"ok"]}


# --- limits -----------------------------------------------------------------------------------------------------


def test_the_window_makes_calls_wait() -> None:
    """No more than the window is unacknowledged; the rest goes out as answers come."""
    model = cluster(limits=CallLimits(window_calls=10, group_calls=4, try_timeout=1.0))
    calls = [model.machine.propose([b"%d" % number], deadline=30.0) for number in range(35)]
    model.run(20.0)
    assert [model.outcomes[call] for call in calls] == [[b"ok:%d" % number] for number in range(35)]
    for request in proposals(model):
        group = request.group
        assert len(group.commands) <= 4
        assert group.first + len(group.commands) - group.acked <= 10


def test_the_window_counts_bytes() -> None:
    """Large commands fill the window sooner; one that is larger than all of it still goes, alone."""
    model = silent(limits=CallLimits(window_bytes=100, group_bytes=1000))
    for size in (60, 60, 500):
        model.machine.propose([bytes(size)], deadline=30.0)
    model.run(0.5)
    assert [len(request.group.commands[0]) for request in proposals(model)] == [60]
    model.silent = False
    model.serve(*model.sent[-1])
    model.run(3.0)
    assert [len(request.group.commands[0]) for request in proposals(model)] == [60, 60, 500]
    assert len(model.outcomes) == 3


def test_too_many_calls_are_overloaded_at_once() -> None:
    """The number and the bytes of waiting calls are limited, by name; answered calls make room."""
    model = cluster(limits=CallLimits(max_waiting_calls=2, max_waiting_bytes=100))
    machine = model.machine
    machine.propose([bytes(90)], deadline=5.0)
    with pytest.raises(Overloaded) as caught:
        machine.propose([bytes(20)], deadline=5.0)
    assert caught.value.limit == "max_waiting_bytes"
    machine.propose([b""], deadline=5.0)
    with pytest.raises(Overloaded) as caught:
        machine.propose([b""], deadline=5.0)
    assert caught.value.limit == "max_waiting_calls"
    model.run(1.0)
    machine.propose([bytes(90)], deadline=5.0)


def test_a_batch_beyond_the_window_is_too_large() -> None:
    """It could never be sent, so it is refused before it waits."""
    model = cluster(limits=CallLimits(window_calls=10))
    with pytest.raises(TooLarge):
        model.machine.propose([b""] * 11, deadline=5.0)


def test_what_fits_no_frame_of_the_node_is_too_large_at_once() -> None:
    """A node would cut the connection off rather than answer: the call fails before it is sent, others go on."""
    model = silent()
    model.max_frame_bytes = 1000
    large = model.machine.propose([bytes(2000)], deadline=10.0)
    batch = model.machine.propose([bytes(90)] * 20, deadline=10.0)
    query = model.machine.query([bytes(2000)], consistency=Consistency.STALE, deadline=10.0, now=0.0)
    small = model.machine.propose([bytes(500)], deadline=10.0)
    model.run(0.5)
    for call, size, what in (
        (large, 2000, "a command of 2000 bytes fits"),
        (batch, 1800, "20 commands of 1800 bytes fit"),
        (query, 2000, "a command of 2000 bytes fits"),
    ):
        error = model.outcomes[call]
        assert isinstance(error, TooLarge)
        assert (error.size, error.limit) == (size, 1000)
        assert str(error) == f"{what} no frame that the nodes read (max_frame_bytes = 1000)"
    assert [request.group.commands for request in proposals(model)] == [[bytes(500)]]
    assert small not in model.outcomes
    assert not any(isinstance(request, Query) for _, request in model.sent)


def test_calls_that_fit_no_frame_together_go_alone() -> None:
    """Each fits one by itself, so each is sent in one, with nothing lost and in order."""
    model = cluster()
    model.max_frame_bytes = 1000
    calls = [model.machine.propose([b"%d" % number + bytes(600)], deadline=10.0) for number in range(3)]
    model.run(1.0)
    assert [model.outcomes[call] for call in calls] == [[b"ok:%d" % number + bytes(600)] for number in range(3)]
    assert [len(request.group.commands) for request in proposals(model)] == [1, 1, 1]


@pytest.mark.parametrize("length", [1, 255, 256, 65_535, 65_536])
def test_what_is_sent_fits_a_frame_and_what_is_refused_does_not(length: int) -> None:
    """The size that is reckoned with is that on the wire, but for the few bytes that a request may have beside."""
    for count in (1, 2, 300):
        group = CallGroup(session=2**60, first=2**60, acked=2**60, commands=[bytes(length)] * count)
        size = len(encode_request(ProposeSince(2**60, group, 2**60)))
        for frame, fits in ((size + REQUEST_BYTES, True), (size - 1, False)):
            model = cluster()
            model.max_frame_bytes = frame
            call = model.machine.propose([bytes(length)] * count, deadline=10.0)
            model.run(1.0)
            assert isinstance(model.outcomes[call], list if fits else TooLarge), (count, frame)


def test_a_try_that_was_lost_leaves_the_outcome_open_whatever_the_next_node_reads() -> None:
    """A node that reads less than the one that had the call before cannot say that it was not applied."""
    model = silent()
    call = model.machine.propose([bytes(2000)], deadline=10.0)
    model.run(0.5)
    model.last()
    model.max_frame_bytes = 1000
    model.break_link(model.sent[-1][0])
    model.run(12.0)
    assert isinstance(model.outcomes[call], CallTimeout)


def test_calls_that_are_too_large_together_go_alone() -> None:
    """A group that a node finds too large is taken apart; only a call that is too large by itself fails."""
    model = silent()
    calls = [model.machine.propose([b"%d" % number], deadline=10.0) for number in range(3)]
    model.run(0.5)
    model.fail(FailureKind.TOO_LARGE)
    model.silent = False
    model.run(3.0)
    assert [model.outcomes[call] for call in calls] == [[b"ok:0"], [b"ok:1"], [b"ok:2"]]
    assert [len(request.group.commands) for request in proposals(model)] == [3, 1, 1, 1]
    model.silent = True
    large = model.machine.propose([b"large"], deadline=10.0)
    model.run(3.5)
    model.fail(FailureKind.TOO_LARGE)
    model.run(4.0)
    assert isinstance(model.outcomes[large], TooLarge)
