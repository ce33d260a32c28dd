"""What a client has under way: calls, the numbered groups that carry them, and how certain their fate is.

A call is what the user asked. An attempt is what carries it to a node, again and again if need be, until it is answered
or nobody waits any more. Each attempt remembers whether some try of it may have counted:

    certain      never sent, or refused each time with the promise that it was not applied
    uncertain    at least one try was lost: only an answer can tell, and the session makes trying again safe

A group that was refused while it was certain is taken apart, and its calls get new numbers when they are sent again.
Otherwise a call whose deadline comes first, which is told that it was not applied, would go out again with the others.
"""

from typing import TypeAlias

import msgspec

from octopii.wire.codec import Answer, CallGroup
from octopii.wire.requests import (
    Failure,
    PeerProgressRequest,
    Propose,
    ProposeAnswers,
    ProposeSince,
    Query,
    QueryAnswers,
    ReadIndex,
    Reply,
    Request,
    SessionRequest,
    StatusRequest,
)

REQUEST_BYTES = 128
"""Most bytes of a request beside its commands: a dozen numbers of up to 9 bytes, and the heads of its arrays."""

_REPEATABLE = (Query, StatusRequest, PeerProgressRequest, ReadIndex)
"""Requests that change nothing."""


class Call(msgspec.Struct, eq=False):
    """One thing that the user waits for; `commands` is empty for anything but `propose`."""

    id: int
    deadline: float
    commands: list[bytes]
    size: int
    since: int = 1
    """The version of the state machine that its commands need."""
    alone: bool = False
    """Whether it goes in a group of its own: together with others it was too large."""
    carrier: "Carrier | None" = None
    """What carries it; None while it has no call number (yet, or no longer: the group was refused)."""
    refusal: Failure | None = None
    """Why it was refused last."""

    @property
    def certainly_not_applied(self) -> bool:
        """Whether the call has not been applied, and what is under way of it so far cannot change that."""
        return self.carrier is None or self.carrier.certainly_not_applied


class Attempt(msgspec.Struct, eq=False, kw_only=True):
    """Something that is sent until it is answered. `request_id` is 0 unless a try is outstanding on `address`."""

    request_id: int = 0
    address: str = ""
    sent_at: float = 0.0
    uncertain: bool = False
    parts: list[Answer] | None = None
    """Answers that have come so far, where there are more than one reply holds."""

    @property
    def wanted(self) -> int:
        """How many answers are to come."""
        return 0

    def fits(self, max_frame_bytes: int) -> bool:
        """Whether the request is at most so long."""
        return True

    @property
    def repeatable(self) -> bool:
        """Whether trying again is always safe. What is not is waited for as long as its link and its call live."""
        return True

    @property
    def certainly_not_applied(self) -> bool:
        """Whether no try of it has counted, or will."""
        return not self.request_id and not self.uncertain

    def lose(self) -> None:
        """The outstanding try will not be answered."""
        self.request_id = 0
        self.uncertain = True
        self.parts = None

    def take_part(self, answers: list[Answer]) -> bool:
        """Keep a part of the answers; False when there are more than were asked for."""
        parts = self.parts = [*(self.parts or []), *answers]
        return len(parts) <= self.wanted

    def whole(self, reply: Reply) -> Reply:
        """The last part of an answer with what came before it; any other reply as it is."""
        parts, self.parts = self.parts, None
        if parts and isinstance(reply, ProposeAnswers | QueryAnswers):
            return msgspec.structs.replace(reply, answers=[*parts, *reply.answers])
        return reply

    def request(self) -> Request:
        """Return what to send, under the present `request_id`."""
        raise NotImplementedError


class Opening(Attempt):
    """The opening of a session."""

    nonce: bytes
    ttl_ns: int

    def request(self) -> Request:
        """Return what to send; the nonce stays, so that trying again finds the same session."""
        return SessionRequest(request_id=self.request_id, nonce=self.nonce, ttl_ns=self.ttl_ns)


class Single(Attempt):
    """A request of one call."""

    call: Call
    template: Request

    @property
    def repeatable(self) -> bool:
        """Whether it changes nothing, so that trying again is always safe."""
        return isinstance(self.template, _REPEATABLE)

    @property
    def wanted(self) -> int:
        """One for each question."""
        return len(self.template.commands) if isinstance(self.template, Query) else 0

    def fits(self, max_frame_bytes: int) -> bool:
        """Whether the questions are few and short enough."""
        commands = self.template.commands if isinstance(self.template, Query) else []
        return _fit(commands, self.call.size, max_frame_bytes)

    def request(self) -> Request:
        """Return what to send."""
        return msgspec.structs.replace(self.template, request_id=self.request_id)


class Group(Attempt):
    """Calls with consecutive numbers from `first` on, which need version `since` of the state machine.

    `waiting` counts those that somebody still waits for.
    """

    session: "CallSession"
    first: int
    commands: list[bytes]
    calls: list[Call]
    size: int
    waiting: int
    since: int

    @property
    def wanted(self) -> int:
        """One for each command."""
        return len(self.commands)

    def fits(self, max_frame_bytes: int) -> bool:
        """Whether the commands are few and short enough."""
        return _fit(self.commands, self.size, max_frame_bytes)

    def request(self) -> Request:
        """Return what to send: always the same numbers and commands, `acked` as of now."""
        session = self.session
        group = CallGroup(session=session.id, first=self.first, acked=session.acked, commands=self.commands)
        if self.since > 1:
            return ProposeSince(self.request_id, group, self.since)
        return Propose(self.request_id, group)


Carrier: TypeAlias = Group | Single


def _fit(commands: list[bytes], size: int, max_frame_bytes: int) -> bool:
    """Whether a request with commands, of `size` bytes without their heads, fits a frame."""
    room = max_frame_bytes - REQUEST_BYTES - size
    return 5 * len(commands) <= room or sum(map(_head_bytes, commands)) <= room


def _head_bytes(command: bytes) -> int:
    """Bytes by which MessagePack says the length of a command."""
    return 2 if len(command) < 1 << 8 else 3 if len(command) < 1 << 16 else 5


class CallSession:
    """The client's side of a session: gives out numbers, knows what is live, keeps to the window."""

    def __init__(self, session_id: int, *, window_calls: int, window_bytes: int, now: float) -> None:
        self.id = session_id
        self.live: dict[int, Group] = {}
        self.last_used = now
        self._window_calls = window_calls
        self._window_bytes = window_bytes
        self._next = 0
        self._bytes = 0

    @property
    def acked(self) -> int:
        """The lowest number that is still waited for."""
        return next(iter(self.live), self._next)

    def has_room(self, count: int, size: int) -> bool:
        """Whether that many more calls, of that many bytes, fit the window."""
        return self._next + count - self.acked <= self._window_calls and self._bytes + size <= self._window_bytes

    def number(self, calls: list[Call]) -> Group:
        """Give calls, which need the same version, the next numbers, as one group."""
        group = Group(
            session=self,
            first=self._next,
            commands=[command for call in calls for command in call.commands],
            calls=calls,
            size=sum(call.size for call in calls),
            waiting=len(calls),
            since=calls[0].since,
        )
        for call in calls:
            call.carrier = group
        self.live[group.first] = group
        self._next += len(group.commands)
        self._bytes += group.size
        return group

    def drop(self, group: Group) -> None:
        """A group is answered, or nobody waits for it: `acked` may move on."""
        if self.live.pop(group.first, None) is not None:
            self._bytes -= group.size
