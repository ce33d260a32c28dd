"""Queries on their way to the state machine: how fresh the state has to be, and when it is.

    stale          asked at once, of whatever this node has applied
    lease          asked at once on a leader whose lease holds, and answered only if it still holds after the state was
                   read; elsewhere the same as linearizable
    linearizable   a ReadIndex round first (Raft thesis, section 6.4): the leader confirms that it still leads, and the
                   question waits until this node has handed out entries up to the index that the leader named

All questions that gathered meanwhile share one round. A round that is lost on the way is started again.
"""

from collections.abc import Callable

import msgspec

from octopii.config import Config
from octopii.errors import NoLeader, OctopiiError, Overloaded, TooLarge
from octopii.replica.calls import Leadership
from octopii.replica.jobs import Queried, QueryJob
from octopii.replica.work import Origin, Outbox
from octopii.wire.requests import Consistency, Done, Failure, FailureKind, Query, QueryAnswers, ReadIndex

answered_before = 0.9
"""Part of a query's time after which a node that found no leader says so, while the caller can still hear it."""


class Question(msgspec.Struct, frozen=True, gc=False):
    """Queries of one request, none for the read index itself, and when their caller stops waiting."""

    origin: Origin
    request_id: int
    commands: list[bytes]
    deadline: float

    @property
    def size(self) -> int:
        """Bytes of its commands."""
        return sum(map(len, self.commands))


class Asked(msgspec.Struct, frozen=True):
    """Questions that are with the apply thread; `lease` when they count only while the lease holds."""

    questions: list[Question]
    lease: bool


class Round(msgspec.Struct, frozen=True):
    """Questions that wait for one confirmation of leadership, asked for at `started`."""

    questions: list[Question]
    started: float


class Reads:
    """The queries of one node. `start_round(context)` asks the Raft core for a read index."""

    def __init__(
        self, config: Config, outbox: Outbox, leadership: Leadership, start_round: Callable[[bytes], None]
    ) -> None:
        self._config = config
        self._outbox = outbox
        self._leadership = leadership
        self._start_round = start_round
        self._waiting: list[Question] = []  # for a round to be started
        self._rounds: dict[bytes, Round] = {}
        self._confirmed: list[tuple[int, Asked]] = []  # for the apply side to reach the index
        self._asked: dict[int, Asked] = {}
        self._count = 0
        self._pending = 0
        self._pending_bytes = 0
        self.refusal: OctopiiError | None = None

    def query(self, origin: Origin, request: Query, *, now: float, lease_index: int | None) -> None:
        """Take a question from a client; `lease_index` is the commit index while the lease holds, else None."""
        error = self._objection(request.commands)
        if error is None and self._leadership.outside and request.consistency is not Consistency.STALE:
            error = self._leadership.no_leader()  # at once: there is nobody who could be asked
        if error is not None:
            self._outbox.reply(origin, self._leadership.failure(error, request.request_id))
            return
        deadline = now + request.timeout_ns / 1e9 * answered_before
        question = Question(origin, request.request_id, request.commands, deadline)
        self._pending += len(request.commands)
        self._pending_bytes += question.size
        if request.consistency is Consistency.STALE:
            self._ask(Asked([question], lease=False))
        elif request.consistency is Consistency.LEASE and lease_index is not None:
            # A leader may have committed what its own disk, and so its state machine, does not have yet.
            self._confirmed.append((lease_index, Asked([question], lease=True)))
        else:
            self._waiting.append(question)

    def read_index(self, origin: Origin, request: ReadIndex, *, now: float) -> None:
        """Take a request for the read index itself."""
        error = self._objection([])
        if error is not None:
            self._outbox.reply(origin, self._leadership.failure(error, request.request_id))
            return
        self._pending += 1
        self._waiting.append(Question(origin, request.request_id, [], now + self._config.call_timeout))

    def _objection(self, commands: list[bytes]) -> OctopiiError | None:
        if self.refusal is not None:
            return self.refusal
        size, limit = max(map(len, commands), default=0), self._config.max_command_bytes
        if size > limit:
            return TooLarge(f"a query of {size} bytes is over max_command_bytes = {limit}", size=size, limit=limit)
        if self._pending >= self._config.max_pending_calls:
            return Overloaded(
                f"node {self._config.node_id} has {self._pending} queries waiting", limit="max_pending_calls"
            )
        if self._pending_bytes and self._pending_bytes + sum(map(len, commands)) > self._config.max_pending_bytes:
            return Overloaded(
                f"node {self._config.node_id} has {self._pending_bytes} bytes of queries waiting",
                limit="max_pending_bytes",
            )
        return None

    def start(self, now: float) -> None:
        """Put everything that waits into one round, if there is a leader to confirm it."""
        if not self._waiting or not self._leadership.leader:
            return
        self._count += 1
        context = self._count.to_bytes(8, "little")
        self._rounds[context] = Round(self._waiting, now)
        self._waiting = []
        self._start_round(context)

    def confirmed(self, context: bytes, index: int) -> None:
        """The leader led when the round was asked for: state up to `index` is fresh enough."""
        finished = self._rounds.pop(context, None)
        if finished is None:
            return
        questions = []
        for question in finished.questions:
            if not question.commands:
                self._pending -= 1
                self._outbox.reply(question.origin, Done(question.request_id, index))
            else:
                questions.append(question)
        if questions:
            self._confirmed.append((index, Asked(questions, lease=False)))

    def reached(self, index: int) -> None:
        """Entries up to `index` are with the apply thread: questions that waited for them go there too."""
        if not self._confirmed:
            return
        ready = [asked for needed, asked in self._confirmed if needed <= index]
        self._confirmed = [pair for pair in self._confirmed if pair[0] > index]
        for lease in (False, True):
            questions = [question for asked in ready if asked.lease is lease for question in asked.questions]
            if questions:
                self._ask(Asked(questions, lease))

    def _ask(self, asked: Asked) -> None:
        self._count += 1
        self._asked[self._count] = asked
        commands = [command for question in asked.questions for command in question.commands]
        self._outbox.job(QueryJob(self._count, commands))

    def answered(self, result: Queried, *, lease_holds: bool) -> None:
        """The state machine has answered; a lease that ran out meanwhile sends the questions round again."""
        asked = self._asked.pop(result.token)
        if result.failure is not None:
            text = f"node {self._config.node_id} stopped applying: {result.failure.reason}"
            for question in asked.questions:
                self._fail(question, Failure(request_id=0, kind=FailureKind.SHUTTING_DOWN, text=text))
            return
        if asked.lease and not lease_holds:
            self._waiting += asked.questions
            return
        self._pending -= len(result.answers)
        at = 0
        for question in asked.questions:
            self._pending_bytes -= question.size
            end = at + len(question.commands)
            self._outbox.reply(question.origin, QueryAnswers(question.request_id, result.answers[at:end]))
            at = end

    def leadership_changed(self) -> None:
        """Rounds under way may never be confirmed: their questions start over."""
        for unfinished in self._rounds.values():
            self._waiting += unfinished.questions
        self._rounds.clear()

    def tick(self, now: float) -> None:
        """Start lost rounds again, and drop the questions that nobody waits for any more."""
        patience = self._config.election_timeout / 2
        for context in [context for context, round_ in self._rounds.items() if now - round_.started > patience]:
            self._waiting += self._rounds.pop(context).questions
        if self._waiting and any(question.deadline < now for question in self._waiting):
            late = [question for question in self._waiting if question.deadline < now]
            self._waiting = [question for question in self._waiting if question.deadline >= now]
            for question in late:
                self._fail(question, self._leadership.failure(NoLeader("no leader confirmed the read in time"), 0))

    def _fail(self, question: Question, failure: Failure) -> None:
        self._pending -= len(question.commands) or 1
        self._pending_bytes -= question.size
        self._outbox.reply(question.origin, msgspec.structs.replace(failure, request_id=question.request_id))

    def close(self, error: OctopiiError) -> None:
        """The node stops: refuse what waits and whatever comes."""
        self.refusal = error
        self.leadership_changed()
        waiting = self._waiting + [question for _, asked in self._confirmed for question in asked.questions]
        self._waiting, self._confirmed = [], []
        for question in waiting:
            self._fail(question, self._leadership.failure(error, 0))
