"""A key-value store that remembers: every write makes a version of the whole, and any kept version can be asked.

    SET <key> <value>        -> the new version's number; versions count from 1
    DELETE <key>             -> the new version's number, or NOT_FOUND, which makes none
    GET <key>                -> the value now, or NOT_FOUND               (as a command or as a query)
    GET_AT <version> <key>   -> the value in that version, or NOT_FOUND   (as a command or as a query)
    VERSION                  -> the newest version's number               (as a command or as a query)

Keys and values are as in the key-value store. Memory holds one value per write, not a copy of the store per version:
each key has its own history. Compaction forgets versions older than the newest `keep_versions`; asking for one of
those, or for one to come, is refused by `CommandError`.
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator

import msgspec

from octopii.blocks import MAX_BLOCK_ITEMS, TARGET_BLOCK_BYTES, frozen, read_blocks, spans, write_blocks
from octopii.errors import CommandError
from octopii.machines.parsing import text, unknown, whole_number
from octopii.state_machine import StateMachine

KEEP_VERSIONS = 100_000
"""Versions that compaction leaves, unless the constructor says otherwise."""

MAX_VERSION = (1 << 63) - 1

_KIND = "versioned/1"
_NOT_FOUND = b"NOT_FOUND"


class _History:
    """Versions in which one key was written, ascending, and the values it then had; None where it was deleted.

    Grows at its end only, so whoever knows how long it was can read it as it was.
    """

    __slots__ = ("values", "versions")

    def __init__(self, versions: list[int] | None = None, values: list[bytes | None] | None = None) -> None:
        self.versions: list[int] = [] if versions is None else versions
        self.values: list[bytes | None] = [] if values is None else values

    def at(self, version: int) -> bytes | None:
        position = bisect_right(self.versions, version)
        return self.values[position - 1] if position else None

    def size_of(self, start: int, end: int) -> int:
        return _size(self.values[start:end])

    def since(self, version: int) -> "_History | None":
        """Return the history without what no version from `version` on needs; None when nothing is left."""
        first = max(bisect_right(self.versions, version) - 1, 0)
        if first == len(self.versions) - 1 and self.values[first] is None:
            return None
        return self if not first else _History(self.versions[first:], self.values[first:])


_Piece = tuple[bytes, list[int], list[bytes | None]]
_SHAPE = msgspec.msgpack.Decoder(tuple[int, int, list[_Piece]])


class VersionedStateMachine(StateMachine):
    """Histories by key. `keep_versions` belongs to the replicated logic: the same on every node."""

    def __init__(self, *, keep_versions: int = KEEP_VERSIONS) -> None:
        if keep_versions < 1:
            raise ValueError(f"keep_versions has to be at least 1, not {keep_versions!r}")
        self._histories: dict[bytes, _History] = {}
        self._version = 0
        self._oldest = 0
        self._keep_versions = keep_versions

    def apply(self, command: bytes) -> bytes:
        """Run one command; raises `CommandError` and changes nothing for one that does not fit."""
        parts = command.split(b" ", 2)
        if parts[0] == b"SET":
            if len(parts) != 3 or not parts[1]:
                raise CommandError("SET takes a key and a value: SET <key> <value>")
            return self._write(parts[1], parts[2])
        if parts[0] == b"DELETE":
            if len(parts) != 2 or not parts[1]:
                raise CommandError("DELETE takes one key without spaces: DELETE <key>")
            if self._value(parts[1], self._version) is None:
                return _NOT_FOUND
            return self._write(parts[1], None)
        return self.query(command)

    def query(self, command: bytes) -> bytes:
        """Answer GET, GET_AT and VERSION; raises `CommandError` for anything else."""
        match command.split(b" ", 2):
            case [b"GET", key] if key:
                value = self._value(key, self._version)
            case [b"GET_AT", number, key] if key and b" " not in key:
                version = whole_number(text(number), name="version", least=0, most=MAX_VERSION)
                if not self._oldest <= version <= self._version:
                    raise CommandError(f"versions {self._oldest} to {self._version} are kept")
                value = self._value(key, version)
            case [b"VERSION"]:
                return b"%d" % self._version
            case [b"GET" | b"GET_AT" | b"VERSION", *_]:
                raise CommandError("usage: GET <key>, GET_AT <version> <key> or VERSION")
            case parts:
                raise unknown(parts[0])
        return _NOT_FOUND if value is None else value

    def _value(self, key: bytes, version: int) -> bytes | None:
        history = self._histories.get(key)
        return None if history is None else history.at(version)

    def _write(self, key: bytes, value: bytes | None) -> bytes:
        self._version += 1
        history = self._histories.get(key)
        if history is None:
            history = self._histories[key] = _History()
        history.versions.append(self._version)
        history.values.append(value)
        return b"%d" % self._version

    def compact(self) -> None:
        """Forget versions older than the newest `keep_versions`."""
        self._oldest = max(self._version - self._keep_versions + 1, self._oldest)
        shortened = ((key, history.since(self._oldest)) for key, history in self._histories.items())
        self._histories = {key: history for key, history in shortened if history is not None}

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Return a frozen view: references to the histories, and how long each is now."""
        keys, histories = frozen(self._histories), frozen(self._histories.values())
        lengths = [len(history.versions) for history in histories]
        version, oldest = self._version, self._oldest

        def encode() -> Iterator[bytes]:
            blocks = _blocks(_pieces(keys, histories, lengths))
            return write_blocks(_KIND, ((version, oldest, block) for block in blocks))

        return encode

    def restore(self, data: memoryview) -> None:
        """Replace all histories; raises `ValueError` and changes nothing when the snapshot is not sound."""
        histories: dict[bytes, _History] = {}
        heads: set[tuple[int, int]] = set()
        for version, oldest, pieces in read_blocks(_KIND, data, _SHAPE):
            heads.add((version, oldest))
            for key, versions, values in pieces:
                history = histories.setdefault(key, _History())
                ordered = itertools.pairwise([*history.versions[-1:], *versions, version + 1])
                if len(versions) != len(values) or not all(before < after for before, after in ordered):
                    raise ValueError(f"{_KIND} snapshot has versions of {key!a} out of order")
                history.versions += versions
                history.values += values
        if len(heads) != 1 or not 0 <= min(heads)[1] <= min(heads)[0] <= MAX_VERSION:
            raise ValueError(f"{_KIND} snapshot has blocks of several versions, or of an impossible one")
        self._histories = histories
        self._version, self._oldest = heads.pop()


def _pieces(keys: list[bytes], histories: list[_History], lengths: list[int]) -> Iterator[_Piece]:
    """Yield (key, versions, values), a long history in several pieces."""
    for key, history, length in zip(keys, histories, lengths):
        for start, end in spans(length, history.size_of):
            yield key, history.versions[start:end], history.values[start:end]


def _blocks(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Put small pieces together; yields one empty block when there is none, for the version in it."""
    block: list[_Piece] = []
    size, empty = 0, True
    for piece in pieces:
        empty = False
        block.append(piece)
        size += len(piece[0]) + _size(piece[2])
        if size >= TARGET_BLOCK_BYTES or len(block) == MAX_BLOCK_ITEMS:
            yield block
            block, size = [], 0
    if block or empty:
        yield block


def _size(values: list[bytes | None]) -> int:
    return sum(10 if value is None else len(value) + 10 for value in values)
