"""Looking into a log without touching it, also while its owner runs: no lock is taken and no byte is written.

A look is a moment's picture: the tables, the catalog and the tails as they were read. A running owner changes them
meanwhile, so that a picture may not fit together. But each block has a life, a number never used twice, and the bytes
of one life are only added to. So what seems damaged is damaged when the lives that it depends on were the same before
the look and after it; otherwise one looks again.

What is shown may include entries whose sync has not returned yet: a crash of the machine may still take them back.
"""

import struct
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, TypeVar

import msgspec

from octopii.errors import CorruptLogError, LogInUse, OffsetTrimmedError, UnknownFormatError
from octopii.walrus import opening, superblock
from octopii.walrus.catalog import check_name
from octopii.walrus.opening import Loaded
from octopii.walrus.reader import Entry, Reader
from octopii.walrus.record import slot_bytes
from octopii.walrus.segment import SegmentStore
from octopii.walrus.verify import Damage, Report, verify
from octopii.walrus.vfs import FileSystem, RealFileSystem
from octopii.walrus.walrus import stats_of

__all__ = ["Damage", "ReadOnlyLog", "TopicFacts"]

_most_looks: Final = 100  # at a log whose owner is so busy that no picture fits together

_owner_in_slot: Final = struct.Struct("<8xI4xQ")  # of a table's slot: topic and life

Result = TypeVar("Result")


class TopicFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A topic in numbers: offsets, size in bytes with headers, blocks, and its cursors' saved positions."""

    name: str
    first_offset: int
    next_offset: int
    bytes: int
    blocks: int
    cursors: dict[str, int]


class ReadOnlyLog:
    """A log that somebody else may own. Each method may raise `LogInUse` when its owner is too busy to be looked at.

    Opening raises `CorruptLogError`, `UnknownFormatError`, and `OSError` where the folder can't be read.
    """

    def __init__(self, path: str, *, vfs: FileSystem | None = None) -> None:
        self.path = path
        self._vfs = vfs if vfs is not None else RealFileSystem()
        self._loaded, self._reader = self._certain(self._look)

    def refresh(self) -> None:
        """Look again: what was appended, trimmed or cut since is seen."""
        self._replace(self._certain(self._look))

    def topics(self) -> list[TopicFacts]:
        """All topics by name, as of the last look."""
        facts = []
        for name, topic in sorted(self._loaded.topics.items()):
            stats = stats_of(topic, self._loaded.store)
            facts.append(
                TopicFacts(
                    name=name,
                    first_offset=stats.first_offset,
                    next_offset=stats.next_offset,
                    bytes=stats.bytes,
                    blocks=stats.blocks,
                    cursors=stats.cursors,
                )
            )
        return facts

    def read_from(self, topic: str, offset: int, max_bytes: int) -> list[Entry]:
        """Entries from `offset` on: as many as have `max_bytes` together, at least one if there is any.

        None for a topic that is not there. Raises `CorruptLogError`, and `OffsetTrimmedError`, also when the owner has
        trimmed the offset since the last look.
        """
        check_name(topic)
        try:
            return self._read(topic, offset, max_bytes)
        except CorruptLogError:  # or the picture is old: the owner has used the block again

            def look_and_read() -> list[Entry]:
                self._replace(self._look())
                return self._read(topic, offset, max_bytes)

            return self._certain(look_and_read)

    def _read(self, topic: str, offset: int, max_bytes: int) -> list[Entry]:
        state = self._loaded.topics.get(topic)
        if state is None:
            return []
        if offset < state.trim_offset:
            text = f"topic {topic!r} begins at offset {state.trim_offset}: {offset} is gone"
            raise OffsetTrimmedError(text, topic=topic, offset=offset, first_offset=state.trim_offset)
        return self._reader.read(state, offset, max_bytes, state.end)

    def verify(self, report: Report | None = None) -> list[Damage]:
        """Every damaged place in the superblock, the tables and the live blocks, as of now. Looks again first."""
        before = self._lives()
        self.refresh()
        loaded = self._loaded
        found = verify(loaded.store, [loaded.catalog, *loaded.topics.values()], report)
        if not found:
            return found
        after = self._lives()
        # A block that lives another life by now was given back meanwhile: it is no part of the log any more.
        return [damage for damage in found if before.same_block(after, damage.path, damage.position)]

    def close(self) -> None:
        """Close the files."""
        self._loaded.store.close()

    def __enter__(self) -> "ReadOnlyLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    # --- looking ------------------------------------------------------------------------------------------------

    def _replace(self, picture: tuple[Loaded, Reader]) -> None:
        self._loaded.store.close()
        self._loaded, self._reader = picture

    def _look(self) -> tuple[Loaded, Reader]:
        store = self._store()
        try:
            return opening.load(store), Reader(store)
        except BaseException:
            store.close()
            raise

    def _store(self) -> SegmentStore:
        found = opening.find_superblock(self._vfs, self.path)
        if found is None:
            raise UnknownFormatError(f"{self.path} holds no log", path=self.path, version=None)
        return SegmentStore(self._vfs, self.path, found[0], writable=False)

    def _lives(self) -> "_Lives":
        store = self._store()
        try:
            return _Lives(store)
        finally:
            store.close()

    def _certain(self, look: Callable[[], Result]) -> Result:
        """What `look` returns, or its `CorruptLogError` once that is about nothing which changed meanwhile."""
        for _ in range(_most_looks):
            before = self._lives()
            try:
                return look()
            except CorruptLogError as error:
                if before.same_topic(self._lives(), error.path, error.position):
                    raise
        raise LogInUse(f"{self.path}: its owner changes it faster than one can look at it", path=self.path)


class _Lives:
    """Which life each block of a log lives, and for which topic, as its tables said when they were read."""

    def __init__(self, store: SegmentStore) -> None:
        self._superblock = superblock.encode(store.superblock)
        self._segments = {segment.path: segment for segment in store.segments.values()}
        self._tables: dict[str, bytes | None] = {}
        for path, segment in self._segments.items():
            try:
                self._tables[path] = store.read(segment, 0, segment.table_bytes)
            except CorruptLogError:
                self._tables[path] = None  # missing or too short: a look will say so, too

    def same_block(self, later: "_Lives", path: str, position: int | None) -> bool:
        """Whether the block at this place still lives the same life, or the table's slot there has the same bytes."""
        segment, table = self._segments.get(path), self._tables.get(path)
        if segment is None or table is None or position is None:
            return self._same_everywhere(later)
        other = later._tables.get(path)
        if other is None:
            return False
        if position < segment.table_bytes:
            start = position // slot_bytes * slot_bytes
            return table[start : start + slot_bytes] == other[start : start + slot_bytes]
        block = (position - segment.table_bytes) // segment.block_bytes
        return self._owner(path, block) == later._owner(path, block)

    def same_topic(self, later: "_Lives", path: str, position: int | None) -> bool:
        """Whether the topic that owns the block at this place has the same blocks; whether all do, for other places."""
        segment = self._segments.get(path)
        if segment is None or position is None or position < segment.table_bytes:
            return self._same_everywhere(later)
        owner = self._owner(path, (position - segment.table_bytes) // segment.block_bytes)
        return owner is not None and self._blocks(owner[0]) == later._blocks(owner[0])

    def _same_everywhere(self, later: "_Lives") -> bool:
        return self._superblock == later._superblock and self._blocks(None) == later._blocks(None)

    def _owner(self, path: str, block: int) -> tuple[int, int] | None:
        """Topic and life of a block."""
        table = self._tables.get(path)
        return None if table is None else _owner_in_slot.unpack_from(table, (block + 1) * slot_bytes)

    def _blocks(self, topic: int | None) -> dict[tuple[str, int], tuple[int, int] | None]:
        """Owners by place: of one topic's blocks, or of all."""
        owners = {
            (path, block): self._owner(path, block)
            for path, segment in self._segments.items()
            for block in range(segment.blocks)
        }
        return {place: owner for place, owner in owners.items() if topic is None or (owner and owner[0] == topic)}
