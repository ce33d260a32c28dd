"""The superblock: geometry, the set of segments, and whether the log was closed in order.

The file `superblock` holds two copies, one at the start of each half of the file. The first is written and synced
before the second, so the first that is sound counts. A file that has become too small is replaced by a larger one
(written aside, synced, renamed). A copy:

    offset size  field
         0    8  checksum of all that follows in the copy (XXH3-64, canonical order)
         8    8  magic "WALRUSLG"
        16    4  format version
        20    4  length of the copy in bytes
        24    4  bytes of a block
        28    4  most blocks of a segment
        32    4  opens: how often the log was opened; the upper half of the lives it gives out
        36    4  clean: 1 after an orderly close
        40    4  next segment id
        44    4  count of segments
        48  16 x count: segment id (4), its blocks (4), checksum of its table when clean, else 0 (8)
"""

import struct
from typing import Final

import msgspec
from xxhash import xxh3_64_digest

from octopii.errors import CorruptLogError, UnknownFormatError
from octopii.walrus.record import format_version
from octopii.walrus.vfs import FileSystem

file_name: Final = "superblock"
_new_name: Final = "superblock.new"
_magic: Final = b"WALRUSLG"
_HEAD = struct.Struct("<8sIIIIIIII")
_SEGMENT = struct.Struct("<II8s")
_most_bytes = 1 << 26
_least_half_bytes = 4096
no_digest: Final = bytes(8)


class SegmentFacts(msgspec.Struct, frozen=True):
    """One segment as the superblock knows it."""

    number: int
    blocks: int
    table_digest: bytes = no_digest


class Superblock(msgspec.Struct):
    """The decoded superblock."""

    block_bytes: int
    segment_blocks: int
    opens: int = 0
    clean: bool = False
    next_segment: int = 1
    segments: tuple[SegmentFacts, ...] = ()


def encode(block: Superblock) -> bytes:
    """One copy."""
    length = 8 + _HEAD.size + _SEGMENT.size * len(block.segments)
    head = _HEAD.pack(
        _magic,
        format_version,
        length,
        block.block_bytes,
        block.segment_blocks,
        block.opens,
        int(block.clean),
        block.next_segment,
        len(block.segments),
    )
    body = head + b"".join(_SEGMENT.pack(each.number, each.blocks, each.table_digest) for each in block.segments)
    return xxh3_64_digest(body) + body


def _decode(data: bytes, path: str) -> Superblock | None:
    if len(data) < 8 + _HEAD.size:
        return None
    magic, version, length, block_bytes, segment_blocks, opens, clean, following, count = _HEAD.unpack_from(data, 8)
    if not 8 + _HEAD.size <= length <= len(data) or xxh3_64_digest(data[8:length]) != data[:8]:
        return None
    if magic != _magic:
        raise UnknownFormatError(f"{path} is not a log's superblock", path=path, version=None)
    if version != format_version:
        raise UnknownFormatError(
            f"{path} has format version {version}; this release reads {format_version}", path=path, version=version
        )
    segments = _SEGMENT.iter_unpack(data[8 + _HEAD.size : 8 + _HEAD.size + count * _SEGMENT.size])
    return Superblock(
        block_bytes, segment_blocks, opens, bool(clean), following, tuple(SegmentFacts(*each) for each in segments)
    )


def read(vfs: FileSystem, folder: str) -> tuple[Superblock, bool]:
    """The superblock, and whether both copies are sound.

    Raises `UnknownFormatError` for another magic or version, `CorruptLogError` when no copy is sound.
    """
    path = f"{folder}/{file_name}"
    file = vfs.open(path, writable=False)
    try:
        data = file.read_at(min(file.size(), _most_bytes), 0)
    finally:
        file.close()
    half = len(data) // 2
    first, second = _decode(data[:half], path), _decode(data[half:], path)
    block = first or second
    if block is None:
        if len(data) >= 24 and data[8:16] != _magic and data[half + 8 : half + 16] != _magic:
            raise UnknownFormatError(f"{path} is not a log's superblock", path=path, version=None)
        raise CorruptLogError(f"{path}: both copies of the superblock are damaged", path=path, position=0)
    return block, first is not None and second is not None


def has_its_size(vfs: FileSystem, folder: str) -> bool:
    """Whether the file is as long as it was made: a crash may tear a copy, but never shortens the file."""
    file = vfs.open(f"{folder}/{file_name}", writable=False)
    try:
        size = file.size()
    finally:
        file.close()
    return size >= 2 * _least_half_bytes and size & (size - 1) == 0


def write(vfs: FileSystem, folder: str, block: Superblock) -> None:
    """Write the first copy, sync, write the second, sync: one of the two is whole at every moment.

    In place, so that it works on a full disk; only a superblock that outgrew its file is written aside and renamed.
    """
    path = f"{folder}/{file_name}"
    copy = encode(block)
    if vfs.exists(path):
        file = vfs.open(path)
        try:
            half = file.size() // 2
            if half >= max(len(copy), _least_half_bytes):
                file.write_at(copy, 0)
                file.datasync()
                file.write_at(copy, half)
                file.datasync()
                return
        finally:
            file.close()
    half = _least_half_bytes
    while half < len(copy):
        half *= 2
    _write_aside(vfs, folder, copy.ljust(half, b"\0"))


def _write_aside(vfs: FileSystem, folder: str, half: bytes) -> None:
    file = vfs.open(f"{folder}/{_new_name}", create=True)
    try:
        file.truncate(0)
        file.allocate(2 * len(half))
        file.write_at(half + half, 0)
        file.datasync()
    finally:
        file.close()
    vfs.rename(f"{folder}/{_new_name}", f"{folder}/{file_name}")
    vfs.sync_folder(folder)
