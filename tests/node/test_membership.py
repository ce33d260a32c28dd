"""Members come, go and move while calls are under way."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octopii import ConfigError, NotApplied, OctopiiNode, OutcomeUnknown, RemovedNode
from octopii.node import add_learner, promote_learner, remove_node
from tests.node.cluster import Cluster, eventually, free_addresses, patience, running, until


class Load:
    """Writers that go on whatever happens to the cluster; every acknowledged write is remembered."""

    def __init__(self, cluster: Cluster, writers: int = 8) -> None:
        self._cluster = cluster
        self._writers = writers
        self._stop = False
        self.acknowledged: set[bytes] = set()

    async def _write(self, writer: int) -> None:
        for number in itertools.count():
            nodes = list(self._cluster.nodes.values())
            if self._stop:
                return
            key = b"load-%d-%d" % (writer, number)
            with contextlib.suppress(NotApplied, OutcomeUnknown, RemovedNode):
                await nodes[number % len(nodes)].propose(b"SET %s yes" % key, timeout=2.0)
                self.acknowledged.add(key)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Write while the block runs; then see that all is there."""
        tasks = [asyncio.create_task(self._write(number)) for number in range(self._writers)]
        await until(lambda: len(self.acknowledged) >= self._writers, "the first writes")
        try:
            yield self
            reached = len(self.acknowledged) + 2 * self._writers
            await until(lambda: len(self.acknowledged) >= reached, "writes go on after the change")
        finally:
            self._stop = True
            await asyncio.gather(*tasks)
        leader = await self._cluster.leader()
        answers = await asyncio.gather(*(leader.query(b"GET " + key, timeout=patience) for key in self.acknowledged))
        assert set(answers) == {b"yes"}


def _members(node: OctopiiNode) -> tuple[list[int], list[int]]:
    conf = node.conf_state
    return sorted(conf.voters), sorted(conf.learners)


async def _changed(node: OctopiiNode, *, voters: list[int], learners: list[int]) -> None:
    await until(lambda: _members(node) == (voters, learners), f"{voters} vote, {learners} learn on node {node.id}")


async def _join(cluster: Cluster, node_id: int) -> OctopiiNode:
    """Start an empty node that knows nobody: those who add it will find it."""
    cluster.add_address(node_id)
    await cluster.start(node_id, peers={}, is_initial_leader=False)
    return cluster.nodes[node_id]


async def _caught_up(asked: OctopiiNode, node_id: int) -> None:
    await eventually(lambda: asked.is_learner_caught_up(node_id, timeout=2.0), f"node {node_id} has caught up")


def test_a_learner_is_added_promoted_and_removed_under_load(tmp_path: Path) -> None:
    """Added at an address, caught up, promoted, then removed again, all asked of a follower, while writes go on.

    The removed node learns it, says so to its callers, and campaigns no more.
    """

    async def play() -> None:
        async with running(tmp_path) as cluster:
            old = list(cluster.nodes.values())
            leader = await cluster.leader()
            follower = next(node for node in old if node.id != leader.id)
            new = await _join(cluster, 4)
            async with Load(cluster).running():
                await follower.add_learner(4, cluster.addresses[4], timeout=patience)
                await _changed(follower, voters=[1, 2, 3], learners=[4])
                await _caught_up(follower, 4)
                progress = await follower.peer_progress(4, timeout=patience)
                assert progress["match"] > 0
                await eventually(lambda: _promote(follower, 4), "node 4 is promoted")
                await _changed(new, voters=[1, 2, 3, 4], learners=[])
                assert await new.propose(b"SET from-4 yes", timeout=patience) == b"OK"
                await follower.remove_node(4, timeout=patience)
                await _changed(follower, voters=[1, 2, 3], learners=[])
            await until(lambda: new.status["refused"] is not None, "node 4 has learnt that it was removed")
            with pytest.raises(RemovedNode):
                await new.propose(b"SET x y", timeout=patience)
            terms = {node.id: node.status["term"] for node in old}
            await asyncio.sleep(1.5)  # several election timeouts: a node that still campaigned would show by now
            assert {node.id: node.status["term"] for node in old} == terms
            assert new.status["role"] == "follower"
            with pytest.raises(ConfigError):
                await follower.add_learner(4, cluster.addresses[4], timeout=patience)

    asyncio.run(play())


async def _promote(asked: OctopiiNode, node_id: int) -> bool:
    await asked.promote_learner(node_id, timeout=2.0)
    return True


def test_two_of_five_are_replaced_in_one_joint_change(tmp_path: Path) -> None:
    """Nodes 4 and 5 go and 6 and 7 come in one change, while writes go on."""

    async def play() -> None:
        async with running(tmp_path, 5) as cluster:
            async with Load(cluster).running():
                stays = cluster.nodes[1]
                for node_id in (6, 7):
                    await _join(cluster, node_id)
                both = [add_learner(node_id, cluster.addresses[node_id]) for node_id in (6, 7)]
                await stays.change_membership(both, timeout=patience)
                for node_id in (6, 7):
                    await _caught_up(stays, node_id)
                swap = [promote_learner(6), promote_learner(7), remove_node(4), remove_node(5)]

                async def swapped() -> bool:
                    if _members(stays)[0] != [1, 2, 3, 6, 7]:
                        await stays.change_membership(swap, timeout=2.0)
                    return True

                await eventually(swapped, "the change is made")
                for node_id in (1, 2, 3, 6, 7):
                    await _changed(cluster.nodes[node_id], voters=[1, 2, 3, 6, 7], learners=[])
                await cluster.stop(4, 5)
            assert await cluster.nodes[7].propose(b"SET done yes", timeout=patience) == b"OK"

    asyncio.run(play())


def test_the_leader_can_be_removed(tmp_path: Path) -> None:
    """Asked to remove itself, the leader does, and the others elect one of themselves."""

    async def play() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            others = [node for node in cluster.nodes.values() if node.id != leader.id]
            ids = sorted(node.id for node in others)
            # One that has just been elected does not know yet how far the others are, and refuses to go.
            members = [str(node_id) for node_id in ids]
            await until(lambda: all(leader.status["members"][each].get("match") for each in members), "all answered")
            with contextlib.suppress(OutcomeUnknown):
                await others[0].remove_node(leader.id, timeout=patience)
            for node in others:
                await _changed(node, voters=ids, learners=[])
            assert await others[1].propose(b"SET on yes", timeout=patience) == b"OK"
            await until(lambda: leader.status["refused"] is not None, "the old leader has learnt it")

    asyncio.run(play())


def test_a_member_moves_to_another_address(tmp_path: Path) -> None:
    """A node comes back at another address: told by the operator, or by itself, the others find it."""

    async def play() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            first, second = (node.id for node in cluster.nodes.values() if node.id != leader.id)
            await cluster.stop(first)
            address = cluster.add_address(first)
            await cluster.nodes[second].update_peer_addr(first, address, timeout=patience)
            assert leader.status["members"][str(first)]["address"] == address
            await cluster.start(first)
            assert await cluster.nodes[first].propose(b"SET told yes", timeout=patience) == b"OK"
            await cluster.stop(second)
            address = cluster.add_address(second)
            await cluster.start(second)
            assert await cluster.nodes[second].propose(b"SET itself yes", timeout=patience) == b"OK"
            await until(
                lambda: leader.status["members"][str(second)]["address"] == address, "the log has the new address"
            )

    asyncio.run(play())


def test_all_addresses_change_at_once_after_a_full_stop(tmp_path: Path) -> None:
    """Every node comes back elsewhere, with settings that name the new addresses: the cluster is the same."""

    async def play() -> None:
        async with running(tmp_path) as cluster:
            await (await cluster.leader()).propose(b"SET before yes", timeout=patience)
            await cluster.stop()
            cluster.addresses = dict(enumerate(free_addresses(3), 1))
            await cluster.start()
            leader = await cluster.leader()
            assert await leader.query(b"GET before", timeout=patience) == b"yes"
            assert await leader.propose(b"SET after yes", timeout=patience) == b"OK"

            def known() -> bool:
                members = leader.status["members"]
                return {int(n): facts["address"] for n, facts in members.items()} == cluster.addresses

            await until(known, "the log has the new addresses")
            for node in cluster.nodes.values():
                assert await node.query(b"GET after", timeout=patience) == b"yes"

    asyncio.run(play())
