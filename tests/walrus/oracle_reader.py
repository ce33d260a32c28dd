"""A second reader of the log's files, written from the format page alone: it shares no code with the package.

It reads a folder that was closed in order, or whose writer died without a torn tail, and checks every checksum it
meets. It is slow, reads everything, and has no notion of repair: whatever is wrong is a `FormatError`.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from xxhash import xxh3_64_digest, xxh3_64_intdigest

nobody = 0xFFFFFFFF


class FormatError(Exception):
    """The files are not what the format page says."""


class Slot(NamedTuple):
    """A block's line in the table of its segment, and where the block is."""

    topic: int
    flags: int
    life: int
    ordinal: int
    previous: int
    first_offset: int
    first_seq: int
    previous_seq: int
    trim_offset: int
    trim_ordinal: int
    mark_at: int
    mark_seq: int
    mark_offset: int
    segment: int
    block: int
    path: str
    start: int


class Fragment(NamedTuple):
    """One record of a block."""

    kind: int
    seq: int
    offset: int
    payload: bytes
    checksum: bytes


class Extent(NamedTuple):
    """Bytes of a file that mean something: `start` to before `stop`."""

    path: str
    start: int
    stop: int


class Contents(NamedTuple):
    """A topic: the first offset, the entries from there on, and the saved cursors."""

    first: int
    items: list[bytes]
    cursors: dict[str, int]


class Oracle:
    """Reads `files`, by name; `topics` and `extents` are the result."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
        self.extents: list[Extent] = []
        self.blocks: list[tuple[str, int]] = []  # path and position of each
        self.topics: dict[str, Contents] = {}
        self.cuts: dict[int, list[tuple[int, int]]] = {}  # by topic number, as (seq, offset)
        self.block_bytes, self.clean, segments = self._superblock()
        slots: dict[int, dict[int, Slot]] = {}
        for number, blocks in segments:
            for slot in self._table(number, blocks):
                slots.setdefault(slot.topic, {})[slot.ordinal] = slot
        names, saved = self._catalog(slots.get(0, {}))
        for number, name in names.items():
            first, items = self._topic(number, slots.get(number, {}))
            end = first + len(items)
            cursors = {}
            for cursor, (offset, seq) in saved[number].items():
                cuts = [cut for cut_seq, cut in self.cuts.get(number, []) if cut_seq > seq]
                cursors[cursor] = max(first, min([offset, end, *cuts]))
            self.topics[name] = Contents(first, items, cursors)

    def _superblock(self) -> tuple[int, bool, list[tuple[int, int]]]:
        data = self.files["superblock"]
        half = len(data) // 2
        copies = []
        for start in (0, half):
            checksum, magic, version, length = struct.unpack_from("<8s8sII", data, start)
            if magic != b"WALRUSLG" or version != 1 or xxh3_64_digest(data[start + 8 : start + length]) != checksum:
                raise FormatError(f"superblock copy at {start}")
            self.extents.append(Extent("superblock", start, start + length))
            copies.append(data[start : start + length])
        if copies[0] != copies[1]:
            raise FormatError("the superblock's copies differ")
        block_bytes, _, _, clean, _, count = struct.unpack_from("<6I", data, 24)
        segments = [struct.unpack_from("<II8s", data, 48 + 16 * number) for number in range(count)]
        for number, blocks, digest in segments:
            if clean and digest != xxh3_64_digest(self.files[_name(number)][: 128 * (blocks + 1)]):
                raise FormatError(f"table digest of segment {number}")
        return block_bytes, bool(clean), [(number, blocks) for number, blocks, _ in segments]

    def _table(self, number: int, blocks: int) -> list[Slot]:
        data, path = self.files[_name(number)], _name(number)
        page = min(self.block_bytes, 4096)
        first_block = -(-128 * (blocks + 1) // page) * page
        if data[:8] != xxh3_64_digest(data[8:128]):
            raise FormatError(f"header of {path}")
        if struct.unpack_from("<8s4I", data, 8) != (b"WALRUSEG", 1, number, self.block_bytes, blocks):
            raise FormatError(f"header of {path}")
        self.extents.append(Extent(path, 0, 128 * (blocks + 1)))
        slots = []
        for block in range(blocks):
            entry = data[128 * (block + 1) : 128 * (block + 2)]
            if xxh3_64_digest(entry[8:], number << 32 | block) != entry[:8]:
                raise FormatError(f"slot {block} of {path}")
            start = first_block + block * self.block_bytes
            slot = Slot._make((*struct.unpack_from("<IIQIIQQQQIIQQ", entry, 8), number, block, path, start))
            self.blocks.append((path, start))
            if slot.flags & 1:
                slots.append(slot)
        return slots

    def _catalog(self, slots: dict[int, Slot]) -> tuple[dict[int, str], dict[int, dict[str, tuple[int, int]]]]:
        names: dict[int, str] = {}
        cursors: dict[int, dict[str, tuple[int, int]]] = {}
        for record in self._topic(0, slots)[1]:
            kind, number = struct.unpack_from("<BI", record)
            if kind == 1:
                names[number] = record[5:].decode()
                cursors[number] = {}
            elif kind == 2:
                del names[number]
            elif kind == 3:
                cursors[number][record[21:].decode()] = struct.unpack_from("<QQ", record, 5)
        return names, cursors

    def _topic(self, number: int, slots: dict[int, Slot]) -> tuple[int, list[bytes]]:
        """First offset and entries, by replaying the live blocks from the oldest on."""
        if not slots:
            return 0, []
        newest = slots[max(slots)]
        chain = [newest]
        trim_offset, trim_ordinal = newest.trim_offset, newest.trim_ordinal
        for kind, seq, _, payload, _ in self._fragments(newest, None):
            if kind & 15 == 7 and (seq > newest.mark_seq or not newest.mark_at):
                trim_offset, trim_ordinal = struct.unpack("<QI", payload)
        while chain[0].previous != nobody and chain[0].previous >= trim_ordinal:
            chain.insert(0, slots[chain[0].previous])
        replay = Replay(chain[0].first_offset, [] if not chain[0].flags & 4 else None)
        for slot, following in zip(chain, [*chain[1:], None], strict=True):
            if slot.flags & 2:
                replay.apply()  # the cut outlived the rest of a unit, whose commit lay in a block that is gone
            for fragment in self._fragments(slot, following):
                replay.take(fragment)
        self.cuts[number] = replay.cuts
        end, entries = replay.end, replay.entries
        first = min(trim_offset, end)
        return first, [entries[offset] for offset in range(first, end)]

    def _fragments(self, slot: Slot, following: Slot | None) -> list[Fragment]:
        """Kind, seq, offset, payload and checksum of each valid fragment of a block, as far as they count."""
        data = self.files[slot.path][slot.start : slot.start + self.block_bytes]
        seed = xxh3_64_intdigest(struct.pack("<IIIQ", slot.topic, slot.segment, slot.block, slot.life))
        stop = slot.mark_at if self.clean and following is None else len(data)
        found, at, seq = [], 0, slot.first_seq
        while at + 40 <= stop and not (following is not None and seq > following.previous_seq):
            checksum, tag, kind_length, this, offset, _ = struct.unpack_from("<8sIIQQQ", data, at)
            payload = data[at + 40 : at + 40 + (kind_length & 0xFFFFFF)]
            good = xxh3_64_digest(data[at + 8 : at + 40] + payload, seed) == checksum
            if not good or tag != seed >> 32 or this != seq:
                if self.clean or following is not None:
                    raise FormatError(f"fragment at {at} of block {slot.block} of {slot.path}")
                break
            found.append(Fragment(kind_length >> 24, seq, offset, payload, checksum))
            self.extents.append(Extent(slot.path, slot.start + at, slot.start + at + 40 + len(payload)))
            seq, at = seq + 1, at + 40 + len(payload) + 7 & -8
        return found


class Replay:
    """Follows the fragments of a topic: `entries` by offset, `end` the next offset, `cuts` as (seq, offset)."""

    def __init__(self, end: int, pieces: list[bytes] | None) -> None:
        self.end = end
        self.entries: dict[int, bytes] = {}
        self.cuts: list[tuple[int, int]] = []
        self.pieces = pieces  # of an unfinished entry; None when it began in a block that is gone
        self.unit: list[Fragment] = []

    def take(self, fragment: Fragment) -> None:
        """A fragment of a unit waits for the commit."""
        if fragment.kind & 0x10 and fragment.kind & 15 != 5:
            self.unit.append(fragment)
            return
        if fragment.kind & 15 == 5:
            if self.unit and self.unit[0].kind & 0x20:  # else it began in a block that is gone
                count = sum(_count(part.kind & 15, part.payload) for part in self.unit)
                size = sum(len(part.payload) for part in self.unit)
                digest = xxh3_64_digest(b"".join(part.checksum for part in self.unit))
                if fragment.payload != struct.pack("<QQ8s", count, size, digest):
                    raise FormatError(f"commit with seq {fragment.seq}")
        else:
            self.unit.append(fragment)
        self.apply()

    def apply(self) -> None:
        """All that waits counts."""
        for fragment in self.unit:
            if fragment.kind & 0x40:
                self.entries = {each: data for each, data in self.entries.items() if each < fragment.offset}
                self.cuts.append((fragment.seq, fragment.offset))
                self.pieces = []
            self._add(fragment.kind & 15, fragment.offset, fragment.payload)
        self.unit = []

    def _add(self, kind: int, offset: int, payload: bytes) -> None:
        self.end = offset + _count(kind, payload)
        if kind == 0:
            self.entries[offset] = payload
        elif kind == 1:
            (count,) = struct.unpack_from("<I", payload)
            at = 4 + 4 * count
            for number, size in enumerate(struct.unpack_from(f"<{count}I", payload, 4)):
                self.entries[offset + number] = payload[at : at + size]
                at += size
        elif kind == 2:
            self.pieces = [payload]
        elif kind in (3, 4) and self.pieces is not None:
            self.pieces.append(payload)
            if kind == 4:
                self.entries[offset] = b"".join(self.pieces)
        if kind in (0, 1, 4):
            self.pieces = []


def _count(kind: int, payload: bytes) -> int:
    return int(struct.unpack_from("<I", payload)[0]) if kind == 1 else int(kind in (0, 4))


def _name(segment: int) -> str:
    return f"segment-{segment:08}.wal"
