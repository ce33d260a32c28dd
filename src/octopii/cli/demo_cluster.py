"""What `octopii demo` works with: a cluster of `octopii serve` processes, and customers who write all the time."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octopii.client import Client
from octopii.errors import NotApplied, OctopiiError, OutcomeUnknown
from octopii.wire.call import CallLimits
from octopii.wire.links import LinkLimits

look_seconds = 0.2
"""How often each node is asked how it is."""

answer_seconds = 1.0
"""How long a node may take to say so before it counts as silent."""

stop_seconds = 15.0
"""How long a node may take to end in order."""

in_flight = 8
"""Orders that one customer has under way."""

settings = """\
# The log is cut early, so that a node that was away for seconds needs a snapshot.
snapshot_every_entries = 400
log_keep_entries = 50
"""

_impatient = CallLimits(links=LinkLimits(follow_leader=False, delay_max=0.2, shun=0.1))


def free_addresses(count: int) -> list[str]:
    """Addresses on loopback that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


class Node:
    """One `octopii serve` process, and what it last said of itself."""

    def __init__(
        self, node_id: int, address: str, *, command: list[str], environment: dict[str, str], log_file: Path
    ) -> None:
        self.id = node_id
        self._log_file = log_file
        self.address = address
        self.command = command
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self.last_lines: list[str] = []
        self.facts: dict[str, Any] = {}
        self.answers = False

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    async def start(self, heard: Callable[[int, str], None]) -> None:
        """Start the process; `heard` gets the lines of its log."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "octopii.cli",
            *self.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends its nodes
        )
        self._reading = asyncio.create_task(self._read(self._process, heard))

    async def _read(self, process: asyncio.subprocess.Process, heard: Callable[[int, str], None]) -> None:
        assert process.stderr is not None
        with self._log_file.open("a", encoding="utf-8") as log:
            async for line in process.stderr:
                text = line.decode(errors="replace").rstrip()
                print(text, file=log, flush=True)
                with contextlib.suppress(ValueError):  # a line that is no JSON is no line of the node's log
                    message = str(json.loads(text)["message"])
                    self.last_lines = [*self.last_lines[-9:], message]
                    heard(self.id, message)

    async def look(self) -> None:
        """Ask the node how it is."""
        if self._client is None:
            self._client = Client([self.address], timeout=answer_seconds, limits=_impatient)
        try:
            self.facts = await self._client.status()
            self.answers = True
        except OctopiiError:
            self.answers = False

    async def audit(self, question: bytes) -> bytes:
        """Ask this node's own replica."""
        assert self._client is not None
        return await self._client.query(question, consistency="stale", timeout=20.0)

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal and wait for the end; one that does not end in time is killed."""
        process = self._process
        if process is None:
            return
        self.answers = False
        if process.returncode is None:
            process.send_signal(number)
            try:
                await asyncio.wait_for(process.wait(), stop_seconds)
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._reading is not None:
            await self._reading

    async def close(self) -> None:
        """Kill the process and forget the connection."""
        await self.kill()
        if self._client is not None:
            await self._client.close()
            self._client = None


class Cluster:
    """Some nodes on loopback, in one folder."""

    def __init__(self, folder: Path, *, machine: str, machine_folder: Path, heard: Callable[[int, str], None]) -> None:
        self._heard = heard
        addresses = dict(enumerate(free_addresses(3), 1))
        config = folder / "settings.toml"
        config.write_text(settings, encoding="utf-8")
        path = os.pathsep.join([str(machine_folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        self.nodes: dict[int, Node] = {}
        for node_id, address in addresses.items():
            command = ["serve", "--node-id", str(node_id), "--bind", address]
            for peer, its_address in addresses.items():
                if peer != node_id:
                    command += ["--peer", f"{peer}={its_address}"]
            command += ["--wal-dir", str(folder / f"node-{node_id}"), "--machine", machine, "--config", str(config)]
            command += ["--log-format", "json", *(["--initial-leader"] if node_id == 1 else [])]
            log_file = folder / f"node-{node_id}.log"
            self.nodes[node_id] = Node(node_id, address, command=command, environment=environment, log_file=log_file)

    @property
    def addresses(self) -> list[str]:
        """Where the nodes listen."""
        return [node.address for node in self.nodes.values()]

    async def start(self, node_id: int) -> None:
        """Start one node, for the first time or again."""
        await self.nodes[node_id].start(self._heard)

    async def look(self) -> None:
        """Ask all nodes how they are."""
        await asyncio.gather(*(node.look() for node in self.nodes.values() if node.runs))

    @property
    def leader(self) -> Node | None:
        """The node that says that it leads, in the newest term."""
        leading = [n for n in self.nodes.values() if n.runs and n.answers and n.facts["role"] == "leader"]
        return max(leading, key=lambda node: int(node.facts["term"]), default=None)

    async def close(self) -> None:
        """Kill every process."""
        await asyncio.gather(*(node.close() for node in self.nodes.values()))


class Customer:
    """Places numbered orders one after the other, a few at a time, and notes what became of each."""

    def __init__(self, name: str, addresses: list[str], order: Callable[[str, int], bytes]) -> None:
        self.name = name
        self._client = Client(addresses, timeout=20.0)
        self._order = order
        self._next = 0
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self.retried = 0
        self.last_acknowledged = 0.0
        self._stopping = False

    async def run(self) -> None:
        """Place orders until `stop`."""
        await asyncio.gather(*(self._place_orders() for _ in range(in_flight)))

    async def _place_orders(self) -> None:
        while not self._stopping:
            number, self._next = self._next, self._next + 1
            await self._place(number)

    async def _place(self, number: int) -> None:
        while True:
            try:
                await self._client.propose(self._order(self.name, number))
            except NotApplied:
                self.retried += 1  # it is certain that it does not count: the same order may be placed again
                await asyncio.sleep(0.01)
                continue
            except OutcomeUnknown:
                self.unknown.add(number)
                return
            self.acknowledged.add(number)
            self.last_acknowledged = time.monotonic()
            return

    def stop(self) -> None:
        """Let orders under way end, and place no more."""
        self._stopping = True

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()
