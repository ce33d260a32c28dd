"""Three nodes, fdatasync on, 100 B SETs by `Client`s in two other processes, 256 in flight, beside other clusters."""

import json
import subprocess
import sys
from collections.abc import Iterator

from bench import measure, octopii_cluster
from bench.measure import Budget, Contestant, Effort, Row

IN_FLIGHT = 256
PROCESSES = 2

_full = 40_000


def rows(effort: Effort) -> Iterator[Row]:
    """One row. PySyncObj's calls come from its leader's own process: it has no clients. It syncs nothing."""
    count = effort.count(_full)
    with octopii_cluster.running() as cluster:
        addresses = ",".join(cluster.addresses)

        def pysyncobj(tick: str) -> Contestant:
            arguments = ("--in-flight", str(IN_FLIGHT), "--tick", tick)
            return lambda: float(octopii_cluster.run_module("bench.peers.pysyncobj_cluster", *arguments)[0]["rate"])

        figures = measure.take_turns(
            {
                "octopii, 2 client processes": lambda: _clients_rate(addresses, count),
                "PySyncObj 0.3.17, no fsync": pysyncobj("0.05"),
                "PySyncObj, tick of 1 ms": pysyncobj("0.001"),
            },
            rounds=effort.rounds,
        )
    yield Row(
        title=f"Clients in other processes, {IN_FLIGHT} in flight",
        unit="calls/s",
        figures=figures,
        promises=(Budget(ours="octopii, 2 client processes", reference="PySyncObj 0.3.17, no fsync", factor=3),),
        note="PySyncObj syncs nothing; its calls come from the leader's own process. etcd is not measured here.",
    )


def _clients_rate(addresses: str, count: int) -> float:
    arguments = [addresses, str(IN_FLIGHT // PROCESSES), str(max(count // PROCESSES, IN_FLIGHT))]
    clients = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.octopii_clients", *arguments],
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
