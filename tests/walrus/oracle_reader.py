"""Adds to `closed_log_reader.py` what the format page says of logs that run or crashed, and of cursors."""

import struct
from collections.abc import Mapping

from xxhash import xxh3_64_digest

from tests.walrus.closed_log_reader import (
    Block,
    ClosedLog,
    Fragment,
    begin_flag,
    chain_of,
    commit,
    entries_of,
    fragment_at,
    jump_flag,
    replace_flag,
    trim,
    unit_flag,
)

none = 2**32 - 1


def _counting(chain: list[Block]) -> list[Fragment] | None:
    """The fragments up to the last whole unit; None if that lies before the newest jump."""
    kept: list[Fragment] = []
    unit: list[Fragment] = []
    jumps = {block.first_seq for block in chain if block.flags & jump_flag}
    for fragment in (fragment for block in chain for fragment in block.fragments):
        if fragment.seq in jumps and fragment.start == 0:  # of a unit that it takes back in part, the rest counts
            kept, unit = kept + unit, []
        starts = fragment.flags & (unit_flag | begin_flag) != unit_flag
        if starts == bool(unit) and (kept or unit):
            break
        unit.append(fragment)
        if fragment.kind == commit and unit[0].flags & begin_flag:
            numbers = sum(len(entries_of(part)) for part in unit), sum(len(part.data) for part in unit[:-1])
            checksum = xxh3_64_digest(b"".join(part.checksum for part in unit[:-1]))
            if fragment.data != struct.pack("<QQ", *numbers) + checksum:
                break
        if fragment.kind == commit or not fragment.flags & unit_flag:
            kept, unit = kept + unit, []
    return kept if not jumps or (kept and kept[-1].seq >= max(jumps)) else None


def _watermark(blocks: Mapping[int, Block]) -> int:
    """The highest seq of a topic that is known to be on disk: fragments say so wherever they stand."""
    highest = max((block.mark_seq for block in blocks.values()), default=0)
    for block in blocks.values():
        for start in range(0, len(block.data), 8):
            if fragment := fragment_at(start, block.data, block.seed):
                highest = max(highest, fragment.synced)
    return highest


class Oracle(ClosedLog):
    """What a log holds, with its cursors, and which bytes of it count, as (file, start, stop)."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.extents: list[tuple[str, int, int]] = []
        self.places: list[tuple[str, int]] = []  # of all blocks: file, start
        self.kept: dict[int, list[Fragment]] = {}
        super().__init__(files)
        numbers = [int.from_bytes(record[1:5], "little") + (record[0] == 1) for record in self.catalog]
        for number, blocks in self.blocks.items():
            assert number < max(numbers, default=1) or not _watermark(blocks), f"catalog, without topic {number}"
        self.cursors = {name: self._find_cursors(number, *self.topics[name]) for number, name in self.names.items()}

    def read_segment(self, name: str, files: Mapping[str, bytes], segment: int, blocks: int, checksum: bytes) -> None:
        super().read_segment(name, files, segment, blocks, checksum)
        size = len(files[name])
        self.places += [(name, start) for start in range(size - blocks * self.block_bytes, size, self.block_bytes)]
        self.extents.append((name, 0, 128 * (blocks + 1)))

    def find_end(self, number: int) -> tuple[int, int, list[Fragment]]:
        blocks = self.blocks[number]
        watermark = _watermark(blocks)
        for newest in sorted(blocks, reverse=True):
            chain = chain_of(blocks, newest)
            if (kept := _counting(chain)) is None:
                continue
            seq = kept[-1].seq if kept else chain[0].first_seq - 1
            chain = [block for block in chain if block.previous_seq <= watermark or block.first_seq <= seq] or chain[:1]
            trims = [(block.trim_offset, block.trim_ordinal) for block in chain]
            trims += [struct.unpack("<QI", part.data) for part in kept if part.kind == trim]
            start, ordinal = map(max, zip(*trims, strict=True))
            if chain[0].previous == none or chain[0].previous < ordinal:
                break
        else:
            assert not watermark, "blocks that were on disk"
            return 0, 0, []
        tip = chain[-1]
        at = (kept[-1].end + 7) // 8 * 8 if kept and seq >= tip.first_seq else 0
        assert seq >= watermark, "entries that were on disk"
        assert not self.clean or (max(blocks), at) == (tip.ordinal, tip.mark_at), "the end of a topic"
        for block in (block for block in chain if block.ordinal >= ordinal):
            self.extents += [(block.file, block.start + part.start, block.start + part.end) for part in block.fragments]
        self.kept[number] = kept
        return start, chain[0].first_offset, kept

    def _find_cursors(self, number: int, start: int, entries: list[bytes]) -> dict[str, int]:
        kept = self.kept.get(number, [])
        cursors: dict[str, int] = {}
        for record in (record for record in self.catalog if record[0] == 3):
            topic, offset, seq = struct.unpack_from("<IQQ", record, 1)
            name = record[21:].decode()
            if topic == number and (name not in cursors or seq <= (kept[-1].seq if kept else 0)):
                cuts = [part.offset for part in kept if part.flags & replace_flag and part.seq > seq]
                cursors[name] = max(start, min(offset, start + len(entries), *cuts))
        return cursors
