"""Reads a closed log from its files as `docs/on-disk-format.md` describes them. It shares no code with the package."""

import struct
from collections import defaultdict, namedtuple
from collections.abc import Mapping

from xxhash import xxh3_64_digest, xxh3_64_intdigest

Block = namedtuple(
    "Block",
    "topic flags life ordinal previous first_offset first_seq previous_seq trim_offset trim_ordinal mark_at mark_seq "
    "mark_offset file start data seed fragments",
)
Fragment = namedtuple("Fragment", "start end kind flags seq offset synced data checksum")
one, many, first, middle, last, commit, cut, trim = range(8)
unit_flag, begin_flag, replace_flag, jump_flag = 0x10, 0x20, 0x40, 2


def fragment_at(start: int, data: bytes, seed: int) -> Fragment | None:
    if start + 40 <= len(data):
        checksum, tag, size, kind, *fields = struct.unpack_from("<8sI3sBQQQ", data, start)
        end = start + 40 + int.from_bytes(size, "little")
        if tag == seed >> 32 and end <= len(data) and checksum == xxh3_64_digest(data[start + 8 : end], seed):
            return Fragment._make((start, end, kind & 15, kind & 0xF0, *fields, data[start + 40 : end], checksum))
    return None


def entries_of(fragment: Fragment) -> tuple[bytes, ...]:
    """The entries that end in a fragment; of one that spans blocks, the last piece."""
    if fragment.kind != many:
        return (fragment.data,) if fragment.kind in (one, last) else ()
    lengths = struct.unpack_from(f"<{int.from_bytes(fragment.data[:4], 'little')}I", fragment.data, 4)
    return struct.unpack("".join(f"{length}s" for length in lengths), fragment.data[4 + 4 * len(lengths) :])


def chain_of(blocks: Mapping[int, Block], newest: int) -> list[Block]:
    """The newest block and those before it, oldest first, as far back as each goes on where the one before ends."""
    chain = [blocks[newest]]
    while block := blocks.get(chain[0].previous):
        seq = chain[0].previous_seq
        live = [fragment for fragment in block.fragments if fragment.seq <= seq]
        if seq + 1 != block.first_seq + len(live) or not (chain[0].flags & jump_flag or chain[0].first_seq == seq + 1):
            break
        chain.insert(0, block._replace(fragments=live))
    return chain


class ClosedLog:
    """What a log holds: of each topic the first offset and the entries. Damage ends in an AssertionError."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.blocks: dict[int, dict[int, Block]] = defaultdict(dict)
        data = files["superblock"]
        copies = [data[at:][: int.from_bytes(data[at + 20 :][:4], "little")] for at in (0, len(data) // 2)]
        copy = next((copy for copy in copies if len(copy) >= 48 and copy[:8] == xxh3_64_digest(copy[8:])), b"")
        assert copy[8:20] == b"WALRUSLG\1\0\0\0", "superblock"
        self.block_bytes, _, _, self.clean, _, count = struct.unpack_from("<6I", copy, 24)
        for number, blocks, checksum in struct.iter_unpack("<II8s", copy[48 : 48 + 16 * count]):
            self.read_segment(f"segment-{number:08}.wal", files, number, blocks, checksum)
        self.catalog = self.read_topic(0)[1]
        created = {record[1:5]: record[5:].decode() for record in self.catalog if record[0] == 1}
        deleted = {record[1:5] for record in self.catalog if record[0] == 2}
        self.names = {int.from_bytes(key, "little"): created[key] for key in created.keys() - deleted}
        self.topics = {name: self.read_topic(number) for number, name in self.names.items()}

    def read_segment(self, name: str, files: Mapping[str, bytes], segment: int, blocks: int, checksum: bytes) -> None:
        data, table, unit = files[name], 128 * (blocks + 1), min(self.block_bytes, 4096)
        header = struct.pack("<8s4I96x", b"WALRUSEG", 1, segment, self.block_bytes, blocks)
        assert data[:128] == xxh3_64_digest(header) + header, name
        assert not self.clean or xxh3_64_digest(data[:table]) == checksum, name
        for block in range(blocks):
            slot, start = data[128 * (block + 1) :][:128], -(-table // unit) * unit + block * self.block_bytes
            content = data[start:][: self.block_bytes]
            assert slot[:8] == xxh3_64_digest(slot[8:], segment << 32 | block), (name, block)
            assert len(content) == self.block_bytes, (name, block)
            fields = topic, flags, life, ordinal, *_ = struct.unpack_from("<IIQIIQQQQIIQQ", slot, 8)
            if flags & 1:
                assert ordinal not in self.blocks[topic], (name, block)
                seed = xxh3_64_intdigest(struct.pack("<IIIQ", topic, segment, block, life))
                fragments, at = list[Fragment](), 0
                while (part := fragment_at(at, content, seed)) and part.seq == fields[6] + len(fragments):
                    fragments.append(part)
                    at = (part.end + 7) // 8 * 8
                self.blocks[topic][ordinal] = Block._make((*fields, name, start, content, seed, fragments))

    def find_end(self, number: int) -> tuple[int, int, list[Fragment]]:
        """A topic's trim offset, the first offset in its chain, and the fragments that count."""
        chain = chain_of(self.blocks[number], max(self.blocks[number]))
        tip = chain[-1]
        end = (tip.fragments[-1].seq, (tip.fragments[-1].end + 7) // 8 * 8) if tip.fragments else (tip.mark_seq, 0)
        assert end == (tip.mark_seq, tip.mark_at), "the end of a topic"
        assert chain[0].previous == 2**32 - 1 or chain[0].previous < tip.trim_ordinal, "blocks of a topic"
        return tip.trim_offset, chain[0].first_offset, [part for block in chain for part in block.fragments]

    def read_topic(self, number: int) -> tuple[int, list[bytes]]:
        if number not in self.blocks:
            return 0, []
        start, stop, kept = self.find_end(number)
        entries, piece = dict[int, bytes](), b""
        for part in kept:
            if part.flags & replace_flag:
                entries = {offset: entry for offset, entry in entries.items() if offset < part.offset}
            piece = piece + part.data if part.kind in (middle, last) else part.data
            own = (piece,) if part.kind == last else entries_of(part)
            entries.update(enumerate(own, part.offset))
            stop = part.offset + len(own)
        return start, [entries[offset] for offset in range(start, stop)]
