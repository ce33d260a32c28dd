"""Whatever comes in over the port: garbage, half frames, silence. The node shrugs and goes on."""

import asyncio
import contextlib
import logging
import resource
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octopii import Client, OctopiiNode
from octopii.node.server import Server
from octopii.wire.frames import FrameType, Greeting, encode_frame, encode_greeting
from octopii.wire.handshake import Hello, Role, encode_hello
from octopii.wire.requests import Consistency, Query, StatusRequest, encode_request
from tests.node.cluster import Cluster, patience, until

GREETING = encode_greeting(Greeting())
HELLO = encode_frame(FrameType.HELLO, encode_hello(Hello(role=Role.CLIENT)))
STATUS = encode_frame(FrameType.REQUEST, encode_request(StatusRequest(1)))

ATTACKS = {
    "garbage": b"GET / HTTP/1.1\r\nHost: octopii\r\n\r\n",
    "zeros": bytes(4096),
    "half a greeting": GREETING[:5],
    "a frame before the hello": GREETING + STATUS,
    "two hellos": GREETING + HELLO + HELLO,
    "an oversized frame": GREETING + HELLO + struct.pack("<IBQ", 1 << 31, FrameType.REQUEST, 0),
    "a damaged frame": GREETING + HELLO + STATUS[:-1] + b"\x00",
    "an unknown frame": GREETING + HELLO + encode_frame(99, b""),
    "a node's frame from a client": GREETING + HELLO + encode_frame(FrameType.RAFT, b"\x90"),
    "garbage in a frame": GREETING + HELLO + encode_frame(FrameType.REQUEST, b"\xff" * 100),
}


async def _single(folder: Path, **settings: Any) -> tuple[Cluster, OctopiiNode]:
    cluster = Cluster(folder, 1, **settings)
    await cluster.start()
    node = await cluster.leader()
    await node.propose(b"SET alive yes", timeout=patience)
    return cluster, node


@pytest.mark.parametrize("name", ATTACKS)
def test_a_broken_peer_is_cut_off_and_harms_nobody(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The connection is closed (after the handshake's time at the latest), logged once, and calls go on."""

    async def play() -> None:
        cluster, node = await _single(tmp_path, handshake_timeout=0.3)
        host, port = node.address.split(":")
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(ATTACKS[name])
            await asyncio.wait_for(reader.read(), patience)  # to its end: the node has closed it
            writer.close()
        assert await node.query(b"GET alive") == b"yes"
        await cluster.stop()

    with caplog.at_level(logging.WARNING, "octopii"):
        asyncio.run(play())
    cut_off = [record for record in caplog.records if "cut off" in record.getMessage()]
    assert len(cut_off) == 1


REQUESTS = 4000
"""Queries of a client that reads no answers; together half a gigabyte of them."""


def _server(node: OctopiiNode) -> Server:
    """The listening side of a node."""
    return node._host.engine.board._server


def _memory_bytes() -> int:
    """Memory of this process that is not shared, as the kernel counts it."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * resource.getpagesize()


def test_silent_connections_are_closed_and_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """1,000 connections that say nothing, again and again: all are closed, logged once, and memory stays flat.

    A client is served meanwhile.
    """

    async def play() -> None:
        cluster, node = await _single(tmp_path, handshake_timeout=0.5, max_handshakes=64)
        host, port = node.address.split(":")

        async def wave() -> None:
            connections = [await asyncio.open_connection(host, int(port)) for _ in range(500)]
            assert await node.propose(b"SET still yes", timeout=patience) == b"OK"
            async with Client(node.address) as client:
                assert await client.query(b"GET still", timeout=patience) == b"yes"
            ends = await asyncio.wait_for(
                asyncio.gather(*(reader.read() for reader, _ in connections), return_exceptions=True), patience
            )
            assert all(end == b"" or isinstance(end, ConnectionError) for end in ends)
            for _, writer in connections:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for _, writer in connections), return_exceptions=True)

        await wave()
        before = _memory_bytes()
        await wave()
        await wave()
        assert _memory_bytes() - before < 8 << 20
        server = _server(node)
        assert len(server._strangers) + len(server._admitted) == 0
        await cluster.stop()

    with caplog.at_level(logging.WARNING, "octopii"):
        asyncio.run(play())
    assert len([record for record in caplog.records if "cut off" in record.getMessage()]) <= 1


def test_connections_beyond_the_limit_are_closed(tmp_path: Path) -> None:
    """Clients that are let in and never leave: beyond `max_connections` the next ones are closed, none is harmed."""

    async def play() -> None:
        cluster, node = await _single(tmp_path, max_connections=10)
        host, port = node.address.split(":")
        held = []
        for _ in range(10):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(GREETING + HELLO)
            assert await asyncio.wait_for(reader.read(1), patience)
            held.append((reader, writer))
        await until(lambda: len(_server(node)._admitted) == 10, "ten are let in")
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), patience) in (b"", GREETING)
        writer.close()
        held[0][1].close()
        await until(lambda: len(_server(node)._admitted) == 9, "one has left")
        async with Client(node.address) as client:
            assert await client.query(b"GET alive", timeout=patience) == b"yes"
        for _, writer in held:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in held), return_exceptions=True)
        await cluster.stop()

    asyncio.run(play())


def test_a_client_that_takes_no_answers_is_not_read_from(tmp_path: Path) -> None:
    """A client asks for large answers and reads none: what waits for it stays bounded, and others are served."""

    async def play() -> None:
        cluster, node = await _single(
            tmp_path,
            client_queue_bytes=2 << 20,
            max_frame_bytes=2 << 20,
            max_batch_bytes=1 << 18,
            max_command_bytes=1 << 18,
        )
        await node.propose(b"SET large " + bytes(128 << 10), timeout=patience)
        host, port = node.address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(GREETING + HELLO)
        ask = Query(request_id=1, consistency=Consistency.STALE, commands=[b"GET large"], timeout_ns=10**9)
        for number in range(REQUESTS):
            writer.write(
                encode_frame(FrameType.REQUEST, encode_request(msgspec.structs.replace(ask, request_id=number)))
            )
        await until(lambda: any(one.unsent_bytes for one in _server(node)._admitted), "answers wait")
        await node.query(b"GET alive")
        [connection] = _server(node)._admitted
        assert connection.unsent_bytes < 64 << 20
        assert await node.query(b"GET alive", timeout=patience) == b"yes"
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await until(lambda: not _server(node)._admitted, "the connection is gone")
        await cluster.stop()

    asyncio.run(play())


def test_a_client_of_another_protocol_version_is_refused_in_words(tmp_path: Path) -> None:
    """Versions that this node does not speak get a greeting that says which it speaks."""

    async def play() -> bytes:
        cluster, node = await _single(tmp_path)
        host, port = node.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(encode_greeting(Greeting(oldest=900, newest=901)))
        answer = await asyncio.wait_for(reader.read(), patience)
        writer.close()
        await cluster.stop()
        return answer

    assert b"speaks versions 900 to 901" in asyncio.run(play())
