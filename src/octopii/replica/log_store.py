"""The Raft log and the hard state, kept in two topics of a Walrus log.

One record of the topic `log` is one Raft entry and its offset is the entry's index, so nothing has to be indexed twice:
a conflicting suffix is replaced by `replace_from`, a snapshot that jumps ahead is a `reset_topic`. A record is

    term u64 | kind u8 | the entry's data            little-endian

The topic `hard_state` holds (term u64, vote u64) records; the last one counts and the others are trimmed. The two
topics are not written atomically. What can be missing after a crash is the hard state of a term whose entries are
there already; so at open a last entry of a newer term raises the term and clears the vote (no vote was promised in it:
a vote's own record is synced before the vote is sent).

Writes go to memory (the mapped file) and count only after the Walrus sync that follows; the Raft core is told then.
Recent entries are kept in a cache of bounded bytes, older ones are read back from disk.
"""

import struct
from bisect import bisect_right
from collections.abc import Callable

from octopii.raft import Compacted, ConfState, Entry, EntryKind, HardState, Snapshot, Unavailable
from octopii.replica.records import last_record, unreadable
from octopii.walrus import Entry as Record
from octopii.walrus import Log
from octopii.wire.frames import MalformedMessage

_ENTRY = struct.Struct("<QB")
_HARD_STATE = struct.Struct("<QQ")

scan_bytes = 4 << 20
"""Bytes of log read at a time when terms are collected at open."""

_KINDS = {int(kind): kind for kind in EntryKind}


class LogStore:
    """Raft's `Storage` on Walrus; `prefix` names the Raft group whose topics these are."""

    def __init__(self, log: Log, *, prefix: str, cache_bytes: int, newest_snapshot: Callable[[], Snapshot]) -> None:
        self._walrus = log
        self._log_topic = f"{prefix}/log"
        self._hard_state_topic = f"{prefix}/hard_state"
        self._newest_snapshot = newest_snapshot
        self._cache_limit = cache_bytes
        self._cache: list[Entry] = []
        self._cache_bytes = 0
        # runs of entries of one term: _run_starts[i] is the first index of term _run_terms[i]
        self._run_starts: list[int] = []
        self._run_terms: list[int] = []
        self.conf_state = ConfState()
        self.memberships: list[Entry] = []  # the membership entries of the log; entry 1 is one
        self.hard_state = HardState(term=0, vote=0)
        if self._log_topic not in log.topics():
            log.reset_topic(self._log_topic, 1)
        self._first = log.first_offset(self._log_topic)
        self._next = log.next_offset(self._log_topic)
        self._collect_terms()
        self._load_hard_state()

    def _collect_terms(self) -> None:
        if self._first == 1:
            self._note_term(0, 0)
        index = self._first
        while index < self._next:
            records = self._walrus.read_from(self._log_topic, index, scan_bytes)
            for record in records:
                if len(record.data) < _ENTRY.size:
                    self._decoded([record])
                term, kind = _ENTRY.unpack_from(record.data)
                self._note_term(record.offset, term)
                if kind == EntryKind.MEMBERSHIP or record.offset == 1:
                    self.memberships += self._decoded([record])
            index = records[-1].offset + 1

    def _decoded(self, records: list[Record]) -> list[Entry]:
        try:
            return [decode_entry_record(record.offset, record.data) for record in records]
        except MalformedMessage as error:
            raise unreadable(self._walrus, self._log_topic, records[0].offset, error) from error

    def _note_term(self, index: int, term: int) -> None:
        if not self._run_terms or self._run_terms[-1] != term:
            self._run_starts.append(index)
            self._run_terms.append(term)

    def _load_hard_state(self) -> None:
        hard_state = last_record(self._walrus, self._hard_state_topic, decode_hard_state)
        if hard_state is not None:
            self.hard_state = hard_state
        last_term = self._run_terms[-1] if self._run_terms else 0
        if last_term > self.hard_state.term:
            self.hard_state = HardState(term=last_term, vote=0)

    # --- what the Raft core reads -------------------------------------------------------------------------------

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Hard state and membership as of the open."""
        return self.hard_state, self.conf_state

    def first_index(self) -> int:
        """Index of the oldest entry kept; one more than the last index when there is none."""
        return self._first

    def last_index(self) -> int:
        """Index of the newest entry, or of the snapshot before the first."""
        return self._next - 1

    def term(self, index: int) -> int:
        """Term of the entry at `index`; raises `Compacted` below what is known, `Unavailable` beyond the end."""
        if index >= self._next:
            raise Unavailable(f"entry {index} is beyond the log's end, {self._next - 1}")
        run = bisect_right(self._run_starts, index) - 1
        if run < 0:
            raise Compacted(f"entry {index} is below the log's start, {self._first}")
        return self._run_terms[run]

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries from `low` up to, not including, `high`: as many as fit in `max_bytes`, at least one."""
        if low < self._first:
            raise Compacted(f"entry {low} is below the log's start, {self._first}")
        if high > self._next:
            raise Unavailable(f"entry {high - 1} is beyond the log's end, {self._next - 1}")
        if low >= high:
            return []
        cache_first = self._next - len(self._cache)
        if low >= cache_first:
            return _cut(self._cache[low - cache_first : high - cache_first], max_bytes)
        return self._decoded(self._walrus.read_from(self._log_topic, low, max_bytes)[: high - low])

    def membership_changes(self, after: int) -> list[int]:
        """Indexes of the membership entries behind `after`."""
        return [entry.index for entry in self.memberships if entry.index > after and entry.kind is EntryKind.MEMBERSHIP]

    def snapshot(self) -> Snapshot:
        """The newest snapshot's metadata."""
        return self._newest_snapshot()

    # --- what the replica writes --------------------------------------------------------------------------------

    def append(self, entries: list[Entry]) -> None:
        """Write entries, replacing what stands at their indexes and after; durable with the next sync."""
        first = entries[0].index
        assert self._first <= first <= self._next, f"append at {first} to a log of {self._first}..{self._next - 1}"
        records = [_ENTRY.pack(entry.term, entry.kind) + entry.data for entry in entries]
        if first < self._next:
            self._walrus.replace_from(self._log_topic, first, records)
            self._forget_from(first)
        else:
            self._walrus.batch_append_for_topic(self._log_topic, records)
        self._next = first + len(entries)
        for entry in entries:
            self._note_term(entry.index, entry.term)
            self._cache_bytes += len(entry.data)
            if entry.kind == EntryKind.MEMBERSHIP or entry.index == 1:
                self.memberships.append(entry)
        self._cache += entries
        if self._cache_bytes > self._cache_limit:
            self._shrink_cache()

    def save_hard_state(self, state: HardState) -> None:
        """Write term and vote; durable with the next sync."""
        record = _HARD_STATE.pack(state.term, state.vote)
        offset = self._walrus.append_for_topic(self._hard_state_topic, record, urgent=True)
        self._walrus.trim(self._hard_state_topic, max(0, offset - 1))
        self.hard_state = state

    def compact(self, before: int) -> None:
        """Drop the entries below index `before`; the term just below it stays known."""
        before = min(before, self._next)
        if before <= self._first:
            return
        self._walrus.trim(self._log_topic, before)
        self._first = before
        keep = bisect_right(self._run_starts, before - 1) - 1
        if keep > 0:
            del self._run_starts[:keep], self._run_terms[:keep]
        self.memberships = [entry for entry in self.memberships if entry.index >= before]
        excess = len(self._cache) - (self._next - before)
        if excess > 0:
            self._drop_cached(excess)

    def reset(self, index: int, term: int) -> None:
        """Forget the whole log: it goes on behind a snapshot at `index`."""
        self._walrus.reset_topic(self._log_topic, index + 1)
        self._first = self._next = index + 1
        self._run_starts, self._run_terms = [index], [term]
        self._cache, self._cache_bytes = [], 0
        self.memberships = []

    def know_term(self, index: int, term: int) -> None:
        """Learn the term just below the log's start from a snapshot, after an open."""
        if index == self._first - 1 and (not self._run_starts or self._run_starts[0] > index):
            self._run_starts.insert(0, index)
            self._run_terms.insert(0, term)

    def bytes_from(self, index: int) -> int:
        """Roughly how many bytes the entries from `index` on have: what sending them would cost."""
        stats = self._walrus.stats(self._log_topic)
        count = self._next - self._first
        return 0 if count <= 0 else stats.bytes * max(0, self._next - index) // count

    def _forget_from(self, index: int) -> None:
        while self._run_starts and self._run_starts[-1] >= index:
            self._run_starts.pop()
            self._run_terms.pop()
        while self.memberships and self.memberships[-1].index >= index:
            self.memberships.pop()
        cache_first = self._next - len(self._cache)
        keep = max(0, index - cache_first)
        self._cache_bytes -= sum(len(entry.data) for entry in self._cache[keep:])
        del self._cache[keep:]

    def _shrink_cache(self) -> None:
        """Drop old entries down to half of the limit, so that it happens seldom; the newest entry always stays."""
        size, drop = self._cache_bytes, 0
        while size > self._cache_limit // 2 and drop < len(self._cache) - 1:
            size -= len(self._cache[drop].data)
            drop += 1
        self._drop_cached(drop)

    def _drop_cached(self, count: int) -> None:
        self._cache_bytes -= sum(len(entry.data) for entry in self._cache[:count])
        del self._cache[:count]


def decode_entry_record(index: int, record: bytes) -> Entry:
    """The entry that a record of the topic `log` holds; raises `MalformedMessage`."""
    try:
        term, kind = _ENTRY.unpack_from(record)
        return Entry(term=term, index=index, kind=_KINDS[kind], data=record[_ENTRY.size :])
    except (struct.error, KeyError) as error:
        raise MalformedMessage(f"a log record of {len(record)} bytes: {error}") from error


def decode_hard_state(record: bytes) -> HardState:
    """The hard state that a record of the topic `hard_state` holds; raises `MalformedMessage`."""
    if len(record) != _HARD_STATE.size:
        raise MalformedMessage(f"a hard state of {len(record)} bytes")
    term, vote = _HARD_STATE.unpack(record)
    return HardState(term=term, vote=vote)


def _cut(entries: list[Entry], max_bytes: int) -> list[Entry]:
    size = 0
    for position, entry in enumerate(entries):
        size += len(entry.data)
        if size > max_bytes and position:
            return entries[:position]
    return entries
