"""Real processes over real sockets, killed without warning: what was acknowledged is there, once."""

import asyncio
import collections
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from octopii import CallTimeout, Client, NotApplied, OutcomeUnknown
from tests.node.cluster import eventually, patience
from tests.node.processes import ProcessCluster, retried, running_processes

WRITERS = 64
BEFORE = 300
AFTER = 700
"""Acknowledged calls before the leader is killed, and in all."""


class Writers:
    """Clients that write events with unique names, one call after the other, and note how each call ended."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self.acknowledged: dict[str, int] = {}
        self.unknown: set[str] = set()
        self.refused: set[str] = set()
        self.stop = False
        self._progress = asyncio.Event()

    async def run(self) -> None:
        """Write until told to stop."""
        await asyncio.gather(*(self._write(number) for number in range(WRITERS)))

    async def _write(self, number: int) -> None:
        async with Client(self._addresses) as client:
            count = 0
            while not self.stop:
                name = f"{number}-{count}"
                count += 1
                try:
                    self.acknowledged[name] = int(await client.propose(f"LOG\tw\twrite\t{name}", timeout=5.0))
                except OutcomeUnknown:
                    self.unknown.add(name)
                except NotApplied:
                    self.refused.add(name)
                self._progress.set()

    async def until_acknowledged(self, count: int) -> None:
        """Wait for so many acknowledged calls."""
        async with asyncio.timeout(patience):
            while len(self.acknowledged) < count:
                self._progress.clear()
                await self._progress.wait()


async def events(client: Client) -> list[tuple[int, str]]:
    """All events, as (id, name)."""
    found: list[tuple[int, str]] = []
    while page := json.loads(await client.query(f"QUERY\t{len(found) + 1}\t10000", timeout=patience)):
        found += [(event["id"], event["details"]) for event in page]
    return found


def check(writers: Writers, found: list[tuple[int, str]]) -> None:
    """Acknowledged: there once, under the id that was answered. Unknown: once at most. Refused: not there."""
    times = collections.Counter(name for _, name in found)
    id_of = {name: event_id for event_id, name in found}
    assert {name: times[name] for name in writers.acknowledged if times[name] != 1} == {}
    assert {name: id_of[name] for name in writers.acknowledged} == writers.acknowledged
    assert [name for name in writers.unknown if times[name] > 1] == []
    assert [name for name in writers.refused if name in times] == []
    assert times.keys() <= writers.acknowledged.keys() | writers.unknown


def test_a_killed_leader_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """64 clients write while the leader is killed with SIGKILL: all acknowledged calls are there exactly once.

    Calls of unknown outcome are there at most once, refused ones not at all; and the killed node comes back to the same
    state as the others.
    """

    async def play() -> None:
        async with running_processes(tmp_path, machine="octopii.machines:EventLogStateMachine") as cluster:
            writers = Writers(cluster.all_addresses)
            async with Client(cluster.all_addresses) as client:
                writing = asyncio.create_task(writers.run())
                await writers.until_acknowledged(BEFORE)
                leader = await cluster.leader(client)
                cluster.kill(leader)
                before = len(writers.acknowledged)
                await writers.until_acknowledged(max(AFTER, before + WRITERS))
                await cluster.start(leader)
                writers.stop = True
                await asyncio.wait_for(writing, patience)
                check(writers, await events(client))
                states = await cluster.ask_each(b"QUERY\t1\t10000")
                assert len(states) == 3
                assert len(set(states.values())) == 1

    asyncio.run(play())


async def _write_keys(client: Client, name: str, count: int = 20) -> None:
    for number in range(count):
        await retried(client, f"SET {name}-{number} {number}".encode())


async def _check_keys(cluster: ProcessCluster, name: str, count: int = 20) -> None:
    for number in (0, count - 1):
        answers = await cluster.ask_each(f"GET {name}-{number}".encode())
        assert set(answers.values()) == {b"%d" % number}


def test_one_a_majority_and_all_nodes_come_back_from_a_kill(tmp_path: Path) -> None:
    """Killed and started again, one node, two and all three: every acknowledged write is read on every node."""

    async def play() -> None:
        async with running_processes(tmp_path) as cluster, Client(cluster.all_addresses) as client:
            await _write_keys(client, "first")
            for victims in ((3,), (1, 2), (1, 2, 3)):
                cluster.kill(*victims)
                if len(victims) == 1:
                    await _write_keys(client, "meanwhile", 5)
                await cluster.start(*victims)
                await _write_keys(client, f"after-{len(victims)}", 5)
                await _check_keys(cluster, "first")
                await _check_keys(cluster, f"after-{len(victims)}", 5)
            await _check_keys(cluster, "meanwhile", 5)
            await cluster.end()

    asyncio.run(play())


def test_reads_at_all_three_levels_from_every_process(tmp_path: Path) -> None:
    """A write is seen by linearizable and lease reads on every node at once, by stale ones soon."""

    async def play() -> None:
        async with running_processes(tmp_path) as cluster, Client(cluster.all_addresses) as client:
            for number in range(10):
                await retried(client, b"SET n %d" % number)
                for level in ("linearizable", "lease"):
                    assert set((await cluster.ask_each(b"GET n", level)).values()) == {b"%d" % number}

            async def seen() -> bool:
                return set((await cluster.ask_each(b"GET n", "stale")).values()) == {b"9"}

            await eventually(seen, "every node has applied the last write")
            await cluster.end()

    asyncio.run(play())


def test_without_a_majority_calls_are_refused_and_reads_are_stale_only(tmp_path: Path) -> None:
    """Two of three are gone: a write is certainly not applied, a linearizable read fails, a stale one is answered."""

    async def play() -> None:
        async with running_processes(tmp_path) as cluster, Client(cluster.all_addresses) as client:
            await retried(client, b"SET n 1")

            async def applied() -> bool:
                return set((await cluster.ask_each(b"GET n", "stale")).values()) == {b"1"}

            await eventually(applied, "all nodes have applied it")
            cluster.kill(1, 2)
            async with Client([cluster.addresses[3]]) as lonely:

                async def leaderless() -> bool:
                    return int((await lonely.status(timeout=1.0))["leader"]) == 0

                await eventually(leaderless, "node 3 sees no leader")
                with pytest.raises(NotApplied):
                    await lonely.propose(b"SET n 2", timeout=1.0)
                with pytest.raises((NotApplied, CallTimeout)):
                    await lonely.query(b"GET n", timeout=1.0)
                assert await lonely.query(b"GET n", consistency="stale") == b"1"

    asyncio.run(play())


def test_an_orderly_end_hands_leadership_over(tmp_path: Path) -> None:
    """SIGTERM to the leader: another node leads in the next term, without an election timeout, and no call fails."""

    async def play() -> None:
        settings: dict[str, Any] = {"election_timeout": 5.0, "heartbeat_interval": 0.25}
        async with running_processes(tmp_path, **settings) as cluster, Client(cluster.all_addresses) as client:
            await retried(client, b"SET n 0")
            leader = await cluster.leader(client)
            loop = asyncio.get_running_loop()
            ending = asyncio.create_task(cluster.end(leader))
            began = loop.time()
            count = 0
            while not ending.done() or count < 20:
                await client.propose(b"SET n %d" % count, timeout=patience)
                count += 1
            await ending
            assert loop.time() - began < 5.0
            assert await cluster.leader(client) != leader

    asyncio.run(play())


@pytest.mark.parametrize("state", ["in use", "cannot listen"])
def test_what_another_process_has_is_not_taken(state: str) -> None:
    """A folder or a port that another node has: the second process ends, says why, and the first goes on."""

    async def play(folder: Path) -> None:
        async with running_processes(folder, 1) as cluster, Client(cluster.all_addresses) as client:
            await retried(client, b"SET n 1")
            first = cluster.processes.pop(1)
            try:
                if state == "in use":
                    cluster.addresses[1] = "127.0.0.1:0"
                else:
                    cluster.folder = folder / "other"
                    cluster.folder.mkdir()
                with pytest.raises(AssertionError, match=state):
                    await cluster.start(1)
                assert cluster.processes[1].wait(patience) != 0
            finally:
                cluster.kill()
                cluster.processes[1] = first
            assert await client.query(b"GET n", timeout=patience) == b"1"

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(play(Path(name)))
