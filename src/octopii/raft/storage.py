"""What the core reads of the log that is on disk, and a store in memory for tests."""

from bisect import bisect_right
from itertools import accumulate
from typing import Protocol

from octopii.errors import OctopiiError
from octopii.raft.messages import MEMBERSHIP, ConfState, Entry, HardState, Snapshot


class StorageError(OctopiiError):
    """Why a part of the log cannot be read."""


class Compacted(StorageError):
    """The entry asked for was dropped: a snapshot stands for it."""


class Unavailable(StorageError):
    """The entry asked for is not there yet."""


class SnapshotTemporarilyUnavailable(StorageError):
    """There is no snapshot to send now; ask again later."""


class Storage(Protocol):
    """The log as far as it was written. The caller writes what each Ready holds, the core only reads."""

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Term, vote and membership at start."""
        ...

    def first_index(self) -> int:
        """Index of the oldest entry kept."""
        ...

    def last_index(self) -> int:
        """Index of the newest entry; `first_index() - 1` when there is none."""
        ...

    def term(self, index: int) -> int:
        """Term of an entry from `first_index() - 1` on; raises `Compacted` or `Unavailable`."""
        ...

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries from `low` up to, not including, `high`: what fits in `max_bytes`, at least one; raises likewise."""
        ...

    def membership_changes(self, after: int) -> list[int]:
        """Indexes of the membership entries behind index `after`, in order."""
        ...

    def snapshot(self) -> Snapshot:
        """The newest snapshot; raises `SnapshotTemporarilyUnavailable`."""
        ...


class MemoryStorage:
    """A log in memory, for tests: the first element of `_entries` stands for the snapshot before the log."""

    def __init__(self, conf_state: ConfState | None = None) -> None:
        self._hard_state = HardState()
        self._snapshot = Snapshot()
        if conf_state is not None:
            self._snapshot.metadata.conf_state = conf_state
        self._index = 0
        self._term = 0
        self._entries: list[Entry] = []

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Hard state as set, membership of the snapshot."""
        return self._hard_state, self._snapshot.metadata.conf_state

    def set_hard_state(self, state: HardState) -> None:
        """Write term and vote."""
        self._hard_state = state

    def first_index(self) -> int:
        """Index behind the snapshot or compaction."""
        return self._index + 1

    def last_index(self) -> int:
        """Index of the newest entry."""
        return self._index + len(self._entries)

    def term(self, index: int) -> int:
        """Term of an entry."""
        if index < self._index:
            raise Compacted(f"entry {index} is below {self._index}")
        if index > self.last_index():
            raise Unavailable(f"entry {index} is beyond {self.last_index()}")
        return self._term if index == self._index else self._entries[index - self._index - 1].term

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries of a range, cut at `max_bytes`."""
        if low <= self._index:
            raise Compacted(f"entry {low} is below {self._index + 1}")
        if high > self.last_index() + 1:
            raise Unavailable(f"entry {high - 1} is beyond {self.last_index()}")
        return limit_bytes(self._entries[low - self._index - 1 : high - self._index - 1], max_bytes)

    def membership_changes(self, after: int) -> list[int]:
        """Indexes of the membership entries behind `after`."""
        return [entry.index for entry in self._entries if entry.index > after and entry.kind is MEMBERSHIP]

    def snapshot(self) -> Snapshot:
        """The newest snapshot."""
        return self._snapshot

    def append(self, entries: list[Entry]) -> None:
        """Write entries, replacing those at and behind the first one's index."""
        if not entries:
            return
        keep = entries[0].index - self._index - 1
        if keep < 0:
            entries = entries[-keep:]
            keep = 0
        assert keep <= len(self._entries), "append leaves a gap"
        if entries:
            self._entries[keep:] = entries

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the whole log by a snapshot."""
        self._snapshot = snapshot
        self._index, self._term = snapshot.metadata.index, snapshot.metadata.term
        self._entries = []

    def create_snapshot(self, index: int, conf_state: ConfState, data: bytes = b"") -> Snapshot:
        """Note that a snapshot at `index` was taken; the log stays."""
        snapshot = Snapshot(data=data)
        snapshot.metadata.index, snapshot.metadata.term = index, self.term(index)
        snapshot.metadata.conf_state = conf_state
        self._snapshot = snapshot
        return snapshot

    def compact(self, index: int) -> None:
        """Drop the entries up to and including `index`."""
        if index <= self._index:
            raise Compacted(f"entry {index} is dropped already")
        term = self.term(index)
        self._entries = self._entries[index - self._index :]
        self._index, self._term = index, term


def limit_bytes(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """The first entries whose data fits in `max_bytes` together, at least one if there is one."""
    sizes = [len(entry.data) for entry in entries]
    if sum(sizes) <= max_bytes:
        return entries
    return entries[: max(1, bisect_right(list(accumulate(sizes)), max_bytes))]
