"""A reader of the log's files, written from docs/on-disk-format.md alone: it shares no code with the package.

It reads a log that was closed in order, or one at rest whose owner runs, and checks every checksum that it meets.
"""

from collections.abc import Iterator, Mapping
from struct import pack, unpack_from
from typing import NamedTuple

from xxhash import xxh3_64_digest, xxh3_64_intdigest


class Slot(NamedTuple):
    """What a table says of a block, and where that is."""

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
    segment: int
    block: int
    start: int


Fragment = tuple[int, int, bytes, bytes]  # kind, offset, payload, checksum
Contents = tuple[int, list[bytes], dict[str, int]]  # first offset, entries, cursors


def check(found: object, expected: object, what: str) -> None:
    """What is not as the page says is an error."""
    if found != expected:
        raise ValueError(f"{what}: {found!r} instead of {expected!r}")


class Oracle:
    """Reads files, by name: what is in the `topics`, which bytes mean something (`extents`), where all `blocks` are."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files, self.topics = files, dict[str, Contents]()
        self.extents, self.blocks = list[tuple[str, int, int]](), list[tuple[str, int]]()
        self.slots = dict[int, dict[int, Slot]]()  # by topic and ordinal
        data = files["superblock"]
        for start in (len(data) // 2, 0):  # the first copy counts, both are checked
            length = unpack_from("<I", data, start + 20)[0]
            check(xxh3_64_digest(data[start + 8 : start + length]), data[start : start + 8], "superblock")
            self.extents.append(("superblock", start, start + length))
        magic, version, _, self.block_bytes, _, _, self.clean, _, count = unpack_from("<8s8I", data, 8)
        check((magic, version), (b"WALRUSLG", 1), "superblock")
        for at in range(48, 48 + 16 * count, 16):
            self._read_table(*unpack_from("<II8s", data, at))
        names, cursors = dict[int, str](), dict[int, dict[str, int]]()
        for record in self._read_topic(0)[1]:
            kind, number = unpack_from("<BI", record)
            if kind == 1:
                names[number], cursors[number] = record[5:].decode(), {}
            elif kind == 2:
                del names[number], cursors[number]
            elif kind == 3 and number in names:
                cursors[number][record[21:].decode()] = unpack_from("<Q", record, 5)[0]
        for number, name in names.items():
            first, items = self._read_topic(number)
            places = {cursor: max(first, min(at, first + len(items))) for cursor, at in cursors[number].items()}
            self.topics[name] = first, items, places

    def _read_table(self, number: int, blocks: int, digest: bytes) -> None:
        name, size, page = f"segment-{number:08}.wal", 128 * (blocks + 1), min(self.block_bytes, 4096)
        table = self.files[name][:size]
        check(xxh3_64_digest(table) if self.clean else bytes(8), digest, f"table of {name}")
        check(xxh3_64_digest(table[8:128]), table[:8], f"header of {name}")
        check(unpack_from("<8s4I", table, 8), (b"WALRUSEG", 1, number, self.block_bytes, blocks), f"header of {name}")
        self.extents.append((name, 0, size))
        for block in range(blocks):
            data, start = table[128 * (block + 1) :][:128], -(-size // page) * page + block * self.block_bytes
            check(xxh3_64_digest(data[8:], number << 32 | block), data[:8], f"slot {block} of {name}")
            slot = Slot._make((*unpack_from("<IIQIIQQQQII", data, 8), number, block, start))
            self.blocks.append((name, start))
            if slot.flags & 1:
                self.slots.setdefault(slot.topic, {})[slot.ordinal] = slot

    def _read_topic(self, number: int) -> tuple[int, list[bytes]]:
        slots = self.slots.get(number, {})
        if not slots:
            return 0, []
        chain = [slots[max(slots)]]
        trim, trim_ordinal = chain[0].trim_offset, chain[0].trim_ordinal
        for kind, _, payload, _ in self._fragments(chain[0], None):
            if kind & 15 == 7:
                trim, trim_ordinal = unpack_from("<QI", payload)
        while trim_ordinal <= chain[0].previous < 2**32 - 1:
            chain.insert(0, slots[chain[0].previous])
        entries, pieces, end = dict[int, bytes](), list[bytes](), chain[0].first_offset
        unit: list[tuple[int, int, bytes]] | None = None  # of each fragment: entries, payload bytes, checksum
        for slot, following in zip(chain, [*chain[1:], None], strict=True):
            unit = None if slot.flags & 2 else unit
            for kind, offset, payload, checksum in self._fragments(slot, following):
                if kind & 0x40:
                    entries, pieces = {each: data for each, data in entries.items() if each < offset}, []
                ended = list(_entries(kind & 15, payload, pieces))
                entries.update(enumerate(ended, offset))
                end = offset + len(ended) + (kind & 15 == 4 and not ended)
                unit = [] if kind & 0x20 else unit
                if kind & 15 == 5 and unit is not None:
                    counts, sizes, checksums = zip(*unit, strict=True)
                    expected = pack("<QQ8s", sum(counts), sum(sizes), xxh3_64_digest(b"".join(checksums)))
                    check(payload, expected, f"commit of topic {number} at offset {offset}")
                elif kind & 0x10 and unit is not None:
                    unit.append((len(ended), len(payload), checksum))
        first = min(trim, end)
        return first, [entries[offset] for offset in range(first, end)]

    def _fragments(self, slot: Slot, following: Slot | None) -> Iterator[Fragment]:
        name = f"segment-{slot.segment:08}.wal"
        data = self.files[name][slot.start : slot.start + self.block_bytes]
        seed = xxh3_64_intdigest(pack("<IIIQ", slot.topic, slot.segment, slot.block, slot.life))
        at, seq, stop = 0, slot.first_seq, slot.mark_at if self.clean and following is None else len(data)
        while at + 40 <= stop and not (following and seq > following.previous_seq):
            checksum, tag, kind_length, found, offset = unpack_from("<8sIIQQ", data, at)
            end = at + 40 + (kind_length & 0xFFFFFF)
            facts = tag, found, xxh3_64_digest(data[at + 8 : end], seed)
            if facts != (seed >> 32, seq, checksum) and not self.clean and following is None:
                return
            check(facts, (seed >> 32, seq, checksum), f"fragment at {slot.start + at} of {name}")
            self.extents.append((name, slot.start + at, slot.start + end))
            yield kind_length >> 24, offset, data[at + 40 : end], checksum
            at, seq = end + 7 & -8, seq + 1


def _entries(kind: int, payload: bytes, pieces: list[bytes]) -> Iterator[bytes]:
    """The entries that end in a fragment; `pieces` are those of an entry that has not ended yet."""
    if kind == 0:
        yield payload
    elif kind == 1:
        count = unpack_from("<I", payload)[0]
        at = 4 + 4 * count
        for size in unpack_from(f"<{count}I", payload, 4):
            yield payload[at : at + size]
            at += size
    elif kind == 2:
        pieces[:] = [payload]
    elif kind in (3, 4) and pieces:
        pieces.append(payload)
        if kind == 4:
            yield b"".join(pieces)
            pieces.clear()
