"""Opening one topic: which of its blocks and fragments count.

After an orderly close the marks in the table say it, and no block is read. Otherwise the tail is read, backwards as
far as nothing vouches for what lies before, and judged forwards:

- The *watermark* is the highest seq of the topic that any mark or any valid fragment says was on disk.
- Fragments count while each is valid and follows the one before, across blocks; a unit counts with its commit.
- What is missing or invalid at or below the watermark is damage: `CorruptLogError`. Above it, the log ends there, even
  if valid fragments follow: the torn tail, which is cut.
- A block that begins with a cut (jump) needs the blocks between it and the one it goes back to no more.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from xxhash import xxh3_64_digest

from octopii.errors import CorruptLogError
from octopii.walrus.record import (
    BEGIN,
    COMMIT,
    COMMIT_BODY,
    CONTINUES,
    JUMP,
    REPLACE,
    TRIM,
    TRIM_BODY,
    UNIT,
    Fragment,
    Slot,
    fragment_at,
    fragments_after,
    header_bytes,
    kind_mask,
    no_block,
    slot_of,
)
from octopii.walrus.segment import SegmentStore
from octopii.walrus.topic import Place, Topic

_kept_fragments: Final = 1 << 16  # of one topic, about 20 MiB: what was read backwards is judged without a second read


class Position(msgspec.Struct, frozen=True, gc=False):
    """A place in a topic's history: everything up to here counts."""

    ordinal: int
    at: int  # in the block
    seq: int
    end: int  # next offset
    trim_offset: int
    trim_ordinal: int


class Slots:
    """The used blocks of one topic by ordinal, decoded from the tables when they are asked for."""

    def __init__(self, tables: Mapping[int, bytes]) -> None:
        self.places: dict[int, int] = {}  # by ordinal: segment << 32 | block
        self._tables = tables

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, ordinal: int) -> tuple[Slot, Place]:
        packed = self.places[ordinal]
        segment, block = packed >> 32, packed & 0xFFFFFFFF
        return slot_of(self._tables[segment], block), Place(segment, block)

    def __contains__(self, ordinal: int) -> bool:
        return ordinal in self.places

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)


class Scan(msgspec.Struct):
    """What is valid in one block; its bytes are not kept."""

    slot: Slot
    fragments: list[Fragment]  # in sequence from the start
    watermark: int  # highest seq that anything in the block says was synced
    trims: list[tuple[int, int]]  # seq and ordinal
    has_more: bool  # bytes of this block's life lie behind a place where the sequence stops


class OpenUnit:
    """A unit whose commit has not come yet; `whole` is false when it began before what is read."""

    __slots__ = ("checksums", "entries", "size", "whole")

    def __init__(self, *, whole: bool) -> None:
        self.checksums: list[bytes] = []
        self.entries = 0
        self.size = 0
        self.whole = whole


class TopicRecovery:
    """Finds what counts of one topic; changes nothing on disk."""

    def __init__(self, store: SegmentStore, topic: Topic, slots: Slots) -> None:
        self.store = store
        self.topic = topic
        self.slots = slots
        self.replaced: list[tuple[int, int]] = []  # (seq, offset) of the cuts that were read
        self.torn: Position | None = None  # where a torn tail was cut, if bytes of it are there
        self.cut: list[tuple[Slot, Place]] = []  # blocks that are cut off
        self.torn_bytes: dict[tuple[int, int], bytes] = {}  # what was cut, by segment and position
        self._scans: dict[int, Scan] = {}
        self._kept = 0  # fragments in them
        self._unit: OpenUnit | None = None
        self._running: Position | None = None
        self._accepted: Position | None = None
        self._pending_cuts: list[tuple[int, int]] = []
        self._trims: set[tuple[int, int]] = set()  # seqs that say below which ordinal all is trimmed

    # --- the two ways to open -----------------------------------------------------------------------------------

    def open_closed(self) -> None:
        """After an orderly close: the mark of the newest block says all."""
        if self.slots:
            slot, _ = self.slots[max(self.slots)]
            self._adopt(self._start(slot))

    def open_crashed(self) -> None:
        """After anything else; raises `CorruptLogError` for damage."""
        if not self.slots:
            return
        order, vouched, watermark = self._unvouched()
        position = self._judge(order, vouched=vouched)
        replaced = self.replaced
        for seq, ordinal in sorted(self._trims, reverse=True):
            if position is not None and position.seq >= seq:
                break
            # what a trim freed may be reused and hence missing: the trim counts if all from its block up to it does
            later = [each for each in order if each >= ordinal]
            again = self._judge(later, vouched=False, trimmed=ordinal) if later else None
            if again is not None and again.seq >= seq:
                position, replaced = again, self.replaced
        self.replaced = replaced
        reached = position.seq if position is not None else 0
        if watermark > reached:
            raise self._damage(order, position)
        tail = position.ordinal if position is not None else -1
        self.cut = [self.slots[ordinal] for ordinal in sorted(self.slots) if ordinal > tail]
        if position is not None:
            self._adopt(position)
            if self._has_more(position):
                self.torn = position
        else:
            self.topic.next_ordinal = 0
        self.torn_bytes = self._torn_bytes()
        self._scans.clear()

    def _start(self, slot: Slot) -> Position:
        if slot.mark_at:
            return Position(
                slot.ordinal, slot.mark_at, slot.mark_seq, slot.mark_offset, slot.trim_offset, slot.trim_ordinal
            )
        return Position(
            slot.ordinal,
            0,
            slot.first_seq - 1,
            slot.first_offset - bool(slot.flags & CONTINUES),
            slot.trim_offset,
            slot.trim_ordinal,
        )

    def is_vouched(self) -> bool:
        """Whether anything of the topic is known to have been on disk."""
        return any(self.slots[each][0].mark_seq or self._scan(each).watermark for each in self.slots)

    def _torn_bytes(self) -> dict[tuple[int, int], bytes]:
        """What was cut: by segment and position, without the zeros at the end."""
        pieces = {}
        if self.torn is not None:
            _, place = self.slots[self.torn.ordinal]
            at = self.store.segments[place.segment].position(place.block) + self.torn.at
            pieces[place.segment, at] = self._read(place)[self.torn.at :].rstrip(b"\0")
        for slot, place in self.cut:
            scan = self._scan(slot.ordinal)
            if scan.fragments or scan.has_more:
                at = self.store.segments[place.segment].position(place.block)
                pieces[place.segment, at] = self._read(place).rstrip(b"\0")
        return pieces

    # --- reading ------------------------------------------------------------------------------------------------

    def _read(self, place: Place) -> bytes:
        segment = self.store.segments[place.segment]
        return self.store.read(segment, segment.position(place.block), segment.block_bytes)

    def _scan(self, ordinal: int) -> Scan:
        scan = self._scans.get(ordinal)
        if scan is None:
            slot, place = self.slots[ordinal]
            seed = self.store.segments[place.segment].seed(place.block, slot.topic, slot.life)
            start = self._start(slot)
            scan = self._scans[ordinal] = scan_block(slot, self._read(place), start.at, start.seq, seed)
            self._kept += len(scan.fragments)
            while self._kept > _kept_fragments and len(self._scans) > 1:
                self._kept -= len(self._scans.pop(next(iter(self._scans))).fragments)
        return scan

    def _unvouched(self) -> tuple[list[int], bool, int]:
        """The newest blocks, oldest first, back to one before which all is vouched for; whether so; the watermark."""
        watermark = 0
        order: list[int] = []
        for ordinal in sorted(self.slots, reverse=True):
            order.append(ordinal)
            scan = self._scan(ordinal)
            slot = scan.slot
            watermark = max(watermark, slot.mark_seq, scan.watermark)
            self._trims.add((slot.first_seq, slot.trim_ordinal))
            self._trims.update(scan.trims)
            # a block that begins with a cut is a beginning only once the cut itself is vouched for
            if slot.first_seq - (0 if slot.flags & JUMP else 1) <= watermark:
                return order[::-1], True, watermark
        return order[::-1], False, watermark

    # --- judging ------------------------------------------------------------------------------------------------

    def _judge(self, order: list[int], *, vouched: bool, trimmed: int | None = None) -> Position | None:
        """How far the blocks in `order` count.

        `vouched`: what is before them does. `trimmed`: nothing before the block of this ordinal is needed, if what is
        found reaches the trim that says so; the caller looks at that.
        """
        slot, _ = self.slots[order[0]]
        begins = slot.previous == no_block or slot.ordinal == trimmed
        good: dict[int, int] = {}  # the seq up to which each block was read
        broken = not (vouched or begins)
        self._running = self._start(slot) if not broken else None
        self._accepted = self._running if vouched else None
        self._unit = None
        self.replaced, self._pending_cuts = [], []
        for number, ordinal in enumerate(order):
            slot, _ = self.slots[ordinal]
            if number or broken:
                if not self._enters(slot, good, order[0], broken=broken, vouched=vouched):
                    broken = True
                    continue
                broken = False
            elif slot.mark_at == 0:
                first = next(iter(self._scan(ordinal).fragments), None)
                if first is not None and first.kind & UNIT and not first.kind & BEGIN:
                    self._unit = OpenUnit(whole=False)
            for fragment in self._scan(ordinal).fragments:
                if not self._take(ordinal, fragment):
                    break
            assert self._running is not None
            good[ordinal] = self._running.seq
        return self._accepted

    def _enters(self, slot: Slot, good: dict[int, int], lowest: int, *, broken: bool, vouched: bool) -> bool:
        """Whether the block follows what was read so far; if so, `_running` is at its start."""
        running = self._running
        if slot.flags & JUMP:
            previous = slot.previous
            fine = previous == no_block or (previous < lowest and vouched) or previous < slot.trim_ordinal
            if not fine and good.get(previous, -1) < slot.previous_seq:
                return False
            self._unit = None
        elif broken or running is None or slot.previous != running.ordinal or slot.previous_seq != running.seq:
            return False
        self._running = Position(
            slot.ordinal,
            0,
            slot.first_seq - 1,
            slot.first_offset - bool(slot.flags & CONTINUES),
            slot.trim_offset,
            slot.trim_ordinal,
        )
        return True

    def _take(self, ordinal: int, fragment: Fragment) -> bool:
        """Follow one valid fragment; False when it makes no sense where it is."""
        running, unit = self._running, self._unit
        assert running is not None
        if fragment.seq != running.seq + 1:
            return False
        if unit is None and fragment.kind & UNIT:
            if not fragment.kind & BEGIN:
                return False
            unit = self._unit = OpenUnit(whole=True)
            self._pending_cuts = []
        if fragment.kind & REPLACE:
            self._pending_cuts.append((fragment.seq, fragment.offset))
        elif fragment.offset != running.end:
            return False
        trim_offset, trim_ordinal = running.trim_offset, running.trim_ordinal
        kind = fragment.kind & kind_mask
        if kind == TRIM:
            trim_offset, trim_ordinal = TRIM_BODY.unpack(fragment.body)
        self._running = Position(
            ordinal, (fragment.end + 7) & -8, fragment.seq, fragment.offset + fragment.count, trim_offset, trim_ordinal
        )
        if unit is not None:
            if kind != COMMIT:
                unit.checksums.append(fragment.checksum)
                unit.entries += fragment.count
                unit.size += fragment.end - fragment.at - header_bytes
                return True
            if unit.whole and not self._commits(fragment, unit):
                return False
            self._unit = None
        self.replaced += self._pending_cuts
        self._pending_cuts = []
        self._accepted = self._running
        return True

    @staticmethod
    def _commits(fragment: Fragment, unit: OpenUnit) -> bool:
        return fragment.body == COMMIT_BODY.pack(unit.entries, unit.size, xxh3_64_digest(b"".join(unit.checksums)))

    # --- the outcome --------------------------------------------------------------------------------------------

    def _has_more(self, position: Position) -> bool:
        """Whether bytes of the tail block's life lie beyond what counts."""
        slot, place = self.slots[position.ordinal]
        segment = self.store.segments[place.segment]
        seed = segment.seed(place.block, slot.topic, slot.life)
        return self._read(place).find((seed >> 32).to_bytes(4, "little"), position.at) >= 0

    def _adopt(self, position: Position) -> None:
        """Make the topic what `position` says."""
        topic = self.topic
        topic.seq = topic.synced = position.seq
        topic.end = topic.visible = topic.low = position.end
        topic.trim_offset, topic.trim_ordinal = position.trim_offset, position.trim_ordinal
        topic.next_ordinal = position.ordinal + 1
        topic.marked = -1
        tail, place = self.slots[position.ordinal]
        segment = self.store.segments[place.segment]
        topic.segment = segment
        topic.base = segment.position(place.block)
        topic.at = topic.base + position.at
        topic.seed = segment.seed(place.block, tail.topic, tail.life)
        topic.tag = topic.seed >> 32
        walk, ends = [(tail, place)], [0]
        ordinal, end = tail.previous, tail.previous_seq
        while ordinal != no_block and ordinal >= position.trim_ordinal:
            if ordinal not in self.slots:
                raise self._missing(ordinal)
            found = self.slots[ordinal]
            walk.append(found)
            ends.append(end)
            ordinal, end = found[0].previous, found[0].previous_seq
        for (slot, where), last in zip(reversed(walk), reversed(ends), strict=True):
            continues = bool(slot.flags & CONTINUES)
            topic.chain.add(where, first=slot.first_offset, life=slot.life, ordinal=slot.ordinal, continues=continues)
            topic.chain.ends[-1] = last

    def _missing(self, ordinal: int) -> CorruptLogError:
        return CorruptLogError(
            f"{self.store.folder}: block {ordinal} of topic {self.topic.name!r} is missing",
            path=self.store.folder,
            topic=self.topic.name,
        )

    def _damage(self, order: list[int], position: Position | None) -> CorruptLogError:
        ordinal = position.ordinal if position is not None else order[0]
        at = position.at if position is not None else 0
        if position is not None and position.at + header_bytes > self.store.superblock.block_bytes:
            ordinal = next((each for each in order if each > ordinal), ordinal)
            at = 0
        _, place = self.slots[ordinal]
        segment = self.store.segments[place.segment]
        where = segment.position(place.block) + at
        return CorruptLogError(
            f"{segment.path}, byte {where}, topic {self.topic.name!r}: what was on disk here or behind is damaged",
            path=segment.path,
            position=where,
            topic=self.topic.name,
        )


def scan_block(slot: Slot, data: bytes, at: int, seq: int, seed: int) -> Scan:
    """Read a block's fragments from position `at` on, after fragment `seq`, and look behind where they stop."""
    view = memoryview(data)
    fragments: list[Fragment] = []
    trims: list[tuple[int, int]] = []
    watermark = 0
    while (fragment := fragment_at(view, at, seed)) is not None and fragment.seq == seq + 1:
        fragments.append(fragment)
        at, seq = (fragment.end + 7) & -8, fragment.seq
        watermark = max(watermark, fragment.synced)
        if fragment.kind & kind_mask == TRIM:
            trims.append((seq, TRIM_BODY.unpack(fragment.body)[1]))
    has_more = data.find((seed >> 32).to_bytes(4, "little"), at) >= 0
    if has_more:
        watermark = max([watermark, *(each.synced for each in fragments_after(data, at, seed))])
    return Scan(slot, fragments, watermark, trims, has_more)
