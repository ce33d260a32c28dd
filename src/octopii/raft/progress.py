"""What a leader knows of each member's log, and how fast it may send.

    PROBE      where the logs meet is a guess: one message at a time, then wait for its answer
    REPLICATE  they meet at `match`: a window of messages may be under way, `next` runs ahead of the answers
    SNAPSHOT   a snapshot is on its way: nothing else is sent until it has arrived or failed

Invariant: match < next.
"""

import enum
from collections import deque


class ProgressState(enum.Enum):
    """How a member is being sent entries."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


PROBE = ProgressState.PROBE
REPLICATE = ProgressState.REPLICATE
SNAPSHOTTING = ProgressState.SNAPSHOT


class Inflights:
    """The appends that were sent to a member and not answered yet, bounded in messages and bytes."""

    __slots__ = ("_bytes", "_max_bytes", "_max_messages", "_sent")

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._sent: deque[tuple[int, int]] = deque()  # (last index, bytes) of each message
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def bytes(self) -> int:
        """Bytes of entries under way."""
        return self._bytes

    @property
    def full(self) -> bool:
        """Whether nothing more may be sent; a single message may be larger than the limit on bytes."""
        return len(self._sent) >= self._max_messages or self._bytes >= self._max_bytes

    def add(self, last_index: int, size: int) -> None:
        """Note a message whose last entry is `last_index`."""
        assert not self.full
        self._sent.append((last_index, size))
        self._bytes += size

    def free_to(self, index: int) -> None:
        """All messages up to `index` were answered."""
        sent = self._sent
        while sent and sent[0][0] <= index:
            self._bytes -= sent.popleft()[1]

    def clear(self) -> None:
        """Forget all."""
        self._sent.clear()
        self._bytes = 0


class Progress:
    """One member, as its leader sees it."""

    __slots__ = (
        "inflights",
        "is_learner",
        "match",
        "next",
        "paused",
        "pending_snapshot",
        "recent_active",
        "sent_commit",
        "state",
    )

    def __init__(self, *, match: int, next_index: int, is_learner: bool, inflights: Inflights) -> None:
        self.match = match
        self.next = next_index
        self.state = PROBE
        self.pending_snapshot = 0
        self.recent_active = False
        self.paused = False
        self.sent_commit = 0
        self.is_learner = is_learner
        self.inflights = inflights

    def _become(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.pending_snapshot = 0
        self.inflights.clear()

    def become_probe(self) -> None:
        """Ask again where the logs meet; after a snapshot not before its end."""
        pending = self.pending_snapshot if self.state is SNAPSHOTTING else 0
        self._become(PROBE)
        self.next = max(self.match + 1, pending + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        """The logs meet at `match`: stream."""
        self._become(REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        """A snapshot that ends at `index` is on its way."""
        self._become(SNAPSHOTTING)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def maybe_update(self, index: int) -> bool:
        """Take an acknowledgement up to `index`; False when it tells nothing new."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.paused = False
        return True

    def maybe_decrease(self, rejected: int, hint: int) -> bool:
        """Take a rejection of the append behind index `rejected`; False when it is stale."""
        if self.state is REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            self.sent_commit = min(self.sent_commit, self.next - 1)
            return True
        if self.next - 1 != rejected or self.state is SNAPSHOTTING:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.paused = False
        return True

    @property
    def is_paused(self) -> bool:
        """Whether nothing may be sent now."""
        return self.paused or self.state is SNAPSHOTTING

    def sent(self, entries: int, size: int) -> None:
        """An append with so many entries and bytes went out."""
        if self.state is REPLICATE:
            if entries:
                self.next += entries
                self.inflights.add(self.next - 1, size)
            self.paused = self.inflights.full
        elif entries:
            self.paused = True
