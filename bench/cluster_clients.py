"""Three nodes, fdatasync on, 100 B SETs by `Client`s in two other processes, 256 in flight, beside other clusters."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

from bench import measure, octopii_cluster
from bench.measure import Budget, Contestant, Effort, Row
from bench.peers import etcd_cluster

IN_FLIGHT = 256
PROCESSES = 2

_full = 40_000
_full_etcd = 10_000


def rows(effort: Effort) -> Iterator[Row]:
    """One row. PySyncObj's calls come from its leader's own process: it has no clients. It syncs nothing."""
    count = effort.count(_full)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(octopii_cluster.running())
        addresses = ",".join(cluster.addresses)

        def pysyncobj(tick: str) -> Contestant:
            arguments = ("--in-flight", str(IN_FLIGHT), "--tick", tick)
            return lambda: float(octopii_cluster.run_module("bench.peers.pysyncobj_cluster", *arguments)[0]["rate"])

        contestants: dict[str, Contestant] = {
            "octopii, 2 client processes": lambda: _clients_rate("bench.octopii_clients", addresses, count),
            "PySyncObj 0.3.17, no fsync": pysyncobj("0.05"),
            "PySyncObj, tick of 1 ms": pysyncobj("0.001"),
        }
        if etcd_cluster.available():
            etcd, etcd_count = stack.enter_context(etcd_cluster.running()), effort.count(_full_etcd)
            contestants[etcd_cluster.NAME] = lambda: _clients_rate("bench.peers.etcd_cluster", etcd, etcd_count)
        figures = measure.take_turns(contestants, rounds=effort.rounds)
    yield Row(
        title=f"Clients in other processes, {IN_FLIGHT} in flight",
        unit="calls/s",
        figures=figures,
        promises=(
            Budget(ours="octopii, 2 client processes", reference=etcd_cluster.NAME, factor=10),
            Budget(ours="octopii, 2 client processes", reference="PySyncObj 0.3.17, no fsync", factor=3),
        ),
        note="PySyncObj syncs nothing; its calls come from the leader's own process. etcd, where Debian's etcd-server "
        f"is installed: 2 client processes, gRPC to its leader over {etcd_cluster.CONNECTIONS} connections each.",
    )


def _clients_rate(module: str, addresses: str, count: int) -> float:
    """Calls per second of so many client processes together."""
    arguments = [addresses, str(IN_FLIGHT // PROCESSES), str(max(count // PROCESSES, IN_FLIGHT))]
    clients = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=measure.WORK.parent.parent,
        )
        for _ in range(PROCESSES)
    ]
    try:
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n", "a client could not call"
        for client in clients:
            print("go", file=client.stdin, flush=True)
        return sum(float(json.loads(client.communicate(timeout=120)[0])["rate"]) for client in clients)
    finally:
        for client in clients:
            client.kill()
            client.communicate()
