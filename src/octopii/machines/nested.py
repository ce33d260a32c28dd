"""One snapshot made of several machines' snapshots, each readable in place.

    part ... | directory | directory bytes u32 | magic "OMSN" | format u16

A part is a machine's own snapshot, byte for byte, so that its `restore` gets a contiguous view and copies nothing. The
directory stands at the end because lengths are known only then: a MessagePack array of [name, version, length] in the
order of the parts, which follow each other without gaps from byte 0. Integers are little-endian.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
import xxhash

from octopii.state_machine import SnapshotSource, StateMachine, restore_snapshot

MAGIC = b"OMSN"
FORMAT = 1

_TAIL = struct.Struct("<I4sH")
_encoder = msgspec.msgpack.Encoder()


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Directory entry: a machine's name, its `snapshot_version`, and the bytes of its snapshot."""

    name: str
    version: int
    length: int


_directory_decoder = msgspec.msgpack.Decoder(list[Part])

NestedSnapshot = Iterator[memoryview | bytes] | Callable[[], Iterator[memoryview | bytes]]


def nested_snapshot(machines: Mapping[str, StateMachine]) -> NestedSnapshot:
    """Take the snapshots of all machines at once; a frozen view when every one of them is."""
    sources = {name: SnapshotSource(machine.snapshot()) for name, machine in machines.items()}
    parts = [(name, machines[name].snapshot_version, source) for name, source in sources.items()]
    if all(source.frozen for source in sources.values()):
        return lambda: write_nested(parts)
    return write_nested(parts)


def write_nested(parts: Iterable[tuple[str, int, Iterable[memoryview | bytes]]]) -> Iterator[memoryview | bytes]:
    """Yield one snapshot made of parts: name, version, and the bytes in pieces."""
    directory = []
    for name, version, pieces in parts:
        length = 0
        for piece in pieces:
            length += len(piece)
            yield piece
        directory.append(Part(name, version, length))
    encoded = _encoder.encode(directory)
    yield encoded + _TAIL.pack(len(encoded), MAGIC, FORMAT)


def read_nested(data: memoryview) -> dict[str, tuple[int, memoryview]]:
    """Return name -> (version, view) of every part; raises `ValueError` when the snapshot is not sound."""
    if len(data) < _TAIL.size:
        raise ValueError("the snapshot is cut: it ends before its directory")
    directory_bytes, magic, version = _TAIL.unpack_from(data, len(data) - _TAIL.size)
    if magic != MAGIC or version != FORMAT:
        raise ValueError("not a snapshot of several machines, or one that is cut")
    end = len(data) - _TAIL.size - directory_bytes
    try:
        directory = _directory_decoder.decode(data[end : len(data) - _TAIL.size]) if end >= 0 else []
    except msgspec.DecodeError as error:
        raise ValueError(f"the snapshot's directory is damaged: {error}") from error
    parts: dict[str, tuple[int, memoryview]] = {}
    offset = 0
    for part in directory:
        if part.length < 0 or part.name in parts:
            raise ValueError(f"the snapshot's directory is damaged at {part.name!a}")
        parts[part.name] = (part.version, data[offset : offset + part.length])
        offset += part.length
    if offset != end:
        raise ValueError(f"the snapshot's parts have {offset} bytes, its directory says they end at {end}")
    return parts


def restore_into(machines: Mapping[str, StateMachine], parts: Mapping[str, tuple[int, memoryview]]) -> None:
    """Restore new, not yet used machines from their parts; one without a part stays new. Raises as they do."""
    for name, (version, view) in parts.items():
        if name not in machines:
            raise ValueError(f"the snapshot holds {name!a}, which is not here")
        restore_snapshot(machines[name], version=version, data=view)


def digest_of(machines: Iterable[StateMachine]) -> bytes | None:
    """One digest of several machines, in their order; None when none of them has one."""
    digests = [machine.digest() for machine in machines]
    if all(digest is None for digest in digests):
        return None
    return xxhash.xxh3_128_digest(_encoder.encode([None if digest is None else bytes(digest) for digest in digests]))
