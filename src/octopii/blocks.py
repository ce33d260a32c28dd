"""Snapshot format of typed and built-in state machines: blocks of MessagePack, each small enough for one C call.

    magic "OMSB" | format u16 | kind length u16 | kind (ASCII) | block ... | end

    block   payload bytes u32, not 0 | payload: one MessagePack value, whose shape the machine defines
    end     0 u32 | number of blocks u64

All integers are little-endian. A snapshot is valid when every block decodes as the machine's shape, the end is there
with the right count, and nothing follows it. Whole-file checksums are the replica's business. The kind names the
machine and the version of its shape ("kv/1"), so that a snapshot given to another machine is refused.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import msgspec

MAGIC = b"OMSB"
FORMAT = 1

TARGET_BLOCK_BYTES = 256 << 10
"""Payload bytes that a block aims at; encoding one takes well under a millisecond."""

MAX_BLOCK_ITEMS = 4096
"""Most items in one block, hence in one call that creates objects."""

_HEAD = struct.Struct("<4sHH")
_LENGTH = struct.Struct("<I")
_COUNT = struct.Struct("<Q")

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


def write_blocks(kind: str, values: Iterable[object]) -> Iterator[bytes]:
    """Yield a snapshot of `kind` with one block per value."""
    name = kind.encode("ascii")
    yield _HEAD.pack(MAGIC, FORMAT, len(name)) + name
    count = 0
    for value in values:
        payload = _encoder.encode(value)
        yield _LENGTH.pack(len(payload))
        yield payload
        count += 1
    yield _LENGTH.pack(0) + _COUNT.pack(count)


def read_blocks(kind: str, data: memoryview, shape: msgspec.msgpack.Decoder[T]) -> Iterator[T]:
    """Yield the values of a snapshot of `kind`; raises `ValueError` that says what is wrong, at the latest at its end.

    Only after the last value is it known that the snapshot is whole: assign no state before.
    """
    offset = _read_head(kind, data)
    count = 0
    while True:
        (length,) = _unpack(_LENGTH, data, offset)
        offset += _LENGTH.size
        if length == 0:
            break
        if length > len(data) - offset:
            raise ValueError(f"{kind} snapshot ends within block {count}")
        try:
            value = shape.decode(data[offset : offset + length])
        except msgspec.DecodeError as error:
            raise ValueError(f"{kind} snapshot: block {count} at byte {offset} is damaged: {error}") from error
        yield value
        offset += length
        count += 1
    (expected,) = _unpack(_COUNT, data, offset)
    if expected != count or offset + _COUNT.size != len(data):
        raise ValueError(f"{kind} snapshot has {count} blocks where its end says {expected}, or bytes behind its end")


def _read_head(kind: str, data: memoryview) -> int:
    magic, version, name_length = _unpack(_HEAD, data, 0)
    if magic != MAGIC or version != FORMAT:
        raise ValueError(f"not a {kind} snapshot: it starts with {bytes(data[: _HEAD.size])!r}")
    end: int = _HEAD.size + name_length
    found = bytes(data[_HEAD.size : end])
    if found != kind.encode("ascii"):
        raise ValueError(f"not a {kind} snapshot but one of {found.decode('ascii', 'replace')!r}")
    return end


def _unpack(layout: struct.Struct, data: memoryview, offset: int) -> tuple[Any, ...]:
    if len(data) - offset < layout.size:
        raise ValueError(f"the snapshot ends at byte {len(data)}, in the middle")
    return layout.unpack_from(data, offset)


# --- cutting state into blocks ----------------------------------------------------------------------------------


def frozen(items: Iterable[T]) -> list[T]:
    """Copy references to all items into a list, a slice at a time, so that other threads run in between."""
    copied: list[T] = []
    iterator = iter(items)
    while True:
        before = len(copied)
        copied.extend(islice(iterator, 1 << 16))
        if len(copied) == before:
            return copied


def spans(count: int, size_of: Callable[[int, int], int]) -> Iterator[tuple[int, int]]:
    """Cut `count` items into ranges [start, end) of at most `MAX_BLOCK_ITEMS` and about `TARGET_BLOCK_BYTES`.

    `size_of(start, end)` estimates the bytes of a range. A single item may be larger than the target.
    """
    start = 0
    step = MAX_BLOCK_ITEMS
    while start < count:
        step = min(step * 2, MAX_BLOCK_ITEMS)
        end = min(start + step, count)
        while end - start > 1 and size_of(start, end) > TARGET_BLOCK_BYTES:
            step = (end - start) // 2
            end = start + step
        yield start, end
        start = end
