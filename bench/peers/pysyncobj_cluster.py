"""PySyncObj as a cluster: three processes, a replicated dictionary in memory, calls in flight from its leader.

    python -m bench.peers.pysyncobj_cluster [--in-flight 1,256] [--tick 0.05]      starts its three nodes itself

Its tick (seconds, 0.05 unless told otherwise) is what a call waits for. With 0.001 it is far quicker, and its
followers warn that they truncate entries which they had applied. It has no durable mode on the way to an answer, so
none is measured. Prints a JSON object for each number of calls in flight, as `bench.bare_cluster` does.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated

from bench import measure
from bench.bare_cluster import free_ports

CALLS_IN_ALL = 40_000  # a slower peer gets fewer calls, not more time
CALLS_EACH = 300

_start_seconds = 30


class Table(SyncObj):  # type: ignore[misc]  # the package has no types
    """The state machine: keys and values."""

    def __init__(self, own: str, others: Sequence[str], tick: float) -> None:
        settings = SyncObjConf(autoTickPeriod=tick, appendEntriesPeriod=min(0.1, tick))
        super().__init__(own, list(others), settings)
        self._values: dict[bytes, bytes] = {}

    @replicated  # type: ignore[untyped-decorator]
    def set(self, key: bytes, value: bytes) -> bytes:
        self._values[key] = value
        return b"OK"


def measure_calls(table: Table, clients: int) -> dict[str, float]:
    """So many calls in flight until all are answered; each answer starts that client's next call."""
    total = min(CALLS_IN_ALL, CALLS_EACH * clients)
    latencies: list[float] = []
    errors: list[object] = []
    left, done, lock = total, threading.Event(), threading.Lock()

    def call() -> None:
        started = time.perf_counter()

        def answered(_result: Any, error: object) -> None:
            nonlocal left
            with lock:
                if error:
                    errors.append(error)
                latencies.append(time.perf_counter() - started)
                left -= 1
                again = left >= clients
                if left == 0:
                    done.set()
            if again:
                call()

        table.set(b"key%d" % (left % 1000), b"v" * 92, callback=answered)

    start = time.perf_counter()
    for _ in range(clients):
        call()
    assert done.wait(120), "calls were left without an answer"
    took = time.perf_counter() - start
    assert not errors, f"calls failed: {errors[:3]}"
    latencies.sort()
    p50, p99 = (latencies[int(len(latencies) * quantile)] for quantile in (0.5, 0.99))
    return {"in_flight": clients, "rate": len(latencies) / took, "p50": p50, "p99": p99}


def run_node(addresses: Sequence[str], tick: float) -> None:
    """Wait for a leader and say who it is; then measure each number of calls in flight that standard input gives."""
    table = Table(addresses[0], addresses[1:], tick)
    deadline = time.monotonic() + _start_seconds
    while not (table.isReady() and table._getLeader() is not None):
        assert time.monotonic() < deadline, "no leader"
        time.sleep(0.01)
    print("leader" if str(table._getLeader()) == addresses[0] else "follower", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure_calls(table, int(line))), flush=True)
    table.destroy()


def main() -> None:
    """Start three nodes and measure on the one that leads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--in-flight", default="1,256", help="numbers of concurrent calls")
    parser.add_argument("--tick", type=float, default=0.05, help="seconds between two looks at what is to do")
    parser.add_argument("--node", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        run_node(options.node, options.tick)
        return
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    orders = [[addresses[(first + step) % 3] for step in range(3)] for first in range(3)]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.peers.pysyncobj_cluster", "--tick", str(options.tick), "--node", *order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=measure.WORK.parent.parent,
        )
        for order in orders
    ]
    try:
        roles = [node.stdout.readline().strip() for node in nodes if node.stdout is not None]
        leader = nodes[roles.index("leader")]
        assert leader.stdin is not None
        assert leader.stdout is not None
        for clients in options.in_flight.split(","):
            print(clients, file=leader.stdin, flush=True)
            print(leader.stdout.readline().strip(), flush=True)
    finally:
        for node in nodes:
            node.kill()
            node.communicate()


if __name__ == "__main__":
    main()
