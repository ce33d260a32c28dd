"""The bytes of a log: fragments, table entries, segment headers. docs/on-disk-format.md is the full page.

All integers are little-endian; checksums are XXH3-64 in its canonical (big-endian) byte order.

A **segment** file is a table of 128-byte slots, padded to a whole number of pages, then its blocks. Slot 0 is the
segment's header, slot n + 1 belongs to block n and says whose it is:

    offset size  field
         0    8  checksum of the 120 bytes that follow, seeded with (segment << 32 | block)
         8    4  topic          number of the owner
        12    4  flags          0 free, 1 used, 2 jump (begins with a cut), 4 continues (begins inside an entry)
        16    8  life           never used twice in a log
        24    4  ordinal        number of the block in its topic, rising
        28    4  previous       ordinal of the live block before it; 0xFFFFFFFF: none
        32    8  first offset   of the first entry that begins in this block or after it
        40    8  first seq      of the first fragment
        48    8  previous seq   of the last fragment in the previous block
        56    8  trim offset    entries below are gone (as of the last write of this slot)
        64    4  trim ordinal   blocks of the topic below are gone
        68    4  mark at        bytes of this block known to be synced; 0: nothing said
        72    8  mark seq       last fragment of the topic known to be synced
        80    8  mark offset    next offset of the topic at the mark
        88   40  zero

A **fragment** starts at a multiple of 8 in its block:

         0    8  checksum       of all that follows, header and payload, seeded with the block's seed
         8    4  tag            the block's: the upper half of its seed
        12    4  kind << 24 | length of the payload
        16    8  seq            one more than the topic's fragment before
        24    8  offset         next offset of the topic when it was written, or the one it cuts back to
        32    8  synced         the last seq of this topic that was known to be on disk: the watermark
        40       payload
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
from xxhash import xxh3_64_digest, xxh3_64_intdigest

format_version: Final = 1

# --- fragments ----------------------------------------------------------------------------------------------------

HEAD: Final = struct.Struct("<IIQQQ")
"""A fragment's header without its checksum."""
HEADER: Final = struct.Struct("<8sIIQQQ")
header_bytes: Final = 40
length_mask: Final = 0xFFFFFF
largest_block_bytes: Final = 1 << 24  # a payload's length has 24 bits

ONE: Final = 0  # the payload is one entry
MANY: Final = 1  # u32 count, u32 lengths, the entries
FIRST: Final = 2  # the beginning of an entry
MIDDLE: Final = 3
LAST: Final = 4
COMMIT: Final = 5  # ends a unit of several fragments: u64 entries, u64 payload bytes, 8 bytes checksum
CUT: Final = 6  # no entries: truncation alone
TRIM: Final = 7  # u64 trim offset, u32 trim ordinal
kind_mask: Final = 0x0F
UNIT: Final = 0x10  # part of a unit of several fragments: valid only up to and with its COMMIT
BEGIN: Final = 0x20  # the first of such a unit
REPLACE: Final = 0x40  # entries from `offset` on that were written before are gone

COMMIT_BODY: Final = struct.Struct("<QQ8s")
TRIM_BODY: Final = struct.Struct("<QI")
_SEED = struct.Struct("<IIIQ")


def block_seed(topic: int, segment: int, block: int, life: int) -> int:
    """The seed of all checksums in a block: bytes of another topic, place or life never pass."""
    return xxh3_64_intdigest(_SEED.pack(topic, segment, block, life))


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """One valid fragment; `at` and `end` are positions in the buffer it was found in, which it does not keep alive."""

    at: int
    end: int
    kind: int
    seq: int
    offset: int
    synced: int
    checksum: bytes
    count: int  # of the entries that it ends: pieces but the last count for none
    body: bytes  # the payload of a commit or a trim


def fragment_at(data: bytes | memoryview, at: int, seed: int) -> Fragment | None:
    """The fragment that begins at position `at`, or None when the bytes there are none of this block's life."""
    start = at + header_bytes
    if start > len(data):
        return None
    checksum, tag, kind_length, seq, offset, synced = HEADER.unpack_from(data, at)
    end = start + (kind_length & length_mask)
    if tag != seed >> 32 or end > len(data):
        return None
    if xxh3_64_digest(data[at + 8 : end], seed) != checksum:
        return None
    flags = kind_length >> 24
    kind = flags & kind_mask
    count, body = 0, b""
    if kind == MANY:
        count = int.from_bytes(data[start : start + 4], "little")
    elif kind in (ONE, LAST):
        count = 1
    elif kind in (COMMIT, TRIM):
        body = bytes(data[start:end])
    return Fragment(at, end, flags, seq, offset, synced, checksum, count, body)


def fragments_after(data: bytes, at: int, seed: int) -> Iterator[Fragment]:
    """All valid fragments from `at` on, at any place: for looking behind a hole."""
    tag = (seed >> 32).to_bytes(4, "little")
    view = memoryview(data)
    found = data.find(tag, at)
    while found >= 0:
        start = found - 8
        if start >= at and start % 8 == 0 and (fragment := fragment_at(view, start, seed)) is not None:
            yield fragment
        found = data.find(tag, found + 1)


# --- the table ----------------------------------------------------------------------------------------------------

slot_bytes: Final = 128
no_block: Final = 0xFFFFFFFF
USED: Final = 1
JUMP: Final = 2
CONTINUES: Final = 4

_SLOT = struct.Struct("<IIQIIQQQQIIQQ40x")
_OWNER = struct.Struct("<8xIIQI100x")


class Slot(NamedTuple):
    """What a table says of one block."""

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


free_slot: Final = Slot(0, 0, 0, 0, no_block, 0, 0, 0, 0, 0, 0, 0, 0)
"""A block that belongs to nobody: written when a segment is made, so that zeros in a table are damage."""


def encode_slot(slot: Slot, segment: int, block: int) -> bytes:
    """The 128 bytes of a block's slot."""
    body = _SLOT.pack(*slot)
    return xxh3_64_digest(body, segment << 32 | block) + body


class BadSlot(Exception):
    """A slot whose checksum is wrong; `block` is its number."""

    def __init__(self, block: int) -> None:
        super().__init__(f"the table's slot of block {block} is damaged")
        self.block = block


def decode_slot(data: bytes, segment: int, block: int) -> Slot:
    """A block's slot; raises `BadSlot` when it is damaged."""
    if len(data) != slot_bytes or xxh3_64_digest(data[8:], segment << 32 | block) != data[:8]:
        raise BadSlot(block)
    return Slot._make(_SLOT.unpack_from(data, 8))


def check_table(table: bytes, segment: int) -> None:
    """Compare the checksums of all slots of a table; raises `BadSlot`."""
    for block, at in enumerate(range(slot_bytes, len(table), slot_bytes)):
        if xxh3_64_digest(table[at + 8 : at + slot_bytes], segment << 32 | block) != table[at : at + 8]:
            raise BadSlot(block)


def owners(table: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Topic, flags, life and ordinal of each slot of a table that was checked, block 0 first."""
    return _OWNER.iter_unpack(memoryview(table)[slot_bytes:])


def slot_of(table: bytes, block: int) -> Slot:
    """A block's slot in a table that was checked."""
    return Slot._make(_SLOT.unpack_from(table, (block + 1) * slot_bytes + 8))


# --- the segment's header -----------------------------------------------------------------------------------------

_SEGMENT = struct.Struct("<8sIIII96x")
_segment_magic: Final = b"WALRUSEG"


def encode_segment_header(segment: int, block_bytes: int, blocks: int) -> bytes:
    """Slot 0 of a segment file."""
    body = _SEGMENT.pack(_segment_magic, format_version, segment, block_bytes, blocks)
    return xxh3_64_digest(body) + body


def is_segment_header(data: bytes, segment: int, block_bytes: int, blocks: int) -> bool:
    """Whether slot 0 is that of this segment."""
    return data == encode_segment_header(segment, block_bytes, blocks)


def table_bytes(blocks: int, block_bytes: int) -> int:
    """Bytes before the first block."""
    page = min(block_bytes, 4096)
    return -((blocks + 1) * slot_bytes // -page) * page
