"""Client sessions: how a retried call is applied once and answered twice (Raft thesis, section 6.3).

The table is part of the replicated state: it changes only when an entry is applied, so it is the same on every replica
at the same index, and it travels in every snapshot.

A session is opened by a replicated command and its id is the index of that command's entry. A client numbers its calls
0, 1, 2, ... and sends them in groups of consecutive numbers; a retried group keeps its first number and its length.
With each group goes `acked`, the lowest number whose answer the client does not have yet: answers below it are dropped.

What `begin` says about a group:

    Verdict.NEW       apply it, then hand the answers to `record`
    Verdict.REPEATED  it was applied before: the kept answers are the answer
    Verdict.STALE     the client itself has acknowledged it, or it overlaps another group: nobody waits, nothing happens
    Verdict.FULL      too many bytes of answers are kept: it is not applied; when the client has acknowledged some, the
                      same group is judged anew
    Verdict.EXPIRED   no such session (any more): never applied, the caller learns that the outcome is unknown

Time here is the applied time in nanoseconds, never a clock of this machine.
"""

import enum
import struct
from typing import cast

import msgspec

from octopii.wire.codec import Answer, ApplyFailedAnswer, Buffer, CommandErrorAnswer, decoded
from octopii.wire.frames import MalformedMessage

answer_overhead_bytes = 64
"""What a kept answer counts as beside its bytes."""

_LENGTH = struct.Struct("<Q")


class Verdict(enum.Enum):
    """What a group of calls is to the session it names."""

    NEW = "new"
    REPEATED = "repeated"
    STALE = "stale"
    FULL = "full"
    EXPIRED = "expired"


class Session(msgspec.Struct, array_like=True):
    """One client's place in the table: what it was answered and has not acknowledged yet, `kept_bytes` in all."""

    id: int
    ttl_ns: int
    last_ns: int
    nonce: bytes
    acked: int = 0
    next: int = 0
    answers: dict[int, list[Answer]] = msgspec.field(default_factory=dict)
    kept_bytes: int = 0

    def expired(self, now_ns: int) -> bool:
        """Whether nothing was heard from the client for longer than its time to live."""
        return now_ns - self.last_ns > self.ttl_ns

    def drop_acknowledged(self, acked: int) -> None:
        """Forget the answers that the client has, in the order in which they were recorded."""
        if acked <= self.acked:
            return
        self.acked = acked
        answers = self.answers
        for first in [first for first, kept in answers.items() if first + len(kept) <= acked]:
            self.kept_bytes -= size_of_answers(answers.pop(first))

    def overlaps(self, first: int, count: int) -> bool:
        """Whether any kept group shares a number with `first`..`first + count - 1`."""
        return any(
            first < kept_first + len(kept) and kept_first < first + count for kept_first, kept in self.answers.items()
        )


def size_of_answers(answers: list[Answer]) -> int:
    """What keeping these answers counts as, in bytes. Nearly always they are all bytes themselves."""
    size = answer_overhead_bytes * len(answers)
    try:
        return size + sum(map(len, cast("list[bytes]", answers)))
    except TypeError:
        return size + sum(map(_size_of_answer, answers))


def _size_of_answer(answer: Answer) -> int:
    if isinstance(answer, bytes):
        return len(answer)
    if isinstance(answer, ApplyFailedAnswer):
        return len(answer.exception)
    if isinstance(answer, CommandErrorAnswer):
        return len(answer.text)
    return len(answer.text) + len(answer.name) + len(answer.arguments)


class SessionTable:
    """All sessions of a cluster, at one applied index.

    The limits bound the table: sessions, bytes of answers kept for one session (a group that is judged below the limit
    may exceed it with its own answers), and for all: beyond that the sessions that were idle for longest end early.
    They must be the same on every replica, so they come with the cluster's constants and never from one node's
    configuration.
    """

    def __init__(self, *, max_sessions: int, max_session_bytes: int, max_bytes: int) -> None:
        self._sessions: dict[int, Session] = {}
        self._by_nonce: dict[bytes, int] = {}
        self._max_sessions = max_sessions
        self._max_session_bytes = max_session_bytes
        self._max_bytes = max_bytes
        self.kept_bytes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, session_id: int, *, nonce: bytes, ttl_ns: int, now_ns: int) -> int | None:
        """Open a session and return its id; a repeated nonce gets the id it got first, a full table gets None."""
        known = self._by_nonce.get(nonce)
        if known is not None and not self._sessions[known].expired(now_ns):
            return known
        if len(self._sessions) >= self._max_sessions:
            self.expire(now_ns)
            if len(self._sessions) >= self._max_sessions:
                return None
        elif known is not None:
            self.close(known)
        self._sessions[session_id] = Session(id=session_id, ttl_ns=ttl_ns, last_ns=now_ns, nonce=nonce)
        self._by_nonce[nonce] = session_id
        return session_id

    def close(self, session_id: int) -> bool:
        """End a session and drop its answers; False when there was none."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return False
        self.kept_bytes -= session.kept_bytes
        if self._by_nonce.get(session.nonce) == session_id:
            del self._by_nonce[session.nonce]
        return True

    def expire(self, now_ns: int) -> list[int]:
        """End every session whose time ran out at `now_ns`, and return their ids."""
        ended = [session.id for session in self._sessions.values() if session.expired(now_ns)]
        for session_id in ended:
            self.close(session_id)
        return ended

    def begin(
        self, session_id: int, *, first: int, count: int, acked: int, now_ns: int
    ) -> tuple[Verdict, list[Answer] | None]:
        """Judge a group of `count` calls from number `first` on, and note what the client has acknowledged."""
        session = self._sessions.get(session_id)
        if session is None:
            return Verdict.EXPIRED, None
        if session.expired(now_ns):
            self.close(session_id)
            return Verdict.EXPIRED, None
        session.last_ns = now_ns
        kept = session.answers.get(first)
        if kept is not None and len(kept) == count:
            return Verdict.REPEATED, kept
        if acked > session.acked:
            before = session.kept_bytes
            session.drop_acknowledged(acked)
            self.kept_bytes -= before - session.kept_bytes
        if first < session.next and (first < session.acked or session.overlaps(first, count)):
            return Verdict.STALE, None
        if session.kept_bytes >= self._max_session_bytes and first > session.acked:
            return Verdict.FULL, None  # the call that the client waits for first always goes: it opens the way
        return Verdict.NEW, None

    def record(self, session_id: int, *, first: int, answers: list[Answer]) -> None:
        """Keep the answers of a group that `begin` called new."""
        session = self._sessions[session_id]
        session.answers[first] = answers
        size = size_of_answers(answers)
        session.kept_bytes += size
        self.kept_bytes += size
        if self.kept_bytes > self._max_bytes:
            self._make_room(session_id)
        session.next = max(session.next, first + len(answers))

    def _make_room(self, newest: int) -> None:
        """End the sessions that were idle for longest, an eighth of all bytes at once so that it happens seldom.

        A client that is idle has its answers; its next call goes on under a fresh session.
        """
        goal = self._max_bytes - self._max_bytes // 8
        for session in sorted(self._sessions.values(), key=lambda session: (session.last_ns, session.id)):
            if self.kept_bytes <= goal:
                return
            if session.kept_bytes and session.id != newest:
                self.close(session.id)

    def kept_answers(self, session_id: int, first: int) -> list[Answer] | None:
        """Answers of a group that was applied and not acknowledged, or None."""
        session = self._sessions.get(session_id)
        return None if session is None else session.answers.get(first)

    def capture(self) -> list[Session]:
        """Every session in order of id: what a snapshot holds (copy or encode it before the next apply)."""
        return [self._sessions[session_id] for session_id in sorted(self._sessions)]

    def restore(self, sessions: list[Session]) -> None:
        """Replace the whole table by what a snapshot held."""
        self._sessions = {session.id: session for session in sessions}
        self._by_nonce = {session.nonce: session.id for session in sessions}
        self.kept_bytes = sum(session.kept_bytes for session in sessions)


# --- in a snapshot: each session behind its length, u64 little-endian ---------------------------------------------

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Session)


def encode_session(session: Session) -> bytes:
    """One session as it stands in a snapshot."""
    data = _encode(session)
    return _LENGTH.pack(len(data)) + data


def decode_sessions(data: Buffer, *, count: int) -> list[Session]:
    """Read the sessions of a snapshot; raises `MalformedMessage`."""
    sessions: list[Session] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < _LENGTH.size:
            raise MalformedMessage(f"sessions: {end - at} bytes are left over")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > end - at:
            raise MalformedMessage(f"sessions: one of {length} bytes where {end - at} are left")
        sessions.append(decoded(_decoder, data[at : at + length], "session"))
        at += length
    if len(sessions) != count:
        raise MalformedMessage(f"sessions: {len(sessions)} where there should be {count}")
    return sessions
