"""A key-value store that remembers: every write makes a version of the whole, and any kept version can be asked.

    SET <key> <value>        -> the new version's number; versions count from 1
    DELETE <key>             -> the new version's number, or NOT_FOUND, which makes none
    GET <key>                -> the value now, or NOT_FOUND               (as a command or as a query)
    GET_AT <version> <key>   -> the value in that version, or NOT_FOUND   (as a command or as a query)
    VERSION                  -> the newest version's number               (as a command or as a query)

Keys and values are as in the key-value store. The newest `keep_versions` versions are kept: each write beyond that
forgets the oldest one. Asking for one of those, or for one to come, is refused by `CommandError`. Memory holds one
value per write, not a copy of the store per version: each key has its own history. Programs that hold the machine
itself, in tests say, look at a whole version by `query_at_version`.
"""

import itertools
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import msgspec

from octopii.blocks import MAX_BLOCK_ITEMS, TARGET_BLOCK_BYTES, frozen, read_blocks, spans, write_blocks
from octopii.errors import CommandError
from octopii.machines.parsing import text, unknown, whole_number
from octopii.state_machine import StateMachine

KEEP_VERSIONS = 100_000
"""Versions that are kept, unless the constructor says otherwise."""

MAX_VERSION = (1 << 63) - 1

_KIND = "versioned/1"
_NOT_FOUND = b"NOT_FOUND"


class _History:
    """Versions in which one key was written, ascending, and the values it then had; None where it was deleted.

    The lists grow at their ends only, and are replaced as a whole when their beginning is cut off: whoever holds them,
    and knows how long they were, can read them as they were. What stands before `first` is forgotten.
    """

    __slots__ = ("first", "values", "versions")

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.values: list[bytes | None] = []
        self.first = 0

    def at(self, version: int) -> bytes | None:
        position = bisect_right(self.versions, version, self.first)
        return self.values[position - 1] if position > self.first else None

    def forget_before(self, version: int) -> bool:
        """Forget what no version from `version` on needs; True when nothing is left."""
        first = max(bisect_right(self.versions, version, self.first) - 1, self.first)
        if first == len(self.versions) - 1 and self.values[first] is None:
            return True
        # Cut in large pieces only, so that forgetting one version at a time costs no more than writing it.
        if first > len(self.versions) // 2:
            self.versions, self.values, first = self.versions[first:], self.values[first:], 0
        self.first = first
        return False


class _Frozen(msgspec.Struct, frozen=True):
    """One key's history as it was when it was taken."""

    key: bytes
    versions: list[int]
    values: list[bytes | None]
    first: int
    end: int

    def pieces(self) -> "Iterator[_Piece]":
        """The history, a long one in several pieces."""

        def size_of(start: int, end: int) -> int:
            return _size(self.values[self.first + start : self.first + end])

        for start, end in spans(self.end - self.first, size_of):
            span = slice(self.first + start, self.first + end)
            yield self.key, self.versions[span], self.values[span]


class _VersionView(Mapping[bytes, bytes]):
    """The store in one version; reads the live histories, so it is for looking at once."""

    def __init__(self, histories: dict[bytes, _History], version: int) -> None:
        self._histories = histories
        self._version = version

    def __getitem__(self, key: bytes) -> bytes:
        history = self._histories.get(key)
        value = None if history is None else history.at(self._version)
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[bytes]:
        return (key for key, history in self._histories.items() if history.at(self._version) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


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
        # The key written in each version from `_oldest` + 1 on: can be told from the histories, and is in no snapshot.
        self._written: deque[bytes] = deque()

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
                value = self.query_at_version(version).get(key)
            case [b"VERSION"]:
                return b"%d" % self._version
            case [b"GET" | b"GET_AT" | b"VERSION", *_]:
                raise CommandError("usage: GET <key>, GET_AT <version> <key> or VERSION")
            case parts:
                raise unknown(parts[0])
        return _NOT_FOUND if value is None else value

    def query_at_version(self, version: int) -> Mapping[bytes, bytes]:
        """Return the whole store as it was in `version`; raises `CommandError` for one that is not kept.

        The mapping reads the live machine: use it before the next command is applied.
        """
        if not self._oldest <= version <= self._version:
            raise CommandError(f"versions {self._oldest} to {self._version} are kept")
        return _VersionView(self._histories, version)

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
        self._written.append(key)
        while self._version - self._oldest >= self._keep_versions:
            self._oldest += 1
            self._forget(self._written.popleft())
        return b"%d" % self._version

    def _forget(self, key: bytes) -> None:
        """Cut off the beginning of the history of a key that was written in the version now oldest."""
        history = self._histories.get(key)
        if history is not None and history.forget_before(self._oldest):
            del self._histories[key]

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Return a frozen view: references to the histories, and how long each is now."""
        histories = frozen(
            _Frozen(key, history.versions, history.values, history.first, len(history.versions))
            for key, history in self._histories.items()
        )
        version, oldest = self._version, self._oldest

        def encode() -> Iterator[bytes]:
            pieces = itertools.chain.from_iterable(history.pieces() for history in histories)
            return write_blocks(_KIND, ((version, oldest, block) for block in _blocks(pieces)))

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
        version, oldest = heads.pop()
        writes = sorted((at, key) for key, history in histories.items() for at in history.versions if at > oldest)
        if [at for at, _ in writes] != list(range(oldest + 1, oldest + 1 + len(writes))) or len(
            writes
        ) != version - oldest:
            raise ValueError(f"{_KIND} snapshot lacks a write, or has two in one version")
        self._histories = histories
        self._version, self._oldest = version, oldest
        self._written = deque(key for _, key in writes)


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
