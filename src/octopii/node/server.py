"""The listening side of a node: other nodes and clients, over one port.

Accepted connections are bounded in number, those that have not yet said who they are in a smaller number and in time.
Whoever breaks the protocol is logged once and cut off. A client whose answers pile up is not read from until it has
taken them.
"""

import asyncio
import collections
import logging
import ssl
from collections.abc import Callable
from typing import Protocol

from octopii.config import Config, parse_address
from octopii.errors import OctopiiError
from octopii.node.transport import Connection, Frames, unexpected
from octopii.wire.frames import FrameType, Greeting, encode_greeting
from octopii.wire.handshake import Handshake, Hello, Role
from octopii.wire.peer_frames import PeerOutput, decode_peer_frame
from octopii.wire.requests import Request, SessionEnd, decode_request

logger = logging.getLogger("octopii.node")

max_logged_faults = 10
"""Addresses whose faults are remembered, so that each is logged once and no flood fills the log."""


max_client_requests = 256
"""Requests of one client that are under way; those behind them wait, and nothing more is read from it. A client gathers
its calls, so that one request carries many."""


class Service(Protocol):
    """What the server serves: the node's engine."""

    def peer_said(self, peer: int, outputs: list[PeerOutput]) -> None:
        """Messages of another node."""
        ...

    def peer_arrived(self, hello: Hello) -> None:
        """Another node has connected."""
        ...

    def client_arrived(self, connection: Connection) -> None:
        """A client has connected."""
        ...

    def client_asked(self, connection: Connection, requests: list[Request]) -> None:
        """Requests of a client."""
        ...

    def client_left(self, connection: Connection) -> None:
        """A client is gone."""
        ...


class Server:
    """Accepts connections for one node."""

    def __init__(
        self,
        config: Config,
        service: Service,
        *,
        tls: ssl.SSLContext | None,
        handshake: Callable[[str | None], Handshake],
    ) -> None:
        self._config = config
        self._service = service
        self._tls = tls
        self._handshake = handshake
        self._server: asyncio.Server | None = None
        self._strangers: dict[Connection, asyncio.TimerHandle] = {}
        self._admitted: set[Connection] = set()
        self._backlog: dict[Connection, collections.deque[Request]] = {}
        self._under_way: dict[Connection, int] = {}
        self._faults: dict[str, int] = {}
        self.refused_connections = 0

    async def listen(self) -> str:
        """Bind and listen; returns the address, with the port that was taken. Raises `OSError`."""
        host, port = parse_address(self._config.bind_addr)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, self._handshake),
            host,
            port,
            ssl=self._tls,
            ssl_handshake_timeout=self._config.handshake_timeout if self._tls else None,
            ssl_shutdown_timeout=self._config.handshake_timeout if self._tls else None,
            backlog=512,
        )
        port = self._server.sockets[0].getsockname()[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def opened(self, connection: Connection) -> None:
        """A connection was accepted: it has a little time to say who it is."""
        config = self._config
        if len(self._strangers) + len(self._admitted) >= config.max_connections:
            self.refused_connections += 1
            connection.write(encode_greeting(Greeting()))  # a word, so that nobody thinks that its certificate is bad
            connection.close()
            return
        if len(self._strangers) >= config.max_handshakes:
            oldest = next(iter(self._strangers))
            self._strangers.pop(oldest).cancel()
            self.refused_connections += 1
            oldest.abort()
        loop = asyncio.get_running_loop()
        self._strangers[connection] = loop.call_later(config.handshake_timeout, self._too_silent, connection)

    def _too_silent(self, connection: Connection) -> None:
        if self._strangers.pop(connection, None) is not None:
            self.note(connection, f"said nothing for {self._config.handshake_timeout:g} s")
            connection.abort()

    def admitted(self, connection: Connection, peer: Hello) -> None:
        """A connection has shaken hands."""
        timer = self._strangers.pop(connection, None)
        if timer is None:
            connection.abort()
            return
        timer.cancel()
        self._admitted.add(connection)
        if peer.is_node:
            self._service.peer_arrived(peer)
        else:
            self._backlog[connection] = collections.deque()
            self._under_way[connection] = 0
            self._service.client_arrived(connection)

    def frames_arrived(self, connection: Connection, frames: Frames) -> None:
        """Pass frames on as messages."""
        peer = connection.peer
        assert peer is not None
        if peer.role is Role.CLIENT:
            backlog = self._backlog[connection]
            for frame_type, payload in frames:
                if frame_type != FrameType.REQUEST:
                    raise unexpected(frame_type, "a client's connection")
                backlog.append(decode_request(payload))
            self.go_on(connection)
            return
        outputs: list[PeerOutput] = []
        for frame_type, payload in frames:
            outputs += decode_peer_frame(frame_type, payload, sender=peer.node_id, to=self._config.node_id)
        self._service.peer_said(peer.node_id, outputs)

    def go_on(self, connection: Connection, answered: int = 0) -> None:
        """Take a client's requests as far as the limits allow, after so many were answered; read on when none waits."""
        backlog = self._backlog.get(connection)
        if backlog is None:
            return
        under_way = max(0, self._under_way[connection] - answered)
        full = connection.unsent_bytes > self._config.client_queue_bytes
        asked: list[Request] = []
        while backlog and under_way < max_client_requests and not full:
            request = backlog.popleft()
            under_way += not isinstance(request, SessionEnd)  # the one that nobody answers
            asked.append(request)
        self._under_way[connection] = under_way
        if asked:
            self._service.client_asked(connection, asked)
        if backlog or full:
            connection.pause_reading()
        else:
            connection.resume_reading()

    def closed(self, connection: Connection, error: BaseException | None) -> None:
        """A connection is gone."""
        timer = self._strangers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        if isinstance(error, OctopiiError):
            self.note(connection, str(error))
        self._backlog.pop(connection, None)
        self._under_way.pop(connection, None)
        if connection in self._admitted:
            self._admitted.discard(connection)
            if connection.peer is not None and connection.peer.role is Role.CLIENT:
                self._service.client_left(connection)

    def note(self, connection: Connection, fault: str) -> None:
        """Log a fault of the other side, once per host until others have come between."""
        host = connection.address.rpartition(":")[0]
        count = self._faults.pop(host, 0)
        self._faults[host] = count + 1
        if len(self._faults) > max_logged_faults:
            del self._faults[next(iter(self._faults))]
        if count == 0:
            logger.warning(
                "node %d cut off %s: %s (more from there is not logged)",
                self._config.node_id,
                connection.address,
                fault,
            )

    def shut(self) -> None:
        """Accept nothing more, and close what is open."""
        if self._server is not None:
            self._server.close()
        for connection in [*self._strangers, *self._admitted]:
            connection.close()
        for timer in self._strangers.values():
            timer.cancel()
        self._strangers.clear()

    async def close(self) -> None:
        """As `shut`, and wait until the port is free."""
        self.shut()
        if self._server is not None:
            await self._server.wait_closed()
