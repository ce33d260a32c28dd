"""The catalog: topic names and cursor positions, as entries of an internal topic with number 0.

One entry is one record: kind (1 byte), topic number (4), then

    1 CREATE   name in UTF-8
    2 DELETE   nothing
    3 CURSOR   offset (8), seq of the topic when the cursor was put there (8), name in UTF-8
    4 NEXT     nothing: numbers below were given out before

Later records override earlier ones. When the catalog has grown it is written anew as one unit before which nothing
remains, so that reading it all at open stays cheap.
"""

import struct
from typing import Final

import msgspec

from octopii.errors import InvalidTopic, LogFull
from octopii.walrus.topic import Cursor, Topic
from octopii.walrus.writer import Writer

catalog_number: Final = 0
max_name_bytes: Final = 1024  # of a topic's or cursor's name in UTF-8

_least_blocks: Final = 4  # a catalog of up to so many blocks is not worth writing anew

_HEAD = struct.Struct("<BI")
_CURSOR = struct.Struct("<BIQQ")
_create, _delete, _cursor, _next = 1, 2, 3, 4


class SavedCursor(msgspec.Struct):
    """A cursor as the catalog has it: it stood at `offset` when the topic's last fragment was `seq`."""

    offset: int
    seq: int


class Saved(msgspec.Struct):
    """What the catalog says, after reading all of it."""

    names: dict[int, str] = {}
    cursors: dict[int, dict[str, list[SavedCursor]]] = {}
    """By topic number and name, all since the last rewrite: a crash may have taken back what a later one saw."""
    next_number: int = 1

    def take(self, record: bytes) -> None:
        """Apply one record; raises `ValueError` when it makes no sense."""
        if len(record) < _HEAD.size:
            raise ValueError("a catalog record is too short")
        kind, number = _HEAD.unpack_from(record)
        if kind == _create:
            self.names[number] = record[_HEAD.size :].decode("utf-8")
            self.cursors[number] = {}
        elif kind == _delete:
            self.names.pop(number, None)
            self.cursors.pop(number, None)
        elif kind == _cursor:
            if len(record) < _CURSOR.size:
                raise ValueError("a catalog record is too short")
            _, _, offset, seq = _CURSOR.unpack_from(record)
            if number in self.cursors:
                name = record[_CURSOR.size :].decode("utf-8")
                self.cursors[number].setdefault(name, []).append(SavedCursor(offset, seq))
        elif kind != _next:
            raise ValueError(f"a catalog record of unknown kind {kind}")
        self.next_number = max(self.next_number, number + (kind != _next))


def create_record(number: int, name: str) -> bytes:
    """A topic begins."""
    return _HEAD.pack(_create, number) + name.encode("utf-8")


def delete_record(number: int) -> bytes:
    """A topic ends."""
    return _HEAD.pack(_delete, number)


def cursor_record(topic: Topic, name: str, offset: int) -> bytes:
    """A cursor's position."""
    return _CURSOR.pack(_cursor, topic.number, offset, topic.seq) + name.encode("utf-8")


def checkpoint(topics: list[Topic], next_number: int) -> list[bytes]:
    """Records that say all there is to say."""
    records = [_HEAD.pack(_next, next_number)]
    for topic in topics:
        records.append(create_record(topic.number, topic.name))
        records += [
            cursor_record(topic, name, cursor.saved) for name, cursor in topic.cursors.items() if is_saved(cursor)
        ]
    return records


def is_saved(cursor: Cursor) -> bool:
    """Whether the catalog knows the cursor."""
    return cursor.saved >= 0


def check_name(name: object) -> str:
    """The name of a topic or cursor; raises `InvalidTopic` when it is empty, too long, or no text."""
    if not isinstance(name, str):
        raise InvalidTopic(f"a name is text, not {type(name).__name__}", topic=name)
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidTopic(f"the name {name!r} can't be written in UTF-8", topic=name) from error
    if not 1 <= size <= max_name_bytes:
        raise InvalidTopic(f"a name has 1 to {max_name_bytes} bytes in UTF-8, not {size}", topic=name)
    return name


class Catalog:
    """The catalog while the log is open: writes records, and writes itself anew when it has grown."""

    def __init__(self, writer: Writer, topic: Topic, topics: dict[str, Topic], next_number: int) -> None:
        self.writer = writer
        self.topic = topic
        self.topics = topics
        self.next_number = next_number
        self._limit = _least_blocks

    def create(self, name: str, *, urgent: bool) -> Topic:
        """A new, empty topic."""
        self._append(create_record(self.next_number, name), urgent=urgent)
        topic = self.topics[name] = Topic(self.next_number, name)
        self.next_number += 1
        return topic

    def delete(self, topic: Topic) -> None:
        """The topic, its entries and its cursors are gone."""
        self._append(delete_record(topic.number), urgent=True)
        del self.topics[topic.name]
        self.writer.drop_all(topic)

    def save(self, topic: Topic, name: str, offset: int) -> None:
        """A cursor's position is to be kept."""
        self._append(cursor_record(topic, name, offset), urgent=True)
        topic.cursors[name].saved = offset

    def _append(self, record: bytes, *, urgent: bool) -> None:
        if len(self.topic.chain) > self._limit:
            self.rewrite()
        self.writer.append(self.topic, [record], urgent=urgent)

    def rewrite(self) -> bool:
        """Write all that counts as one unit before which nothing remains; False, and nothing done, on a full disk."""
        records = checkpoint(list(self.topics.values()), self.next_number)
        try:
            self.writer.reset(self.topic, self.topic.end, records)
        except LogFull:
            self._limit = len(self.topic.chain) * 2
            return False
        self._limit = max(_least_blocks, 3 * len(self.topic.chain))
        return True
