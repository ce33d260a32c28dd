"""The client without sockets: finds the leader, keeps a session, tries again safely, knows what became of each call.

The driver's loop, the same for a program's client, a node's own calls and the simulator:

    id = machine.propose([command], deadline=now + 5, now=now)         (or `query`, `ask`)
    for action in machine.poll(now):                                   after each of these calls
        Connect, Disconnect      dial and shake hands, or close; then `connected` or `disconnected`
        Send(address, requests)  encode and write, in order
        Resolve([(id, result)])  a list of answers for `propose` and `query`, a reply for `ask`
        Fail(id, error)          the exception to raise
    machine.receive(address, reply, now)                               for each reply that arrives
    machine.tick(now)                                                  at `machine.next_wake(now)`

Calls that are made while the driver does something else go out together at the next `poll`, as one group with
consecutive call numbers in the client's session. A group that is sent again keeps its numbers and its commands, so the
cluster applies it once and answers each try alike (Raft thesis, section 6.3).

Every call ends in a definite way. What the errors promise:

    NotApplied       it was never sent, or every try was refused with that promise
    OutcomeUnknown   some try was lost, and no answer came before the deadline or before the session ended
    Rejected         is an answer: see `unwrap`

A first try that meets an expired session goes on under a fresh one: it is known that nothing was applied. A later try
cannot, because an earlier one may have counted before the session expired: that is `SessionExpired`.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from octopii.errors import (
    ApplyFailed,
    CallTimeout,
    CommandError,
    ConnectionLost,
    NoLeader,
    NotApplied,
    OctopiiError,
    OutcomeUnknown,
    Overloaded,
    QueryNotSupported,
    RefusedError,
    Rejected,
    ShuttingDown,
    TooLarge,
)
from octopii.wire.attempts import Attempt, Call, CallSession, Group, Opening, Single
from octopii.wire.codec import Answer, ApplyFailedAnswer, CommandErrorAnswer, DeclaredErrorAnswer
from octopii.wire.courier import Courier, Send
from octopii.wire.links import Connect, Disconnect, LinkLimits
from octopii.wire.requests import (
    KEPT_ANSWERS,
    NOT_APPLIED_KINDS,
    Consistency,
    Done,
    Failure,
    FailureKind,
    ProposeAnswers,
    Query,
    QueryAnswers,
    Reply,
    Report,
    Request,
    SessionEnd,
    SessionOpened,
    SnapshotPart,
    error_of,
)

__all__ = [
    "Action",
    "CallLimits",
    "CallMachine",
    "Connect",
    "Disconnect",
    "Fail",
    "LinkLimits",
    "Resolve",
    "Result",
    "Send",
    "unwrap",
]

NONCE_BYTES = 16
MAX_TIMEOUT_NS = 2**62
MAX_REASONS = 5
"""Addresses that an error tells of."""


class CallLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one client; the defaults fit those of a node's `Config`."""

    max_waiting_calls: int = 65_536
    """Calls that are not yet answered; beyond it a new one is `Overloaded`."""

    max_waiting_bytes: int = 64 << 20
    """Bytes of commands of calls that are not yet answered."""

    window_calls: int = 32_768
    """Unacknowledged calls of the session; at the limit new ones wait. Below the nodes' `session_window_calls`."""

    window_bytes: int = 8 << 20
    """Bytes of commands of unacknowledged calls of the session; at the limit new ones wait."""

    group_calls: int = 4_096
    """Calls that go out as one group."""

    group_bytes: int = 1 << 20
    """Bytes of commands that go out as one group (one call at least)."""

    session_ttl: float = 3600.0
    """Seconds of replicated time after which the session expires unless it is used."""

    try_timeout: float = 5.0
    """Seconds without an answer after which a request is sent again, or its silent link left."""

    links: LinkLimits = LinkLimits()


# --- what the driver is to do -----------------------------------------------------------------------------------


Result: TypeAlias = list[Answer] | Done | Report | SnapshotPart
"""What a call came to: answers of `propose`, and of `query`, the reply to `ask`."""


class Resolve(msgspec.Struct, frozen=True, gc=False):
    """These calls are answered: (call id, result) each."""

    results: list[tuple[int, Result]]


class Fail(msgspec.Struct, frozen=True, gc=False):
    """This call has failed; the error is its own and may be raised."""

    call_id: int
    error: OctopiiError


Action: TypeAlias = Connect | Disconnect | Send | Resolve | Fail


def unwrap(answer: Answer) -> bytes | CommandError | ApplyFailed | QueryNotSupported:
    """Return an answer as users see it: the bytes, or the exception to raise or to put in their place."""
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, CommandErrorAnswer):
        return CommandError(answer.text)
    if isinstance(answer, DeclaredErrorAnswer):
        refusal = CommandError(answer.text)
        refusal.declared = (answer.name, answer.arguments)
        return refusal
    assert isinstance(answer, ApplyFailedAnswer)
    if answer.exception == QueryNotSupported.__name__:
        return QueryNotSupported(answer.text)
    text = f"{answer.exception}: {answer.text}" if answer.text else answer.exception
    return ApplyFailed(text, exception=answer.exception)


_REFUSED_KINDS = frozenset(
    {FailureKind.REFUSED, FailureKind.REMOVED_NODE, FailureKind.WIPED_NODE, FailureKind.WRONG_CLUSTER}
)
"""A node says that it is out: a client goes to another one, that node's own calls have nowhere to go."""

_PASSING_KINDS = _REFUSED_KINDS | {FailureKind.NO_LEADER, FailureKind.SHUTTING_DOWN}
"""Refusals that are about the node or the moment, not about the call: it is tried again, perhaps elsewhere."""

_LOST_KINDS = frozenset({FailureKind.CONNECTION_LOST, FailureKind.CALL_TIMEOUT})
"""Failures that leave the outcome open: trying again under the same numbers can settle it."""


class CallMachine:
    """One client's calls; see the module's text. All times are seconds of one clock that the driver chooses."""

    def __init__(self, addresses: Sequence[str], *, rng: random.Random, limits: CallLimits | None = None) -> None:
        """Start idle: the first call dials. Raises `ConfigError` without an address."""
        self._limits = limits or CallLimits()
        self._rng = rng
        self._courier = Courier(addresses, rng=rng, limits=self._limits.links, try_timeout=self._limits.try_timeout)
        self._calls: dict[int, Call] = {}
        self._calls_bytes = 0
        self._next_call = 1
        self._first_deadline = math.inf
        self._waiting: deque[Call] = deque()  # proposals that have no number yet
        self._session: CallSession | None = None
        self._opening: Opening | None = None
        self._last_refusal: Failure | None = None
        self._results: list[tuple[int, Result]] = []
        self._failed: list[Fail] = []
        self._closed = ""  # why, once it is

    # --- calls --------------------------------------------------------------------------------------------------

    def propose(self, commands: list[bytes], *, deadline: float, since: int = 1) -> int:
        """Have commands replicated, all in one log entry or none; return the call's id.

        `since` is the version of the state machine that they need; it fails with `VersionNotActive` until that is so.
        Raises `Overloaded` when too many calls wait, `TooLarge` for a batch beyond the window, `ShuttingDown`.
        """
        limits = self._limits
        if len(commands) > limits.window_calls:
            text = f"a batch of {len(commands)} commands, at most {limits.window_calls} fit the window"
            raise TooLarge(text, size=len(commands), limit=limits.window_calls)
        call = self._new_call(commands, sum(map(len, commands)), deadline)
        call.since = since
        if commands:
            self._waiting.append(call)
        else:
            self._resolve(call, [])
        return call.id

    def query(self, commands: list[bytes], *, consistency: Consistency, deadline: float, now: float) -> int:
        """Ask the state machine, all questions of one state; return the call's id. Raises as `propose` does."""
        timeout = min(max(deadline - now, 0.0) * 1e9, MAX_TIMEOUT_NS)
        request = Query(request_id=0, consistency=consistency, commands=commands, timeout_ns=int(timeout))
        return self.ask(request, deadline=deadline, size=sum(map(len, commands)))

    def ask(self, request: Request, *, deadline: float, size: int = 0) -> int:
        """Send any other request (its number is chosen here); return the call's id. Raises as `query` does."""
        call = self._new_call([], size, deadline)
        call.carrier = Single(call=call, template=request)
        self._courier.submit(call.carrier)
        return call.id

    def cancel(self, call_id: int) -> None:
        """Nobody waits for this call any more; whether it will be applied is open unless it was never sent."""
        call = self._calls.get(call_id)
        if call is not None:
            self._forget(call)

    def _new_call(self, commands: list[bytes], size: int, deadline: float) -> Call:
        limits = self._limits
        if self._closed:
            raise ShuttingDown(self._closed)
        if len(self._calls) >= limits.max_waiting_calls:
            raise Overloaded(f"{len(self._calls)} calls are waiting for their answers", limit="max_waiting_calls")
        if self._calls and self._calls_bytes + size > limits.max_waiting_bytes:
            raise Overloaded(f"calls of {self._calls_bytes} bytes are waiting", limit="max_waiting_bytes")
        call = Call(self._next_call, deadline, commands, size)
        self._next_call += 1
        self._calls[call.id] = call
        self._calls_bytes += size
        if deadline < self._first_deadline:
            self._first_deadline = deadline
        return call

    # --- what happens -------------------------------------------------------------------------------------------

    def connected(self, address: str, *, node_id: int, now: float, max_frame_bytes: int = 0) -> None:
        """A dialled node has admitted us; it reads frames of `max_frame_bytes` at most (0: of any length)."""
        self._courier.connected(address, node_id, now, max_frame_bytes=max_frame_bytes)

    def disconnected(
        self, address: str, *, now: float, why: str = "the connection broke", refusal: RefusedError | None = None
    ) -> None:
        """A connection broke, or could not be made: what was sent over it may have counted.

        `why` is for people; `refusal` says that the node there let this client not in. When all nodes do, calls that
        certainly have not counted fail at once.
        """
        self._retry(self._courier.disconnected(address, now, why=why, refusal=refusal))
        if self._courier.links.hopeless:
            for call in list(self._calls.values()):
                if call.certainly_not_applied:
                    self._fail(call, self._late_error(call))

    def receive(self, address: str, reply: Reply, now: float) -> None:
        """Take a reply. One to an unknown request is dropped: it was answered already, or nobody waits any more."""
        attempt = self._courier.receive(address, reply, now)
        if attempt is None:
            return
        reply = attempt.whole(reply)
        if isinstance(reply, Failure):
            self._handle_failure(attempt, reply, now)
        elif self._handle_answer(attempt, reply, now):
            self._courier.links.succeeded()
            self._last_refusal = None
        else:
            attempt.lose()  # the answer to another question: this node cannot be trusted with more
            self._retry([attempt, *self._courier.leave(address, now)])

    def tick(self, now: float) -> None:
        """Let time pass: deadlines, silent links, delays that are over."""
        if now >= self._first_deadline:
            for call in [call for call in self._calls.values() if call.deadline <= now]:
                self._fail(call, self._late_error(call))
            self._first_deadline = min((call.deadline for call in self._calls.values()), default=math.inf)
        self._retry(self._courier.tick(now))

    def close(self, why: str = "the client was closed") -> None:
        """End all calls, the session and the links; poll once more afterwards."""
        for call in list(self._calls.values()):
            if call.certainly_not_applied:
                self._fail(call, ShuttingDown(f"{why} before the call was sent"))
            else:
                self._fail(call, ConnectionLost(f"{why} before the answer came"))
        if self._session is not None and self._courier.links.current is not None:
            self._courier.send_unanswered(SessionEnd(self._courier.new_request_id(), self._session.id))
        self._session = None
        self._closed = why

    @property
    def pending(self) -> int:
        """How many calls are not yet answered."""
        return len(self._calls)

    @property
    def session_id(self) -> int | None:
        """The open session, if any."""
        return None if self._session is None else self._session.id

    # --- what to do ---------------------------------------------------------------------------------------------

    def next_wake(self, now: float) -> float | None:
        """When `tick` and `poll` are due at the latest; None: only when something happens."""
        wake = min(self._courier.next_wake(now, wanted=self._wants_link), self._first_deadline)
        return None if wake == math.inf else wake

    def poll(self, now: float) -> list[Action]:
        """Send what can be sent, and return all that is to be done."""
        links = self._courier.links
        if self._closed:
            links.close()
        elif self._wants_link:
            links.ensure(now)
            while links.ready(now):
                self._number_waiting(now)
                too_long = self._courier.flush(now)
                for attempt in too_long:
                    self._handle_failure(attempt, _fits_no_frame(attempt, self._courier.frame_bytes), now)
                if not too_long:
                    break
        actions: list[Action] = [*self._courier.take_actions()]
        if self._results:
            actions.append(Resolve(self._results))
            self._results = []
        actions += self._failed
        self._failed = []
        return actions

    @property
    def _wants_link(self) -> bool:
        return bool(self._waiting or self._courier.has_unsent)

    def _number_waiting(self, now: float) -> None:
        """Put waiting calls into groups as far as the window allows, or see to it that there is a session first."""
        if not self._waiting:
            return
        session = self._session
        if session is not None and not session.live and now - session.last_used > self._limits.session_ttl / 2:
            self._session = session = None  # long idle: it may be gone by the time that the call arrives
        if session is None:
            if self._opening is None:
                ttl_ns = int(self._limits.session_ttl * 1e9)
                self._opening = Opening(nonce=self._rng.randbytes(NONCE_BYTES), ttl_ns=ttl_ns)
            if not self._opening.request_id:
                self._courier.submit(self._opening)
            return
        while self._waiting and (calls := self._take_calls(session)):
            self._courier.submit(session.number(calls))

    def _take_calls(self, session: CallSession) -> list[Call]:
        """Take the calls of the next group; none while the window is full."""
        limits, waiting = self._limits, self._waiting
        calls: list[Call] = []
        count = size = 0
        while waiting:
            call = waiting[0]
            count += len(call.commands)
            size += call.size
            if calls and (call.alone or calls[0].alone or call.since != calls[0].since):
                break
            if calls and (count > limits.group_calls or size > limits.group_bytes):
                break
            if (calls or session.live) and not session.has_room(count, size):
                break  # but one call always goes, however large it is
            calls.append(waiting.popleft())
        return calls

    # --- answers ------------------------------------------------------------------------------------------------

    def _handle_answer(self, attempt: Attempt, reply: Reply, now: float) -> bool:
        """Take an answer; False if it does not answer what was asked."""
        if isinstance(attempt, Group):
            if not isinstance(reply, ProposeAnswers) or len(reply.answers) != len(attempt.commands):
                return False
            attempt.session.last_used = now
            attempt.session.drop(attempt)
            at = 0
            for call in attempt.calls:
                count = len(call.commands)
                self._resolve(call, reply.answers[at : at + count])
                at += count
        elif isinstance(attempt, Opening):
            if not isinstance(reply, SessionOpened):
                return False
            limits, self._opening = self._limits, None
            self._session = CallSession(
                reply.session, window_calls=limits.window_calls, window_bytes=limits.window_bytes, now=now
            )
        elif isinstance(attempt, Single):
            if isinstance(reply, QueryAnswers) and isinstance(attempt.template, Query):
                if len(reply.answers) != len(attempt.template.commands):
                    return False
                self._resolve(attempt.call, reply.answers)
            elif isinstance(reply, Done | Report | SnapshotPart) and not isinstance(attempt.template, Query):
                self._resolve(attempt.call, reply)
            else:
                return False
        return True

    def _resolve(self, call: Call, result: Result) -> None:
        if self._calls.pop(call.id, None) is not None:
            self._calls_bytes -= call.size
            self._results.append((call.id, result))

    # --- failures -----------------------------------------------------------------------------------------------

    def _retry(self, attempts: list[Attempt]) -> None:
        """Have attempts sent again where that is safe and somebody still waits."""
        for attempt in attempts:
            if isinstance(attempt, Single) and attempt.uncertain and not attempt.repeatable:
                self._fail(attempt.call, ConnectionLost("the connection was lost before the answer came"))
            elif not isinstance(attempt, Opening):  # that one is sent when a call needs a session
                self._courier.submit(attempt)

    def _handle_failure(self, attempt: Attempt, failure: Failure, now: float) -> None:
        kind, links = failure.kind, self._courier.links
        if kind in _LOST_KINDS and isinstance(attempt, Single) and not attempt.repeatable:
            self._fail_attempt(attempt, failure)
        elif kind in _LOST_KINDS:
            attempt.lose()
            # A node that lost its leader, or its lead, and knows of no other may be cut off from where there is one.
            links.refused(now, elsewhere=not failure.leader and self._limits.links.follow_leader)
            self._retry([attempt])
        elif (kind in _REFUSED_KINDS and not self._limits.links.follow_leader) or (
            kind is FailureKind.NOT_APPLIED and not isinstance(attempt, Single)
        ):
            self._refused_for_good(attempt, failure)
        elif kind in _PASSING_KINDS or isinstance(attempt, Opening):
            self._last_refusal = failure
            links.refused(now, elsewhere=kind is not FailureKind.NO_LEADER and not failure.leader)
            if failure.leader_address:
                links.hint(failure.leader, failure.leader_address, now)
            self._refused(attempt, failure)
        elif isinstance(attempt, Group):
            self._handle_group_failure(attempt, failure, now)
        else:
            self._fail_attempt(attempt, failure)

    def _refused_for_good(self, attempt: Attempt, failure: Failure) -> None:
        """The only node that these calls may go to is out of the cluster, or none of the cluster's takes any calls."""
        for call in list(self._calls.values()):
            if call.carrier is None or call.carrier is attempt:  # what else is outstanding gets an answer of its own
                self._fail(call, error_of(failure) if call.certainly_not_applied else OutcomeUnknown(failure.text))

    def _refused(self, attempt: Attempt, failure: Failure) -> None:
        """This try did not count: go on later."""
        if isinstance(attempt, Group) and not attempt.uncertain:
            self._renumber(attempt, failure)
            return
        if isinstance(attempt, Single):
            attempt.call.refusal = failure
        self._retry([attempt])

    def _handle_group_failure(self, group: Group, failure: Failure, now: float) -> None:
        kind = failure.kind
        if kind is FailureKind.SESSION_EXPIRED and self._session is group.session:
            self._session = None
        if kind is FailureKind.OVERLOADED and failure.detail == KEPT_ANSWERS:
            self._courier.links.refused(now, elsewhere=False)
            self._refused(group, failure)  # what it acknowledges by then makes room
        elif group.uncertain and kind in NOT_APPLIED_KINDS:
            self._courier.links.refused(now, elsewhere=False)
            self._retry([group])  # this try did not count, an earlier one may have
        elif not group.uncertain and (kind is FailureKind.SESSION_EXPIRED or _too_large_together(group, kind)):
            self._renumber(group, failure)
        else:
            self._fail_attempt(group, failure)

    def _renumber(self, group: Group, failure: Failure) -> None:
        """Let the calls of a group that certainly did not count begin anew; alone, if together they were too large."""
        group.session.drop(group)
        calls = [call for call in group.calls if call.id in self._calls]
        for call in calls:
            call.carrier = None
            call.refusal = failure
            call.alone = call.alone or failure.kind is FailureKind.TOO_LARGE
        self._waiting.extendleft(reversed(calls))

    def _fail_attempt(self, attempt: Attempt, failure: Failure) -> None:
        """Fail whoever waits for the attempt, each with an exception of its own."""
        calls = attempt.calls if isinstance(attempt, Group) else [attempt.call] if isinstance(attempt, Single) else []
        for call in calls:
            if call.id in self._calls:
                error = error_of(failure)
                if isinstance(attempt, Group) and not isinstance(error, NotApplied | OutcomeUnknown | Rejected):
                    error = OutcomeUnknown(f"{type(error).__name__}: {failure.text}")
                self._fail(call, error)

    def _fail(self, call: Call, error: OctopiiError) -> None:
        self._forget(call)
        self._failed.append(Fail(call.id, error))

    def _forget(self, call: Call) -> None:
        """Take a call out of everything; what nobody waits for is not sent again."""
        del self._calls[call.id]
        self._calls_bytes -= call.size
        carrier = call.carrier
        if carrier is None:
            self._waiting.remove(call)
        elif isinstance(carrier, Single):
            self._courier.drop(carrier)
        else:
            carrier.waiting -= 1
            if not carrier.waiting:
                carrier.session.drop(carrier)
                self._courier.drop(carrier)

    def _late_error(self, call: Call) -> OctopiiError:
        """Why a call whose deadline has come has no answer."""
        carrier = call.carrier
        changes_nothing = isinstance(carrier, Single) and carrier.repeatable and call.refusal is not None
        if not call.certainly_not_applied and not changes_nothing:
            return CallTimeout("no answer came in time; the call may have been applied, or may yet be")
        refusal = call.refusal or self._last_refusal
        if refusal is not None and refusal.kind in NOT_APPLIED_KINDS:
            return error_of(refusal)
        if call.carrier is None and self._session is not None and self._session.live:
            return Overloaded("the session's window was full until the deadline", limit="window_calls")
        links = self._courier.links
        if links.refusal is not None:
            return links.refusal
        reasons = [f"{address}: {why}" for address, why in links.unreachable.items()]
        text = refusal.text if refusal else "; ".join(reasons[-MAX_REASONS:]) or "it took too long"
        return NoLeader(f"no node of the cluster could be reached in time: {text}", unreachable=links.unreachable)


def _fits_no_frame(attempt: Attempt, limit: int) -> Failure:
    """What a node would say of a request if it could read it; unread, it would only end the connection."""
    size = attempt.size if isinstance(attempt, Group) else attempt.call.size if isinstance(attempt, Single) else 0
    what = (
        f"a command of {size} bytes fits" if attempt.wanted == 1 else f"{attempt.wanted} commands of {size} bytes fit"
    )
    text = f"{what} no frame that the nodes read (max_frame_bytes = {limit})"
    return Failure(request_id=0, kind=FailureKind.TOO_LARGE, text=text, size=size, limit=limit)


def _too_large_together(group: Group, kind: FailureKind) -> bool:
    return kind is FailureKind.TOO_LARGE and len(group.calls) > 1
