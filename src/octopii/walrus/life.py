"""What a log's life consists of: opening, syncs, failing, closing. `walrus.Log` adds what is done in between."""

import os
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NoReturn, Self

import msgspec
from xxhash import xxh3_64_digest

from octopii.durability import FsyncSchedule, NoFsync, SyncEach
from octopii.errors import LogClosed, LogInUse, LogPoisoned
from octopii.walrus import opening, superblock
from octopii.walrus.catalog import Catalog
from octopii.walrus.cursors import Consistency, Cursors, StrictlyAtOnce
from octopii.walrus.opening import Loaded
from octopii.walrus.reader import Reader
from octopii.walrus.segment import SegmentStore
from octopii.walrus.settings import (
    check_settings,
    default_block_bytes,
    default_max_entry_bytes,
    default_segment_blocks,
)
from octopii.walrus.superblock import SegmentFacts, Superblock
from octopii.walrus.ticket import SyncTicket
from octopii.walrus.topic import Topic
from octopii.walrus.vfs import FileSystem, RealFileSystem
from octopii.walrus.writer import Writer, mapped_bytes


def _fail_reentrant() -> None:
    raise AssertionError("the log's core is used by one thread at a time")


class LogLife:
    """The part of `walrus.Log` that opens, syncs and closes it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        vfs: FileSystem | None = None,
        consistency: Consistency | None = None,
        fsync_schedule: FsyncSchedule | None = None,
        max_entry_bytes: int = default_max_entry_bytes,
        block_bytes: int = default_block_bytes,
        segment_blocks: int = default_segment_blocks,
    ) -> None:
        self.fsync_schedule = fsync_schedule if fsync_schedule is not None else SyncEach()
        self.consistency = consistency if consistency is not None else StrictlyAtOnce()
        check_settings(
            path,
            consistency=self.consistency,
            fsync_schedule=self.fsync_schedule,
            max_entry_bytes=max_entry_bytes,
            block_bytes=block_bytes,
            segment_blocks=segment_blocks,
        )
        self.path = path = os.fspath(path)
        self.max_entry_bytes = max_entry_bytes
        # One token: who holds it may touch the log. An append takes it by itself, since a lock would cost a third as
        # much as the append; for other methods `sync.Walrus` does. Without threads nobody ever waits.
        self.turn: list[None] = [None]
        self.waiting: deque[Callable[[], None]] = deque()  # each wakes one who waits
        self.wait_turn: Callable[[], None] = _fail_reentrant
        self.wake: Callable[[], None] = _fail_reentrant
        self._direct_bytes = min(max_entry_bytes, mapped_bytes)
        self.is_closed = False
        self.poison: OSError | None = None
        self._vfs = vfs if vfs is not None else RealFileSystem()
        self._syncs_each = isinstance(self.fsync_schedule, SyncEach)
        self._syncs_seldom = isinstance(self.fsync_schedule, NoFsync)
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
        crashed = found is not None and not found[0].clean and superblock.has_its_size(self._vfs, self.path)
        self.found_sound = found is None or found[1] or crashed  # a crash may tear one copy
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
                self._settle(loaded)
        except BaseException:
            store.close()
            raise

    def _settle(self, loaded: Loaded) -> None:
        """After a crash: have the catalog say where cursors stand now, and vouch for what was recovered.

        In this order: where a cursor stands follows from what lies behind the last mark. Raises `LogFull` when the disk
        has not even room for that.
        """
        if not self._catalog.rewrite():
            for topic, cursor in loaded.moved:
                self._catalog.save(topic, cursor, topic.cursors[cursor].offset)
        self._sync_now()
        for topic in self._topics.values():
            self._writer.mark(topic)

    # --- durability ---------------------------------------------------------------------------------------------

    @property
    def has_unsynced(self) -> bool:
        """Whether anything that was written waits for a sync, or for the one under way."""
        return bool(self._writer.dirty or self._writer.dropped or self._ticket)

    @property
    def has_unmarked(self) -> bool:
        """Whether the last records of a topic are synced but vouched for by nothing yet: see `begin_sync`."""
        return bool(self._quiet or self._writer.seals)

    def begin_sync(self, *, idle: bool = False) -> SyncTicket | None:
        """Note what is to be made durable; None when nothing is, or when a sync is under way already.

        With `idle` the marks are written that vouch for the last records, even if nothing else waits. Raises
        `LogPoisoned`, `LogClosed`.
        """
        self._check_open()
        if self._ticket is not None:
            return None
        writer, dirty = self._writer, self._writer.dirty
        if not self.has_unsynced and not (idle and self.has_unmarked):
            return None
        self._mark_quiet()
        covered = []
        for topic in dirty:
            topic.dirty = False
            if topic.segment is not None:
                topic.low = topic.end
                topic.segment.dirty = True
                covered.append((topic, topic.seq, topic.end))
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
        if self._syncs_seldom:
            self._mark_quiet()

    def _mark_quiet(self) -> None:
        """Vouch for what was synced, where nothing was written since that will."""
        try:
            for topic in self._quiet:
                if not topic.dirty and topic.segment is not None:
                    self._writer.mark(topic)
            if self._writer.seals:
                self._writer.seal()
        except OSError as error:
            self._fail(error)
        self._quiet = []

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
        """Make all durable and note that the log was closed in order. Doing so twice is harmless.

        After a failed or interrupted sync it only lets go of the files: the next open recovers, as after a crash.
        """
        if self.is_closed:
            return
        try:
            if self.poison is None and (self._ticket is None or not self._ticket.interrupted):
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    # --- checks --------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        self._check_readable()
        if self.poison is not None:
            text = f"{self.path}: an earlier write or sync failed ({self.poison}); close and open again"
            raise LogPoisoned(text, path=self.path, error=self.poison)

    def _check_readable(self) -> None:
        if self.is_closed:
            raise LogClosed(f"{self.path}: the log is closed", path=self.path)

    def _fail(self, error: OSError) -> NoReturn:
        """A write or a sync failed: what is on disk is not known any more, so nothing is written after it."""
        self.poison = error
        for topic in [self._catalog.topic, *self._topics.values()]:
            topic.detach()
        text = f"{self.path}: a write or a sync failed ({error}); close and open again"
        raise LogPoisoned(text, path=self.path, error=error) from error
