"""Three nodes over real sockets: the main job, step by step."""

import asyncio
from pathlib import Path

import pytest

from octopii import CommandError
from tests.node.cluster import Cluster, patience, running, until


async def _writes_and_reads(folder: Path) -> None:
    async with running(folder) as cluster:
        leader = await cluster.leader()
        assert await leader.propose(b"SET fruit apple") == b"OK"
        for node in cluster.nodes.values():
            for consistency in ("linearizable", "lease"):
                assert await node.query(b"GET fruit", consistency=consistency) == b"apple"
        for number, node in enumerate(cluster.nodes.values()):
            assert await node.propose(b"SET from-%d yes" % number) == b"OK"
        with pytest.raises(CommandError):
            await leader.propose(b"NONSENSE")
        answers = await leader.propose_batch([b"SET a 1", b"BAD", b"GET a"])
        assert answers[0] == b"OK"
        assert isinstance(answers[1], CommandError)
        assert answers[2] == b"1"


def test_every_node_takes_writes_and_answers_reads(tmp_path: Path) -> None:
    """A write on any node is read linearizably on every node, and a bad command is an answer."""
    asyncio.run(_writes_and_reads(tmp_path))


async def _restart(folder: Path) -> None:
    cluster = Cluster(folder)
    await cluster.start()
    leader = await cluster.leader()
    for number in range(50):
        await leader.propose(b"SET key-%d %d" % (number, number), timeout=patience)
    await cluster.stop()
    await cluster.start()
    node = await cluster.leader()
    for number in range(50):
        assert await node.query(b"GET key-%d" % number, timeout=patience) == b"%d" % number
    await cluster.stop()


def test_a_full_stop_loses_nothing(tmp_path: Path) -> None:
    """All nodes are stopped and started again: every acknowledged write is there."""
    asyncio.run(_restart(tmp_path))


async def _leader_leaves(folder: Path) -> None:
    async with running(folder) as cluster:
        old = await cluster.leader()
        old_id = old.id
        await old.propose(b"SET before yes")
        await cluster.stop(old_id)
        new = await cluster.leader()
        assert new.id != old_id
        assert await new.query(b"GET before", timeout=patience) == b"yes"
        assert await new.propose(b"SET after yes", timeout=patience) == b"OK"
        await cluster.start(old_id)
        back = cluster.nodes[old_id]
        await until(lambda: back.leader is not None, "the old leader follows")
        assert await back.query(b"GET after", timeout=patience) == b"yes"


def test_another_node_leads_when_the_leader_stops(tmp_path: Path) -> None:
    """The leader is shut down: writes go on with another, and the old one comes back as a follower."""
    asyncio.run(_leader_leaves(tmp_path))


async def _concurrent_writes(folder: Path) -> None:
    async with running(folder) as cluster:
        nodes = list(cluster.nodes.values())
        await asyncio.gather(*(nodes[n % 3].propose(b"SET many-%d %d" % (n, n), timeout=patience) for n in range(600)))
        answers = await asyncio.gather(*(nodes[(n + 1) % 3].query(b"GET many-%d" % n) for n in range(600)))
        assert answers == [b"%d" % n for n in range(600)]


def test_many_calls_at_once_from_every_node(tmp_path: Path) -> None:
    """600 concurrent writes through all nodes are all there when read through another node."""
    asyncio.run(_concurrent_writes(tmp_path))
