"""The replicated log as the core sees it: a stable part in `Storage`, and an unstable tail in memory.

    storage.first_index() .. stable        on disk, read through `Storage`
    stable + 1 .. last_index               unstable: written by the caller, who has not said that it is on disk
    committed                              agreed on by a quorum, never changes any more
    handed                                 given to the caller to apply; handed <= min(committed, stable)
    applied                                the caller says that it was applied

The part of the unstable tail from `_taken` on has not been in a Ready yet. What earlier Readys hold is on its way to
the disk; each of those writes remembers how far it will make the log stable, and that shrinks when entries are
replaced: an index and a term alone would not do, because the same entry can be replaced, and come back, while the first
write of it is still under way.
"""

from bisect import bisect_left, bisect_right
from collections import deque

import msgspec

from octopii.raft.messages import MEMBERSHIP, Entry, Snapshot
from octopii.raft.storage import Compacted, Storage, Unavailable, limit_bytes

max_entries_per_read = 8192
"""Entries that are looked at for one message or one Ready: bounds the work where entries are tiny or empty."""


class Write(msgspec.Struct, gc=False):
    """What a Ready holds for the disk: its number, the last entry it still vouches for, the snapshot's index or 0."""

    number: int
    last_index: int
    snapshot_index: int


class RaftLog:
    """One node's log; indexes are 1-based, index 0 has term 0."""

    __slots__ = (
        "_applying",
        "_taken",
        "_writes",
        "applied",
        "applying_bytes",
        "committed",
        "handed",
        "max_applying_bytes",
        "newest_change",
        "snapshot",
        "snapshot_taken",
        "stable",
        "storage",
        "unstable",
    )

    def __init__(self, storage: Storage, *, applied: int, max_applying_bytes: int) -> None:
        self.storage = storage
        self.stable = storage.last_index()
        self.unstable: list[Entry] = []  # from index stable + 1 on
        self._taken = self.stable + 1
        self._writes: deque[Write] = deque()
        self.snapshot: Snapshot | None = None  # received, and not yet on disk
        self.snapshot_taken = False
        self.handed = self.applied = max(storage.first_index() - 1, applied)
        self.newest_change, proven = self._membership_changes()
        self.committed = max(self.handed, proven)
        self._applying: deque[tuple[int, int]] = deque()  # (last index, bytes) of what was handed out
        self.applying_bytes = 0
        self.max_applying_bytes = max_applying_bytes

    def _membership_changes(self) -> tuple[int, int]:
        """At start: the newest membership change behind `applied`, and the one before it; 0 where there is none.

        The log itself proves the second to be committed: a leader proposes a change only after it has applied the one
        before. The commit index is not kept over a restart; without this proof a restarted node could be elected by a
        membership that is two changes old, whose quorums need not overlap with those of the present one.
        """
        before, newest = ([0, 0, *self.storage.membership_changes(self.applied)])[-2:]
        return newest, before

    # --- reading ------------------------------------------------------------------------------------------------

    def first_index(self) -> int:
        """Index of the oldest entry that can be read."""
        return self.snapshot.metadata.index + 1 if self.snapshot is not None else self.storage.first_index()

    def last_index(self) -> int:
        """Index of the newest entry."""
        return self.stable + len(self.unstable)

    def last_term(self) -> int:
        """Term of the newest entry."""
        return self.term(self.last_index())

    def term(self, index: int) -> int:
        """Term of an entry; raises `Compacted` or `Unavailable`."""
        if index > self.stable:
            position = index - self.stable - 1
            if position >= len(self.unstable):
                raise Unavailable(f"entry {index} is beyond the log's end, {self.last_index()}")
            return self.unstable[position].term
        if self.snapshot is not None:
            if index == self.snapshot.metadata.index:
                return self.snapshot.metadata.term
            raise Compacted(f"entry {index} is below a snapshot at {self.snapshot.metadata.index}")
        if index == 0:
            return 0
        return self.storage.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Whether the entry at `index` is there and has this term."""
        try:
            return self.term(index) == term
        except (Compacted, Unavailable):
            return False

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends so is at least as up to date as this one (paper, section 5.4.1)."""
        last_term = self.last_term()
        return term > last_term or (term == last_term and index >= self.last_index())

    def entries(self, low: int, max_bytes: int) -> list[Entry]:
        """Entries from `low` on: what fits in `max_bytes`, at least one; raises `Compacted`."""
        stable, high = self.stable, low + max_entries_per_read
        if low > stable:
            return limit_bytes(self.unstable[low - stable - 1 : high - stable - 1], max_bytes)
        if self.snapshot is not None:
            raise Compacted(f"entry {low} is below a snapshot at {self.snapshot.metadata.index}")
        stored = self.storage.entries(low, min(stable + 1, high), max_bytes)
        if high <= stable + 1 or not self.unstable or stored[-1].index < stable:
            return stored
        return limit_bytes(stored + self.unstable[: high - stable - 1], max_bytes)

    # --- writing ------------------------------------------------------------------------------------------------

    def append(self, entries: list[Entry]) -> None:
        """Add entries, dropping what stands at the first one's index and behind."""
        first = entries[0].index
        assert first > self.committed, f"entry {first} would replace a committed one (commit index {self.committed})"
        position = first - self.stable - 1
        if position >= 0:
            assert position <= len(self.unstable), "append leaves a gap"
            del self.unstable[position:]
        else:
            self.stable = first - 1
            self.unstable = []
        self.unstable += entries
        if first < self._taken:
            self._taken = first
            for write in self._writes:
                write.last_index = min(write.last_index, first - 1)

    def maybe_append(self, index: int, log_term: int, commit: int, entries: list[Entry]) -> int | None:
        """Take a leader's append behind the entry (`index`, `log_term`); None when that entry does not match.

        Returns the index of the last entry that is now known to match the leader's log. A suffix that matches already
        is not touched (paper, figure 2, AppendEntries, step 3).
        """
        if not self.matches(index, log_term):
            return None
        last_new = index + len(entries)
        if entries:
            conflict = self._find_conflict(entries)
            if conflict is not None:
                assert entries[conflict].index > self.committed, "an append conflicts with a committed entry"
                self.append(entries[conflict:] if conflict else entries)
        self.commit_to(min(commit, last_new))
        return last_new

    def _find_conflict(self, entries: list[Entry]) -> int | None:
        """Position of the first entry that is not in the log; None when all are.

        Where two logs share an entry they share all before it (log matching, paper, figure 3).
        """
        if entries[0].index > self.last_index():
            return 0
        last = entries[-1]
        if self.matches(last.index, last.term):
            return None
        return bisect_left(entries, True, key=lambda entry: not self.matches(entry.index, entry.term))

    def find_conflict_by_term(self, index: int, term: int) -> int:
        """The highest index up to `index` whose term is at most `term`, so that a probe skips what cannot match.

        Terms never fall along a log. Where even the oldest entry is of a newer term, the index before the log's start.
        """
        high, start = min(index, self.last_index()), self.first_index()
        if high < start:
            return high
        below = bisect_right(range(start, high + 1), term, key=self.term)
        if below or self._term_at_start() <= term:
            return start + below - 1
        return max(start - 2, 0)

    def _term_at_start(self) -> int:
        """Term of the entry before the first, which a snapshot stands for; 0 where it is not known."""
        try:
            return self.term(self.first_index() - 1)
        except (Compacted, Unavailable):
            return 0

    def commit_to(self, index: int) -> bool:
        """Raise the commit index; True when it moved."""
        if index <= self.committed:
            return False
        assert index <= self.last_index(), f"commit index {index} is beyond the log's end, {self.last_index()}"
        self.committed = index
        return True

    def restore(self, snapshot: Snapshot) -> None:
        """Replace everything by a snapshot that has arrived."""
        self.snapshot = snapshot
        self.snapshot_taken = False
        self.stable = snapshot.metadata.index
        self.unstable = []
        self._taken = self.stable + 1
        for write in self._writes:
            write.last_index = write.snapshot_index = 0
        self.committed = self.handed = snapshot.metadata.index

    # --- through Ready ------------------------------------------------------------------------------------------

    @property
    def has_untaken(self) -> bool:
        """Whether a Ready has something to write."""
        return self._taken <= self.last_index() or (self.snapshot is not None and not self.snapshot_taken)

    def take_for_disk(self, number: int) -> tuple[Snapshot | None, list[Entry]]:
        """What no Ready has held yet, for the Ready `number`: a snapshot, and the entries behind it."""
        snapshot = None if self.snapshot_taken else self.snapshot
        self.snapshot_taken = True
        entries = self.unstable[self._taken - self.stable - 1 :]
        last = self.last_index()
        self._taken = last + 1
        self._writes.append(
            Write(
                number=number,
                last_index=last if entries else 0,
                snapshot_index=snapshot.metadata.index if snapshot is not None else 0,
            )
        )
        return snapshot, entries

    def stable_to(self, number: int) -> bool:
        """Everything up to the Ready `number` is on disk; True when that makes more of the present log stable."""
        before = self.stable
        while self._writes and self._writes[0].number <= number:
            write = self._writes.popleft()
            if write.snapshot_index:
                self.snapshot = None
            if write.last_index > self.stable:
                del self.unstable[: write.last_index - self.stable]
                self.stable = write.last_index
        return self.stable > before

    @property
    def has_committed(self) -> bool:
        """Whether there is something to hand out; not while a snapshot is being installed."""
        return (
            self.handed < self.committed
            and self.handed < self.stable
            and self.snapshot is None
            and self.applying_bytes < self.max_applying_bytes
        )

    def take_committed(self, max_bytes: int) -> list[Entry]:
        """Committed entries on disk that were not handed out yet: what fits in `max_bytes`, at least one."""
        low = self.handed + 1
        high = min(self.committed, self.stable, self.handed + max_entries_per_read) + 1
        entries = self.storage.entries(low, high, max_bytes)
        self.handed = entries[-1].index
        size = sum([len(entry.data) for entry in entries])
        self._applying.append((self.handed, size))
        self.applying_bytes += size
        return entries

    def applied_to(self, index: int) -> None:
        """The caller has applied up to `index`. What was handed out together counts as applying until all of it is."""
        assert index <= self.handed, f"applied {index} is beyond what was handed out, {self.handed}"
        self.applied = max(self.applied, index)
        applying = self._applying
        while applying and applying[0][0] <= index:
            self.applying_bytes -= applying.popleft()[1]

    def has_unapplied_membership(self) -> bool:
        """Whether a committed membership change waits to be applied (a node must not campaign before it is)."""
        committed, on_disk = self.committed, min(self.committed, self.stable)
        if self.snapshot is None and any(index <= on_disk for index in self.storage.membership_changes(self.applied)):
            return True
        return any(entry.kind is MEMBERSHIP for entry in self.unstable if self.applied < entry.index <= committed)
