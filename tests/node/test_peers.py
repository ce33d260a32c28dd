"""The connections that a node dials to others."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from octopii import Config
from octopii.node.peers import Link, PeerLinks, silent_elections
from octopii.node.transport import Connection
from octopii.wire.handshake import Hello, Role


@pytest.mark.parametrize(("role", "expected"), [(Role.NODE, 1400), (Role.SNAPSHOT, 0)])
def test_a_link_that_acknowledges_nothing_is_given_up_soon(role: Role, expected: int) -> None:
    """A link between nodes ends after two election timeouts of silence; one for snapshots may wait for a slow disk."""
    assert silent_elections == 2

    async def milliseconds() -> int:
        around: Any = SimpleNamespace(config=Config(election_timeout=0.7), notify=lambda: None, link_up=lambda *_: None)
        link = Link(cast(PeerLinks, around), 2, role)
        mute: Any = SimpleNamespace(start=lambda: b"", is_dialer=True, error=None)
        connection = Connection(cast(Any, link), lambda _: mute)
        link._connection = connection
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: connection, host, port)
        link.admitted(connection, Hello(role=Role.NODE, node_id=2, storage_id=bytes(16)))
        used = transport.get_extra_info("socket")
        limit = used.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        link.close()
        transport.abort()
        server.close()
        await server.wait_closed()
        return int(limit)

    assert asyncio.run(milliseconds()) == expected
