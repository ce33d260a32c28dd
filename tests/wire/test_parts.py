"""Answers that are more than one frame may hold."""

import random

from octopii.wire import parts
from octopii.wire.call import CallMachine, Resolve
from octopii.wire.codec import Answer, ApplyFailedAnswer, CommandErrorAnswer
from octopii.wire.courier import Send
from octopii.wire.frames import DEFAULT_MAX_FRAME_BYTES, FrameDecoder
from octopii.wire.links import Disconnect
from octopii.wire.parts import encode_replies, max_answer_bytes, part_bytes
from octopii.wire.requests import (
    Consistency,
    Done,
    Propose,
    ProposeAnswers,
    Query,
    QueryAnswers,
    Reply,
    Request,
    SessionOpened,
    decode_reply,
)


def through_frames(replies: list[Reply]) -> list[Reply]:
    """What a client reads of them; raises what its decoder raises."""
    frames = FrameDecoder().feed(b"".join(encode_replies(replies)))
    return [decode_reply(payload) for _, payload in frames]


def test_short_answers_are_one_reply() -> None:
    """Nothing is cut that need not be."""
    replies: list[Reply] = [
        ProposeAnswers(1, [b"a", CommandErrorAnswer("no")]),
        Done(2),
        QueryAnswers(3, [b"x" * 1000]),
    ]
    assert through_frames(replies) == replies


def test_long_answers_are_cut_and_lose_nothing() -> None:
    """Whatever their lengths: each part fits a frame, their order stays, and all parts but the last say so."""
    rng = random.Random(1)
    sizes = [rng.choice((0, 100, 5000, 100_000, 3_000_000, 5_000_000)) for _ in range(200)]
    answers: list[Answer] = [b"a" * size for size in sizes]
    answers += [CommandErrorAnswer("e" * 4000)] * 3000
    for kind in (ProposeAnswers, QueryAnswers):
        frames = encode_replies([kind(7, answers)])
        assert max(map(len, frames)) < DEFAULT_MAX_FRAME_BYTES
        cut = through_frames([kind(7, answers)])
        assert len(cut) > 50
        assert all(isinstance(part, kind) and part.request_id == 7 for part in cut)
        assert [part.more for part in cut if isinstance(part, kind)] == [True] * (len(cut) - 1) + [False]
        assert [answer for part in cut if isinstance(part, kind) for answer in part.answers] == answers


def test_an_answer_that_fits_no_frame_is_an_error_in_its_place() -> None:
    """The others of its group are answered; one of just the size that fits is, too."""
    answers: list[Answer] = [b"a", b"b" * (max_answer_bytes + 1), b"c" * max_answer_bytes, b"d"]
    found = [answer for part in through_frames([ProposeAnswers(1, answers)]) for answer in part.answers]  # type: ignore[union-attr]
    assert found[0] == b"a"
    assert isinstance(found[1], ApplyFailedAnswer)
    assert found[1].exception == parts.TOO_LARGE
    assert str(max_answer_bytes) in found[1].text
    assert found[2:] == answers[2:]


class Link:
    """A machine with a link that is up, and a session; the node's replies are written by hand."""

    def __init__(self) -> None:
        self.machine = CallMachine(["a:1"], rng=random.Random(1))
        self.results: dict[int, object] = {}
        self.left = False

    def sent(self, now: float) -> list[Request]:
        """Poll, note results, and return the requests."""
        requests: list[Request] = []
        for action in self.machine.poll(now):
            if isinstance(action, Send):
                requests += action.requests
            elif isinstance(action, Resolve):
                self.results |= dict(action.results)
            self.left = self.left or isinstance(action, Disconnect)
        return requests

    def propose(self, count: int) -> tuple[list[int], int]:
        """Calls under way as one group; returns their ids and the request's number."""
        calls = [self.machine.propose([b"%d" % number], deadline=100.0) for number in range(count)]
        self.sent(0.0)
        self.machine.connected("a:1", node_id=1, now=0.0)
        (opening,) = self.sent(0.0)
        self.machine.receive("a:1", SessionOpened(opening.request_id, 5), 0.0)
        (request,) = self.sent(0.0)
        assert isinstance(request, Propose)
        return calls, request.request_id


def test_a_client_puts_the_parts_together() -> None:
    """Nothing is answered before the last part; then each call has its own answer. The same for queries."""
    link = Link()
    calls, number = link.propose(3)
    link.machine.receive("a:1", ProposeAnswers(number, [b"0"], more=True), 1.0)
    link.machine.receive("a:1", ProposeAnswers(number, [b"1"], more=True), 2.0)
    link.sent(2.0)
    assert link.results == {}
    link.machine.receive("a:1", ProposeAnswers(number, [b"2"]), 3.0)
    assert link.sent(3.0) == []
    assert link.results == {call: [b"%d" % place] for place, call in enumerate(calls)}
    query = link.machine.query([b"x", b"y"], consistency=Consistency.STALE, deadline=100.0, now=3.0)
    (request,) = link.sent(3.0)
    assert isinstance(request, Query)
    link.machine.receive("a:1", QueryAnswers(request.request_id, [b"x"], more=True), 4.0)
    link.machine.receive("a:1", QueryAnswers(request.request_id, [b"y"]), 5.0)
    link.sent(5.0)
    assert link.results[query] == [b"x", b"y"]


def test_parts_that_keep_coming_keep_an_answer_alive_and_a_retry_begins_anew() -> None:
    """Each part has as long as an answer; what came before a broken link counts for nothing."""
    link = Link()
    calls, number = link.propose(2)
    link.machine.receive("a:1", ProposeAnswers(number, [b"0"], more=True), 4.0)
    link.machine.tick(8.0)
    assert link.sent(8.0) == [], "the first try is not given up"
    link.machine.disconnected("a:1", now=8.5)
    link.machine.tick(12.0)
    link.sent(12.0)
    link.machine.connected("a:1", node_id=1, now=12.0)
    (again,) = link.sent(12.0)
    assert isinstance(again, Propose)
    link.machine.receive("a:1", ProposeAnswers(number, [b"old"]), 13.0)
    link.machine.receive("a:1", ProposeAnswers(again.request_id, [b"0", b"1"]), 13.0)
    link.sent(13.0)
    assert link.results == {calls[0]: [b"0"], calls[1]: [b"1"]}


def test_a_node_that_never_stops_answering_is_left() -> None:
    """More answers than questions are no answer; what has come is not kept."""
    link = Link()
    _, number = link.propose(2)
    for _ in range(3):
        link.machine.receive("a:1", ProposeAnswers(number, [b"0"], more=True), 1.0)
    link.sent(1.0)
    assert link.left
    assert link.results == {}


def test_a_part_is_well_below_a_frame() -> None:
    """So that any single answer fits beside what a part may hold already."""
    assert part_bytes * 2 < DEFAULT_MAX_FRAME_BYTES
    assert max_answer_bytes < DEFAULT_MAX_FRAME_BYTES
