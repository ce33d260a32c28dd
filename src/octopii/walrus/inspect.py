"""Looking into a log without touching it, also while its owner runs: no lock is taken and no byte is written.

What is shown is the log as it was found by the last `refresh`. An owner that writes meanwhile may use blocks again
while they are read, or be half way through something: what looks like damage is read once more, and counts only when
it is found again with nothing changed, or again and again.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, TypeVar

import msgspec
from xxhash import xxh3_64_intdigest

from octopii.errors import CorruptLogError, OffsetTrimmedError, UnknownFormatError
from octopii.walrus import opening
from octopii.walrus.reader import Entry, Reader
from octopii.walrus.segment import SegmentStore
from octopii.walrus.topic import Topic
from octopii.walrus.verify import Damage, Report, verify
from octopii.walrus.vfs import FileSystem, RealFileSystem
from octopii.walrus.walrus import stats_of

__all__ = ["Damage", "ReadOnlyLog", "TopicFacts"]

_most_attempts: Final = 20

Result = TypeVar("Result")


class TopicFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A topic in numbers: offsets, size in bytes with headers, blocks, and its cursors' positions."""

    name: str
    first_offset: int
    next_offset: int
    bytes: int
    blocks: int
    cursors: dict[str, int]


class ReadOnlyLog:
    """A log, read-only. Raises `CorruptLogError`, `UnknownFormatError`, and `OSError` where it can't be read."""

    def __init__(self, path: str, *, vfs: FileSystem | None = None) -> None:
        self.path = path
        self._vfs = vfs if vfs is not None else RealFileSystem()
        self._store: SegmentStore | None = None
        self._topics: dict[str, Topic] = {}
        self._catalog: Topic | None = None
        self.refresh()

    def refresh(self) -> None:
        """Look again: what was appended, trimmed or cut since is seen."""
        self._patiently(self._load)

    def _load(self) -> None:
        self.close()
        found = opening.find_superblock(self._vfs, self.path)
        if found is None:
            raise UnknownFormatError(f"{self.path} holds no log", path=self.path, version=None)
        store = SegmentStore(self._vfs, self.path, found[0], writable=False)
        try:
            loaded = opening.load(store)
        except BaseException:
            store.close()
            raise
        self._store, self._topics, self._catalog = store, loaded.topics, loaded.catalog
        self._reader = Reader(store)

    def topics(self) -> list[TopicFacts]:
        """All topics, by name."""
        store = self._opened()
        facts = []
        for name, topic in sorted(self._topics.items()):
            stats = stats_of(topic, store)
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

        Raises `OffsetTrimmedError`, also when the owner has trimmed the offset since.
        """

        def read() -> list[Entry]:
            state = self._topics.get(topic)
            if state is None:
                return []
            if offset < state.trim_offset:
                raise OffsetTrimmedError(
                    f"topic {topic!r} begins at offset {state.trim_offset}: {offset} is gone",
                    topic=topic,
                    offset=offset,
                    first_offset=state.trim_offset,
                )
            return self._reader.read(state, offset, max_bytes, state.end)

        try:
            return read()
        except CorruptLogError:
            self.refresh()  # the owner may have used the block again
        return self._patiently(read)

    def verify(self, report: Report | None = None) -> list[Damage]:
        """Every damaged place in the superblock, the tables and the live blocks."""

        def check() -> list[Damage]:
            self._opened()
            assert self._store is not None
            assert self._catalog is not None
            return verify(self._store, [self._catalog, *self._topics.values()], report)

        found = check()
        for _ in range(_most_attempts):
            if not found:
                break
            before = self._state()
            self.refresh()
            again = check()
            if again == found and self._state() == before:
                break
            found = again
        return found

    def close(self) -> None:
        """Close the files."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> "ReadOnlyLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    def _opened(self) -> SegmentStore:
        if self._store is None:
            self.refresh()
        assert self._store is not None
        return self._store

    def _patiently(self, attempt: Callable[[], Result]) -> Result:
        """Try until it works, until the same damage is found twice with nothing changed, or often enough."""
        seen: tuple[str, int] | None = None
        for number in range(_most_attempts):
            state = self._state()
            try:
                return attempt()
            except (CorruptLogError, FileNotFoundError) as error:
                if number + 1 == _most_attempts or seen == (str(error), state):
                    raise
                seen = (str(error), state)
        raise AssertionError("the last attempt returns or raises")

    def _state(self) -> int:
        """A number that changes when the log's superblock or tables do."""
        parts = []
        for name in self._vfs.list_folder(self.path):
            if name == "superblock" or name.endswith(".wal"):
                try:
                    file = self._vfs.open(f"{self.path}/{name}", writable=False)
                except FileNotFoundError:
                    continue
                try:
                    parts.append(file.read_at(1 << 18, 0))
                finally:
                    file.close()
        return xxh3_64_intdigest(b"".join(parts))
