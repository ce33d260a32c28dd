"""A process with a `Client`: `python -m bench.octopii_clients ADDRESSES IN_FLIGHT COUNT`; answers in JSON.

It connects and calls once, prints `ready`, waits for a line on standard input, and then measures.
"""

import asyncio
import json
import sys

import uvloop

from bench.octopii_node import many_sets
from octopii import Client


async def run(addresses: str, in_flight: int, count: int) -> None:
    async with Client(addresses) as client:
        await client.propose(b"SET warm up")
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        answer = await many_sets(client.propose, in_flight=in_flight, count=count)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
