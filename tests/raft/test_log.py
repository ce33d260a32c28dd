"""The log: stable part, unstable tail, writes in flight, commit and apply positions."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octopii.raft import (
    Compacted,
    ConfState,
    Entry,
    EntryKind,
    MemoryStorage,
    Snapshot,
    SnapshotMetadata,
    StorageError,
    Unavailable,
)
from octopii.raft.log import RaftLog, max_entries_per_read
from octopii.raft.storage import limit_bytes

NO_LIMIT = (1 << 63) - 1


def entries(first: int, *terms: int, size: int = 1) -> list[Entry]:
    """Entries from index `first` on, of these terms."""
    return [Entry(term, first + place, EntryKind.NORMAL, b"x" * size) for place, term in enumerate(terms)]


def stored(*terms: int) -> MemoryStorage:
    """A storage whose log has these terms."""
    storage = MemoryStorage(ConfState(voters=[1]))
    storage.append(entries(1, *terms))
    return storage


def log_of(*terms: int, applied: int = 0) -> RaftLog:
    """A log that is on disk."""
    return RaftLog(stored(*terms), applied=applied, max_applying_bytes=NO_LIMIT)


def terms(log: RaftLog) -> list[int]:
    """The terms of a log that was not compacted."""
    return [log.term(index) for index in range(1, log.last_index() + 1)]


def snapshot(index: int, term: int) -> Snapshot:
    """A snapshot of nothing in particular."""
    return Snapshot(SnapshotMetadata(index, term, ConfState(voters=[1])))


# --- taking appends (paper, figure 2, AppendEntries)


def test_append_behind_an_entry_that_is_not_there_is_refused() -> None:
    """The entry before the new ones must be there, with the same term (figure 2, AppendEntries, step 2)."""
    log = log_of(1, 1, 2)
    assert log.maybe_append(3, 1, 0, entries(4, 2)) is None
    assert log.maybe_append(4, 2, 0, entries(5, 2)) is None
    assert terms(log) == [1, 1, 2]


def test_conflicting_suffix_is_replaced() -> None:
    """The first entry that conflicts goes, with all that follow it (figure 2, AppendEntries, step 3)."""
    log = log_of(1, 1, 2, 2, 2)
    assert log.maybe_append(2, 1, 0, entries(3, 3, 3)) == 4
    assert terms(log) == [1, 1, 3, 3]


def test_matching_suffix_is_not_truncated() -> None:
    """An old, shorter append removes nothing behind it: only a conflict does (bug class: truncated matching suffix)."""
    log = log_of(1, 1, 2, 2, 2)
    assert log.maybe_append(1, 1, 0, entries(2, 1, 2)) == 3
    assert terms(log) == [1, 1, 2, 2, 2]
    assert not log.has_untaken
    assert log.maybe_append(5, 2, 0, []) == 5


def test_only_the_conflicting_part_is_written() -> None:
    """What an append repeats is not written again."""
    log = log_of(1, 1, 2)
    assert log.maybe_append(1, 1, 0, entries(2, 1, 2, 2, 3)) == 5
    _, written = log.take_for_disk(1)
    assert [entry.index for entry in written] == [4, 5]


def test_commit_index_follows_the_leader_as_far_as_the_log_matches() -> None:
    """A follower commits up to the leader's commit index, or the last entry known to match (figure 2, step 5)."""
    log = log_of(1, 1, 1, 1)
    log.maybe_append(1, 1, 4, entries(2, 1))
    assert log.committed == 2, "entries 3 and 4 may be another leader's"
    log.maybe_append(4, 1, 3, [])
    assert log.committed == 3
    log.maybe_append(4, 1, 2, [])
    assert log.committed == 3, "it never goes back"


def test_conflict_with_a_committed_entry_is_a_broken_promise() -> None:
    """No append may replace what is committed: that is never taken quietly (bug class: conflict below commit)."""
    log = log_of(1, 1, 1)
    log.commit_to(2)
    with pytest.raises(AssertionError, match="committed"):
        log.maybe_append(1, 1, 0, entries(2, 2))
    with pytest.raises(AssertionError, match="committed"):
        log.append(entries(2, 2))
    assert terms(log) == [1, 1, 1]


def test_commit_beyond_the_end_is_a_broken_promise() -> None:
    """A commit index beyond the log's end means that entries were lost."""
    with pytest.raises(AssertionError, match="beyond the log's end"):
        log_of(1, 1).commit_to(3)


# --- finding where logs meet


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [(8, 9, 8), (8, 5, 8), (8, 4, 6), (8, 3, 3), (8, 2, 3), (8, 1, 3), (8, 0, 0), (20, 4, 6), (2, 1, 2), (0, 7, 0)],
)
def test_hint_skips_all_terms_that_cannot_match(index: int, term: int, expected: int) -> None:
    """The hint is the last index up to the one asked for whose term is not newer than the one asked for."""
    assert log_of(1, 1, 1, 4, 4, 4, 5, 5).find_conflict_by_term(index, term) == expected


def test_hint_stops_at_the_start_of_a_compacted_log() -> None:
    """Below the start nothing is known: the hint is the snapshot's index, or the one before if that is too new."""
    storage = stored(1, 1, 3, 3, 4)
    storage.compact(3)
    log = RaftLog(storage, applied=3, max_applying_bytes=NO_LIMIT)
    assert log.find_conflict_by_term(5, 3) == 4
    assert log.find_conflict_by_term(5, 2) == 2
    assert log.find_conflict_by_term(3, 1) == 3
    assert log.find_conflict_by_term(1, 1) == 1


# --- who is more up to date (section 5.4.1)


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [(3, 2, True), (4, 2, True), (2, 2, False), (1, 3, True), (9, 1, False)],
)
def test_later_term_wins_then_longer_log(index: int, term: int, expected: bool) -> None:
    """A log with a later last term is more up to date; with the same term the longer one is (section 5.4.1)."""
    assert log_of(1, 1, 2).is_up_to_date(index, term) is expected


# --- writes in flight


def test_entries_are_stable_once_their_ready_is_on_disk() -> None:
    """A Ready in flight leaves its entries unstable; each entry is in one Ready only."""
    log = log_of(1)
    log.append(entries(2, 1, 1))
    _, first = log.take_for_disk(1)
    assert not log.has_untaken
    log.append(entries(4, 1))
    _, second = log.take_for_disk(2)
    assert ([e.index for e in first], [e.index for e in second]) == ([2, 3], [4])
    log.storage.append(first)  # type: ignore[attr-defined]
    assert log.stable_to(1)
    assert (log.stable, len(log.unstable)) == (3, 1)


def test_replaced_entries_count_for_nothing() -> None:
    """What a write in flight stood for ends where it was replaced."""
    log = log_of(1)
    log.append(entries(2, 2, 2, 2))
    log.take_for_disk(1)
    log.append(entries(3, 3))
    assert log.stable_to(1)
    assert log.stable == 2


def test_an_entry_that_comes_back_is_not_stable_before_its_own_write() -> None:
    """The same entry, replaced and sent again, waits for its second write: the one between will overwrite the first."""
    log = log_of(1)
    writes = []
    for number, term in enumerate((2, 3, 2), start=1):
        log.append(entries(2, term))
        writes.append(log.take_for_disk(number)[1])
    log.storage.append(writes[0])  # type: ignore[attr-defined]
    assert not log.stable_to(1)
    log.storage.append(writes[1])  # type: ignore[attr-defined]
    assert not log.stable_to(2)
    assert terms(log) == [1, 2]
    log.storage.append(writes[2])  # type: ignore[attr-defined]
    assert log.stable_to(3)
    assert terms(log) == [1, 2]


def test_a_snapshot_takes_the_place_of_everything_in_flight() -> None:
    """Entries in flight when a snapshot arrives mean nothing afterwards, and it is pending until its own write."""
    log = log_of(1)
    log.append(entries(2, 1, 1))
    log.take_for_disk(1)
    log.restore(snapshot(10, 2))
    taken, _ = log.take_for_disk(2)
    assert taken is not None
    assert not log.stable_to(1)
    assert log.snapshot is not None
    assert not log.has_committed
    log.storage.apply_snapshot(taken)  # type: ignore[attr-defined]
    log.stable_to(2)
    assert log.snapshot is None
    assert (log.first_index(), log.last_index(), log.last_term()) == (11, 10, 2)


# --- handing out


def test_only_what_is_on_this_disk_is_handed_out() -> None:
    """Committed entries are handed out once they are on the node's own disk."""
    log = log_of(1)
    log.append(entries(2, 1))
    _, written = log.take_for_disk(1)
    log.commit_to(2)
    assert [entry.index for entry in log.take_committed(NO_LIMIT)] == [1]
    assert not log.has_committed
    log.storage.append(written)  # type: ignore[attr-defined]
    log.stable_to(1)
    assert [entry.index for entry in log.take_committed(NO_LIMIT)] == [2]


def test_handing_out_stops_at_the_limit_of_what_is_being_applied() -> None:
    """No more is handed out while so many bytes are being applied; a batch counts until all of it is applied."""
    storage = MemoryStorage(ConfState(voters=[1]))
    storage.append(entries(1, 1, 1, 1, 1, size=10))
    log = RaftLog(storage, applied=0, max_applying_bytes=20)
    log.commit_to(4)
    assert len(log.take_committed(20)) == 2
    assert not log.has_committed
    log.applied_to(1)
    assert not log.has_committed
    log.applied_to(2)
    assert log.has_committed
    assert [entry.index for entry in log.take_committed(20)] == [3, 4]


def test_applying_what_was_not_handed_out_is_a_broken_promise() -> None:
    """Nothing may be said to be applied that was not handed out."""
    log = log_of(1, 1)
    with pytest.raises(AssertionError, match="beyond what was handed out"):
        log.applied_to(1)


# --- limits


def test_a_read_has_at_least_one_entry_and_at_most_the_limit() -> None:
    """A size limit never stops progress, and never lets through more than it says."""
    some = entries(1, 1, 1, 1, size=10)
    assert [len(limit_bytes(some, limit)) for limit in (0, 9, 10, 19, 20, 29, 30, NO_LIMIT)] == [1, 1, 1, 1, 2, 2, 3, 3]
    assert limit_bytes([], 10) == []


@pytest.mark.parametrize("on_disk", [0, 1, max_entries_per_read - 1, max_entries_per_read, max_entries_per_read + 5])
def test_a_read_is_bounded_in_entries(on_disk: int) -> None:
    """Empty entries are bounded in number, wherever the read crosses from the disk to the unstable tail."""
    many = entries(1, *[1] * (2 * max_entries_per_read), size=0)
    storage = MemoryStorage(ConfState(voters=[1]))
    storage.append(many[:on_disk])
    log = RaftLog(storage, applied=0, max_applying_bytes=NO_LIMIT)
    log.append(many[on_disk:])
    assert log.entries(1, NO_LIMIT) == many[:max_entries_per_read]
    assert log.entries(3, NO_LIMIT) == many[2 : max_entries_per_read + 2]


# --- start


def test_restart_begins_at_what_the_state_machine_has() -> None:
    """After a restart everything behind `applied` is handed out again, once it is known to be committed."""
    log = log_of(1, 1, 1, applied=2)
    assert (log.committed, log.handed, log.applied, log.stable) == (2, 2, 2, 3)


@pytest.mark.parametrize(("changes", "applied", "proven"), [([], 0, 0), ([3], 0, 0), ([3, 5], 0, 3), ([2, 3, 6], 2, 3)])
def test_all_membership_changes_but_the_last_are_proven_committed(
    changes: list[int], applied: int, proven: int
) -> None:
    """A leader proposes a change only after it has applied the one before, so the log proves that one committed."""
    storage = stored(*[1] * 6)
    for index in changes:
        storage.append(
            [Entry(1, index, EntryKind.MEMBERSHIP, b""), *storage.entries(index + 1, 7, NO_LIMIT)]
            if index < 6
            else [Entry(1, index, EntryKind.MEMBERSHIP, b"")]
        )
    log = RaftLog(storage, applied=applied, max_applying_bytes=NO_LIMIT)
    assert log.committed == max(proven, applied)
    assert log.newest_change == (changes[-1] if changes else 0)


def test_errors_of_a_storage_are_told_apart() -> None:
    """What was compacted and what is not there yet are different errors of one family."""
    storage = stored(1, 1, 2)
    storage.compact(2)
    for index, error in ((1, Compacted), (4, Unavailable)):
        with pytest.raises(error):
            storage.term(index)
        with pytest.raises(StorageError):
            storage.entries(index, index + 1, NO_LIMIT)
    assert storage.term(2) == 1
    with pytest.raises(Compacted):
        storage.compact(2)


# --- against a plain list


class LogAgainstList(RuleBasedStateMachine):
    """A follower's log with a lagging disk against a plain list of terms: what is read is always the list's."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = MemoryStorage(ConfState(voters=[1]))
        self.log = RaftLog(self.storage, applied=0, max_applying_bytes=NO_LIMIT)
        self.first = 1
        self.model: list[int] = []
        self.seen: list[list[int]] = []  # what was the model before: it may come back
        self.before = 0  # term of the entry before the first
        self.term = 1
        self.number = 0
        self.in_flight: deque[tuple[int, Snapshot | None, list[Entry]]] = deque()
        self.unconfirmed: deque[int] = deque()

    def last(self) -> int:
        return self.first + len(self.model) - 1

    @rule(back=st.integers(0, 4), count=st.integers(1, 4))
    def append(self, back: int, count: int) -> None:
        """The leader goes on, or that of a newer term replaces the end of the log."""
        self.term += back > 0
        previous = max(self.log.committed, self.last() - back, self.first - 1)
        self.take_over([*self.model[: previous - self.first + 1], *[self.term] * count], previous)

    @precondition(lambda self: self.seen)
    @rule(which=st.integers(0, 5), back=st.integers(0, 4))
    def bring_back(self, which: int, back: int) -> None:
        """A leader of a newer term has an older log, and replaces the present one by it."""
        self.term += 1
        whole = self.seen[-1 - which % len(self.seen)]
        same = self.log.committed - self.first + 1
        if whole[:same] == self.model[:same]:
            agreed = next((at for at, pair in enumerate(zip(whole, self.model)) if pair[0] != pair[1]), len(whole))
            agreed = min(agreed, len(self.model))
            self.take_over(whole, max(self.first + agreed - 1 - back, self.log.committed))

    def take_over(self, whole: list[int], previous: int) -> None:
        """Take an append that holds all of a leader's log behind `previous`."""
        position = previous - self.first + 1
        new = entries(previous + 1, *whole[position:])
        before = whole[position - 1] if position else self.before
        assert self.log.maybe_append(previous, before, 0, new) == previous + len(new)
        if whole != self.model[: len(whole)]:
            self.model = whole
            self.seen.append(whole)

    @rule(index=st.integers(1, 5), newer=st.booleans())
    def install(self, index: int, newer: bool) -> None:
        """A snapshot beyond the end replaces everything."""
        self.term += newer
        self.before = self.term
        self.first = self.last() + index + 1
        self.model = []
        self.seen = []
        self.log.restore(snapshot(self.first - 1, self.term))

    @precondition(lambda self: self.log.has_untaken)
    @rule()
    def take(self) -> None:
        """A Ready is taken."""
        self.number += 1
        self.in_flight.append((self.number, *self.log.take_for_disk(self.number)))

    @precondition(lambda self: self.in_flight)
    @rule()
    def write(self) -> None:
        """The oldest Ready reaches the disk."""
        number, taken, written = self.in_flight.popleft()
        if taken is not None:
            self.storage.apply_snapshot(taken)
        self.storage.append(written)
        self.unconfirmed.append(number)

    @precondition(lambda self: self.unconfirmed)
    @rule(skip=st.booleans())
    def confirm(self, skip: bool) -> None:
        """The core is told; one call may vouch for several."""
        if skip and len(self.unconfirmed) > 1:
            self.unconfirmed.popleft()
        self.log.stable_to(self.unconfirmed.popleft())

    @rule(index=st.integers(0, 5))
    def commit(self, index: int) -> None:
        """The commit index moves."""
        self.log.commit_to(min(self.last(), self.log.committed + index))

    @precondition(lambda self: self.log.has_committed)
    @rule(max_bytes=st.integers(0, 3))
    def hand_out(self, max_bytes: int) -> None:
        """Committed entries are handed out in order, and are on this disk."""
        low = self.log.handed + 1
        handed = self.log.take_committed(max_bytes)
        assert [entry.index for entry in handed] == list(range(low, low + len(handed)))
        assert [entry.term for entry in handed] == self.model[low - self.first : low - self.first + len(handed)]
        assert handed[-1].index <= min(self.log.committed, self.log.stable)

    @invariant()
    def reads_are_the_models(self) -> None:
        """First, last, all terms and all ranges are those of the list."""
        log = self.log
        assert (log.first_index(), log.last_index()) == (self.first, self.last())
        assert log.term(self.first - 1) == self.before
        assert [log.term(index) for index in range(self.first, self.last() + 1)] == self.model
        for low in range(self.first, self.last() + 1):
            assert [entry.term for entry in log.entries(low, NO_LIMIT)] == self.model[low - self.first :]
        with pytest.raises(Unavailable):
            log.term(self.last() + 1)

    @invariant()
    def stable_is_on_disk(self) -> None:
        """What counts as stable is on the disk, and stays there whatever is still in flight."""
        log = self.log
        assert log.handed <= log.committed <= self.last()
        if log.snapshot is not None:
            return
        disk = {index: self.storage.term(index) for index in range(self.first, self.storage.last_index() + 1)}
        for index in range(self.first, log.stable + 1):
            assert disk[index] == self.model[index - self.first]
            for _, taken, written in self.in_flight:
                assert taken is None
                assert not written or written[0].index > index or written[index - written[0].index].term == disk[index]


TestLogAgainstList = LogAgainstList.TestCase
TestLogAgainstList.settings = settings(max_examples=100, stateful_step_count=40)
