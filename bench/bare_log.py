"""The bare loops that the Walrus budgets refer to: what Python itself can do with a mapped file, XXH3 and fdatasync.

No format, no topics, no recovery, no locks: a ceiling to measure against, and no example to follow. `python -m
bench.bare_log` prints its figures alone.
"""

import contextlib
import mmap
import os
import statistics
import struct

import xxhash

from bench import measure

ENTRY = b"x" * 100
LARGE_ENTRY = b"y" * 65536
BATCH_ENTRIES = 1000
PIECE_BYTES = 65000  # of a batch's bytes under one checksum
READ_PIECE_BYTES = 50_000

_log_bytes = 1 << 26
_fill_bytes = 1 << 16  # one large fill leaves the page cache in a state that makes later syncs several times slower
_header = struct.Struct("<QII")
_length = struct.Struct("<I")
_digest = xxhash.xxh3_64_intdigest


class BareLog:
    """A mapped file, filled once so that no later store has to find room."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        self.descriptor = os.open(f"{folder}/log", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(self.descriptor, 0, _log_bytes)
        self.log = mmap.mmap(self.descriptor, _log_bytes)
        for start in range(0, _log_bytes, _fill_bytes):
            self.log[start : start + _fill_bytes] = bytes(_fill_bytes)
        os.fsync(self.descriptor)

    def close(self) -> None:
        self.log.close()
        os.close(self.descriptor)

    def append(self, count: int) -> None:
        """Checksum, header and copy for each entry of 100 bytes."""
        assert count * 116 <= _log_bytes, "more than the file holds"
        log, pack_into, digest, entry, at = self.log, _header.pack_into, _digest, ENTRY, 0
        for number in range(count):
            pack_into(log, at, digest(entry), 100, number)
            log[at + 16 : at + 116] = entry
            at += 116

    def append_batches(self, batches: int) -> None:
        """Join 1,000 entries of 100 bytes with their lengths, then one checksum and one copy for each piece."""
        log, pack = self.log, _length.pack
        for _ in range(batches):
            body = b"".join([part for entry in [ENTRY] * BATCH_ENTRIES for part in (pack(len(entry)), entry)])
            at = 0
            for start in range(0, len(body), PIECE_BYTES):
                piece = body[start : start + PIECE_BYTES]
                _header.pack_into(log, at, _digest(piece), len(piece), 0)
                log[at + 16 : at + 16 + len(piece)] = piece
                at += 65536

    def append_large(self, count: int) -> None:
        """One checksum and one copy for each entry of 64 KiB, round and round the file."""
        log, entry, at = self.log, LARGE_ENTRY, 0
        for number in range(count):
            _header.pack_into(log, at, _digest(entry), len(entry), number)
            log[at + 16 : at + 16 + len(entry)] = entry
            at = (at + 65552) % (_log_bytes - 131072)

    def append_synced(self, count: int) -> None:
        """As `append`, with an fdatasync after each entry."""
        log, sync, at = self.log, os.fdatasync, 0
        for number in range(count):
            _header.pack_into(log, at, _digest(ENTRY), 100, number)
            log[at + 16 : at + 116] = ENTRY
            at += 116
            sync(self.descriptor)

    def read(self, rounds: int) -> int:
        """Checksum a piece, then unpack each length and copy each entry out of it; returns the entries read."""
        view, unpack_from, digest, entries = memoryview(self.log), _length.unpack_from, _digest, 0
        for _ in range(rounds):
            at = 0
            while at < 2 * READ_PIECE_BYTES:
                digest(view[at : at + READ_PIECE_BYTES])
                end = at + READ_PIECE_BYTES
                while at < end:
                    unpack_from(view, at)
                    bytes(view[at + 4 : at + 104])
                    at += 104
                    entries += 1
        view.release()
        return entries

    def read_large(self, count: int) -> None:
        """Checksum and copy out entries of 64 KiB, round and round the file."""
        view, at = memoryview(self.log), 0
        for _ in range(count):
            _header.unpack_from(view, at)
            piece = view[at + 16 : at + 16 + 65536]
            _digest(piece)
            bytes(piece)
            at = (at + 65552) % (_log_bytes - 131072)
        view.release()


def main() -> None:
    """Print the medians of the loops. The synced one has a file of its own: a sync makes later stores fault."""
    with measure.scratch_folder() as folder, contextlib.ExitStack() as stack:
        bare, synced = (BareLog(f"{folder}/{name}") for name in ("bare", "synced"))
        stack.callback(bare.close)
        stack.callback(synced.close)
        figures = measure.take_turns({
            "append 100 B, k/s": lambda: measure.rate(200, lambda: bare.append(200_000)),
            "batches of 1,000 x 100 B, k/s": lambda: measure.rate(200, lambda: bare.append_batches(200)),
            "append 64 KiB, GB/s": lambda: measure.rate(5000, lambda: bare.append_large(5000)) * 65536 / 1e9,
            "append + fdatasync, k/s": lambda: measure.rate(1, lambda: synced.append_synced(1000)),
            "read 100 B, k/s": lambda: measure.rate(1, lambda: bare.read(200)) * 200 * 962 / 1000,
            "read 64 KiB, GB/s": lambda: measure.rate(5000, lambda: bare.read_large(5000)) * 65536 / 1e9,
        })  # fmt: skip
        for name, values in figures.items():
            print(f"{name:32}{statistics.median(values):10.2f}")


if __name__ == "__main__":
    main()
