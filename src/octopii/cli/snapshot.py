"""`octopii snapshot`: take snapshots, and save them as files from which a new cluster can begin."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
import xxhash

from octopii.cli.exits import EXIT_FAILED, EXIT_USAGE, fail, one_line_errors
from octopii.cli.options import CaOption, CertificateOption, ClusterOption, KeyOption, TimeoutOption, Tls
from octopii.client import BlockingClient
from octopii.errors import CorruptLogError, NotApplied
from octopii.replica.backup import encode_head
from octopii.replica.snapshots import decode_manifest

snapshot = typer.Typer(help="Take snapshots and save them.", no_args_is_help=True, rich_markup_mode=None)

snapshot_timeout = 60.0
"""Seconds that a snapshot, or one part of it on its way, may take when the command line says nothing."""

_attempts = 3
_sync_every_bytes = 16 << 20


@snapshot.command("now")
def snapshot_now(
    cluster: ClusterOption,
    timeout: TimeoutOption = snapshot_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Take a snapshot on the node that leads."""
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        client.read_index()  # by now the client talks to the leader
        print(f"snapshot at entry {client.force_snapshot()}")


@snapshot.command("save")
def snapshot_save(
    cluster: ClusterOption,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; see octopii serve --restore.")],
    timeout: TimeoutOption = snapshot_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Take a snapshot and save it as a file.

    Everything that was acknowledged before the command began is in it.
    """
    partial = file.with_name(f"{file.name}.partial")
    if file.exists():
        fail(f"{file} is there already and is not overwritten", EXIT_USAGE)
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        try:
            index, size = _save_somehow(client, partial)
            os.rename(partial, file)
            _sync_folder(file.parent)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            fail(f"{file} cannot be written: {error}", EXIT_FAILED)
        finally:
            partial.unlink(missing_ok=True)
    print(f"{file}: {size:,} bytes, the state as of entry {index}")


def _save_somehow(client: BlockingClient, path: Path) -> tuple[int, int]:
    """Take and fetch a snapshot; anew when leadership moved to a node that does not have that one."""
    for attempt in range(_attempts):
        client.read_index()
        index = client.force_snapshot()
        try:
            return _save(client, index, path)
        except NotApplied:
            if attempt == _attempts - 1:
                raise
    raise AssertionError("unreachable")


def _save(client: BlockingClient, index: int, path: Path) -> tuple[int, int]:
    """Fetch a snapshot into a file and sync it; returns its index and the payload's bytes."""
    first = client.fetch_snapshot(index=index)
    manifest = decode_manifest(first.manifest)
    digest, position, unsynced = xxhash.xxh3_64(), 0, 0
    with path.open("wb") as file:
        file.write(encode_head(first.manifest))
        data = first.data
        while True:
            file.write(data)
            digest.update(data)
            position += len(data)
            unsynced += len(data)
            if unsynced >= _sync_every_bytes:
                _sync(file.flush, file.fileno())
                unsynced = 0
            if position >= first.size or not data:
                break
            data = client.fetch_snapshot(index=first.index, position=position).data
        _sync(file.flush, file.fileno())
    if position != manifest.size or digest.intdigest() != manifest.checksum:
        raise CorruptLogError("what the node sent is not the snapshot that it named: try another one", path=str(path))
    return first.index, path.stat().st_size


def _sync(flush: Callable[[], None], descriptor: int) -> None:
    flush()
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
