"""Clusters for tests: nodes in this process, each on its own threads, over real sockets and folders."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from octopii import CommandError, Config, NotApplied, OctopiiError, OctopiiNode, OutcomeUnknown, StateMachine
from octopii.machines import KvStateMachine

election_timeout = 0.5
heartbeat_interval = 0.05
patience = 20.0


_held: list[socket.socket] = []


def free_addresses(count: int) -> list[str]:
    """Addresses on loopback that are this process's for as long as it lives.

    The sockets stay bound and never listen: Linux then lets a node listen on the port (both allow reuse), and gives the
    port to nobody who asks for any free one, be it another test or an outgoing connection.
    """
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", 0))
    _held.extend(sockets)
    return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


async def until(condition: Callable[[], bool], what: str, seconds: float = patience) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.01)


async def eventually(ask: Callable[[], Awaitable[bool]], what: str, seconds: float = patience) -> None:
    """Wait for something that has to be asked for; an error that allows to ask again counts as no."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(NotApplied, OutcomeUnknown):
            if await ask():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.02)


def term_of(node: OctopiiNode) -> int:
    """The term that a node is in."""
    return int(node.status["term"])


class Cluster:
    """Some nodes by id, started and stopped one by one."""

    def __init__(
        self, folder: Path, size: int = 3, *, machine: Callable[[], StateMachine] = KvStateMachine, **settings: Any
    ) -> None:
        self.folder = folder
        self.addresses = dict(enumerate(free_addresses(size), 1))
        self.machine = machine
        self._settings = settings
        self.nodes: dict[int, OctopiiNode] = {}
        self.machines: dict[int, StateMachine] = {}

    def config(self, node_id: int, **changes: Any) -> Config:
        """Settings of one node."""
        settings: dict[str, Any] = {
            "node_id": node_id,
            "bind_addr": self.addresses[node_id],
            "peers": {peer: address for peer, address in self.addresses.items() if peer != node_id},
            "wal_dir": str(self.folder / f"node-{node_id}"),
            "is_initial_leader": node_id == 1,
            "election_timeout": election_timeout,
            "heartbeat_interval": heartbeat_interval,
            "disk_low_water_bytes": 0,
            "disk_reserve_bytes": 64 << 10,
        }
        return Config(**{**settings, **self._settings, **changes})

    async def start(self, *node_ids: int, **changes: Any) -> None:
        """Start nodes (all, without ids)."""
        chosen = node_ids or tuple(self.addresses)
        for node_id in chosen:
            self.machines[node_id] = self.machine()
            self.nodes[node_id] = OctopiiNode(self.config(node_id, **changes), self.machines[node_id])
        await asyncio.gather(*(self.nodes[node_id].start() for node_id in chosen))

    async def stop(self, *node_ids: int) -> None:
        """Shut nodes down in order (all, without ids)."""
        chosen = node_ids or tuple(self.nodes)
        await asyncio.gather(*(self.nodes.pop(node_id).shutdown() for node_id in chosen if node_id in self.nodes))

    async def leader(self, among: set[int] | None = None) -> OctopiiNode:
        """The node that leads and has committed in its term."""
        found: list[OctopiiNode] = []

        def there() -> bool:
            found[:] = [
                node for node_id, node in self.nodes.items() if (among is None or node_id in among) and node.is_leader
            ]
            return bool(found)

        await until(there, "a leader")
        return found[0]

    def add_address(self, node_id: int) -> str:
        """Give a node that is not there yet an address."""
        self.addresses[node_id] = free_addresses(1)[0]
        return self.addresses[node_id]

    async def agree(self) -> None:
        """Wait until all running nodes have applied as much as the leader has committed."""
        leader = await self.leader()
        index = await leader.read_index(timeout=patience)

        def everywhere() -> bool:
            return all(node.status["applied"] >= index for node in self.nodes.values())

        await until(everywhere, f"every node applies entry {index}")


@contextlib.asynccontextmanager
async def running(folder: Path, size: int = 3, **settings: Any) -> AsyncIterator[Cluster]:
    """A cluster that is up, shut down at the end."""
    cluster = Cluster(folder, size, **settings)
    try:
        await cluster.start()
        leader = await cluster.leader()
        with contextlib.suppress(CommandError):  # other machines refuse it: what counts is that it was applied
            await leader.propose(b"SET ready yes", timeout=patience)
        await cluster.agree()  # until a member has joined, the others may not be able to do without the founder
        yield cluster
    finally:
        with contextlib.suppress(OctopiiError):
            await cluster.stop()
