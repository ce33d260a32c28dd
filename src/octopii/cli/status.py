"""`octopii status`: how every node of a cluster is, one column of facts each, asked of the nodes themselves."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table

from octopii.cli.exits import EXIT_NOT_APPLIED, EXIT_REFUSED, fail, one_line_errors
from octopii.cli.options import CaOption, CertificateOption, ClusterOption, JsonOption, KeyOption, TimeoutOption, Tls
from octopii.client import BlockingClient
from octopii.config import parse_address
from octopii.errors import ConfigError, NoLeader, OctopiiError, RefusedError, WrongCluster
from octopii.wire.call import CallLimits
from octopii.wire.links import LinkLimits

status_timeout = 3.0
"""Seconds that a node may take to say how it is."""

max_asked_at_once = 16

_wide = 400  # characters


def status(
    cluster: ClusterOption,
    as_json: JsonOption = False,
    timeout: TimeoutOption = status_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Show how every node of the cluster is."""
    with one_line_errors():
        nodes = all_statuses(cluster.split(","), Tls(tls_ca, tls_cert, tls_key), timeout=timeout)
    answering = [node for node in nodes if "error" not in node]
    if not answering:
        text = "; ".join(f"{node['address']}: {node['error']}" for node in nodes)
        code = EXIT_REFUSED if all(node.get("refused") for node in nodes) else EXIT_NOT_APPLIED
        fail(f"no node answered: {text}", code)
    if as_json:
        print(json.dumps({"leader": leader_of(answering), "nodes": nodes}))
    else:
        _print_table(nodes)


def leader_of(nodes: list[dict[str, Any]]) -> int:
    """Who leads, by the word of the node with the newest term; 0 when nobody does."""
    known = [(node["term"], node["leader"]) for node in nodes if "error" not in node and node["leader"]]
    return int(max(known)[1]) if known else 0


def all_statuses(addresses: list[str], tls: Tls, *, timeout: float) -> list[dict[str, Any]]:
    """Ask the given nodes, then those that they name; one that does not answer has an `error` and its address."""
    for address in addresses:
        try:
            parse_address(address)
        except ValueError as error:
            raise ConfigError(f"--cluster: {error}", field="cluster") from None
    asked: dict[str, dict[str, Any]] = {}
    wanted = list(dict.fromkeys(addresses))
    with ThreadPoolExecutor(max_asked_at_once) as pool:
        while wanted:
            found = pool.map(lambda address: _status_of(address, tls, timeout), wanted)
            asked.update(zip(wanted, found, strict=True))
            met = {node["id"] for node in asked.values() if "id" in node}
            named = {
                member["address"]
                for node in asked.values()
                for node_id, member in node.get("members", {}).items()
                if int(node_id) not in met
            }
            wanted = sorted(named - asked.keys())
    clusters = {node["cluster_id"]: address for address, node in asked.items() if node.get("cluster_id")}
    if len(clusters) > 1:
        raise WrongCluster("; ".join(f"{address} belongs to cluster {found}" for found, address in clusters.items()))
    return _completed(asked)


def _status_of(address: str, tls: Tls, timeout: float) -> dict[str, Any]:
    """What one node says of itself, wherever the leader is."""
    limits = CallLimits(links=LinkLimits(follow_leader=False, patient=False))
    try:
        with BlockingClient(
            [address],
            tls_ca_file=tls.ca,
            tls_certificate_file=tls.certificate,
            tls_key_file=tls.key,
            timeout=timeout,
            limits=limits,
        ) as client:
            return {"address": address, **client.status()}
    except ConfigError:
        raise
    except RefusedError as error:
        return {"address": address, "error": str(error), "refused": True}
    except OctopiiError as error:
        why = error.unreachable.get(address) if isinstance(error, NoLeader) else None
        return {"address": address, "error": why or str(error)}


def _completed(asked: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per node, in order of ids, each with its lag behind the furthest commit that anybody knows."""
    by_id: dict[object, dict[str, Any]] = {}
    for address, node in asked.items():
        by_id.setdefault(node.get("id", address), node)
    ids = {member["address"]: int(i) for n in by_id.values() for i, member in n.get("members", {}).items()}
    commit = max((node["commit"] for node in by_id.values() if "commit" in node), default=0)
    for node in by_id.values():
        if "error" in node:
            if node["address"] in ids:
                node["id"] = ids[node["address"]]
        else:
            node["lag"] = max(0, commit - node["applied"])
    return sorted(by_id.values(), key=lambda node: (node.get("id", 1 << 63), node["address"]))


def size_for_people(count: int) -> str:
    """A number of bytes in the unit that fits it."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"


def _print_table(nodes: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("node", "address", "role", "term", "leader", "commit", "applied", "lag", "snapshot", "disk free"):
        table.add_column(heading, justify="left" if heading in ("address", "role") else "right", no_wrap=True)
    for node in nodes:
        if "error" in node:
            table.add_row(str(node.get("id", "?")), node["address"], "no answer")
            continue
        table.add_row(
            str(node["id"]),
            node["address"],
            f"{node['role']}, stopped" if node["failure"] is not None else node["role"],
            str(node["term"]),
            str(node["leader"] or "-"),
            f"{node['commit']:,}",
            f"{node['applied']:,}",
            f"{node['lag']:,}",
            f"{node['snapshot']['index']:,}",
            size_for_people(node["disk"]["free"]),
        )
    # Into a pipe or a file each row is one line, however long.
    console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else _wide)
    standstill = next((node["standstill"] for node in nodes if node.get("standstill")), None)
    if standstill is not None:
        console.print(standstill)
    console.print(table)
    for node in nodes:
        if "error" in node:
            console.print(f"node {node.get('id', '?')} at {node['address']}: {node['error']}")
            continue
        if node["fsync_schedule"] != "sync-each":
            console.print(
                f"node {node['id']} runs with fsync_schedule {node['fsync_schedule']}: an unclean stop may lose "
                "entries that it has acknowledged"
            )
        for warning in node["warnings"].values():
            console.print(f"warning, node {node['id']}: {warning}")
