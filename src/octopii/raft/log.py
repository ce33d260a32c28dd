"""The replicated log as the core sees it: a stable part in `Storage`, and an unstable tail in memory.

    storage.first_index() .. stable        on disk, read through `Storage`
    stable + 1 .. last_index               unstable: written by the caller, who has not said that it is on disk
    committed                              agreed on by a quorum, never changes any more
    handed                                 given to the caller to apply; handed <= min(committed, stable)
    applied                                the caller says that it was applied

The part of the unstable tail from `_taken` on has not been in a Ready yet.
"""

from octopii.raft.messages import Entry, EntryKind, Snapshot
from octopii.raft.storage import Compacted, Storage, Unavailable, limit_bytes


class RaftLog:
    """One node's log; indexes are 1-based, index 0 has term 0."""

    __slots__ = (
        "_taken",
        "applied",
        "applying_bytes",
        "committed",
        "handed",
        "max_applying_bytes",
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
        self.snapshot: Snapshot | None = None  # received, and not yet on disk
        self.snapshot_taken = False
        self.committed = max(storage.first_index() - 1, applied)
        self.handed = self.applied = self.committed
        self.applying_bytes = 0
        self.max_applying_bytes = max_applying_bytes

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
        """Entries from `low` to the end: what fits in `max_bytes`, at least one; raises `Compacted`."""
        if low > self.stable:
            return limit_bytes(self.unstable[low - self.stable - 1 :], max_bytes)
        if self.snapshot is not None:
            raise Compacted(f"entry {low} is below a snapshot at {self.snapshot.metadata.index}")
        stored = self.storage.entries(low, self.stable + 1, max_bytes)
        if not self.unstable or stored[-1].index < self.stable:
            return stored
        return limit_bytes(stored + self.unstable, max_bytes)

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
        self._taken = min(self._taken, first)

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
        """Position of the first entry that is not in the log; None when all are."""
        if entries[0].index > self.last_index():
            return 0
        for position, entry in enumerate(entries):
            if not self.matches(entry.index, entry.term):
                return position
        return None

    def find_conflict_by_term(self, index: int, term: int) -> int:
        """The highest index up to `index` whose term is at most `term`, so that a probe skips what cannot match."""
        index = min(index, self.last_index())
        while index > 0:
            try:
                if self.term(index) <= term:
                    break
            except (Compacted, Unavailable):
                break
            index -= 1
        return index

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
        self.committed = self.handed = snapshot.metadata.index

    # --- through Ready ------------------------------------------------------------------------------------------

    @property
    def has_untaken(self) -> bool:
        """Whether a Ready has something to write."""
        return self._taken <= self.last_index() or (self.snapshot is not None and not self.snapshot_taken)

    def take_unstable(self) -> list[Entry]:
        """The entries that no Ready has held yet."""
        entries = self.unstable[self._taken - self.stable - 1 :]
        self._taken = self.last_index() + 1
        return entries

    def stable_to(self, index: int, term: int) -> bool:
        """Entries up to (`index`, `term`) are on disk; False when they were replaced since, and it means nothing."""
        position = index - self.stable - 1
        if position < 0:
            return index == self.stable and self.matches(index, term)
        if position >= len(self.unstable) or self.unstable[position].term != term:
            return False
        del self.unstable[: position + 1]
        self.stable = index
        return True

    def stable_snapshot(self, index: int) -> None:
        """The snapshot at `index` is on disk."""
        if self.snapshot is not None and self.snapshot.metadata.index == index:
            self.snapshot = None

    @property
    def has_committed(self) -> bool:
        """Whether there is something to hand out; not while a snapshot is being installed."""
        return (
            self.handed < min(self.committed, self.stable)
            and self.snapshot is None
            and self.applying_bytes < self.max_applying_bytes
        )

    def take_committed(self, max_bytes: int) -> list[Entry]:
        """Committed entries on disk that were not handed out yet: what fits in `max_bytes`, at least one."""
        limit = min(self.committed, self.stable)
        entries = self.storage.entries(self.handed + 1, limit + 1, max_bytes)
        self.handed = entries[-1].index
        self.applying_bytes += sum([len(entry.data) for entry in entries])
        return entries

    def applied_to(self, index: int, size: int) -> None:
        """The caller has applied up to `index`."""
        assert index <= self.handed, f"applied {index} is beyond what was handed out, {self.handed}"
        self.applied = max(self.applied, index)
        self.applying_bytes = 0 if index >= self.handed else max(0, self.applying_bytes - size)

    def has_unapplied_membership(self) -> bool:
        """Whether a committed membership change waits to be applied (a node must not campaign before it is)."""
        low = self.applied + 1
        while low <= self.committed:
            entries = self.entries(low, 1 << 20)
            if any(entry.kind == EntryKind.MEMBERSHIP for entry in entries if entry.index <= self.committed):
                return True
            low = entries[-1].index + 1
        return False
