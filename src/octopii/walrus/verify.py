"""Reading all that counts and comparing every checksum, changing nothing."""

from collections.abc import Callable, Iterator, Sequence

import msgspec
from xxhash import xxh3_64_digest

from octopii.errors import CorruptLogError, WalrusError
from octopii.walrus import superblock
from octopii.walrus.record import (
    BEGIN,
    COMMIT,
    COMMIT_BODY,
    FIRST,
    LAST,
    MIDDLE,
    REPLACE,
    UNIT,
    BadSlot,
    Fragment,
    decode_slot,
    fragment_at,
    header_bytes,
    kind_mask,
    slot_bytes,
)
from octopii.walrus.segment import Segment, SegmentStore
from octopii.walrus.topic import Topic

Report = Callable[[int, int], None]
"""Told of progress: bytes done, bytes in all."""


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """One place where bytes are not what was written: `position` in bytes, None when it is the file as a whole."""

    path: str
    position: int | None
    topic: str | None
    problem: str


def damage_of(error: CorruptLogError) -> Damage:
    """The place that an error names."""
    return Damage(path=error.path, position=error.position, topic=error.topic, problem=str(error))


def verify(store: SegmentStore, topics: Sequence[Topic], report: Report | None = None) -> list[Damage]:
    """Every damaged place in the superblock, the tables and the live blocks of these topics."""
    found: list[Damage] = []
    found += check_superblock(store)
    for segment in store.segments.values():
        found += _check_table(store, segment)
    size = store.superblock.block_bytes
    total = size * sum(len(topic.chain) for topic in topics)
    done = 0
    for topic in topics:
        check = TopicCheck(store, topic)
        for index in range(len(topic.chain)):
            if (damage := check.block(index)) is not None:
                found.append(damage)
            done += size
            if report is not None:
                report(done, total)
    return found


def check_superblock(store: SegmentStore) -> list[Damage]:
    """The damage of the superblock: one bad copy is that, too."""
    path = f"{store.folder}/{superblock.file_name}"
    try:
        _, is_sound = superblock.read(store.vfs, store.folder)
    except CorruptLogError as error:
        return [damage_of(error)]
    except (OSError, WalrusError) as error:
        return [Damage(path=path, position=0, topic=None, problem=str(error))]
    if is_sound:
        return []
    return [Damage(path=path, position=0, topic=None, problem="one of the two copies of the superblock is damaged")]


def _check_table(store: SegmentStore, segment: Segment) -> Iterator[Damage]:
    try:
        table = store.read_table(segment)
    except CorruptLogError as error:
        yield damage_of(error)
        return
    for block in range(segment.blocks):
        at = (block + 1) * slot_bytes
        try:
            decode_slot(table[at : at + slot_bytes], segment.number, block)
        except BadSlot as error:
            yield Damage(path=segment.path, position=at, topic=None, problem=str(error))


class TopicCheck:
    """Follows one topic's fragments through its blocks."""

    def __init__(self, store: SegmentStore, topic: Topic) -> None:
        self.store = store
        self.topic = topic
        self._end: int | None = None  # the next offset, when known
        self._seq: int | None = None
        self._checksums: list[bytes] | None = None  # of the open unit, when it was read from its beginning
        self._entries = 0
        self._size = 0

    def block(self, index: int) -> Damage | None:
        """Check block `index` of the chain, after those before it."""
        topic, chain = self.topic, self.topic.chain
        place = chain.place(index)
        segment = self.store.segments[place.segment]
        base = segment.position(place.block)
        is_tail = index + 1 == len(chain)
        size = topic.at - topic.base if is_tail else segment.block_bytes
        last = topic.seq if is_tail else chain.ends[index]
        try:
            data = self.store.read(segment, base, size)
        except CorruptLogError as error:
            return damage_of(error)
        seed = segment.seed(place.block, topic.number, chain.lives[index])
        at, problem = self._follow(data, seed, first=chain.firsts[index], last=last, is_tail=is_tail)
        if problem is None:
            return None
        self._end = self._seq = self._checksums = None
        problem = f"{segment.path}, byte {base + at}, topic {topic.name!r}: {problem}"
        return Damage(path=segment.path, position=base + at, topic=topic.name, problem=problem)

    def _follow(self, data: bytes, seed: int, *, first: int, last: int, is_tail: bool) -> tuple[int, str | None]:
        view = memoryview(data)
        at, seq = 0, 0
        if self._end is None or self._end > first:
            self._end = None
            self._checksums = None
        while (fragment := fragment_at(view, at, seed)) is not None:
            if seq and fragment.seq != seq + 1:
                return at, f"fragment {fragment.seq} follows {seq}"
            if (problem := self._step(fragment)) is not None:
                return at, problem
            at, seq = (fragment.end + 7) & -8, fragment.seq
            if seq == last and not is_tail:
                break
        if seq != last and (seq or not is_tail or len(data)):
            return at, f"a damaged fragment, the one after {seq}"
        if is_tail and at != len(data):
            return at, "the tail ends too early"
        return at, None

    def _step(self, fragment: Fragment) -> str | None:
        kind = fragment.kind & kind_mask
        if fragment.kind & REPLACE:
            self._end = fragment.offset
        elif self._end is not None and fragment.offset != self._end and kind not in (MIDDLE, LAST):
            return f"offset {fragment.offset} where {self._end} should be"
        self._end = fragment.offset + fragment.count
        if fragment.kind & BEGIN:
            self._checksums, self._entries, self._size = [], 0, 0
        if fragment.kind & UNIT and self._checksums is not None:
            if kind == COMMIT:
                expected = COMMIT_BODY.pack(self._entries, self._size, xxh3_64_digest(b"".join(self._checksums)))
                self._checksums = None
                if fragment.body != expected:
                    return "a batch is not what its commit says"
            else:
                self._checksums.append(fragment.checksum)
                self._entries += fragment.count
                self._size += fragment.end - fragment.at - header_bytes
        elif kind == FIRST:
            self._checksums = None
        return None
