"""A follower that the log no longer reaches is brought up by a snapshot, over a connection of its own."""

import asyncio
import itertools
from pathlib import Path

import pytest

from octopii import ConfigError, OctopiiNode
from octopii.config import MIB
from octopii.machines import KvStateMachine
from octopii.replica.work import PeerOutput
from octopii.wire.requests import SnapshotChunk
from tests.node.cluster import Cluster, patience, running, term_of, until
from tests.node.test_stalls import Heartbeats

VALUE_BYTES = 64 << 10

FEW_IN_THE_LOG = {"log_keep_entries": 5, "max_command_bytes": 2 * VALUE_BYTES, "max_batch_bytes": 2 * VALUE_BYTES}
"""Settings under which every large command is an entry of its own, and the log is soon trimmed."""


async def _fill(leader: OctopiiNode, size: int) -> None:
    """Write so many bytes, under keys of their own."""
    value = bytes(VALUE_BYTES - 1).replace(b"\0", b"v")
    slots = asyncio.Semaphore(16)

    async def write(number: int) -> None:
        async with slots:
            await leader.propose(b"SET fill-%d %d%s" % (number, number % 10, value), timeout=60.0)

    await asyncio.gather(*(write(number) for number in range(size // VALUE_BYTES)))


async def _write_until(leader: OctopiiNode, stop: asyncio.Event) -> int:
    """Write small commands, one after the other."""
    for number in itertools.count():
        if stop.is_set():
            return number
        await leader.propose(b"SET meanwhile %d" % number, timeout=patience)
    raise AssertionError


async def _leave_behind(cluster: Cluster, size: int) -> tuple[OctopiiNode, int]:
    """Stop a follower, write, and trim the log beyond it; returns the leader and the follower's id."""
    leader = await cluster.leader()
    late = next(node.id for node in cluster.nodes.values() if node.id != leader.id)
    await cluster.agree()
    last = cluster.nodes[late].status["last_index"]
    await cluster.stop(late)
    await _fill(leader, size)
    await leader.force_snapshot(timeout=60.0)
    status = leader.status
    assert status["first_index"] > last + 1, "the log does not reach the follower any more"
    assert status["snapshot"]["bytes"] >= size
    return leader, late


async def _catch_up(folder: Path, size: int) -> None:
    async with running(folder, election_timeout=1.0, heartbeat_interval=0.1, **FEW_IN_THE_LOG) as cluster:
        leader, late = await _leave_behind(cluster, size)
        term = term_of(leader)
        stays = next(node for node in cluster.nodes.values() if node.id != leader.id)
        heard = Heartbeats(stays)
        stop = asyncio.Event()
        writing = asyncio.create_task(_write_until(leader, stop))
        await cluster.start(late)
        back = cluster.nodes[late]
        await until(lambda: back.status["snapshot"]["bytes"] >= size, "the snapshot is there", 120.0)
        await until(lambda: back.status["applied"] >= leader.status["commit"] - 50, "the rest is, too", 60.0)
        stop.set()
        count = await writing
        assert count > 0
        assert await back.query(b"GET meanwhile", timeout=patience) == b"%d" % (count - 1)
        assert await back.query(b"GET fill-0", consistency="stale") == b"0" + b"v" * (VALUE_BYTES - 1)
        assert {term_of(node) for node in cluster.nodes.values()} == {term}
        assert leader.is_leader
        assert heard.longest < 1.0
        await cluster.stop(late)
        await cluster.start(late)
        assert await cluster.nodes[late].query(b"GET meanwhile", timeout=patience) == b"%d" % (count - 1)


def test_a_follower_behind_the_log_catches_up_while_writes_go_on(tmp_path: Path) -> None:
    """2 MiB of snapshot go to a follower behind the trim point: no election, heartbeats on time, writes all along."""
    asyncio.run(_catch_up(tmp_path, 2 * MIB))


@pytest.mark.heavy
def test_a_large_snapshot_is_sent_like_a_small_one(tmp_path: Path) -> None:
    """The same with 200 MiB."""
    asyncio.run(_catch_up(tmp_path, 200 * MIB))


def test_a_transfer_that_breaks_goes_on_where_it_was(tmp_path: Path) -> None:
    """The connection is cut in the middle of a snapshot, again and again: the follower has it all in the end."""

    async def play() -> None:
        settings = FEW_IN_THE_LOG | {"snapshot_chunk_bytes": 16 << 10, "snapshot_window_bytes": 32 << 10}
        async with running(tmp_path, **settings) as cluster:
            leader, late = await _leave_behind(cluster, 2 * MIB)
            links = leader._host.engine.board.links
            send, cuts, chunks = links.send, 0, 0

            def send_and_cut(peer: int, outputs: list[PeerOutput], now: float) -> None:
                nonlocal cuts, chunks
                send(peer, outputs, now)
                chunks += sum(isinstance(output, SnapshotChunk) for output in outputs)
                link = links._snapshot_links.get(late)
                if chunks >= 20 and cuts < 5 and link is not None and link._connection is not None:
                    link._connection.abort()
                    chunks = 0
                    cuts += 1

            links.send = send_and_cut  # type: ignore[method-assign]
            await cluster.start(late)
            back = cluster.nodes[late]
            await until(lambda: back.status["snapshot"]["bytes"] >= 2 * MIB, "the snapshot is there", 60.0)
            assert cuts == 5
            assert await back.query(b"GET fill-3", timeout=patience) == b"3" + b"v" * (VALUE_BYTES - 1)

    asyncio.run(play())


def test_a_snapshot_can_be_taken_and_sent_by_hand(tmp_path: Path) -> None:
    """`force_snapshot` on any node is that node's; `force_snapshot_to_peer` reaches the leader from any node."""

    async def play() -> None:
        async with running(tmp_path) as cluster:
            await cluster.agree()
            leader = await cluster.leader()
            first, second = (node for node in cluster.nodes.values() if node.id != leader.id)
            index = await first.force_snapshot(timeout=patience)
            assert first.status["snapshot"]["index"] == index
            assert leader.status["snapshot"]["index"] == second.status["snapshot"]["index"] == 0
            index = await leader.force_snapshot(timeout=patience)
            await first.force_snapshot_to_peer(second.id, timeout=patience)
            assert await leader.propose(b"SET after yes", timeout=patience) == b"OK"
            assert await second.query(b"GET after", timeout=patience) == b"yes"

    asyncio.run(play())


class Picky(KvStateMachine):
    """A machine that takes no snapshot any more."""

    def restore(self, data: memoryview) -> None:
        """Never."""
        raise ValueError("written by another machine")


def test_a_node_whose_machine_does_not_take_its_snapshot_refuses_to_start(tmp_path: Path) -> None:
    """It says which snapshot and why, has let go of folder and port, and starts with the machine that wrote it."""

    async def body() -> None:
        async with running(tmp_path, 1) as cluster:
            (node,) = cluster.nodes.values()
            await node.propose(b"SET a 1", timeout=patience)
            index = await node.force_snapshot(timeout=patience)
            await cluster.stop(node.id)
            with pytest.raises(ConfigError, match=f"entry {index}.*ValueError: written by another machine"):
                await OctopiiNode(cluster.config(node.id), Picky()).start()
            await cluster.start(node.id)
            assert await cluster.nodes[node.id].query(b"GET a", timeout=patience) == b"1"

    asyncio.run(body())
