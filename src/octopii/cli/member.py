"""`octopii member`: list and change the members of the cluster."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from octopii.cli.exits import EXIT_NOT_APPLIED, fail, one_line_errors
from octopii.cli.options import (
    CaOption,
    CertificateOption,
    ClusterOption,
    JsonOption,
    KeyOption,
    TimeoutOption,
    Tls,
    default_timeout,
)

member = typer.Typer(help="List and change the members of the cluster.", no_args_is_help=True, rich_markup_mode=None)


@member.command("list")
def member_list(
    cluster: ClusterOption,
    as_json: JsonOption = False,
    timeout: TimeoutOption = default_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """List the members with their addresses and roles."""
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        client.read_index()  # so that the list is no older than this moment
        members = client.status()["members"]
    listed = [{"id": int(node_id), **members[node_id]} for node_id in sorted(members, key=int)]
    if as_json:
        print(json.dumps(listed))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "address", "role"):
        table.add_column(heading)
    for one in listed:
        table.add_row(str(one["id"]), one["address"], one["role"])
    Console(highlight=False, markup=False).print(table)


@member.command("add")
def member_add(
    cluster: ClusterOption,
    node_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="Id of the new node, never used before.")],
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where it listens.")],
    timeout: TimeoutOption = default_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Add a node as a learner, which does not vote yet."""
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        client.add_learner(node_id, address)
        print(f"node {node_id} is a learner; promote it once it has caught up")


@member.command("promote")
def member_promote(
    cluster: ClusterOption,
    node_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="The learner.")],
    timeout: TimeoutOption = default_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Let a learner vote, once it has caught up."""
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        progress = client.peer_progress(node_id)
        if not progress["caught_up"]:
            fail(f"node {node_id} lags {progress['lag']} entries: try again when it has caught up", EXIT_NOT_APPLIED)
        client.promote_learner(node_id)
        print(f"node {node_id} votes")


@member.command("remove")
def member_remove(
    cluster: ClusterOption,
    node_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="The member that goes.")],
    timeout: TimeoutOption = default_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Remove a member; its id is never used again."""
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        client.remove_node(node_id)
        print(f"node {node_id} is removed")
