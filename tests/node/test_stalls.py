"""Slow user code and a blocked program cost nobody leadership: terms stay, heartbeats come on time."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octopii import ApplyFailed, CommandError, OctopiiNode, StateMachine
from octopii.machines import KvStateMachine
from octopii.replica.work import PeerOutput
from tests.node.cluster import Cluster, patience, running, term_of, until

ELECTION_TIMEOUT = 1.0
HEARTBEAT = 0.1

MIB = 1 << 20


class Slow(KvStateMachine):
    """A machine whose `apply` can be made to sleep."""

    def apply(self, command: bytes) -> bytes:
        """Sleep on "SLEEP <seconds>"."""
        if command.startswith(b"SLEEP "):
            time.sleep(float(command[6:]))
            return b"slept"
        return super().apply(command)


class Large(KvStateMachine):
    """A machine with a snapshot of many chunks, each of which takes a while to make."""

    chunks = 40
    chunk_bytes = 256 << 10
    chunk_seconds = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.snapshots = 0

    def snapshot(self) -> Iterator[bytes]:  # type: ignore[override]
        """10 MiB in 2 s, on the thread that applies."""
        for number in range(self.chunks):
            time.sleep(self.chunk_seconds)
            yield bytes([number % 256]) * self.chunk_bytes
        self.snapshots += 1

    def restore(self, data: memoryview) -> None:
        """Nothing to restore."""
        assert len(data) == self.chunks * self.chunk_bytes


class Heartbeats:
    """Listens on a follower for what its leader says, and knows the longest silence."""

    def __init__(self, node: OctopiiNode) -> None:
        engine = node._host.engine
        self._said: Callable[[int, list[PeerOutput]], None] = engine.board.peer_said
        self._last = time.monotonic()
        self.longest = 0.0
        self.count = 0
        engine.board.peer_said = self._peer_said  # type: ignore[method-assign]

    def _peer_said(self, peer: int, outputs: list[PeerOutput]) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self.count += 1
        self._said(peer, outputs)


async def _watched(cluster: Cluster) -> tuple[OctopiiNode, int, list[Heartbeats]]:
    leader = await cluster.leader()
    await cluster.agree()
    followers = [node for node in cluster.nodes.values() if node.id != leader.id]
    return leader, term_of(leader), [Heartbeats(node) for node in followers]


def _calm(cluster: Cluster, leader: OctopiiNode, term: int, heartbeats: list[Heartbeats]) -> None:
    """No election took place, and no follower was ever close to calling one."""
    assert leader.is_leader
    assert {term_of(node) for node in cluster.nodes.values()} == {term}
    for heard in heartbeats:
        assert heard.count > 5
        assert heard.longest < ELECTION_TIMEOUT


def test_an_apply_of_two_seconds_causes_no_election(tmp_path: Path) -> None:
    """`apply` sleeps 2 s on every replica: the call is answered, and so are those behind it, all in the same term."""

    async def play() -> None:
        async with running(
            tmp_path, machine=Slow, election_timeout=ELECTION_TIMEOUT, heartbeat_interval=HEARTBEAT
        ) as cluster:
            leader, term, heartbeats = await _watched(cluster)
            slow = asyncio.create_task(leader.propose(b"SLEEP 2", timeout=patience))
            behind = [asyncio.create_task(leader.propose(b"SET n %d" % n, timeout=patience)) for n in range(100)]
            assert await slow == b"slept"
            assert await asyncio.gather(*behind) == [b"OK"] * 100
            _calm(cluster, leader, term, heartbeats)

    asyncio.run(play())


async def _snapshots_on_all_nodes(folder: Path, machine: type[Large], seconds: float) -> None:
    """Take a snapshot on every node at the same time, with calls under way."""
    async with running(
        folder,
        machine=machine,
        election_timeout=ELECTION_TIMEOUT,
        heartbeat_interval=HEARTBEAT,
        call_timeout=seconds,
    ) as cluster:
        leader, term, heartbeats = await _watched(cluster)
        nodes = list(cluster.nodes.values())
        began = time.monotonic()
        taking = [asyncio.create_task(node.force_snapshot(timeout=seconds)) for node in nodes]
        calls = [asyncio.create_task(leader.propose(b"SET n %d" % n, timeout=seconds)) for n in range(100)]
        assert all(index > 0 for index in await asyncio.gather(*taking))
        took = time.monotonic() - began
        assert await asyncio.gather(*calls) == [b"OK"] * 100
        assert all(node.status["snapshot"]["bytes"] >= machine.chunks * machine.chunk_bytes for node in nodes)
        silence = max(heard.longest for heard in heartbeats)
        print(f"three snapshots of {machine.chunks * machine.chunk_bytes:,} bytes in {took:.1f} s; ", end="")
        print(f"longest silence of the leader {silence:.3f} s, heartbeats every {HEARTBEAT} s")
        _calm(cluster, leader, term, heartbeats)


def test_a_snapshot_in_chunks_causes_no_election(tmp_path: Path) -> None:
    """10 MiB are taken from the machine in 2 s on all nodes at once, while calls come: same term, calls answered."""
    asyncio.run(_snapshots_on_all_nodes(tmp_path, Large, patience))


class Huge(Large):
    """A machine with a snapshot of 1 GiB, as fast as the disk takes it."""

    chunks = 1024
    chunk_bytes = MIB
    chunk_seconds = 0.0


@pytest.mark.heavy
def test_a_snapshot_of_a_gibibyte_causes_no_election(tmp_path: Path) -> None:
    """The same with 1 GiB on each of three nodes, written as fast as they can."""
    asyncio.run(_snapshots_on_all_nodes(tmp_path, Huge, 300.0))


def test_a_program_that_blocks_its_own_loop_keeps_leadership(tmp_path: Path) -> None:
    """The embedding program does not let its event loop run for 5 s: the nodes in it go on as if nothing were."""

    async def play() -> None:
        async with running(tmp_path, election_timeout=ELECTION_TIMEOUT, heartbeat_interval=HEARTBEAT) as cluster:
            leader, term, heartbeats = await _watched(cluster)
            threading.Event().wait(5.0)  # the loop stands still meanwhile
            _calm(cluster, leader, term, heartbeats)
            assert await leader.propose(b"SET after yes", timeout=patience) == b"OK"

    asyncio.run(play())


class Failing(KvStateMachine):
    """A machine on which commands fail in the ways that matter."""

    disk_broken: StateMachine | None = None

    def apply(self, command: bytes) -> bytes:
        """Fail as told."""
        if command == b"BUG":
            raise ZeroDivisionError("a bug")
        if command == b"LOCAL" and Failing.disk_broken is self:
            raise OSError("this replica's disk")
        return super().apply(command)


def test_a_replica_that_alone_cannot_apply_gives_up_leadership(tmp_path: Path) -> None:
    """An `OSError` in the leader's `apply` is its own trouble: another leads, the call counts, status says why."""

    async def play() -> None:
        async with running(tmp_path, machine=Failing) as cluster:
            leader = await cluster.leader()
            with pytest.raises(ApplyFailed) as caught:
                await leader.propose(b"BUG", timeout=patience)
            assert caught.value.exception == "ZeroDivisionError"
            Failing.disk_broken = cluster.machines[leader.id]
            other = next(node for node in cluster.nodes.values() if node.id != leader.id)
            with pytest.raises(CommandError):  # the others' answer: there is no such command
                await other.propose(b"LOCAL", timeout=patience)
            await until(lambda: not leader.is_leader, "the leader hands over")
            assert "OSError" in leader.status["failure"]
            assert await other.propose(b"SET on yes", timeout=patience) == b"OK"

    asyncio.run(play())
