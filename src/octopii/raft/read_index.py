"""Reads without log entries (thesis, section 6.4): a leader confirms that it still leads, and says how far to wait.

Heartbeats are numbered in rounds. A read that arrives is confirmed by a round that began after it: its index is the
commit index of the moment it arrived. While a round is under way later reads gather for the next one, so that any
number of them costs one round. Answers to older rounds confirm nothing new.

Reads that come before the leader has committed an entry of its own term wait: until then it may not know the commit
index (paper, section 8).
"""

import msgspec


class Read(msgspec.Struct, frozen=True, gc=False):
    """One read: who asked (this node or another), with which context, and the index that it has to wait for."""

    node_id: int
    context: bytes
    index: int = 0


class Reads:
    """A leader's reads, at most `max_pending`; empty on all other nodes."""

    def __init__(self, *, max_pending: int) -> None:
        self._max_pending = max_pending
        self._pending = 0
        self.round = 0
        self.confirmed_round = 0
        self.acked: dict[int, int] = {}
        self._held: list[Read] = []  # before the first commit of the term
        self._gathering: list[Read] = []  # for the next round
        self._under_way: list[tuple[int, list[Read]]] = []

    def reset(self) -> None:
        """Another role or term: who asked asks again. Rounds go on counting, so that old answers stay old."""
        self.confirmed_round = self.round
        self.acked = {}
        self._held, self._gathering, self._under_way, self._pending = [], [], [], 0

    def hold(self, read: Read) -> None:
        """Keep a read until the term's first commit."""
        if self._pending < self._max_pending:
            self._pending += 1
            self._held.append(read)

    def release(self) -> list[Read]:
        """The term's first commit has come: all that was held."""
        held, self._held = self._held, []
        self._pending -= len(held)
        return held

    def add(self, read: Read) -> bool:
        """Take a read; True when a round should be started for it now."""
        if self._pending < self._max_pending:
            self._pending += 1
            self._gathering.append(read)
        return not self._under_way

    @property
    def gathered(self) -> bool:
        """Whether reads wait for a round to be started."""
        return bool(self._gathering)

    def begin_round(self) -> int:
        """Start a round, with all that has gathered."""
        self.round += 1
        if self._gathering:
            self._under_way.append((self.round, self._gathering))
            self._gathering = []
        return self.round

    def confirm(self, number: int) -> list[Read]:
        """A quorum has answered round `number`: all reads of it and of earlier ones are confirmed."""
        self.confirmed_round = max(self.confirmed_round, number)
        done = [read for round_, reads in self._under_way if round_ <= number for read in reads]
        self._under_way = [pair for pair in self._under_way if pair[0] > number]
        self._pending -= len(done)
        return done
