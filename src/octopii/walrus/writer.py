"""Writing: fragments into the mapped tail blocks, new blocks with their slots, marks and seals.

A unit (one entry, one batch, one cut) is planned, its blocks are reserved, and only then is it stored. Nothing that
was written is overwritten in place; a cut is a fragment that takes entries back. What makes blocks needless puts them
on `dropped`, which they leave, for the free pool, after the sync that follows.
"""

from array import array
from collections.abc import Sequence
from typing import Final

from xxhash import xxh3_64, xxh3_64_digest

from octopii.errors import CorruptLogError
from octopii.walrus.plan import Piece, Plan
from octopii.walrus.record import (
    BEGIN,
    COMMIT,
    COMMIT_BODY,
    CONTINUES,
    CUT,
    HEAD,
    JUMP,
    LAST,
    MANY,
    MIDDLE,
    ONE,
    REPLACE,
    TRIM,
    TRIM_BODY,
    UNIT,
    USED,
    BadSlot,
    Slot,
    decode_slot,
    encode_slot,
    header_bytes,
    slot_bytes,
)
from octopii.walrus.segment import SegmentStore
from octopii.walrus.topic import Place, Topic
from octopii.walrus.vfs import Buffer

mapped_bytes: Final = 4096
"""Larger payloads are written, not stored through the mapping: the first store into each page that was synced before
is a page fault, which together cost six times as much as one write of a whole block."""
_most_seals: Final = 1024  # filled blocks remembered until the next sync; that older ones lack the seal is harmless
_filled_share: Final = 2  # a fresh block of which a unit fills at least half need not be zeroed before


class Writer:
    """Stores units; `dirty` topics, `dropped` blocks and `seals` wait for the next sync."""

    def __init__(self, store: SegmentStore, *, zero_fresh: bool) -> None:
        self.store = store
        self.block_bytes = store.superblock.block_bytes
        self.next_life = store.superblock.opens << 32
        self.zero_fresh = zero_fresh
        self.dirty: list[Topic] = []
        self.dropped: list[Place] = []
        self.seals: list[tuple[Topic, Place, int]] = []  # blocks that got a successor, and its first seq

    # --- units --------------------------------------------------------------------------------------------------

    def plan(self, topic: Topic, sizes: Sequence[int]) -> Plan:
        """The plan for entries of these sizes at the topic's tail."""
        return Plan(self._room(topic), self.block_bytes).entries(sizes)

    def _room(self, topic: Topic) -> int:
        return topic.base + self.block_bytes - topic.at if topic.segment is not None else 0

    def append(self, topic: Topic, entries: Sequence[Buffer], *, urgent: bool = False) -> int:
        """Store entries as one unit; returns the offset of the first. Raises `LogFull` with nothing changed."""
        plan = self.plan(topic, [len(entry) for entry in entries])
        self.store.reserve(plan.new_blocks, urgent=urgent)
        first = topic.end
        self._store_unit(topic, plan, entries)
        return first

    def replace(self, topic: Topic, offset: int, entries: Sequence[Buffer], *, urgent: bool = False) -> None:
        """Store entries as one unit that takes back those from `offset` on."""
        in_place = len(topic.chain) > 0 and offset >= topic.chain.firsts[-1]
        sizes = [len(entry) for entry in entries]
        plan = Plan(self._room(topic) if in_place else 0, self.block_bytes).entries(sizes)
        self.store.reserve(plan.new_blocks, urgent=urgent)
        if in_place:
            topic.chain.ends[-1] = topic.seq  # should the cut be the first fragment of the next block
        kept = len(topic.chain) if in_place else topic.chain.needed_below(offset)
        self._cut_back(topic, offset, kept=kept)
        self._store_unit(topic, plan, entries, replaces=True)

    def reset(self, topic: Topic, next_offset: int, entries: Sequence[Buffer] = (), *, urgent: bool = True) -> None:
        """Store entries as one unit before which nothing of the topic remains."""
        plan = Plan(0, self.block_bytes).entries([len(entry) for entry in entries])
        self.store.reserve(plan.new_blocks, urgent=urgent)
        self._cut_back(topic, next_offset, kept=0)
        topic.visible = topic.trim_offset = next_offset
        topic.trim_ordinal = topic.next_ordinal
        self._store_unit(topic, plan, entries, replaces=True)

    def trim(self, topic: Topic, before: int) -> None:
        """Drop entries below `before`."""
        chain = topic.chain
        room = self._room(topic)
        if before == topic.end and room < self.block_bytes // 2 and self.store.free_blocks:
            room = 0  # nothing in the tail is needed: a new one frees it
        plan = Plan(room, self.block_bytes).bare(TRIM)
        self.store.reserve(plan.new_blocks, urgent=True)
        topic.trim_offset = before
        if len(chain):
            index = chain.block_of(before)
            topic.trim_ordinal = chain.ordinals[index]
            self.dropped += chain.keep(index, len(chain))
        else:
            topic.trim_ordinal = topic.next_ordinal
        if plan.new_blocks:
            self._next_block(topic, first_offset=topic.end)
            if before == topic.end:
                topic.trim_ordinal = chain.ordinals[-1]
                self.dropped += chain.keep(len(chain) - 1, len(chain))
        self._store(topic, TRIM, topic.end, TRIM_BODY.pack(before, topic.trim_ordinal))
        self._note(topic)

    def drop_all(self, topic: Topic) -> None:
        """All blocks of a deleted topic become free after the next sync."""
        self.dropped += topic.chain.keep(0, 0)
        if topic.segment is not None:
            topic.segment.tails.discard(topic)
            topic.segment = None
        topic.detach()

    def _cut_back(self, topic: Topic, offset: int, *, kept: int) -> None:
        self.dropped += topic.chain.keep(0, kept)
        topic.end = offset
        topic.low = min(topic.low, offset)
        topic.visible = min(topic.visible, offset)

    def _store_unit(self, topic: Topic, plan: Plan, entries: Sequence[Buffer], *, replaces: bool = False) -> None:
        pieces = plan.pieces
        jump = replaces and pieces[0].new_block
        extra = REPLACE if replaces else 0
        if len(pieces) == 1:
            self._store_piece(topic, pieces[0], entries, extra, jump=jump)
            self._note(topic)
            return
        own_block = plan.turns_for_commit
        if own_block:
            pieces = pieces[:-1]
        checksums = []
        size = 0
        extra |= UNIT | BEGIN
        for piece in pieces:
            payload_bytes, checksum = self._store_piece(topic, piece, entries, extra, jump=jump)
            checksums.append(checksum)
            size += payload_bytes
            extra, jump = UNIT, False
        if own_block:
            self._next_block(topic, first_offset=topic.end)
        body = COMMIT_BODY.pack(len(entries), size, xxh3_64_digest(b"".join(checksums)))
        self._store(topic, COMMIT | UNIT, topic.end, body)
        self._note(topic)

    def _store_piece(
        self, topic: Topic, piece: Piece, entries: Sequence[Buffer], extra: int, *, jump: bool
    ) -> tuple[int, bytes]:
        kind, offset = piece.kind, topic.end
        if piece.new_block:
            continues = kind in (MIDDLE, LAST)
            fills = piece.stop - piece.start >= self.block_bytes // _filled_share or piece.high - piece.low > 1
            self._next_block(topic, first_offset=offset + continues, continues=continues, jump=jump, fills=fills)
        payload: Buffer
        if kind == MANY:
            part = entries[piece.low : piece.high]
            lengths = array("I", map(len, part))
            payload = b"".join((len(part).to_bytes(4, "little"), lengths, *part))
            topic.end = offset + len(part)
        elif kind == CUT:
            payload = b""
        elif kind == ONE:
            payload = entries[piece.low]
            topic.end = offset + 1
        else:
            payload = memoryview(entries[piece.low])[piece.start : piece.stop]
            if kind == LAST:
                topic.end = offset + 1
        return len(payload), self._store(topic, kind | extra, offset, payload)

    def _store(self, topic: Topic, kind: int, offset: int, payload: Buffer) -> bytes:
        """One fragment at the tail; returns its checksum."""
        size = len(payload)
        at = topic.at
        end = at + header_bytes + size
        mapped = topic.map
        if mapped is None:
            mapped = self.attach(topic)
        assert end <= topic.base + self.block_bytes, "a fragment fits in its block"
        seq = topic.seq + 1
        head = HEAD.pack(topic.tag, kind << 24 | size, seq, offset, topic.synced)
        if size <= mapped_bytes:
            body = head + payload
            checksum = xxh3_64_digest(body, topic.seed)
            mapped[at:end] = checksum + body
        else:
            digest = xxh3_64(head, topic.seed)
            digest.update(payload)
            checksum = digest.digest()
            assert topic.segment is not None
            self.store.file(topic.segment).write_parts_at((checksum, head, payload), at)
        topic.at = (end + 7) & -8
        topic.seq = seq
        return checksum

    def _note(self, topic: Topic) -> None:
        if not topic.dirty:
            topic.dirty = True
            self.dirty.append(topic)

    # --- blocks -------------------------------------------------------------------------------------------------

    def attach(self, topic: Topic) -> "memoryview | bytearray":
        """Map the tail's segment, so that entries can be stored."""
        segment = topic.segment
        assert segment is not None, "a topic with a tail has its segment"
        topic.map = mapped = self.store.map(segment)
        topic.limit = topic.base + self.block_bytes
        segment.tails.add(topic)
        return mapped  # type: ignore[return-value]

    def _next_block(
        self, topic: Topic, *, first_offset: int, continues: bool = False, jump: bool = False, fills: bool = False
    ) -> None:
        """Give the topic a new tail; its blocks were reserved."""
        chain = topic.chain
        old = topic.segment
        if not jump and len(chain):
            chain.ends[-1] = topic.seq
        segment, block = self.store.take()
        place = Place(segment.number, block)
        life = self.next_life = self.next_life + 1
        slot = Slot(
            topic=topic.number,
            flags=USED | (JUMP if jump else 0) | (CONTINUES if continues else 0),
            life=life,
            ordinal=topic.next_ordinal,
            previous=topic.previous_ordinal,
            first_offset=first_offset,
            first_seq=topic.seq + 1,
            previous_seq=chain.ends[-1] if len(chain) else 0,
            trim_offset=topic.trim_offset,
            trim_ordinal=topic.trim_ordinal,
            mark_at=0,
            mark_seq=topic.synced,
            mark_offset=0,
        )
        if len(chain):
            self.seals.append((topic, chain.place(len(chain) - 1), topic.seq + 1))
            if len(self.seals) > 2 * _most_seals:
                del self.seals[:_most_seals]
        if self.zero_fresh and not fills:
            self.store.zero(segment, block)
        self.store.write_slot(place, encode_slot(slot, *place))
        segment.fresh[block] = 0
        chain.add(place, first=first_offset, life=life, ordinal=topic.next_ordinal, continues=continues)
        topic.next_ordinal += 1
        if old is not None:
            old.dirty = True
            old.tails.discard(topic)
        topic.base = topic.at = segment.position(block)
        topic.marked = -1
        topic.segment = segment
        topic.seed = segment.seed(block, topic.number, life)
        topic.tag = topic.seed >> 32
        self.attach(topic)

    # --- marks --------------------------------------------------------------------------------------------------

    def mark(self, topic: Topic) -> None:
        """Store in the table that all that the topic has, up to `synced`, is on disk. Only when nothing is unsynced."""
        if topic.marked == topic.synced or not len(topic.chain):
            return
        assert topic.synced == topic.seq
        place = topic.chain.place(len(topic.chain) - 1)
        self._change_slot(
            place,
            mark_at=topic.at - topic.base,
            mark_seq=topic.synced,
            mark_offset=topic.end,
            trim_offset=topic.trim_offset,
            trim_ordinal=topic.trim_ordinal,
        )
        topic.marked = topic.synced

    def seal(self) -> None:
        """Say in the slots of filled blocks that their successors are on disk, so that these can't go unnoticed."""
        waiting = []
        live = self.store.segments
        for topic, place, seq in self.seals:
            if topic.synced < seq:
                waiting.append((topic, place, seq))
            elif place.segment in live and self._owns(topic, place):
                self._change_slot(place, mark_at=0, mark_seq=topic.synced, mark_offset=0)
        self.seals = waiting[-_most_seals:]

    def _owns(self, topic: Topic, place: Place) -> bool:
        return place.segment << 32 | place.block in topic.chain.places[-_most_seals:]

    def _change_slot(self, place: Place, **changes: int) -> None:
        segment = self.store.segments[place.segment]
        at = (place.block + 1) * slot_bytes
        try:
            slot = decode_slot(self.store.read(segment, at, slot_bytes), *place)
        except BadSlot as error:
            raise CorruptLogError(f"{segment.path}: {error}", path=segment.path, position=at) from error
        self.store.write_slot(place, encode_slot(slot._replace(**changes), *place))
