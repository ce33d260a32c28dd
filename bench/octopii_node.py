"""One node in a process of its own, and what it is told to measure: `python -m bench.octopii_node ID FOLDER ADDRESSES`.

`ADDRESSES` are those of nodes 1, 2, ... with commas between. Each line on standard input is a JSON object: `do` names
one of the functions below, the rest are its arguments; the answer is a line on standard output.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from octopii import Config, NoFsync, OctopiiNode, SyncEach
from octopii.machines import KvStateMachine

ELECTION_SECONDS = 0.5

Answer = dict[str, Any]


def latencies_as_answer(latencies: list[float], took: float, in_flight: int) -> Answer:
    """Calls per second over all, and the middle and the late ones in seconds."""
    latencies.sort()
    p50, p99 = (latencies[int(len(latencies) * quantile)] for quantile in (0.5, 0.99))
    return {"in_flight": in_flight, "rate": len(latencies) / took, "p50": p50, "p99": p99}


async def many_sets(call: Callable[[bytes], Awaitable[bytes]], *, in_flight: int, count: int) -> Answer:
    """`count` calls by `in_flight` clients, each of which waits for its answer before it goes on."""
    latencies: list[float] = []

    async def client(calls: int) -> None:
        for number in range(calls):
            start = time.perf_counter()
            await call(b"SET key%d %s" % (number % 1000, b"v" * 92))
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(client(count // in_flight) for _ in range(in_flight)))
    return latencies_as_answer(latencies, time.perf_counter() - start, in_flight)


def resident_bytes() -> int:
    """Memory of this process that is its own: not the log's pages, which the system may take back."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024


class Measured:
    """The functions that a line on standard input may name."""

    def __init__(self, node: OctopiiNode) -> None:
        self._node = node

    async def leads(self) -> Answer:
        return {"leads": self._node.is_leader}

    async def propose(self, in_flight: int, count: int) -> Answer:
        return await many_sets(self._node.propose, in_flight=in_flight, count=count)

    async def query(self, in_flight: int, count: int) -> Answer:
        """The rate alone, by the loop of the bare hand-over's clients."""

        async def client(calls: int) -> None:
            for number in range(calls):
                await self._node.query(b"GET key%d" % (number % 1000))

        start = time.perf_counter()
        await asyncio.gather(*(client(count // in_flight) for _ in range(in_flight)))
        return {"rate": count // in_flight * in_flight / (time.perf_counter() - start)}

    async def fill(self, count: int, keys: int, batch: int) -> Answer:
        """`count` SETs over `keys` keys in batches, several of them under way; then the memory."""
        waiting = asyncio.Semaphore(8)

        async def one(first: int) -> None:
            async with waiting:
                numbers = range(first, min(first + batch, count))
                await self._node.propose_batch([b"SET key%d value%d" % (number % keys, number) for number in numbers])

        for first in range(0, count, 64 * batch):
            await asyncio.gather(*(one(start) for start in range(first, min(first + 64 * batch, count), batch)))
        return {"memory": resident_bytes(), "snapshot": self._node.status["snapshot"]}


async def serve(node_id: int, folder: str, addresses: list[str], options: Answer) -> None:
    """Run the node and answer until standard input ends."""
    config = Config(
        node_id=node_id,
        bind_addr=addresses[node_id - 1],
        peers={number: address for number, address in enumerate(addresses, 1) if number != node_id},
        wal_dir=f"{folder}/node-{node_id}",
        is_initial_leader=node_id == 1,
        election_timeout=ELECTION_SECONDS,
        heartbeat_interval=ELECTION_SECONDS / 10,
        fsync_schedule=SyncEach() if options.get("durable", True) else NoFsync(),
        **options.get("settings", {}),
    )
    loop = asyncio.get_running_loop()
    async with OctopiiNode(config, KvStateMachine()) as node:
        measured = Measured(node)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            arguments = json.loads(line)
            answer = await getattr(measured, arguments.pop("do"))(**arguments)
            print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), json.loads(sys.argv[4])))
