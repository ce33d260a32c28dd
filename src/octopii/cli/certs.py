"""`octopii certs`: a certificate authority for the cluster, and certificates for its nodes and clients."""

import datetime
import os
from pathlib import Path
from typing import Annotated

import typer

from octopii.cli.exits import EXIT_USAGE, fail
from octopii.node.security import authority_days, certificate_days
from octopii.wire.handshake import is_client_certificate_name

certs = typer.Typer(
    help="Make the certificates that TLS needs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FolderOption = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the files are.")]


def _write(path: Path, data: bytes, *, secret: bool) -> None:
    """Write a new file; keys are readable by their owner alone from the first moment."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
    except FileExistsError:
        fail(f"{path} is there already and is not overwritten: remove it first if it is to be replaced", EXIT_USAGE)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}", EXIT_USAGE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    print(path)


@certs.command("init")
def init(
    directory: FolderOption = Path("certs"),
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the authority.")] = "octopii-ca",
    days: Annotated[int, typer.Option(metavar="DAYS", min=1, help="How long it is valid.")] = authority_days,
) -> None:
    """Make the cluster's certificate authority.

    ca.pem goes to every node and client, ca.key stays with you.
    """
    from octopii.node.authority import create_authority  # slow to load, and no other command needs it

    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = create_authority(name=name, now=datetime.datetime.now(datetime.UTC), days=days)
    _write(directory / "ca.key", key, secret=True)
    _write(directory / "ca.pem", certificate, secret=False)


@certs.command("issue")
def issue_certificate(
    name: Annotated[str, typer.Argument(metavar="NAME", help='"node-<id>" for a node, "client-<name>" for a client.')],
    directory: FolderOption = Path("certs"),
    days: Annotated[int, typer.Option(metavar="DAYS", min=1, help="How long it is valid.")] = certificate_days,
) -> None:
    """Make a certificate and its key, signed by the authority in DIR."""
    from octopii.node.authority import issue

    if not is_client_certificate_name(name):
        fail(f'a certificate is named "node-<id>" or "client-<name>", not {name!r}', EXIT_USAGE)
    try:
        authority, authority_key = (directory / "ca.pem").read_bytes(), (directory / "ca.key").read_bytes()
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}: make the authority first, with octopii certs init", EXIT_USAGE)
    try:
        certificate, key = issue(
            name,
            authority=authority,
            authority_key=authority_key,
            now=datetime.datetime.now(datetime.UTC),
            days=days,
        )
    except (ValueError, TypeError) as error:
        fail(f"the authority in {directory} cannot be used: {error}", EXIT_USAGE)
    _write(directory / f"{name}.key", key, secret=True)
    _write(directory / f"{name}.pem", certificate, secret=False)
