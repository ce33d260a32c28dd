"""Nodes that may not take part: wiped, of another cluster, started wrongly. Each is told, and the cluster goes on."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from octopii import Client, ConfigError, NotApplied, OctopiiNode, OutcomeUnknown, WipedNode, WrongCluster
from octopii.errors import RefusedError
from octopii.machines import KvStateMachine
from octopii.wire.frames import FrameType, Greeting, encode_frame, encode_greeting
from octopii.wire.handshake import Hello, Role, encode_hello
from tests.node.cluster import Cluster, patience, running, term_of, until


async def _refused(node: OctopiiNode) -> str:
    await until(lambda: node.status["refused"] is not None, f"node {node.id} is refused")
    return str(node.status["refused"])


def test_a_wiped_node_is_refused_and_named(tmp_path: Path) -> None:
    """A member that comes back with an empty folder under its old id neither votes nor answers, and knows why."""

    async def play() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            victim = next(node.id for node in cluster.nodes.values() if node.id != leader.id)
            await cluster.agree()
            await cluster.stop(victim)
            shutil.rmtree(tmp_path / f"node-{victim}")
            await cluster.start(victim, is_initial_leader=False)
            wiped = cluster.nodes[victim]
            assert "wiped" in await _refused(wiped)
            with pytest.raises(WipedNode):
                await wiped.propose(b"SET a 1", timeout=patience)
            assert wiped.status["role"] == "follower"
            assert await leader.propose(b"SET b 1", timeout=patience) == b"OK"
            assert [node.id for node in cluster.nodes.values() if node.status["refused"] is not None] == [victim]

    asyncio.run(play())


def test_a_wiped_initial_leader_founds_no_second_cluster(tmp_path: Path) -> None:
    """The founder comes back empty, still told to found: its peers belong to a cluster, so it must not."""

    async def play() -> None:
        async with running(tmp_path) as cluster:
            await cluster.agree()
            await cluster.stop(1)
            shutil.rmtree(tmp_path / "node-1")
            await cluster.start(1)
            founder = cluster.nodes[1]
            await _refused(founder)
            with pytest.raises(RefusedError):
                await founder.propose(b"SET a 1", timeout=patience)
            leader = await cluster.leader(among={2, 3})
            assert await leader.propose(b"SET b 1", timeout=patience) == b"OK"

    asyncio.run(play())


def test_nodes_of_two_clusters_do_not_mix(tmp_path: Path) -> None:
    """Node 3 of the second cluster listens where node 3 of the first should: the first takes no word of it.

    The node itself finds its own cluster, whose members are in its log, and serves it from the new address.
    """

    async def play() -> None:
        async with running(tmp_path / "first") as first, running(tmp_path / "second") as second:
            for cluster, name in ((first, b"first"), (second, b"second")):
                await (await cluster.leader()).propose(b"SET whose " + name, timeout=patience)
                await cluster.agree()
                await cluster.stop(3)
            leader = await first.leader(among={1, 2})
            assert await leader.query(b"GET whose", timeout=patience) == b"first"
            term = term_of(leader)
            await first.start(3, wal_dir=str(tmp_path / "second" / "node-3"))
            stray = first.nodes[3]
            await until(lambda: "cluster" in leader.status["warnings"].get("refused-by-3", ""), "the leader is warned")
            assert await stray.query(b"GET whose", timeout=patience) == b"second"
            assert await stray.propose(b"SET by stray", timeout=patience) == b"OK"
            assert await leader.query(b"GET by", timeout=patience) == b"NOT_FOUND"
            assert await second.nodes[1].query(b"GET by", timeout=patience) == b"stray"
            assert term_of(leader) == term
            await first.stop(3)
            with pytest.raises(ConfigError, match="node 3"):
                await OctopiiNode(
                    first.config(1, wal_dir=str(tmp_path / "second" / "node-3")), KvStateMachine()
                ).start()

    asyncio.run(play())


def test_a_client_never_goes_on_with_another_cluster(tmp_path: Path) -> None:
    """Where its cluster was, another one has been founded: the client is told, and nothing of it gets there."""

    async def play() -> None:
        cluster = Cluster(tmp_path, 1)
        await cluster.start()
        await cluster.leader()
        async with Client(cluster.addresses[1]) as client:
            assert await client.propose(b"SET whose first", timeout=patience) == b"OK"
            await cluster.stop()
            shutil.rmtree(tmp_path / "node-1")
            await cluster.start()
            await cluster.leader()
            with pytest.raises(WrongCluster):
                await client.propose(b"SET whose first", timeout=2 * patience)
        async with Client(cluster.addresses[1]) as client:
            assert await client.query(b"GET whose", timeout=patience) == b"NOT_FOUND"
        await cluster.stop()

    asyncio.run(play())


def test_another_python_is_warned_of(tmp_path: Path) -> None:
    """A peer under another minor version of Python is named in `status`, until it comes back under the same."""

    async def play() -> None:
        cluster = Cluster(tmp_path)
        await cluster.start(1)
        node = cluster.nodes[1]
        host, port = node.address.split(":")
        ours = sys.version_info.minor
        for theirs in (ours + 1, ours):
            hello = Hello(role=Role.NODE, node_id=2, storage_id=b"2" * 16, target=1, python_minor=theirs)
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(encode_greeting(Greeting()) + encode_frame(FrameType.HELLO, encode_hello(hello)))
            expected = theirs != ours
            await until(lambda: ("python-2" in node.status["warnings"]) is expected, "the node has compared")  # noqa: B023
            if expected:
                assert f"node 2 Python 3.{theirs}" in node.status["warnings"]["python-2"]
            writer.close()
        await cluster.stop()

    asyncio.run(play())


def test_two_founders_make_one_cluster_or_none(tmp_path: Path) -> None:
    """Two nodes are told to found the cluster: one brings a majority in, or both are refused; never two clusters."""

    async def play() -> None:
        cluster = Cluster(tmp_path)
        await cluster.start(1, 2, 3, is_initial_leader=True)

        def settled() -> bool:
            states = [node.status for node in cluster.nodes.values()]
            return all(state["refused"] or state["cluster_id"] or state["warnings"] for state in states)

        await until(settled, "each founder has founded, joined or been refused")

        async def cluster_of(node: OctopiiNode) -> str | None:
            try:
                await node.propose(b"SET by %d" % node.id, timeout=1.5)
            except (NotApplied, OutcomeUnknown, RefusedError):
                return None
            return str(node.status["cluster_id"])

        working = await asyncio.gather(*map(cluster_of, cluster.nodes.values()))
        assert len(set(working) - {None}) <= 1
        await cluster.stop()

    asyncio.run(play())


def test_a_removed_node_that_slept_through_it_is_told_when_it_comes_back(tmp_path: Path) -> None:
    """Removed while it was down: on its return it is refused, campaigns not, and disturbs nobody's term."""

    async def play() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            victim = next(node.id for node in cluster.nodes.values() if node.id != leader.id)
            await cluster.agree()
            await cluster.stop(victim)
            await leader.remove_node(victim, timeout=patience)
            term = term_of(leader)
            await cluster.start(victim)
            assert "removed" in await _refused(cluster.nodes[victim])
            assert await leader.propose(b"SET a 1", timeout=patience) == b"OK"
            assert term_of(leader) == term
            assert leader.is_leader

    asyncio.run(play())
