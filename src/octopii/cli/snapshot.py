"""`octopii snapshot`: take snapshots."""

import typer

from octopii.cli.exits import one_line_errors
from octopii.cli.options import CaOption, CertificateOption, ClusterOption, KeyOption, TimeoutOption, Tls

snapshot = typer.Typer(help="Take snapshots.", no_args_is_help=True, rich_markup_mode=None)

snapshot_timeout = 60.0
"""Seconds that a snapshot may take when the command line says nothing."""


@snapshot.callback()
def _root() -> None:
    """Hold the subcommands together."""


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
