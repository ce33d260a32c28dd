"""Connections to the other nodes: one that this node dials to each of them for everything it has to say.

What the others say comes in over the connections that they dial. So each pair of nodes has two connections, neither of
which has to be agreed on. Snapshots go over a third, dialled when one is to be sent, so that a gigabyte never stands in
front of a heartbeat. A peer that cannot be reached is dialled again with a delay that doubles, jittered; a slow one has
its queue bounded, and what does not fit is dropped and counted: Raft repeats itself.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Callable

from octopii.config import Config
from octopii.errors import OctopiiError, RefusedError, RemovedNode, WipedNode
from octopii.node.transport import Connection, Frames, dial, explained, reason_of, unexpected
from octopii.wire.handshake import Handshake, Hello, Role
from octopii.wire.peer_frames import PeerOutput, encode_peer_frames
from octopii.wire.requests import SnapshotChunk, SnapshotOffer

logger = logging.getLogger("octopii.node")

snapshot_idle_seconds = 30.0
"""A snapshot connection that nothing was sent on for so long is closed."""


silent_elections = 2
"""A peer that acknowledges no byte for so many election timeouts is dialled anew: an election may wait for it."""


class Link:
    """One dialled connection to one peer, kept up."""

    def __init__(self, links: "PeerLinks", peer: int, role: Role) -> None:
        self._links = links
        self.peer = peer
        self._role = role
        self._connection: Connection | None = None
        self._up = False
        self._attempts = 0
        self._waiting: list[PeerOutput] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._logged = ""
        self._address = ""  # that was dialled last
        self.last_sent = 0.0
        self.dropped = 0

    @property
    def up(self) -> bool:
        """Whether the peer has admitted this node."""
        return self._up

    def open(self) -> None:
        """Begin dialling, unless that is under way or done."""
        if self._task is None and not self._closed and self._connection is None:
            self._task = asyncio.get_running_loop().create_task(self._dial())

    def send(self, outputs: list[PeerOutput], now: float) -> None:
        """Send messages, or drop them: when the peer is not there, or too much waits for it already."""
        self.last_sent = now
        connection = self._connection
        if not self._up or connection is None:
            if self._role is Role.SNAPSHOT:
                self._waiting += outputs  # an offer, and what follows it once it was answered
                self.open()
            else:
                self.dropped += len(outputs)
            return
        if connection.unsent_bytes > self._links.config.peer_queue_bytes:
            self.dropped += len(outputs)
            return
        connection.write_parts(encode_peer_frames(outputs))

    async def _dial(self) -> None:
        links, config = self._links, self._links.config
        try:
            if self._attempts:
                await asyncio.sleep(self._delay())
            self._attempts += 1
            address = self._address = links.address_of(self.peer, self._attempts)
            if address and not self._closed:
                connection = Connection(self, lambda name: links.handshake(name, self._role, self.peer))
                self._connection = connection
                await dial(address, connection, tls=links.tls, seconds=config.handshake_timeout)
                async with asyncio.timeout(config.handshake_timeout):
                    await links.until(lambda: self._up or self._connection is not connection)
        except (OSError, ValueError) as raised:  # timeouts and `ssl.SSLError` too, and names that are none
            error = explained(raised)
            self._note(f"cannot reach node {self.peer}: {reason_of(error)}", error)
            if self._connection is not None:
                self._connection.abort()
                self._connection = None
        finally:
            self._task = None
        if not self._up and self._connection is None:
            self.open()

    def _delay(self) -> float:
        config = self._links.config
        longest: float = min(config.reconnect_delay_min * 2 ** min(self._attempts - 1, 16), config.reconnect_delay_max)
        return longest * (0.5 + self._links.rng.random() / 2)

    def _note(self, text: str, error: BaseException | None) -> None:
        """Log what is wrong, once until it changes."""
        if text != self._logged and not self._closed:
            self._logged = text
            level = logging.WARNING if isinstance(error, RefusedError) else logging.INFO
            logger.log(level, "node %d: %s", self._links.config.node_id, text)

    # --- the connection's owner ---------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """Nothing to do until the handshake is done."""

    def admitted(self, connection: Connection, peer: Hello) -> None:
        """The peer has let us in."""
        if connection is not self._connection:
            connection.abort()
            return
        if self._role is Role.NODE:
            connection.give_up_after(silent_elections * self._links.config.election_timeout)
        self._up = True
        self._attempts = 0
        self._logged = ""
        self._links.notify()
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            connection.write_parts(encode_peer_frames(waiting))
        self._links.link_up(self, peer)

    def frames_arrived(self, connection: Connection, frames: Frames) -> None:
        """Nothing is expected on a connection that this node dialled."""
        raise unexpected(frames[0][0], f"the connection that this node dialled to node {self.peer}")

    def closed(self, connection: Connection, error: BaseException | None) -> None:
        """Dial again."""
        if connection is not self._connection:
            return
        self._connection = None
        was_up, self._up = self._up, False
        if isinstance(error, RefusedError):
            self._attempts = max(self._attempts, 8)
        if isinstance(error, RefusedError) and (
            connection.was_refused or not isinstance(error, WipedNode | RemovedNode)
        ):
            self._links.refused(self.peer, error, self._address)  # and the replica says so
        elif isinstance(error, OctopiiError):  # (a peer that was wiped or removed says nothing about this node)
            self._note(f"the connection to node {self.peer} ended: {error}", error)
        self._links.notify()
        if was_up:
            self._links.link_down(self)
        if self._role is not Role.SNAPSHOT or self._waiting:
            self.open()

    def close(self) -> None:
        """End it for good."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.close()


class PeerLinks:
    """All connections that a node dials to other nodes."""

    def __init__(
        self,
        config: Config,
        *,
        tls: ssl.SSLContext | None,
        rng: random.Random,
        handshake: Callable[[str | None, Role, int], Handshake],
        address_of: Callable[[int, int], str],
        link_up: Callable[[int, Hello], None],
        link_down: Callable[[int], None],
        refused: Callable[[int, RefusedError, str], None],
        snapshot_link_down: Callable[[int], None],
    ) -> None:
        self.config = config
        self.tls = tls
        self.rng = rng
        self.handshake = handshake
        self.address_of = address_of
        self._link_up = link_up
        self._link_down = link_down
        self._snapshot_link_down = snapshot_link_down
        self.refused = refused
        self._links: dict[int, Link] = {}
        self._snapshot_links: dict[int, Link] = {}
        self._changed = asyncio.Event()

    def keep(self, peers: set[int]) -> None:
        """Have a connection to each of these, and to nobody else."""
        for peer in peers - self._links.keys():
            self._links[peer] = Link(self, peer, Role.NODE)
            self._links[peer].open()
        for peer in self._links.keys() - peers:
            self._links.pop(peer).close()
            if peer in self._snapshot_links:
                self._snapshot_links.pop(peer).close()

    def send(self, peer: int, outputs: list[PeerOutput], now: float) -> None:
        """Send messages to a peer, snapshots over their own connection."""
        bulk: list[PeerOutput] = [output for output in outputs if isinstance(output, SnapshotOffer | SnapshotChunk)]
        if bulk:
            outputs = [output for output in outputs if not isinstance(output, SnapshotOffer | SnapshotChunk)]
            if peer not in self._snapshot_links:
                self._snapshot_links[peer] = Link(self, peer, Role.SNAPSHOT)
            self._snapshot_links[peer].send(bulk, now)
        link = self._links.get(peer)
        if outputs and link is not None:
            link.send(outputs, now)

    def tick(self, now: float) -> None:
        """Close snapshot connections that are not used."""
        for peer, link in list(self._snapshot_links.items()):
            if now - link.last_sent > snapshot_idle_seconds:
                self._snapshot_links.pop(peer).close()

    @property
    def dropped(self) -> dict[int, int]:
        """Messages dropped, by peer."""
        return {peer: link.dropped for peer, link in self._links.items() if link.dropped}

    def link_up(self, link: Link, hello: Hello) -> None:
        """A link tells that it is up."""
        if self._links.get(link.peer) is link:
            self._link_up(link.peer, hello)

    def link_down(self, link: Link) -> None:
        """A link tells that it is down."""
        if self._links.get(link.peer) is link:
            self._link_down(link.peer)
        elif self._snapshot_links.get(link.peer) is link:
            self._snapshot_link_down(link.peer)

    def notify(self) -> None:
        """Wake whoever waits in `until`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that changes with links."""
        while not condition():
            await self._changed.wait()

    def close(self) -> None:
        """Close everything."""
        for link in [*self._links.values(), *self._snapshot_links.values()]:
            link.close()
        self._links.clear()
        self._snapshot_links.clear()
