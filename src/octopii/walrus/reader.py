"""Reading: blocks are decoded whole, checked, and kept for the reads that follow.

A block's entries are those that its fragments hold, less what a later fragment of the block cuts off, less what lies
at or beyond the first offset of the next block of the chain. The chain says which fragment is the last of each block,
so that a missing one is damage and never a shorter log.
"""

from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate, pairwise
from struct import unpack_from
from typing import Final

import msgspec
from xxhash import xxh3_64_digest

from octopii.errors import CorruptLogError
from octopii.walrus.record import (
    FIRST,
    HEADER,
    LAST,
    MANY,
    MIDDLE,
    ONE,
    REPLACE,
    header_bytes,
    kind_mask,
    length_mask,
)
from octopii.walrus.segment import SegmentStore
from octopii.walrus.topic import Topic

_cached_blocks: Final = 8  # decoded blocks kept by one log


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry: its bytes, and its number in the topic, from 0 without gaps."""

    data: bytes
    offset: int


class Block:
    """A decoded block, or its beginning up to `at` while it is a tail."""

    __slots__ = ("at", "beginning", "first", "head", "head_ends", "items", "seq")

    def __init__(self, first: int) -> None:
        self.first = first  # offset of items[0]
        self.items: list[bytes] = []
        self.head: list[memoryview] = []  # pieces of an entry that began in an earlier block
        self.head_ends = False
        self.beginning: memoryview | None = None  # piece of an entry that goes on in the next block
        self.at = 0  # bytes decoded
        self.seq = 0  # last seq decoded, 0 for none


def decode(block: Block, data: bytes, seed: int) -> None:
    """Decode fragments from `data`, which begins at `block.at`, until one is not valid or does not follow."""
    view = memoryview(data)
    size = len(data)
    items = block.items
    unpack, digest = HEADER.unpack_from, xxh3_64_digest
    tag = seed >> 32
    expected = block.seq
    at = 0
    while at + header_bytes <= size:
        checksum, found, kind, seq, offset, _ = unpack(data, at)
        start = at + header_bytes
        end = start + (kind & length_mask)
        if found != tag or end > size or (seq != expected + 1 and expected):
            break
        if digest(view[at + 8 : end], seed) != checksum:
            break
        kind >>= 24
        if kind & REPLACE:
            if offset < block.first:
                break
            del items[offset - block.first :]
            block.beginning = None
        kind &= kind_mask
        if kind in (MIDDLE, LAST):
            if offset != block.first - 1 or block.at or at:
                break
            block.head.append(view[start:end])
            block.head_ends = kind == LAST
        elif offset != block.first + len(items):
            break
        elif kind == ONE:
            items.append(data[start:end])
        elif kind == MANY:
            if not _decode_many(items, data, start, end):
                break
        elif kind == FIRST:
            block.beginning = view[start:end]
        expected = seq
        at = (end + 7) & -8
    block.at += min(at, size)
    block.seq = expected


def _decode_many(items: list[bytes], data: bytes, start: int, end: int) -> bool:
    count = int.from_bytes(data[start : start + 4], "little")
    table_end = start + 4 + 4 * count
    if table_end > end:
        return False
    ends = list(accumulate(unpack_from(f"<{count}I", data, start + 4), initial=table_end))
    if ends[-1] != end:
        return False
    items += [data[low:high] for low, high in pairwise(ends)]
    return True


class Reader:
    """Reads entries of topics; holds a few decoded blocks."""

    def __init__(self, store: SegmentStore) -> None:
        self.store = store
        self._blocks: OrderedDict[int, Block] = OrderedDict()  # by life

    def read(self, topic: Topic, offset: int, max_bytes: int, stop: int) -> list[Entry]:
        """Entries from `offset` to before `stop`: as many as fit in `max_bytes`, at least one if there is any."""
        entries: list[Entry] = []
        if offset >= stop:
            return entries
        chain = topic.chain
        left = max_bytes
        index = chain.block_of(offset)
        while offset < stop:
            block = self.block(topic, index)
            bound = chain.firsts[index + 1] if index + 1 < len(chain) else stop
            items = block.items[offset - block.first : min(bound, stop) - block.first]
            if items:
                size = sum(map(len, items))
                cut = size > left
                if cut:
                    fit = bisect_right(list(accumulate(map(len, items))), left)
                    del items[max(fit, 0 if entries else 1) :]
                entries += map(Entry, items, range(offset, offset + len(items)))
                if cut:
                    return entries
                offset += len(items)
                left -= size
            if offset < min(bound, stop):
                if block.beginning is None or offset != block.first + len(block.items):
                    raise self.damage(topic, index, f"the entry at offset {offset} is missing")
                data, index = self._gather(topic, index)
                if entries and len(data) > left:
                    return entries
                entries.append(Entry(data, offset))
                offset += 1
                left -= len(data)
            else:
                index += 1
        return entries

    def block(self, topic: Topic, index: int) -> Block:
        """Block `index` of the topic's chain, decoded as far as it is written; raises `CorruptLogError`."""
        chain = topic.chain
        life = chain.lives[index]
        block = self._blocks.get(life)
        if block is None:
            block = self._blocks[life] = Block(chain.firsts[index])
            if len(self._blocks) > _cached_blocks:
                self._blocks.popitem(last=False)
        if index + 1 == len(chain):
            if block.at < topic.at - topic.base:
                self._extend(topic, index, block, topic.at - topic.base, topic.seq)
        elif block.seq < chain.ends[index]:
            self._extend(topic, index, block, self.store.superblock.block_bytes, chain.ends[index])
        return block

    def _extend(self, topic: Topic, index: int, block: Block, stop: int, seq: int) -> None:
        place = topic.chain.place(index)
        segment = self.store.segments[place.segment]
        data = self.store.read(segment, segment.position(place.block) + block.at, stop - block.at)
        decode(block, data, segment.seed(place.block, topic.number, topic.chain.lives[index]))
        if block.seq != seq:
            self._blocks.pop(topic.chain.lives[index], None)
            raise self.damage(topic, index, f"a damaged fragment, the one after seq {block.seq}", block.at)

    def _gather(self, topic: Topic, index: int) -> tuple[bytes, int]:
        """The entry that begins at the end of block `index`, and the index of the block in which it ends."""
        beginning = self.block(topic, index).beginning
        assert beginning is not None
        pieces = [beginning]
        while True:
            index += 1
            if index == len(topic.chain):
                raise self.damage(topic, index - 1, "an entry has no end")
            block = self.block(topic, index)
            if not block.head:
                raise self.damage(topic, index, "a piece of an entry is missing", 0)
            pieces += block.head
            if block.head_ends:
                return b"".join(pieces), index

    def damage(self, topic: Topic, index: int, problem: str, at: int = 0) -> CorruptLogError:
        """The error that names a place in block `index` of the topic's chain."""
        place = topic.chain.place(index)
        segment = self.store.segments[place.segment]
        position = segment.position(place.block) + at
        message = f"{segment.path}, byte {position}, topic {topic.name!r}: {problem}"
        return CorruptLogError(message, path=segment.path, position=position, topic=topic.name)

    def forget(self) -> None:
        """Drop the decoded blocks."""
        self._blocks.clear()
