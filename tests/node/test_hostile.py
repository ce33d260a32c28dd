"""Whatever comes in over the port: garbage, half frames, silence. The node shrugs and goes on."""

import asyncio
import logging
import struct
from pathlib import Path
from typing import Any

import pytest

from octopii import OctopiiNode
from octopii.wire.frames import FrameType, Greeting, encode_frame, encode_greeting
from octopii.wire.handshake import Hello, Role, encode_hello
from octopii.wire.requests import StatusRequest, encode_request
from tests.node.cluster import Cluster, patience

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


def test_silent_connections_are_closed_and_bounded(tmp_path: Path) -> None:
    """1,000 connections that say nothing: all are closed, and a client is served meanwhile."""

    async def play() -> None:
        cluster, node = await _single(tmp_path, handshake_timeout=1.0, max_handshakes=64)
        host, port = node.address.split(":")
        connections = []
        for _ in range(1000):
            connections.append(await asyncio.open_connection(host, int(port)))
        assert await node.propose(b"SET still yes", timeout=patience) == b"OK"
        ends = await asyncio.wait_for(
            asyncio.gather(*(reader.read() for reader, _ in connections), return_exceptions=True), patience
        )
        assert all(end == b"" or isinstance(end, ConnectionError) for end in ends)
        for _, writer in connections:
            writer.close()
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
