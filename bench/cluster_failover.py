"""The leader is killed with SIGKILL: how long until a write succeeds again, seen by a client."""

import asyncio
import time
from collections.abc import Iterator

import uvloop

from bench import octopii_cluster
from bench.measure import Effort, Limit, Row
from bench.octopii_node import ELECTION_SECONDS
from octopii import Client, OctopiiError

KILLS = 10

_pause_seconds = 0.005
_patience_seconds = 30


def rows(effort: Effort) -> Iterator[Row]:
    """One row: the times of ten kills."""
    kills = KILLS if effort.rounds > 1 else 2
    with octopii_cluster.running() as cluster:
        times = uvloop.run(_measure(cluster, kills))
    yield Row(
        title=f"leader killed, election_timeout {ELECTION_SECONDS} s: until writes succeed again",
        unit="s",
        digits=2,
        figures={"octopii": times},
        promises=(Limit(ours="octopii", value=2 * ELECTION_SECONDS),),
    )


async def _measure(cluster: octopii_cluster.Cluster, kills: int) -> list[float]:
    loop, times = asyncio.get_running_loop(), []
    async with Client(cluster.addresses) as client:
        await client.propose(b"SET warm up")
        for number in range(kills):
            leader = await loop.run_in_executor(None, cluster.leader)
            await client.propose(b"SET before %d" % number)
            leader.kill()
            start = time.perf_counter()
            await _until_a_write_succeeds(client, start)
            times.append(time.perf_counter() - start)
            cluster.restart(leader)
            await asyncio.sleep(2 * ELECTION_SECONDS)  # the restarted node is a follower that may vote again
    return times


async def _until_a_write_succeeds(client: Client, start: float) -> None:
    while time.perf_counter() - start < _patience_seconds:
        try:
            await client.propose(b"SET after kill", timeout=ELECTION_SECONDS)
            return
        except OctopiiError:
            await asyncio.sleep(_pause_seconds)
    raise AssertionError(f"no write succeeded within {_patience_seconds} s")
