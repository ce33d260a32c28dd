"""`Log`: the log's core, without threads, clock or blocking but for what the file system does.

Writes are visible to their writer at once and durable after the next sync:

    ticket = log.begin_sync()          None when nothing waits for one
    ticket.run()                       the fdatasyncs; on any thread; writes may go on meanwhile
    log.finish_sync(ticket)            under SyncEach, readers now see what it covered

Only one sync is under way at a time, and all calls but `run` come from one thread at a time: `sync.Walrus` adds locks
and threads for programs that want calls which block until they are durable.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Literal, NoReturn

import msgspec
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from octopii.durability import FsyncSchedule, SyncEach
from octopii.errors import (
    ConfigError,
    EntryTooLarge,
    LogClosed,
    LogInUse,
    LogPoisoned,
    OffsetBeyondEndError,
    OffsetTrimmedError,
)
from octopii.walrus import opening, superblock
from octopii.walrus.catalog import Catalog, check_name
from octopii.walrus.cursors import Consistency, Cursors, StrictlyAtOnce
from octopii.walrus.reader import Entry, Reader
from octopii.walrus.record import HEAD, header_bytes
from octopii.walrus.segment import SegmentStore
from octopii.walrus.superblock import SegmentFacts, Superblock
from octopii.walrus.ticket import SyncTicket
from octopii.walrus.topic import Topic
from octopii.walrus.verify import Damage, Report, verify
from octopii.walrus.vfs import Buffer, FileSystem, RealFileSystem
from octopii.walrus.writer import Writer, mapped_bytes

default_block_bytes: Final = 64 * 1024
default_segment_blocks: Final = 1024  # 64 MiB
default_max_entry_bytes: Final = 64 << 20
_batch_entries: Final = 4  # a batch may have so many times the bytes of the largest entry

_pack_head, _digest, _number = HEAD.pack, xxh3_64_digest, xxh3_64_intdigest


class TopicStats(msgspec.Struct, frozen=True, kw_only=True):
    """A topic in numbers: offsets, size in bytes with headers, blocks, and its cursors' positions."""

    first_offset: int
    next_offset: int
    synced_offset: int
    bytes: int
    blocks: int
    cursors: dict[str, int]


class Log:
    """A topic-based log in a folder. Raises `LogInUse`, `CorruptLogError`, `UnknownFormatError`, `ConfigError` on open.

    `block_bytes` and `segment_blocks` count only when the folder is new. After a failed write or sync every write
    raises `LogPoisoned`; after `close` everything raises `LogClosed`.
    """

    def __init__(
        self,
        path: str,
        *,
        vfs: FileSystem | None = None,
        consistency: Consistency | None = None,
        fsync_schedule: FsyncSchedule | None = None,
        max_entry_bytes: int = default_max_entry_bytes,
        block_bytes: int = default_block_bytes,
        segment_blocks: int = default_segment_blocks,
    ) -> None:
        opening.check_geometry(block_bytes, segment_blocks)
        if not 1 <= max_entry_bytes <= 1 << 31:
            raise ConfigError(f"max_entry_bytes is 1 to 2 GiB, not {max_entry_bytes}", field="max_entry_bytes")
        self.path = path
        self.fsync_schedule = fsync_schedule if fsync_schedule is not None else SyncEach()
        self.consistency = consistency if consistency is not None else StrictlyAtOnce()
        self.max_entry_bytes = max_entry_bytes
        self._direct_bytes = min(max_entry_bytes, mapped_bytes)
        self.is_closed = False
        self.poison: OSError | None = None
        self._vfs = vfs if vfs is not None else RealFileSystem()
        self._syncs_each = isinstance(self.fsync_schedule, SyncEach)
        self._ticket: SyncTicket | None = None
        self._quiet: list[Topic] = []  # synced with the last group: to be marked if the next one leaves them out
        self._vfs.make_folder(path)
        try:
            self._lock = self._vfs.lock(f"{path}/lock")
        except BlockingIOError as error:
            raise LogInUse(f"{path} is in use by another instance", path=path) from error
        try:
            self._open(block_bytes, segment_blocks)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, block_bytes: int, segment_blocks: int) -> None:
        found = opening.find_superblock(self._vfs, self.path)
        self.found_sound = found is None or found[1]
        block = found[0] if found else Superblock(block_bytes, segment_blocks)
        self._store = store = SegmentStore(self._vfs, self.path, block, writable=True)
        try:
            if found:
                opening.remove_strangers(self._vfs, self.path, block)
            loaded = opening.load(store)
            if not loaded.clean:
                opening.repair(loaded)
            facts = tuple(SegmentFacts(each.number, each.blocks) for each in block.segments)
            opened = msgspec.structs.replace(block, opens=block.opens + 1, clean=False, segments=facts)
            superblock.write(self._vfs, self.path, opened)
            store.superblock = opened
            self._topics = loaded.topics
            self._writer = Writer(store, zero_fresh=self._syncs_each)
            self._reader = Reader(store)
            self._catalog = Catalog(self._writer, loaded.catalog, self._topics, loaded.next_number)
            self._cursors = Cursors(self._catalog, self.consistency)
            store.reclaim = self._reclaim
            if not loaded.clean and len(loaded.catalog.chain):
                self._catalog.rewrite()
                self._sync_now()
        except BaseException:
            store.close()
            raise

    # --- writing ------------------------------------------------------------------------------------------------

    def append_for_topic(self, topic: str, data: Buffer, *, urgent: bool = False) -> int:
        """Append one entry; returns its offset. `urgent` may use the blocks reserved for a full disk.

        Raises `EntryTooLarge`, `InvalidTopic`, `LogFull` (nothing was written), `LogPoisoned`, `LogClosed`.
        """
        state = self._topics.get(topic)
        if state is not None and type(data) is bytes:
            at = state.at
            size = len(data)
            end = at + header_bytes + size
            if end <= state.limit and size <= self._direct_bytes:
                state.seq = seq = state.seq + 1
                offset = state.end
                state.end = offset + 1
                head = _pack_head(state.tag, size, seq, offset, state.synced)
                state.map[at:end] = _digest(data, _number(head, state.seed)) + head + data  # type: ignore[index]
                state.at = (end + 7) & -8
                if not state.dirty:
                    state.dirty = True
                    self._writer.dirty.append(state)
                return offset
        return self._append(topic, [data], urgent=urgent)

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

    @property
    def has_unsynced(self) -> bool:
        """Whether anything that was written waits for a sync, or for the one under way."""
        return bool(self._writer.dirty or self._writer.dropped or self._ticket)

    @property
    def has_unmarked(self) -> bool:
        """Whether the last records of a topic are synced but vouched for by nothing yet: see `begin_sync`."""
        return bool(self._quiet or self._writer.seals)

    # --- durability ---------------------------------------------------------------------------------------------

    def begin_sync(self, *, idle: bool = False) -> SyncTicket | None:
        """Note what is to be made durable; None when nothing is, or when a sync is under way already.

        With `idle` the marks are written that vouch for the last records, even if nothing else waits.
        """
        self._check_open()
        if self._ticket is not None:
            return None
        writer, dirty = self._writer, self._writer.dirty
        if not self.has_unsynced and not (idle and self.has_unmarked):
            return None
        for topic in self._quiet:
            if not topic.dirty and topic.segment is not None:
                writer.mark(topic)
        if writer.seals:
            writer.seal()
        covered = []
        for topic in dirty:
            topic.dirty = False
            if topic.segment is not None:
                topic.low = topic.end
                topic.segment.dirty = True
                covered.append((topic, topic.seq, topic.end))
        self._quiet = []
        writer.dirty = []
        dropped, writer.dropped = writer.dropped, []
        segments = [each for each in self._store.segments.values() if each.dirty]
        files = []
        for segment in segments:
            files.append(self._store.file(segment))
            segment.dirty, segment.in_flight = False, True
        self._ticket = SyncTicket(covered, segments, files, dropped)
        return self._ticket

    def finish_sync(self, ticket: SyncTicket) -> None:
        """What the ticket covered is durable. Raises `LogPoisoned` when its `run` failed."""
        assert ticket is self._ticket, "the sync that is under way"
        assert ticket.is_done, "run() comes before"
        self._ticket = None
        for segment in ticket.segments:
            segment.in_flight = False
        self._store.shrink()
        if ticket.error is not None:
            self._fail(ticket.error)
        for topic, seq, end in ticket.topics:
            topic.synced = max(topic.synced, seq)
            topic.visible = max(topic.visible, min(end, topic.low))
            self._quiet.append(topic)
        if ticket.dropped:
            try:
                self._store.release(ticket.dropped)
            except OSError as error:
                self._fail(error)

    def _sync_now(self, *, idle: bool = False) -> None:
        ticket = self.begin_sync(idle=idle)
        if ticket is not None:
            ticket.run()
            self.finish_sync(ticket)

    def _reclaim(self) -> None:
        """Blocks run out while dropped ones only wait for a sync: have it now rather than grow."""
        if self._writer.dropped and self._ticket is None:
            self._sync_now()

    def close(self) -> None:
        """Make all durable and note that the log was closed in order. Doing so twice is harmless."""
        if self.is_closed:
            return
        try:
            if self.poison is None:
                assert self._ticket is None, "no sync is under way at close"
                self._cursors.save_all()
                self._sync_now()
                self._sync_now(idle=True)
                self._close_clean()
        except OSError as error:
            self._fail(error)
        finally:
            self.is_closed = True
            self._store.close()
            self._topics.clear()
            self._lock.release()

    def _close_clean(self) -> None:
        store = self._store
        for topic in [self._catalog.topic, *self._topics.values()]:
            self._writer.mark(topic)
        facts = []
        for segment in store.segments.values():
            if segment.dirty:
                store.file(segment).datasync()
                segment.dirty = False
            facts.append(SegmentFacts(segment.number, segment.blocks, xxh3_64_digest(store.read_table(segment))))
        closed = msgspec.structs.replace(store.superblock, clean=True, segments=tuple(facts))
        superblock.write(self._vfs, self.path, closed)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    # --- checks -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        self._check_readable()
        if self.poison is not None:
            raise LogPoisoned(f"{self.path}: an earlier write or sync failed ({self.poison}); close and open again")

    def _check_readable(self) -> None:
        if self.is_closed:
            raise LogClosed(f"{self.path}: the log is closed")

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

    def _fail(self, error: OSError) -> NoReturn:
        """A write or a sync failed: what is on disk is not known any more, so nothing is written after it."""
        self.poison = error
        for topic in [self._catalog.topic, *self._topics.values()]:
            topic.detach()
        raise LogPoisoned(f"{self.path}: a write or a sync failed ({error}); close and open again") from error


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
