"""Looking at a log from outside, without a lock and without writing a byte; its owner may be running.

A look is a moment's picture: the tables, the catalog and the tails as they were read. A running owner changes them
meanwhile, so that a picture may not fit together. Damage stays where it is when one looks again and an owner's work
does not: what is wrong counts only when it was seen in the same place `_looks` times in a row.

What is shown may include entries whose sync has not returned yet: a crash of the machine may still take them back.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from octopii.errors import CorruptLogError, OffsetTrimmedError, UnknownFormatError
from octopii.walrus import opening
from octopii.walrus.catalog import check_name
from octopii.walrus.opening import Loaded
from octopii.walrus.reader import Entry, Reader
from octopii.walrus.segment import SegmentStore
from octopii.walrus.verify import Damage, Report, verify
from octopii.walrus.vfs import FileSystem, RealFileSystem
from octopii.walrus.walrus import stats_of

_looks: Final = 3  # in a row that have to find the same damage
_most_looks: Final = 100  # at a log whose owner is so busy that no two looks agree

Result = TypeVar("Result")


class TopicFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A topic in numbers: offsets, size in bytes with headers, blocks, and its cursors' saved positions."""

    name: str
    first_offset: int
    next_offset: int
    blocks: int
    bytes: int
    cursors: dict[str, int]


class ReadOnlyLog:
    """A log somebody else may own. Raises `CorruptLogError`, `UnknownFormatError`, `FileNotFoundError`."""

    def __init__(self, path: str, *, vfs: FileSystem | None = None) -> None:
        self.path = path
        self._vfs = vfs if vfs is not None else RealFileSystem()
        self._loaded, self._reader = self._certain(self._look)

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
                    blocks=stats.blocks,
                    bytes=stats.bytes,
                    cursors=stats.cursors,
                )
            )
        return facts

    def read_from(self, topic: str, offset: int, max_bytes: int) -> list[Entry]:
        """Entries from `offset` on, as `Walrus.read_from`; looks again when the owner has moved on meanwhile.

        None for a topic that is not there. Raises `OffsetTrimmedError`, `CorruptLogError`.
        """
        check_name(topic)
        is_fresh = True

        def read() -> list[Entry]:
            nonlocal is_fresh
            if not is_fresh:
                self.refresh()
            is_fresh = False
            state = self._loaded.topics.get(topic)
            if state is None:
                return []
            if offset < state.trim_offset:
                text = f"topic {topic!r} begins at offset {state.trim_offset}: {offset} is gone"
                raise OffsetTrimmedError(text, topic=topic, offset=offset, first_offset=state.trim_offset)
            return self._reader.read(state, offset, max_bytes, state.end)

        return self._certain(read)

    def verify(self, progress: Report | None = None) -> list[Damage]:
        """Every damaged place; looks again, and reports what is found each time. `progress`: bytes done, in all."""
        found = self._verify_once(progress)
        for _ in range(_looks - 1):
            if not found:
                break
            self.refresh()
            places = {(item.path, item.position) for item in self._verify_once(progress)}
            found = [item for item in found if (item.path, item.position) in places]
        return found

    def _verify_once(self, progress: Report | None) -> list[Damage]:
        loaded = self._loaded
        return verify(loaded.store, [loaded.catalog, *loaded.topics.values()], progress)

    def refresh(self) -> None:
        """Look again: see what the owner did since."""
        loaded, reader = self._certain(self._look)
        self._loaded.store.close()
        self._loaded, self._reader = loaded, reader

    def close(self) -> None:
        """Close all files."""
        self._loaded.store.close()

    def _look(self) -> tuple[Loaded, Reader]:
        found = opening.find_superblock(self._vfs, self.path)
        if found is None:
            raise UnknownFormatError(f"{self.path} holds no log", path=self.path, version=None)
        store = SegmentStore(self._vfs, self.path, found[0], writable=False)
        try:
            return opening.load(store), Reader(store)
        except BaseException:
            store.close()
            raise

    def _certain(self, look: Callable[[], Result]) -> Result:
        """What `look` returns; its `CorruptLogError` once the same place was damaged several times in a row."""
        last: tuple[str, int | None] | None = None
        seen = 0
        for number in range(_most_looks):
            try:
                return look()
            except CorruptLogError as error:
                place = (error.path, error.position)
                seen = seen + 1 if place == last else 1
                last = place
                if seen == _looks or number + 1 == _most_looks:
                    raise
        raise AssertionError("every look returns or raises")
