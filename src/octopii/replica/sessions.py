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
    Verdict.EXPIRED   no such session (any more): never applied, the caller learns that the outcome is unknown

Time here is the applied time in nanoseconds, never a clock of this machine.
"""

import enum

import msgspec

from octopii.wire.codec import Answer


class Verdict(enum.Enum):
    """What a group of calls is to the session it names."""

    NEW = "new"
    REPEATED = "repeated"
    STALE = "stale"
    EXPIRED = "expired"


class Session(msgspec.Struct):
    """One client's place in the table: what it was answered and has not acknowledged yet."""

    id: int
    ttl_ns: int
    last_ns: int
    nonce: bytes
    acked: int = 0
    next: int = 0
    answers: dict[int, list[Answer]] = msgspec.field(default_factory=dict)

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
            del answers[first]

    def overlaps(self, first: int, count: int) -> bool:
        """Whether any kept group shares a number with `first`..`first + count - 1`."""
        return any(
            first < kept_first + len(kept) and kept_first < first + count for kept_first, kept in self.answers.items()
        )


class SessionTable:
    """All sessions of a cluster, at one applied index.

    `max_sessions` bounds the table; it must be the same on every replica, so it comes with the cluster's constants and
    never from one node's configuration.
    """

    def __init__(self, *, max_sessions: int) -> None:
        self._sessions: dict[int, Session] = {}
        self._by_nonce: dict[bytes, int] = {}
        self._max_sessions = max_sessions

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
            session.drop_acknowledged(acked)
        if first < session.next and (first < session.acked or session.overlaps(first, count)):
            return Verdict.STALE, None
        return Verdict.NEW, None

    def record(self, session_id: int, *, first: int, answers: list[Answer]) -> None:
        """Keep the answers of a group that `begin` called new."""
        session = self._sessions[session_id]
        session.answers[first] = answers
        session.next = max(session.next, first + len(answers))

    def kept_answers(self, session_id: int, first: int) -> list[Answer] | None:
        """Answers of a group that was applied and not acknowledged, or None."""
        session = self._sessions.get(session_id)
        return None if session is None else session.answers.get(first)

    def capture(self) -> list[Session]:
        """Every session in order of id: what a snapshot holds (encode it before the next apply)."""
        return [self._sessions[session_id] for session_id in sorted(self._sessions)]

    def restore(self, sessions: list[Session]) -> None:
        """Replace the whole table by what a snapshot held."""
        self._sessions = {session.id: session for session in sessions}
        self._by_nonce = {session.nonce: session.id for session in sessions}
