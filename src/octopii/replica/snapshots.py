"""Snapshots on disk: payload files, and the manifests that make them count.

A payload is one contiguous file in the node's folder: the bytes that the machine's `snapshot` gave, and behind them the
sessions, whose kept answers may be many times what a record of the log can hold. It is
written under a temporary name, synced every few MiB (so that one sync never has a gigabyte to wait for), synced at its
end, renamed, and the folder is synced. Only then does its manifest become a record of the topic `snapshots`; the
snapshot counts from the moment that record is synced. A crash at any step before leaves a file without a manifest,
which the next open deletes. The newest manifest counts, the one before it is kept until the newest is durable.

A manifest holds the rest of the replicated state: membership, roster, clock.
"""

import re
from collections.abc import Iterator

import msgspec
import xxhash

from octopii.errors import CorruptLogError
from octopii.raft import Snapshot, SnapshotMetadata, SnapshotTemporarilyUnavailable
from octopii.replica.jobs import Manifest, SnapshotFailed, SnapshotView, SnapshotWritten
from octopii.replica.records import last_record
from octopii.replica.sessions import encode_session
from octopii.walrus import Log
from octopii.walrus.vfs import File, FileSystem
from octopii.wire.codec import Buffer, decoded
from octopii.wire.frames import MalformedMessage

default_sync_bytes = 4 << 20
"""Bytes of a snapshot that are written between two syncs; nodes have `Config.snapshot_sync_bytes`."""

MAX_PAYLOAD_BYTES = (1 << 63) - 1
"""Most bytes of a payload: positions in it are signed 64-bit integers on the wire."""

copy_bytes = 1 << 20
"""Bytes read at a time when a payload is verified."""

_payload_prefix = "snapshot-"
_incoming_prefix = "incoming-"
_payload_name = re.compile(r"(snapshot-[0-9]{20}-[0-9]{10,})-[0-9a-f]{16}")

_encode_manifest = msgspec.msgpack.Encoder().encode
_manifest_decoder = msgspec.msgpack.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as bytes, for the topic and for the wire."""
    return _encode_manifest(manifest)


def decode_manifest(data: bytes) -> Manifest:
    """Inverse of `encode_manifest`; raises `MalformedMessage` for anything else."""
    manifest = decoded(_manifest_decoder, data, "manifest")
    if manifest.index < 1 or manifest.term < 1 or manifest.sessions < 0 or manifest.checksum < 0:
        raise MalformedMessage(f"manifest: index {manifest.index}, term {manifest.term}, {manifest.sessions} sessions")
    if not 0 <= manifest.state_size <= manifest.size <= MAX_PAYLOAD_BYTES:
        raise MalformedMessage(f"manifest: {manifest.state_size} bytes of state in {manifest.size}")
    return manifest


def _chunks_of(view: SnapshotView) -> Iterator[tuple[bool, Buffer]]:
    """The payload: the machine's chunks, then those of the sessions (True)."""
    for chunk in view.source:
        yield False, chunk
    for session in view.sessions:
        yield True, encode_session(session)


class SnapshotStore:
    """The snapshots of one node. `write` may run on any thread; all else belongs to the replica's."""

    def __init__(
        self, log: Log, *, prefix: str, vfs: FileSystem, folder: str, sync_bytes: int = default_sync_bytes
    ) -> None:
        self._walrus = log
        self._sync_bytes = sync_bytes
        self._topic = f"{prefix}/snapshots"
        self._vfs = vfs
        self._folder = folder
        self.newest: Manifest | None = None
        self._load()
        self._delete_strangers()

    def _load(self) -> None:
        self.newest = last_record(self._walrus, self._topic, decode_manifest)

    def _delete_strangers(self) -> None:
        """At open: drop files without a manifest, what a crash left of a snapshot being taken or received."""
        known = self.newest.file_name if self.newest else ""
        names = self._vfs.list_folder(self._folder)
        self._remove([name for name in names if name.startswith((_payload_prefix, _incoming_prefix)) and name != known])

    def _remove(self, names: list[str]) -> None:
        for name in names:
            self._vfs.remove(self._path(name))
        if names:
            self._vfs.sync_folder(self._folder)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def raft_snapshot(self) -> Snapshot:
        """Metadata of the newest snapshot, for the Raft core."""
        if self.newest is None:
            raise SnapshotTemporarilyUnavailable("no snapshot was taken yet")
        manifest = self.newest
        return Snapshot(
            metadata=SnapshotMetadata(index=manifest.index, term=manifest.term, conf_state=manifest.conf_state)
        )

    # --- taking one ---------------------------------------------------------------------------------------------

    def write(self, view: SnapshotView) -> SnapshotWritten | SnapshotFailed:
        """Write the payload of a captured state and make it durable under its name; its manifest is not yet."""
        temporary = self._path(f"{view.manifest.place}.writing")
        digest, size, unsynced, state_size = xxhash.xxh3_64(), 0, 0, 0
        try:
            file = self._vfs.open(temporary, create=True)
            try:
                file.truncate(0)
                for of_sessions, chunk in _chunks_of(view):
                    file.write_at(chunk, size)
                    digest.update(chunk)
                    size += len(chunk)
                    state_size += 0 if of_sessions else len(chunk)
                    unsynced += len(chunk)
                    if unsynced >= self._sync_bytes:
                        file.datasync()
                        unsynced = 0
                file.datasync()
            finally:
                file.close()
            manifest = msgspec.structs.replace(
                view.manifest,
                sessions=len(view.sessions),
                state_size=state_size,
                size=size,
                checksum=digest.intdigest(),
            )
            self._vfs.rename(temporary, self._path(manifest.file_name))
            self._vfs.sync_folder(self._folder)
        except Exception as error:  # noqa: BLE001  (the user's generator or the disk: the log is kept, it is tried again)
            return SnapshotFailed(f"writing {temporary} failed: {type(error).__name__}: {error}")
        return SnapshotWritten(manifest)

    def record(self, manifest: Manifest) -> int:
        """Write the manifest's record and return its offset: once the log was synced it counts; then call `prune`."""
        offset = self._walrus.append_for_topic(self._topic, encode_manifest(manifest), urgent=True)
        self.newest = manifest
        return offset

    def prune(self, manifest: Manifest, offset: int, in_use: frozenset[str]) -> None:
        """Drop what a snapshot, now durable, has replaced, but for the files that are being sent."""
        self._walrus.trim(self._topic, offset)
        found = map(_payload_name.fullmatch, self._vfs.list_folder(self._folder))
        names = [match[0] for match in found if match is not None and match[1] <= manifest.place]
        self._remove([name for name in names if name != manifest.file_name and name not in in_use])

    def discard(self, manifest: Manifest) -> None:
        """Drop a payload that was written and will not be recorded; a newer snapshot may have done so already."""
        name = manifest.file_name
        if (self.newest is None or self.newest.file_name != name) and self._vfs.exists(self._path(name)):
            self._remove([name])

    def forget(self) -> None:
        """Begin anew: what was written never counted."""
        self.newest = None

    # --- reading one --------------------------------------------------------------------------------------------

    def verify(self, manifest: Manifest) -> None:
        """Read the whole payload; raises `CorruptLogError` when it is not what the manifest says."""
        path = self._path(manifest.file_name)
        digest, position = xxhash.xxh3_64(), 0
        if not self._vfs.exists(path):
            raise CorruptLogError(f"the snapshot file {path} is missing", path=path)
        file = self._vfs.open(path, writable=False)
        try:
            while chunk := file.read_at(copy_bytes, position):
                digest.update(chunk)
                position += len(chunk)
        finally:
            file.close()
        if position != manifest.size or digest.intdigest() != manifest.checksum:
            raise CorruptLogError(
                f"the snapshot file {path} is damaged: {position} bytes where {manifest.size} were written, "
                "or another checksum; remove this node's folder and let it join again",
                path=path,
                position=min(position, manifest.size),
            )

    def open(self, manifest: Manifest) -> "Payload":
        """Open a payload for `restore` or for sending."""
        return Payload(self._vfs, self._path(manifest.file_name), manifest.size)

    # --- receiving one ------------------------------------------------------------------------------------------

    def receive(self, manifest: Manifest) -> "Incoming":
        """Begin a payload that arrives from another node."""
        name = manifest.file_name
        paths = self._path(_incoming_prefix + name), self._path(name)
        return Incoming(self._vfs, self._folder, paths, manifest, sync_bytes=self._sync_bytes)


class Payload:
    """An open payload: read in chunks, or whole as a read-only mapping."""

    def __init__(self, vfs: FileSystem, path: str, size: int) -> None:
        self._file: File = vfs.open(path, writable=False)
        self.size = size

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`."""
        return self._file.read_at(size, position)

    def view(self) -> memoryview:
        """The whole payload, read-only; valid until `close`."""
        return memoryview(self._file.map(self.size)).toreadonly() if self.size else memoryview(b"")

    def close(self) -> None:
        """Give the file back; views must be released first."""
        self._file.close()


class Incoming:
    """A payload on its way in: chunks come in order, and `finish` makes it durable under its final name."""

    def __init__(
        self, vfs: FileSystem, folder: str, paths: tuple[str, str], manifest: Manifest, *, sync_bytes: int
    ) -> None:
        self._vfs = vfs
        self._folder = folder
        self._path, self._final_path = paths
        self._sync_bytes = sync_bytes
        self.manifest = manifest
        self.position = 0
        self._unsynced = 0
        self._digest = xxhash.xxh3_64()
        self._file = vfs.open(self._path, create=True)
        self._file.truncate(0)

    @property
    def complete(self) -> bool:
        """Whether every byte has come."""
        return self.position >= self.manifest.size

    def add(self, position: int, data: bytes | memoryview) -> bool:
        """Take a chunk; False when it is not the next one (a repeated one, or one after a gap)."""
        if position != self.position or self.position + len(data) > self.manifest.size:
            return False
        self._file.write_at(data, position)
        self._digest.update(data)
        self.position += len(data)
        self._unsynced += len(data)
        if self._unsynced >= self._sync_bytes:
            self._file.datasync()
            self._unsynced = 0
        return True

    def finish(self) -> bool:
        """Make the payload durable under its name; False, and all is dropped, when its checksum is wrong."""
        if self._digest.intdigest() != self.manifest.checksum:
            self.abandon()
            return False
        self._file.datasync()
        self._file.close()
        self._vfs.rename(self._path, self._final_path)
        self._vfs.sync_folder(self._folder)
        return True

    def abandon(self) -> None:
        """Drop what has come."""
        self._file.close()
        if self._vfs.exists(self._path):
            self._vfs.remove(self._path)
