"""A network on loopback: a proxy in front of each node, which knows from the handshake who is calling.

A TCP stream cannot lose bytes, so a cut direction is held: nothing is read from it, and what was read is not passed on
until it heals, as with lost packets that are sent again. A lost packet is the pause until its retransmission.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass, field

from octopii.wire.frames import MAX_HANDSHAKE_FRAME_BYTES, FrameDecoder, decode_greeting
from octopii.wire.handshake import decode_hello
from tests.node.cluster import free_addresses

CHUNK_BYTES = 64 << 10
"""What is read at a time, and all that is held of a direction that is cut."""

RETRANSMISSION_SECONDS = 0.2
"""Pause after a lost packet: the least that Linux waits before it sends one again; doubled by each loss in a row."""


@dataclass
class Link:
    """What is wrong with what one node sends to another."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    delay: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        self.open.set()


class ProxyNetwork:
    """Nodes on loopback, each behind a proxy."""

    name = "loopback behind a proxy"
    can_slow = True

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._bound: dict[int, str] = {}
        self._addresses: dict[int, str] = {}
        self._servers: list[asyncio.Server] = []
        self._links: dict[tuple[int, int], Link] = {}
        self._slow: dict[int, tuple[float, float]] = {}
        self._pumps: set[asyncio.Task[None]] = set()

    async def attach(self, node_id: int) -> None:
        bound, address = free_addresses(2)
        host, port = address.rsplit(":", 1)

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._pumps.add(task)
            try:
                await self._pass(node_id, reader, writer)
            except asyncio.CancelledError:
                pass  # `close` ends it so; the server would log it as an error
            finally:
                self._pumps.discard(task)

        self._servers.append(await asyncio.start_server(accepted, host, int(port)))
        self._bound[node_id], self._addresses[node_id] = bound, address

    def bind_address(self, node_id: int) -> str:
        return self._bound[node_id]

    def address(self, node_id: int) -> str:
        return self._addresses[node_id]

    def prefix(self, node_id: int) -> list[str]:
        return []

    def _link(self, source: int, target: int) -> Link:
        if (source, target) not in self._links:
            delay, loss = self._slow.get(source, (0.0, 0.0))
            self._links[source, target] = Link(delay=delay, loss=loss)
        return self._links[source, target]

    async def cut(self, source: int, target: int) -> None:
        self._link(source, target).open.clear()

    async def slow(self, node_id: int, *, delay: float, loss: float) -> None:
        self._slow[node_id] = (delay, loss)
        for (source, _), link in self._links.items():
            if source == node_id:
                link.delay, link.loss = delay, loss

    async def heal(self) -> None:
        self._slow.clear()
        for link in self._links.values():
            link.delay = link.loss = 0.0
            link.open.set()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        pumps = list(self._pumps)
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _pass(self, node_id: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on, both ways, until either side ends it."""
        try:
            host, port = self._bound[node_id].rsplit(":", 1)
            onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        caller = asyncio.get_running_loop().create_future()
        there = self._pump(reader, onward_writer, caller, node_id, outward=True)
        back = self._pump(onward_reader, writer, caller, node_id, outward=False)
        pumps = [asyncio.ensure_future(there), asyncio.ensure_future(back)]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for side in (writer, onward_writer):
                side.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        caller: "asyncio.Future[int]",
        node_id: int,
        *,
        outward: bool,
    ) -> None:
        beginning = Beginning() if outward else None
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if beginning is not None and not caller.done():
                    found = beginning.feed(data)
                    if found is not None:
                        caller.set_result(found)
                if caller.done() and caller.result():
                    ends = (caller.result(), node_id) if outward else (node_id, caller.result())
                    await self._weather(self._link(*ends))
                writer.write(data)
                await writer.drain()

    async def _weather(self, link: Link) -> None:
        if link.delay:
            await asyncio.sleep(link.delay * self._rng.uniform(0.5, 1.5))
        pause = RETRANSMISSION_SECONDS
        while link.loss and self._rng.random() < link.loss:
            await asyncio.sleep(pause)
            pause *= 2
        await link.open.wait()


class Beginning:
    """The first bytes of a connection, up to the dialer's hello."""

    def __init__(self) -> None:
        self._data = b""
        self._frames: FrameDecoder | None = None

    def feed(self, data: bytes) -> int | None:
        """Take bytes; return the id of the node that dials (0: a client) once they tell."""
        if self._frames is None:
            self._data += data
            found = decode_greeting(self._data)
            if found is None:
                return None
            self._frames = FrameDecoder(MAX_HANDSHAKE_FRAME_BYTES)
            data = self._data[found[1] :]
        for _, payload in self._frames.feed(data, most=1):
            return decode_hello(payload).node_id
        return None
