"""etcd as a cluster: three members on this machine with their defaults, a sync of the log before each answer included.

Its clients are processes of their own, as ours are: `python -m bench.peers.etcd_cluster ADDRESS IN_FLIGHT COUNT` puts
so many values by gRPC, etcd's own protocol, over several HTTP/2 connections to the member that leads, and answers in
JSON. Its messages are a few bytes, which are put together here, so that no generated code is needed.
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import measure
from bench.bare_cluster import free_ports
from bench.octopii_node import many_sets

NAME = "etcd, fsync"

CONNECTIONS = 2
"""HTTP/2 connections of one client process. From 1 to 8 made no difference on two processors, more was slower."""

_start_seconds = 30.0


def available() -> bool:
    """Whether etcd is installed (Debian: `etcd-server`), and a gRPC client for it."""
    try:
        import grpc.aio  # noqa: F401  (heavy, and only there for this)
    except ImportError:
        return False
    return shutil.which("etcd") is not None


def varint(number: int) -> bytes:
    """A number as protocol buffers have it."""
    data = bytearray()
    while number >= 0x80:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


def put_request(key: bytes, value: bytes) -> bytes:
    """An `etcdserverpb.PutRequest`: field 1 is the key, field 2 the value."""
    return b"\x0a" + varint(len(key)) + key + b"\x12" + varint(len(value)) + value


def fields_of(message: bytes) -> dict[int, int]:
    """The numbers in a message of protocol buffers by field; what is no number is passed over."""
    found: dict[int, int] = {}
    at = 0

    def read() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte, at = message[at], at + 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(message):
        tag = read()
        value = read()
        if tag & 7 == 2:
            at += value
        else:
            assert tag & 7 == 0, "a number or bytes"
            found[tag >> 3] = value
    return found


class Member:
    """One etcd process."""

    def __init__(self, number: int, folder: str, clients: list[str], peers: list[str]) -> None:
        self.address = clients[number]
        with (Path(folder) / f"etcd-{number}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "etcd",
                    f"--name=m{number}",
                    f"--data-dir={folder}/etcd-{number}",
                    f"--listen-client-urls=http://{clients[number]}",
                    f"--advertise-client-urls=http://{clients[number]}",
                    f"--listen-peer-urls=http://{peers[number]}",
                    f"--initial-advertise-peer-urls=http://{peers[number]}",
                    "--initial-cluster=" + ",".join(f"m{n}=http://{peer}" for n, peer in enumerate(peers)),
                    "--initial-cluster-state=new",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running() -> Iterator[str]:
    """A cluster of three that has a leader; yields the leader's address."""
    ports = free_ports(6)
    clients, peers = [f"127.0.0.1:{port}" for port in ports[:3]], [f"127.0.0.1:{port}" for port in ports[3:]]
    with measure.scratch_folder() as folder:
        members = [Member(number, folder, clients, peers) for number in range(3)]
        try:
            yield asyncio.run(_leader(clients))
        finally:
            for member in members:
                member.kill()


async def _leader(addresses: list[str]) -> str:
    """The address of the member that leads: its status has the same id as `leader` (field 4) and in its header."""
    import grpc.aio

    deadline = time.monotonic() + _start_seconds
    while time.monotonic() < deadline:
        for address in addresses:
            async with grpc.aio.insecure_channel(address) as channel:
                status = channel.unary_unary("/etcdserverpb.Maintenance/Status")
                try:
                    answer = await status(b"", timeout=1.0)
                except grpc.aio.AioRpcError:
                    continue
            assert answer[0] == 0x0A, "field 1, the header"
            header = fields_of(answer[2 : 2 + answer[1]])
            if fields_of(answer).get(4, 0) == header[2]:
                return address
        await asyncio.sleep(0.1)
    raise AssertionError(f"etcd has no leader within {_start_seconds} s")


async def put_many(address: str, in_flight: int, count: int) -> None:
    """The client process: connect, put once, say `ready`, wait for a line, and measure."""
    import grpc.aio

    async with contextlib.AsyncExitStack() as stack:
        puts = []
        for _ in range(CONNECTIONS):
            options = [("grpc.use_local_subchannel_pool", 1)]  # or all channels would share one connection
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            puts.append(channel.unary_unary("/etcdserverpb.KV/Put"))
        turn = 0

        async def call(command: bytes) -> bytes:
            nonlocal turn
            turn += 1
            _, key, value = command.split(b" ", 2)
            answer: bytes = await puts[turn % CONNECTIONS](put_request(key, value))
            return answer

        for _ in range(CONNECTIONS):
            await call(b"SET warm up")
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        print(json.dumps(await many_sets(call, in_flight=in_flight, count=count)), flush=True)


if __name__ == "__main__":
    asyncio.run(put_many(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
