"""`Log`: the log's core, without threads, clock or blocking but for what the file system does.

Writes are visible to their writer at once and durable after the next sync:

    ticket = log.begin_sync()          None when nothing waits for one
    ticket.run()                       the fdatasyncs; on any thread; writes may go on meanwhile
    log.finish_sync(ticket)            under SyncEach, readers now see what it covered

Only one sync is under way at a time, and all calls but `run` come from one thread at a time: `sync.Walrus` adds locks
and threads for programs that want calls which block until they are durable.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from xxhash import xxh3_64_digest

from octopii.errors import (
    EntryTooLarge,
    OffsetBeyondEndError,
    OffsetTrimmedError,
)
from octopii.walrus import superblock
from octopii.walrus.catalog import check_name
from octopii.walrus.life import LogLife
from octopii.walrus.reader import Entry
from octopii.walrus.record import HEAD, header_bytes
from octopii.walrus.segment import SegmentStore
from octopii.walrus.topic import Topic
from octopii.walrus.verify import Damage, Report, verify
from octopii.walrus.vfs import Buffer

_batch_entries: Final = 4  # a batch may have so many times the bytes of the largest entry

_pack_head, _digest = HEAD.pack, xxh3_64_digest


class TopicStats(msgspec.Struct, frozen=True, kw_only=True):
    """A topic in numbers: offsets, size in bytes with headers, blocks, and its cursors' positions."""

    first_offset: int
    next_offset: int
    synced_offset: int
    bytes: int
    blocks: int
    cursors: dict[str, int]


class Log(LogLife):
    """A topic-based log in a folder. Raises `LogInUse`, `CorruptLogError`, `UnknownFormatError`, `ConfigError` on open.

    `block_bytes` and `segment_blocks` count only when the folder is new. After a failed write or sync every write
    raises `LogPoisoned`; after `close` everything raises `LogClosed`.
    """

    # --- writing ------------------------------------------------------------------------------------------------

    def append_for_topic(self, topic: str, data: Buffer, *, urgent: bool = False) -> int:
        """Append one entry; returns its offset. `urgent` may use the blocks reserved for a full disk.

        Raises `EntryTooLarge`, `InvalidTopic`, `LogFull` (nothing was written), `LogPoisoned`, `LogClosed`.
        """
        turn = self.turn
        try:
            del turn[0]
        except IndexError:
            self.wait_turn()
        try:
            state = self._topics.get(topic)
            if state is not None and type(data) is bytes:
                at = state.at
                size = len(data)
                end = at + header_bytes + size
                if end <= state.limit and size <= self._direct_bytes:
                    state.seq = seq = state.seq + 1
                    offset = state.end
                    state.end = offset + 1
                    body = _pack_head(state.tag, size, seq, offset, state.synced) + data
                    state.map[at:end] = _digest(body, state.seed) + body  # type: ignore[index]
                    state.at = (end + 7) & -8
                    if not state.dirty:
                        state.dirty = True
                        self._writer.dirty.append(state)
                    return offset
            return self._append(topic, [data], urgent=urgent)
        finally:
            turn.append(None)
            if self.waiting:
                self.wake()

    def batch_append_for_topic(self, topic: str, batch: Sequence[Buffer], *, urgent: bool = False) -> range:
        """Append entries, all or none, also across a crash; returns their offsets. Raises what an append raises."""
        first = self._append(topic, batch, urgent=urgent)
        return range(first, first + len(batch))

    def _append(self, name: str, batch: Sequence[Buffer], *, urgent: bool) -> int:
        entries = self._check_entries(batch)
        topic = self._topics.get(name)
        if not entries:
            check_name(name)
            return topic.end if topic is not None else 0
        try:
            if topic is None:
                topic = self._create(name, entries, urgent=urgent)
            return self._writer.append(topic, entries, urgent=urgent)
        except OSError as error:
            self._fail(error)

    def _create(self, name: str, entries: Sequence[Buffer], *, urgent: bool) -> Topic:
        """A new topic, once it is certain that its first entries have room."""
        check_name(name)
        plan = self._writer.plan(Topic(0, name), [len(entry) for entry in entries])
        self._store.reserve(plan.new_blocks + 1, urgent=urgent)
        return self._catalog.create(name, urgent=urgent)

    def replace_from(self, topic: str, offset: int, batch: Sequence[Buffer], *, urgent: bool = False) -> range:
        """Drop the entries from `offset` on and append others, as one atomic act; returns the offsets of the new.

        Cursors beyond `offset` are set to it. Raises `OffsetTrimmedError`, `OffsetBeyondEndError`, and what an append
        raises.
        """
        entries = self._check_entries(batch)
        state = self._topics.get(topic)
        self._check_offset(topic, state, offset)
        if state is None or offset == state.end:
            return self.batch_append_for_topic(topic, batch, urgent=urgent)
        try:
            self._writer.replace(state, offset, entries, urgent=urgent or not entries)
            self._cursors.cut(state, offset)
        except OSError as error:
            self._fail(error)
        return range(offset, offset + len(entries))

    def truncate_from(self, topic: str, offset: int) -> None:
        """Drop the entries from `offset` on: the next append gets that offset; cursors beyond are set to it."""
        self.replace_from(topic, offset, (), urgent=True)

    def reset_topic(self, topic: str, next_offset: int) -> None:
        """Drop all entries, or begin the topic: the next append gets `next_offset`, and all cursors stand there."""
        self._check_open()
        if next_offset < 0:
            raise ValueError(f"an offset is not negative: {next_offset}")
        state = self._topics.get(topic)
        try:
            if state is None:
                state = self._create(topic, (), urgent=True)
            self._writer.reset(state, next_offset)
            self._cursors.reset(state, next_offset)
        except OSError as error:
            self._fail(error)

    def trim(self, topic: str, before_offset: int) -> tuple[str, ...]:
        """Drop the entries below `before_offset`; returns the names of the cursors that stood there and were moved.

        The space is free after the next sync. Raises `OffsetBeyondEndError`, and what an append raises.
        """
        self._check_open()
        state = self._topics.get(topic)
        if state is None or before_offset <= state.trim_offset:
            check_name(topic)
            if state is None and before_offset > 0:
                self._check_offset(topic, None, before_offset)
            return ()
        self._check_offset(topic, state, before_offset)
        before = state.trim_offset
        try:
            self._writer.trim(state, before_offset)
        except OSError as error:
            self._fail(error)
        return self._cursors.trim(state, before)

    def delete_topic(self, topic: str) -> None:
        """Drop a topic with its entries and cursors; one that is not there is none to drop."""
        self._check_open()
        state = self._topics.get(check_name(topic))
        if state is None:
            return
        try:
            self._catalog.delete(state)
        except OSError as error:
            self._fail(error)

    # --- reading ------------------------------------------------------------------------------------------------

    def read_next(self, topic: str, checkpoint: bool = True, *, cursor: str = "default") -> Entry | None:
        """The entry at the cursor, or None at the end. With `checkpoint` the cursor moves on; without, this peeks."""
        entries = self._read_cursor(topic, 0, checkpoint, cursor)
        return entries[0] if entries else None

    def batch_read_for_topic(
        self, topic: str, max_bytes: int, checkpoint: bool = True, *, cursor: str = "default"
    ) -> list[Entry]:
        """Entries from the cursor on: as many as have `max_bytes` together, at least one if there is any."""
        return self._read_cursor(topic, max_bytes, checkpoint, cursor)

    def _read_cursor(self, name: str, max_bytes: int, checkpoint: bool, cursor: str) -> list[Entry]:
        topic = self._topics.get(name)
        if topic is None:
            self._check_readable()
            check_name(name)
            return []
        offset = self._cursors.position(topic, cursor)
        stop = topic.visible if self._syncs_each else topic.end
        if max_bytes == 0:
            stop = min(stop, offset + 1)
        entries = self._reader.read(topic, offset, max_bytes, stop)
        if entries and checkpoint:
            self._check_open()
            try:
                self._cursors.advance(topic, cursor, entries[-1].offset + 1)
            except OSError as error:
                self._fail(error)
        return entries

    def read_from(self, topic: str, offset: int, max_bytes: int) -> list[Entry]:
        """Entries from `offset` on: as many as have `max_bytes` together, at least one if there is any.

        Moves no cursor. At or beyond the end there are none. Raises `OffsetTrimmedError`, `CorruptLogError`.
        """
        state = self._topics.get(topic)
        if state is None:
            self._check_readable()
            check_name(topic)
            return []
        if offset < state.trim_offset:
            self._check_offset(topic, state, offset)
        return self._reader.read(state, offset, max_bytes, state.visible if self._syncs_each else state.end)

    def commit(self, topic: str, offset: int, *, cursor: str = "default") -> None:
        """Put a cursor at `offset`, which the next read will return."""
        self._check_open()
        state = self._topics.get(topic)
        self._check_offset(topic, state, offset)
        check_name(cursor)
        if state is not None:
            try:
                self._cursors.commit(state, cursor, offset)
            except OSError as error:
                self._fail(error)

    # --- facts --------------------------------------------------------------------------------------------------

    def topics(self) -> list[str]:
        """The names of all topics, sorted."""
        self._check_readable()
        return sorted(self._topics)

    def first_offset(self, topic: str) -> int:
        """The offset of the oldest entry, or of the next one where there is none; 0 for a topic that is not there."""
        self._check_readable()
        state = self._topics.get(topic)
        return state.trim_offset if state is not None else 0

    def next_offset(self, topic: str) -> int:
        """The offset that the next append gets; 0 for a topic that is not there."""
        self._check_readable()
        state = self._topics.get(topic)
        return state.end if state is not None else 0

    def stats(self, topic: str) -> TopicStats:
        """A topic in numbers; all zero for one that is not there."""
        self._check_readable()
        state = self._topics.get(check_name(topic))
        return stats_of(state if state is not None else Topic(0, topic), self._store)

    def verify(self, report: Report | None = None) -> list[Damage]:
        """Read all that counts and compare the checksums; returns every damaged place, none when all is sound."""
        self._check_readable()
        found = verify(self._store, [self._catalog.topic, *self._topics.values()], report)
        if not self.found_sound:
            path = f"{self.path}/{superblock.file_name}"
            problem = "one of the two copies of the superblock was damaged when the log was opened"
            found.append(Damage(path=path, position=0, topic=None, problem=problem))
        return found

    # --- checks -------------------------------------------------------------------------------------------------

    def _check_entries(self, batch: Sequence[Buffer]) -> Sequence[Buffer]:
        """The entries as bytes. Raises `EntryTooLarge`, `TypeError`."""
        self._check_open()
        entries = batch
        if not all(type(entry) is bytes for entry in batch):
            entries = [_as_bytes(entry) for entry in batch]
        size = sum(map(len, entries))
        largest = size if len(entries) == 1 else max(map(len, entries), default=0)
        if largest > self.max_entry_bytes:
            raise EntryTooLarge(
                f"an entry of {largest} bytes; the limit is {self.max_entry_bytes}",
                size=largest,
                limit=self.max_entry_bytes,
            )
        if size > _batch_entries * self.max_entry_bytes:
            limit = _batch_entries * self.max_entry_bytes
            raise EntryTooLarge(f"a batch of {size} bytes; the limit is {limit}", size=size, limit=limit)
        return entries

    def _check_offset(self, name: str, topic: Topic | None, offset: int) -> None:
        """An offset that lies in the topic or at its end. Raises `OffsetTrimmedError`, `OffsetBeyondEndError`."""
        self._check_readable()
        check_name(name)
        first, end = (topic.trim_offset, topic.end) if topic is not None else (0, 0)
        if offset < first:
            raise OffsetTrimmedError(
                f"topic {name!r} begins at offset {first}: {offset} is gone",
                topic=name,
                offset=offset,
                first_offset=first,
            )
        if offset > end:
            raise OffsetBeyondEndError(
                f"topic {name!r} ends at offset {end}: there is no {offset}", topic=name, offset=offset, next_offset=end
            )


def stats_of(topic: Topic, store: SegmentStore) -> TopicStats:
    """The numbers of a topic."""
    full = max(0, len(topic.chain) - 1) * store.superblock.block_bytes
    return TopicStats(
        first_offset=topic.trim_offset,
        next_offset=topic.end,
        synced_offset=topic.visible,
        bytes=full + topic.at - topic.base,
        blocks=len(topic.chain),
        cursors={name: max(cursor.offset, topic.trim_offset) for name, cursor in topic.cursors.items()},
    )


def _as_bytes(entry: Buffer) -> bytes:
    if isinstance(entry, bytes | bytearray | memoryview):
        return bytes(entry)
    raise TypeError(f"an entry is bytes, not {type(entry).__name__}")
