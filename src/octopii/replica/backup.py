"""Snapshots as files outside of a node: fetched part by part, saved, and the beginning of a new cluster.

A saved snapshot is one file:

    0   8    "octosnap"
    8   u32  version of this format, 1          numbers are little-endian
    12  u32  length of the manifest, m bytes
    16  u64  XXH3-64 of the manifest
    24  m    the manifest, as in a node's topic `snapshots`
    24+m     the payload: what the machine's `snapshot` gave, then the sessions; sizes and checksum are in the manifest

A cluster that is founded from one is a new cluster: it has an id of its own, and the members of the old one are none of
its members until they come with empty folders. It goes on behind the snapshot's index, at the snapshot's time. Sessions
are not taken over: a call that was under way when the old cluster ended has an unknown outcome, and is told so.
"""

import logging
import struct
from typing import TYPE_CHECKING

import msgspec
import xxhash

from octopii.config import Config
from octopii.errors import ConfigError, CorruptLogError, NotApplied
from octopii.raft import ConfState
from octopii.replica.identity import IdentityStore
from octopii.replica.jobs import Manifest, SnapshotFailed, SnapshotView
from octopii.replica.roster import Member, Roster
from octopii.replica.snapshots import Payload, SnapshotStore, decode_manifest, encode_manifest
from octopii.replica.work import Origin
from octopii.state_machine import SnapshotSource
from octopii.walrus import Log, SyncEach
from octopii.walrus.vfs import File, FileSystem
from octopii.wire.frames import MalformedMessage
from octopii.wire.requests import FetchSnapshot, SnapshotPart

if TYPE_CHECKING:
    from octopii.replica.replica import Replica

logger = logging.getLogger("octopii.replica")

MAGIC = b"octosnap"
VERSION = 1
MAX_MANIFEST_BYTES = 1 << 20
"""Longest manifest: the members, and every number that was removed, ten bytes each."""

_HEADER = struct.Struct("<8sIIQ")

max_downloads = 4
"""Snapshots that are being fetched from one node at one time; the one idle for longest makes room."""

idle_seconds = 60.0
"""How long a snapshot stays open for the next request."""

copy_bytes = 1 << 20


# --- fetching ---------------------------------------------------------------------------------------------------


class Download(msgspec.Struct):
    """A snapshot that somebody fetches; open, it stays readable when a newer one takes its place."""

    manifest: Manifest
    payload: Payload
    used: float


class Downloads:
    """The serving side of one replica."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica
        self._open: dict[int, Download] = {}

    def serve(self, origin: Origin, request: FetchSnapshot) -> None:
        """Answer with the part that was asked for; `NotApplied` where there is no such snapshot any more."""
        replica = self._replica
        download = self._find(request.index)
        if download is None:
            which = f"at entry {request.index}" if request.index else "yet"
            error = NotApplied(f"node {replica.config.node_id} has no snapshot {which}")
            replica.outbox.reply(origin, replica.leadership.failure(error, request.request_id))
            return
        download.used = replica.now
        manifest = download.manifest
        position = min(request.position, manifest.size)
        data = download.payload.read(position, min(replica.config.snapshot_chunk_bytes, manifest.size - position))
        replica.outbox.reply(
            origin,
            SnapshotPart(
                request_id=request.request_id,
                index=manifest.index,
                manifest=b"" if request.position else encode_manifest(manifest),
                size=manifest.size,
                position=position,
                data=data,
            ),
        )

    def _find(self, index: int) -> Download | None:
        newest = self._replica.snapshots.newest
        if newest is not None and index in (0, newest.index) and newest.index not in self._open:
            if len(self._open) >= max_downloads:
                self._close(min(self._open, key=lambda one: self._open[one].used))
            payload = self._replica.snapshots.open(newest)
            self._open[newest.index] = Download(newest, payload, self._replica.now)
        return self._open.get(index or (newest.index if newest is not None else 0))

    def _close(self, index: int) -> None:
        self._open.pop(index).payload.close()

    def tick(self, now: float) -> None:
        """Close what nobody fetches any more."""
        for index in [index for index, download in self._open.items() if now - download.used > idle_seconds]:
            self._close(index)

    def close(self) -> None:
        """Close everything."""
        for index in list(self._open):
            self._close(index)


# --- the file ---------------------------------------------------------------------------------------------------


def encode_head(manifest: bytes) -> bytes:
    """What stands before the payload in a saved snapshot; `manifest` as `SnapshotPart` brings it."""
    return _HEADER.pack(MAGIC, VERSION, len(manifest), xxhash.xxh3_64_intdigest(manifest)) + manifest


def read_head(file: File) -> tuple[Manifest, int]:
    """The manifest of a saved snapshot, and where its payload begins; raises `CorruptLogError`."""
    path = file.path
    head = file.read_at(_HEADER.size, 0)
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        raise CorruptLogError(f"{path} is no saved snapshot", path=path, position=0)
    _, version, length, checksum = _HEADER.unpack(head)
    if version != VERSION:
        raise CorruptLogError(f"{path} has version {version} of the format, this program reads {VERSION}", path=path)
    if length > MAX_MANIFEST_BYTES:
        raise CorruptLogError(f"{path} is damaged: a manifest of {length} bytes", path=path, position=12)
    manifest = file.read_at(length, _HEADER.size)
    try:
        if xxhash.xxh3_64_intdigest(manifest) != checksum:
            raise MalformedMessage("its checksum is another")
        return decode_manifest(manifest), _HEADER.size + length
    except MalformedMessage as error:
        raise CorruptLogError(f"{path} is damaged in its manifest: {error}", path=path, position=24) from error


def verify_file(file: File) -> Manifest:
    """Read a saved snapshot whole; raises `CorruptLogError` when it is not what was saved."""
    manifest, start = read_head(file)
    digest, position = xxhash.xxh3_64(), start
    while chunk := file.read_at(copy_bytes, position):
        digest.update(chunk)
        position += len(chunk)
    if position - start != manifest.size or digest.intdigest() != manifest.checksum:
        raise CorruptLogError(
            f"{file.path} is damaged: {position - start} bytes where {manifest.size} were saved, or another checksum",
            path=file.path,
            position=start,
        )
    return manifest


# --- a new cluster from it --------------------------------------------------------------------------------------


def found_from_file(
    config: Config, path: str, *, prefix: str, vfs: FileSystem, storage_id: bytes, cluster_id: bytes
) -> Manifest:
    """Fill a node's empty folder with a saved snapshot, as the founder of a cluster with a new id.

    `config.peers` are the new cluster's other founding members: the founder brings them in once it runs and they come,
    empty. Until a majority of all is there no call is taken. What is written counts from its last sync on: a crash
    before leaves a node that belongs to no cluster.

    Raises `ConfigError` for a folder that is not empty, `CorruptLogError` for a damaged file, `OSError`.
    """
    folder = str(config.wal_path)
    if vfs.exists(folder) and vfs.list_folder(folder):
        raise ConfigError(
            f"the folder {folder} is not empty: a snapshot founds a new cluster in a new folder only; "
            "choose another --wal-dir, or start without --restore",
            field="wal_dir",
        )
    file = vfs.open(path, writable=False)
    try:
        saved = verify_file(file)
        _, start = read_head(file)
        members = {config.node_id: Member(config.advertised_addr, storage_id)}
        members |= {peer: Member(address) for peer, address in config.peers.items()}
        roster = Roster(cluster_id=cluster_id, members=members, founding=set(config.peers))
        manifest = msgspec.structs.replace(saved, conf_state=ConfState(voters=[config.node_id]), roster=roster)
        with Log(folder, vfs=vfs, fsync_schedule=SyncEach()) as log:
            identity = IdentityStore(log, prefix=prefix, node_id=config.node_id, new_storage_id=storage_id)
            snapshots = SnapshotStore(log, prefix=prefix, vfs=vfs, folder=folder)
            end = start + saved.state_size
            chunks = (file.read_at(min(copy_bytes, end - at), at) for at in range(start, end, copy_bytes))
            written = snapshots.write(SnapshotView(manifest, SnapshotSource(lambda: chunks), sessions=[]))
            if isinstance(written, SnapshotFailed):
                raise OSError(written.reason)
            snapshots.record(written.manifest)
            _sync(log)
            identity.adopt(cluster_id)
            _sync(log)
    finally:
        file.close()
    logger.info(
        "node %d founds cluster %s from %s, behind entry %d",
        config.node_id,
        cluster_id.hex(),
        path,
        saved.index,
    )
    return written.manifest


def _sync(log: Log) -> None:
    ticket = log.begin_sync()
    if ticket is not None:
        ticket.run()
        log.finish_sync(ticket)
