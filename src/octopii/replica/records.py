"""Records of a node's own topics that are read back, and what it means when one of them cannot be understood.

The log has compared its checksum, so it is what was written: by another version of this program, say, or by a hand that
should not have been in there.
"""

from collections.abc import Callable
from typing import TypeVar

from octopii.errors import CorruptLogError
from octopii.walrus import Log
from octopii.wire.frames import MalformedMessage

T = TypeVar("T")


def last_record(log: Log, topic: str, decode: Callable[[bytes], T]) -> T | None:
    """The topic's newest record, None where there is none; `decode` raises `MalformedMessage`.

    Raises `CorruptLogError`, which names folder, topic and record.
    """
    if topic not in log.topics():
        return None
    offset = log.next_offset(topic) - 1
    if offset < log.first_offset(topic):
        return None
    (record,) = log.read_from(topic, offset, 1)
    try:
        return decode(record.data)
    except MalformedMessage as error:
        raise unreadable(log, topic, offset, error) from error


def unreadable(log: Log, topic: str, offset: int, error: Exception) -> CorruptLogError:
    """Say that a record is not what this program writes."""
    return CorruptLogError(
        f"record {offset} of topic {topic} in {log.path} is not what this version of the program writes: {error}",
        path=log.path,
        topic=topic,
    )
