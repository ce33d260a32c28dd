"""Reads a log from its files as `docs/on-disk-format.md` describes them. It shares no code with the package."""

import struct
from collections import namedtuple
from collections.abc import Mapping

from xxhash import xxh3_64_digest, xxh3_64_intdigest

Contents = tuple[int, list[bytes], dict[str, int]]  # first offset, entries, cursors
Block = namedtuple(
    "Block",
    "topic flags life ordinal previous first_offset first_seq previous_seq trim_offset trim_ordinal mark_at mark_seq "
    "mark_offset file start fragments synced",
)
Fragment = namedtuple("Fragment", "kind flags seq offset synced data checksum start end jumps")
one, many, first, middle, last, commit, cut, trim = range(8)
unit_flag, begin_flag, replace_flag, jump_flag, none = 0x10, 0x20, 0x40, 2, 2**32 - 1


def _demand(condition: object, what: object) -> None:
    if not condition:
        raise ValueError(f"damaged: {what}")


def _fragments(data: bytes, seed: int, seq: int, jumps: bool) -> tuple[list[Fragment], int]:
    """A block's fragments up to the first gap, and the highest `synced` of all valid ones, wherever they stand."""
    valid: dict[int, Fragment] = {}
    following, at = list[Fragment](), 0
    for start in range(0, len(data) - 39, 8):
        checksum, tag, size, *fields = struct.unpack("<8sI3sBQQQ", data[start : start + 40])
        end = start + 40 + int.from_bytes(size, "little")
        if tag == seed >> 32 and end <= len(data) and checksum == xxh3_64_digest(data[start + 8 : end], seed):
            fields[:1] = fields[0] & 15, fields[0] & 0xF0
            rest = data[start + 40 : end], checksum, start, end, jumps and not start
            valid[start] = Fragment._make((*fields, *rest))
    while at in valid and valid[at].seq == seq + len(following):
        following.append(valid[at])
        at = (valid[at].end + 7) // 8 * 8
    return following, max((fragment.synced for fragment in valid.values()), default=0)


def _entries(fragment: Fragment) -> tuple[bytes, ...]:
    """The entries that end in a fragment; of one that spans blocks, the last piece."""
    if fragment.kind != many:
        return (fragment.data,) if fragment.kind in (one, last) else ()
    lengths = struct.unpack_from(f"<{int.from_bytes(fragment.data[:4], 'little')}I", fragment.data, 4)
    return struct.unpack("".join(f"{length}s" for length in lengths), fragment.data[4 + 4 * len(lengths) :])


def _chain(blocks: Mapping[int, Block], newest: int) -> list[Block]:
    """The newest block and those before it, oldest first, as far back as each goes on where the one before ends."""
    chain = [blocks[newest]]
    while block := blocks.get(chain[0].previous):
        seq = chain[0].previous_seq
        live = [fragment for fragment in block.fragments if fragment.seq <= seq]
        if seq + 1 != block.first_seq + len(live) or not (chain[0].flags & jump_flag or chain[0].first_seq == seq + 1):
            break
        chain.insert(0, block._replace(fragments=live))
    return chain


def _counting(chain: list[Block]) -> list[Fragment] | None:
    """The fragments up to the last whole unit; None if that lies before the newest jump."""
    kept: list[Fragment] = []
    unit: list[Fragment] = []
    for fragment in (fragment for block in chain for fragment in block.fragments):
        if fragment.jumps:  # of a unit that it takes back in part, the rest counts
            kept, unit = kept + unit, []
        starts = fragment.flags & (unit_flag | begin_flag) != unit_flag
        if starts == bool(unit) and (kept or unit):
            break
        unit.append(fragment)
        if fragment.kind == commit and unit[0].flags & begin_flag:
            numbers = sum(len(_entries(part)) for part in unit), sum(len(part.data) for part in unit[:-1])
            checksum = xxh3_64_digest(b"".join(part.checksum for part in unit[:-1]))
            if fragment.data != struct.pack("<QQ", *numbers) + checksum:
                break
        if fragment.kind == commit or not fragment.flags & unit_flag:
            kept, unit = kept + unit, []
    jump = max((block.first_seq for block in chain if block.flags & jump_flag), default=0)
    return kept if not jump or (kept and kept[-1].seq >= jump) else None


class Oracle:
    """What a log holds: its topics; where its blocks are; which bytes count, as (file, start, stop)."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.blocks: list[tuple[str, int]] = []
        self.extents: list[tuple[str, int, int]] = []
        self.topics: dict[str, Contents] = {}
        found: dict[int, dict[int, Block]] = {}
        data = files["superblock"]
        copies = [data[at:][: int.from_bytes(data[at + 20 :][:4], "little")] for at in (0, len(data) // 2)]
        copy = next((copy for copy in copies if len(copy) >= 48 and copy[:8] == xxh3_64_digest(copy[8:])), b"")
        _demand(copy[8:20] == b"WALRUSLG\1\0\0\0", "superblock")
        block_bytes, _, _, self.clean, _, count = struct.unpack_from("<6I", copy, 24)
        for segment, blocks, checksum in struct.iter_unpack("<II8s", copy[48 : 48 + 16 * count]):
            name, unit = f"segment-{segment:08}.wal", min(block_bytes, 4096)
            data, table = files.get(name, b""), 128 * (blocks + 1)
            places = range(-(-table // unit) * unit, len(data) - block_bytes + 1, block_bytes)
            header = struct.pack("<8s4I96x", b"WALRUSEG", 1, segment, block_bytes, blocks)
            _demand(data[:128] == xxh3_64_digest(header) + header and len(places) >= blocks, name)
            _demand(not self.clean or xxh3_64_digest(data[:table]) == checksum, name)
            self.extents.append((name, 0, table))
            for block, start in enumerate(places[:blocks]):
                slot = data[128 * (block + 1) :][:128]
                _demand(slot[:8] == xxh3_64_digest(slot[8:], segment << 32 | block), (name, block))
                self.blocks.append((name, start))
                fields = topic, flags, life, ordinal, *_ = struct.unpack_from("<IIQIIQQQQIIQQ", slot, 8)
                if flags & 1:
                    seed = xxh3_64_intdigest(struct.pack("<IIIQ", topic, segment, block, life))
                    _demand(ordinal not in found.setdefault(topic, {}), f"two blocks at {ordinal} of {topic}")
                    rest = _fragments(data[start:][:block_bytes], seed, fields[6], bool(flags & jump_flag))
                    found[topic][ordinal] = Block._make((*fields, name, start, *rest))
        self._find_topics(found)

    def _find_topics(self, found: dict[int, dict[int, Block]]) -> None:
        names: dict[int, str] = {}
        cursors: dict[int, list[tuple[str, int, int]]] = {}
        records = self._read(found.pop(0, {}))[1]
        for record in records:
            kind, number = struct.unpack_from("<BI", record)
            if kind == 1:
                names[number], cursors[number] = record[5:].decode(), []
            elif kind == 2:
                del names[number]
            elif kind == 3 and number in names:
                cursors[number].append((record[21:].decode(), *struct.unpack_from("<QQ", record, 5)))
        following = max((int.from_bytes(record[1:5], "little") + (record[0] == 1) for record in records), default=1)
        for number, blocks in found.items():
            _demand(number < following or not _watermark(blocks), f"catalog, without topic {number}")
        for number, name in names.items():
            start, entries, kept = self._read(found.get(number, {}))
            seq, places = kept[-1].seq if kept else 0, {}
            for cursor, offset, at in cursors[number]:
                if at <= seq or cursor not in places:
                    cuts = [part.offset for part in kept if part.flags & replace_flag and part.seq > at]
                    places[cursor] = max(start, min(offset, start + len(entries), *cuts))
            self.topics[name] = (start, entries, places)

    def _read(self, blocks: Mapping[int, Block]) -> tuple[int, list[bytes], list[Fragment]]:
        """A topic's first offset, its entries, and the fragments that count."""
        watermark = _watermark(blocks)
        for newest in sorted(blocks, reverse=True):
            chain = _chain(blocks, newest)
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
            _demand(not watermark, "blocks that were on disk")
            return 0, [], []
        stop, entries, piece = chain[0].first_offset, dict[int, bytes](), b""
        for part in kept:
            if part.flags & replace_flag:
                entries = {offset: entry for offset, entry in entries.items() if offset < part.offset}
            if part.kind in (first, middle, last):
                piece = part.data if part.kind == first else piece + part.data
            own = (piece,) if part.kind == last else _entries(part)
            entries.update(enumerate(own, part.offset))
            stop = part.offset + len(own)
        tip = chain[-1]
        at = (kept[-1].end + 7) // 8 * 8 if kept and seq >= tip.first_seq else 0
        _demand(seq >= watermark, "entries that were on disk")
        _demand(not self.clean or (max(blocks), at) == (tip.ordinal, tip.mark_at), "the end of a topic")
        for block in (block for block in chain if block.ordinal >= ordinal):
            self.extents += [(block.file, block.start + part.start, block.start + part.end) for part in block.fragments]
        return start, [entries[offset] for offset in range(start, stop)], kept


def _watermark(blocks: Mapping[int, Block]) -> int:
    """The highest seq of a topic that is known to be on disk."""
    return max((max(block.mark_seq, block.synced) for block in blocks.values()), default=0)
