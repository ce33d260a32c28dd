"""The bare cluster that the cluster budgets refer to: what three Python processes can do at all.

One fixed leader, two followers. A batch of commands is appended to a mapped file and sent; each process runs its own
fdatasync on a thread; followers acknowledge; with a majority the leader applies on another thread, and the waiting
futures are resolved, one hand-over for each batch. No elections, no recovery, no sessions, no errors: a ceiling to
measure against, and no example to follow.

    python -m bench.bare_cluster [--no-sync] [--in-flight 1,16,64,256,1024]      starts its two followers itself

Prints one JSON object for each number of commands in flight: rate (per second), p50 and p99 (seconds).
"""

import argparse
import asyncio
import json
import mmap
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import msgspec
import uvloop
import xxhash

from bench import measure

COMMANDS_IN_ALL = 200_000  # at most, for one number of clients
COMMANDS_EACH = 3000  # at most, for one client

_log_bytes = 1 << 28
_fill_bytes = 1 << 16
_follower_life_seconds = 300
_record_header = struct.Struct("<QQ")
_frame_length = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode_batch = msgspec.msgpack.Decoder(tuple[int, list[bytes]]).decode
_decode_number = msgspec.msgpack.Decoder(int).decode

Batch = list[tuple[bytes, "asyncio.Future[bytes]"]]


class Log:
    """Checksummed records in a mapped file, from the start again when it is full; syncs on a thread of its own."""

    def __init__(self, path: str, *, durable: bool) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(self._descriptor, 0, _log_bytes)
        self._map, self._at, self._durable = mmap.mmap(self._descriptor, _log_bytes), 0, durable
        for start in range(0, _log_bytes, _fill_bytes):
            self._map[start : start + _fill_bytes] = bytes(_fill_bytes)
        os.fsync(self._descriptor)
        self._thread = ThreadPoolExecutor(1)

    def write(self, data: bytes) -> None:
        if self._at + len(data) + _record_header.size > _log_bytes:
            self._at = 0
        _record_header.pack_into(self._map, self._at, xxhash.xxh3_64_intdigest(data), len(data))
        start = self._at + _record_header.size
        self._at = start + len(data)
        self._map[start : self._at] = data

    async def sync(self) -> None:
        if self._durable:
            await asyncio.get_running_loop().run_in_executor(self._thread, os.fdatasync, self._descriptor)
        else:
            await asyncio.sleep(0)


class Frames(asyncio.Protocol):
    """Length-prefixed messages, handed to `receive` one by one."""

    transport: asyncio.Transport

    def __init__(self, receive: Callable[["Frames", bytes], None]) -> None:
        self._buffer, self._receive = bytearray(), receive

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer, at = self._buffer, 0
        buffer += data
        while len(buffer) - at >= 4:
            (length,) = _frame_length.unpack_from(buffer, at)
            if len(buffer) - at - 4 < length:
                break
            self._receive(self, bytes(buffer[at + 4 : at + 4 + length]))
            at += 4 + length
        if at:
            del buffer[:at]

    def send(self, data: bytes) -> None:
        self.transport.write(_frame_length.pack(len(data)) + data)


class Table:
    """The state machine: keys and values."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def apply(self, command: bytes) -> bytes:
        _, key, value = command.split(b" ", 2)
        self._values[key] = value
        return b"OK"


class Follower:
    """Writes what it gets, syncs once for all that came meanwhile, applies, acknowledges."""

    def __init__(self, path: str, *, durable: bool) -> None:
        self._log, self._table = Log(path, durable=durable), Table()
        self._waiting: list[bytes] = []
        self._task: asyncio.Task[None] | None = None

    def receive(self, leader: Frames, raw: bytes) -> None:
        self._waiting.append(raw)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(leader))

    async def _work(self, leader: Frames) -> None:
        while self._waiting:
            batches, self._waiting = self._waiting, []
            for raw in batches:
                self._log.write(raw)
            await self._log.sync()
            for raw in batches:
                number, commands = _decode_batch(raw)
                for command in commands:
                    self._table.apply(command)
                leader.send(_encode(number))
        self._task = None


class Leader:
    """Batches what is proposed while a sync runs; a command is done once two of three have it on disk."""

    def __init__(self, path: str, *, durable: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._log, self._table = Log(path, durable=durable), Table()
        self._peers: list[Frames] = []
        self._acknowledged = [0, 0, 0]
        self._number = self._committed = 0
        self._sent: dict[int, Batch] = {}
        self._waiting: Batch = []
        self._task: asyncio.Task[None] | None = None
        self._committed_batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        threading.Thread(target=self._apply, daemon=True).start()

    async def connect(self, port: int) -> None:
        node = len(self._peers) + 1

        def receive(_peer: Frames, raw: bytes) -> None:
            self._acknowledge(node, _decode_number(raw))

        _, peer = await self._loop.create_connection(lambda: Frames(receive), "127.0.0.1", port)
        self._peers.append(peer)

    def propose(self, command: bytes) -> "asyncio.Future[bytes]":
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append((command, future))
        if self._task is None:
            self._task = self._loop.create_task(self._work())
        return future

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            self._number += 1
            number = self._number
            self._sent[number] = batch
            raw = _encode((number, [command for command, _ in batch]))
            for peer in self._peers:
                peer.send(raw)
            self._log.write(raw)
            await self._log.sync()
            self._acknowledge(0, number)
        self._task = None

    def _acknowledge(self, node: int, number: int) -> None:
        self._acknowledged[node] = number
        while self._committed < sorted(self._acknowledged)[1]:
            self._committed += 1
            self._committed_batches.put(self._sent.pop(self._committed))

    def _apply(self) -> None:
        while True:
            batch = self._committed_batches.get()
            while not self._committed_batches.empty():
                batch = batch + self._committed_batches.get()
            answers = [self._table.apply(command) for command, _ in batch]
            self._loop.call_soon_threadsafe(self._resolve, batch, answers)

    @staticmethod
    def _resolve(batch: Batch, answers: Sequence[bytes]) -> None:
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)


async def follow(port: int, folder: str, *, durable: bool) -> None:
    follower = Follower(f"{folder}/log-{port}", durable=durable)
    await asyncio.get_running_loop().create_server(lambda: Frames(follower.receive), "127.0.0.1", port)
    print("ready", flush=True)
    await asyncio.sleep(_follower_life_seconds)


async def lead(ports: Sequence[int], folder: str, *, durable: bool, in_flight: Sequence[int]) -> None:
    leader = Leader(f"{folder}/log-leader", durable=durable)
    for port in ports:
        await leader.connect(port)

    async def client(count: int, latencies: list[float]) -> None:
        for number in range(count):
            start = time.perf_counter()
            await leader.propose(b"SET key%d %s" % (number % 1000, b"v" * 92))
            latencies.append(time.perf_counter() - start)

    for clients in in_flight:
        total, latencies = min(COMMANDS_IN_ALL, COMMANDS_EACH * clients), list[float]()
        start = time.perf_counter()
        await asyncio.gather(*(client(total // clients, latencies) for _ in range(clients)))
        took = time.perf_counter() - start
        latencies.sort()
        p50, p99 = (latencies[int(len(latencies) * quantile)] for quantile in (0.5, 0.99))
        print(json.dumps({"in_flight": clients, "rate": len(latencies) / took, "p50": p50, "p99": p99}), flush=True)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody has now: all are held until the last is found."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def run(*, durable: bool, in_flight: Sequence[int]) -> None:
    with measure.scratch_folder() as folder:
        ports = free_ports(2)
        flags = [] if durable else ["--no-sync"]
        command = [sys.executable, "-m", "bench.bare_cluster", *flags, "--follower"]
        followers = [
            subprocess.Popen([*command, str(port), folder], stdout=subprocess.PIPE, cwd=measure.WORK.parent.parent)
            for port in ports
        ]
        try:
            for follower in followers:
                assert follower.stdout is not None
                follower.stdout.readline()
            uvloop.run(lead(ports, folder, durable=durable, in_flight=in_flight))
        finally:
            for follower in followers:
                follower.kill()
                follower.communicate()


def main() -> None:
    """Measure each number of clients once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-sync", action="store_true", help="leave fdatasync out")
    parser.add_argument("--in-flight", default="1,16,64,256,1024", help="numbers of concurrent clients")
    parser.add_argument("--follower", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follower:
        uvloop.run(follow(int(options.follower[0]), options.follower[1], durable=not options.no_sync))
    else:
        run(durable=not options.no_sync, in_flight=[int(number) for number in options.in_flight.split(",")])


if __name__ == "__main__":
    main()
