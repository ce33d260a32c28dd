"""Segments: files of blocks, the pool of free blocks, and the descriptors held open.

Blocks are handed out from one segment until it is full, then from the lowest that has free ones, then from a new
one. Segments begin small and double up to the configured size, so that a small log is small on disk. An empty segment
beyond one spare is removed. At most `open_segments` files are kept open.
"""

import errno
from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

from octopii.errors import CorruptLogError, LogFull
from octopii.walrus import superblock
from octopii.walrus.record import (
    block_seed,
    encode_segment_header,
    encode_slot,
    free_slot,
    is_segment_header,
    slot_bytes,
    table_bytes,
)
from octopii.walrus.superblock import SegmentFacts, Superblock
from octopii.walrus.topic import Place
from octopii.walrus.vfs import File, FileSystem, MappedBuffer

if TYPE_CHECKING:
    from octopii.walrus.topic import Topic

open_segments: Final = 48  # files kept open; each may hold two descriptors
first_segment_blocks: Final = 16  # 1 MiB with the default block: a small log stays small on disk
reserved_blocks: Final = 2  # left for trims, cursors and what is marked urgent when the disk is full
_no_room: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def segment_name(number: int) -> str:
    """The name of a segment's file."""
    return f"segment-{number:08}.wal"


class Segment:
    """One segment file, open or not."""

    __slots__ = (
        "block_bytes",
        "blocks",
        "dirty",
        "file",
        "free",
        "fresh",
        "in_flight",
        "map",
        "number",
        "path",
        "table_bytes",
        "tails",
    )

    def __init__(self, number: int, blocks: int, block_bytes: int, path: str) -> None:
        self.number = number
        self.blocks = blocks
        self.block_bytes = block_bytes
        self.path = path
        self.table_bytes = table_bytes(blocks, block_bytes)
        self.file: File | None = None
        self.map: MappedBuffer | None = None
        self.free: list[int] = []  # a heap
        self.fresh = bytearray(blocks)  # 1: never written since the file was made, so it reads as zeros
        self.dirty = False
        self.in_flight = False
        self.tails: set[Topic] = set()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.table_bytes + self.blocks * self.block_bytes

    def position(self, block: int) -> int:
        """Where a block begins."""
        return self.table_bytes + block * self.block_bytes

    def seed(self, block: int, topic: int, life: int) -> int:
        """The seed of a block's checksums."""
        return block_seed(topic, self.number, block, life)


class SegmentStore:
    """All segments of a log, and its superblock."""

    def __init__(self, vfs: FileSystem, folder: str, block: Superblock, *, writable: bool) -> None:
        self.vfs = vfs
        self.folder = folder
        self.superblock = block
        self.writable = writable
        self.segments: dict[int, Segment] = {}
        self.free_blocks = 0
        self.reclaim: Callable[[], None] = lambda: None  # has dropped blocks freed, when that takes but a sync
        self._active: Segment | None = None
        self._open: OrderedDict[int, Segment] = OrderedDict()
        for facts in block.segments:
            self.segments[facts.number] = self._segment(facts.number, facts.blocks)

    def _segment(self, number: int, blocks: int) -> Segment:
        return Segment(number, blocks, self.superblock.block_bytes, f"{self.folder}/{segment_name(number)}")

    # --- files --------------------------------------------------------------------------------------------------

    def file(self, segment: Segment) -> File:
        """The segment's file, opened if need be."""
        file = segment.file
        if file is not None:
            if len(self._open) > open_segments // 2:
                self._open.move_to_end(segment.number)
            return file
        try:
            file = self.vfs.open(segment.path, writable=self.writable)
        except FileNotFoundError as error:
            raise CorruptLogError(f"{segment.path} is missing", path=segment.path) from error
        self._note_open(segment, file)
        return file

    def _note_open(self, segment: Segment, file: File) -> None:
        segment.file = file
        self._open[segment.number] = segment
        self.shrink(keep=segment)

    def shrink(self, *, keep: Segment | None = None) -> None:
        """Close files beyond the limit, as far as no sync under way needs them."""
        while len(self._open) > open_segments and self._close_one(keep):
            pass

    def map(self, segment: Segment) -> MappedBuffer:
        """The segment's mapping, made if need be."""
        if segment.map is None:
            segment.map = self.file(segment).map(segment.size)
        return segment.map

    def _close_one(self, keep: Segment | None) -> bool:
        """Close the segment that was used least of late; one with unsynced bytes only if there is no other.

        The sync opens that one again: an fdatasync covers what was written by any descriptor, and reports an error of
        earlier writing back that nobody was told of.
        """
        idle = [each for each in self._open.values() if each is not keep and not each.in_flight]
        clean = (each for each in idle if not each.dirty and not any(topic.dirty for topic in each.tails))
        segment = next(clean, idle[0] if idle else None)
        if segment is None:
            return False
        self._close(segment)
        return True

    def _close(self, segment: Segment) -> None:
        for topic in segment.tails:
            topic.detach()
        segment.tails.clear()
        segment.map = None
        self._open.pop(segment.number, None)
        file, segment.file = segment.file, None
        if file is not None:
            file.close()

    def close(self) -> None:
        """Close all files."""
        for segment in list(self._open.values()):
            self._close(segment)

    def read(self, segment: Segment, position: int, size: int) -> bytes:
        """`size` bytes; raises `CorruptLogError` when the file is shorter or unreadable."""
        try:
            data = self.file(segment).read_at(size, position)
        except OSError as error:
            raise CorruptLogError(
                f"{segment.path} cannot be read at {position}: {error}", path=segment.path, position=position
            ) from error
        if len(data) < size:
            raise CorruptLogError(
                f"{segment.path} ends at {position + len(data)}, inside what belongs to the log",
                path=segment.path,
                position=position + len(data),
            )
        return data

    def read_table(self, segment: Segment) -> bytes:
        """The table with its header slot checked; raises `CorruptLogError`."""
        file = self.file(segment)
        if file.size() < segment.size:
            raise CorruptLogError(
                f"{segment.path} has {file.size()} bytes instead of {segment.size}",
                path=segment.path,
                position=file.size(),
            )
        data = self.read(segment, 0, (segment.blocks + 1) * slot_bytes)
        if not is_segment_header(data[:slot_bytes], segment.number, segment.block_bytes, segment.blocks):
            raise CorruptLogError(f"{segment.path} has a damaged header", path=segment.path, position=0)
        return data

    def write_slot(self, place: Place, data: bytes) -> None:
        """Store a block's slot in the table; durable with the segment's next sync."""
        segment = self.segments[place.segment]
        at = (place.block + 1) * slot_bytes
        if segment.map is not None:
            segment.map[at : at + slot_bytes] = data
        else:
            self.file(segment).write_at(data, at)
        segment.dirty = True

    # --- blocks -------------------------------------------------------------------------------------------------

    def set_free(self, segment: Segment, free: list[int], fresh: list[int]) -> None:
        """Say which blocks are free, and which were never written: once, at open."""
        segment.free = free
        heapify(segment.free)
        for block in fresh:
            segment.fresh[block] = 1
        self.free_blocks += len(free)

    def reserve(self, count: int, *, urgent: bool) -> None:
        """See to it that `count` blocks can be taken; raises `LogFull` with nothing changed but maybe a spare more."""
        if not count:
            return
        needed = count + (0 if urgent else reserved_blocks)
        if self.free_blocks < needed:
            self.reclaim()
        try:
            while self.free_blocks < needed:
                self._create_segment(needed - self.free_blocks)
        except LogFull:
            if urgent and self.free_blocks >= count:
                return
            self.remove_empty()
            raise

    def take(self) -> tuple[Segment, int]:
        """A free block; `reserve` came before."""
        segment = self._active
        if segment is None or not segment.free:
            segment = self._active = next(each for _, each in sorted(self.segments.items()) if each.free)
        self.free_blocks -= 1
        return segment, heappop(segment.free)

    def release(self, places: list[Place]) -> None:
        """Blocks whose end is durable become free."""
        for place in places:
            heappush(self.segments[place.segment].free, place.block)
        self.free_blocks += len(places)
        if places:
            self.remove_empty()

    def zero(self, segment: Segment, block: int) -> None:
        """Write a block that was never written, once and whole: later syncs of its pages are several times cheaper."""
        if segment.fresh[block]:
            self.file(segment).write_at(bytes(segment.block_bytes), segment.position(block))
            segment.fresh[block] = 0

    def _create_segment(self, wanted: int) -> None:
        block = self.superblock
        present = sum(each.blocks for each in self.segments.values())
        blocks = min(block.segment_blocks, max(first_segment_blocks, present, wanted))
        segment = self._segment(block.next_segment, blocks)
        try:
            self._make_file(segment)
            changed = Superblock(
                block.block_bytes,
                block.segment_blocks,
                block.opens,
                False,
                block.next_segment + 1,
                (*block.segments, SegmentFacts(segment.number, blocks)),
            )
            superblock.write(self.vfs, self.folder, changed)
        except OSError as error:
            if error.errno not in _no_room:
                raise
            self._drop_file(segment)
            raise LogFull(
                f"{self.folder}: no room for another segment of {segment.size} bytes",
                path=self.folder,
                needed=segment.size,
            ) from error
        self.superblock = changed
        self.segments[segment.number] = segment
        self.set_free(segment, list(range(blocks)), list(range(blocks)))

    def _make_file(self, segment: Segment) -> None:
        file = self.vfs.open(segment.path, create=True)
        self._note_open(segment, file)
        file.truncate(0)
        file.allocate(segment.size)
        slots = [encode_segment_header(segment.number, segment.block_bytes, segment.blocks)]
        slots += [encode_slot(free_slot, segment.number, block) for block in range(segment.blocks)]
        file.write_at(b"".join(slots).ljust(segment.table_bytes, b"\0"), 0)
        file.datasync()
        self.vfs.sync_folder(self.folder)

    def _drop_file(self, segment: Segment) -> None:
        self._close(segment)
        try:
            self.vfs.remove(segment.path)
        except FileNotFoundError:
            return

    def remove_empty(self) -> None:
        """Remove the empty segments beyond one spare, the largest."""
        empty = [each for each in self.segments.values() if len(each.free) == each.blocks and not each.in_flight]
        if len(empty) < 2:
            return
        empty.sort(key=lambda each: (-each.blocks, each.number))
        gone = empty[1:]
        numbers = {each.number for each in gone}
        block = self.superblock
        block = self.superblock = Superblock(
            block.block_bytes,
            block.segment_blocks,
            block.opens,
            False,
            block.next_segment,
            tuple(each for each in block.segments if each.number not in numbers),
        )
        superblock.write(self.vfs, self.folder, block)
        for segment in gone:
            del self.segments[segment.number]
            self.free_blocks -= segment.blocks
            if self._active is segment:
                self._active = None
            self._drop_file(segment)
        self.vfs.sync_folder(self.folder)
