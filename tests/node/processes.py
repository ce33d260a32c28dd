"""Clusters of real processes, each one `octopii serve`: what only a process can show, as a `kill -9`."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from octopii import Client, NotApplied, OutcomeUnknown
from tests.node.cluster import eventually, free_addresses, patience

SETTINGS: dict[str, Any] = {
    "election_timeout": 0.5,
    "heartbeat_interval": 0.05,
    "disk_low_water_bytes": 0,
    "disk_reserve_bytes": 64 << 10,
}


def toml(settings: dict[str, Any]) -> str:
    """Settings as the text of a file; JSON's strings, numbers and booleans are also TOML's."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


class ProcessCluster:
    """Nodes as processes, by id. Whatever is still there at the end is killed."""

    start_seconds = patience
    """Within this time after its start a node listens."""

    def __init__(self, folder: Path, size: int = 3, *, machine: str = "", **settings: Any) -> None:
        self.folder = folder
        self.addresses = dict(enumerate(free_addresses(size), 1))
        self._machine = machine or "octopii.machines:KvStateMachine"
        self._settings = SETTINGS | settings
        self.processes: dict[int, subprocess.Popen[str]] = {}

    @property
    def all_addresses(self) -> list[str]:
        """Where the nodes listen."""
        return list(self.addresses.values())

    def log_of(self, node_id: int) -> str:
        """What a node has logged."""
        return (self.folder / f"node-{node_id}.log").read_text()

    async def start(self, *node_ids: int) -> None:
        """Start nodes (all, without ids) and wait until each listens."""
        chosen = node_ids or tuple(self.addresses)
        for node_id in chosen:
            self._spawn(node_id)
        loop = asyncio.get_running_loop()
        for node_id in chosen:
            output = self.processes[node_id].stdout
            assert output is not None
            try:
                line = await asyncio.wait_for(loop.run_in_executor(None, output.readline), self.start_seconds)
            except TimeoutError:
                raise AssertionError(f"node {node_id} does not listen after {self.start_seconds:g} s") from None
            assert "listens on" in line, self.log_of(node_id)

    def command(self, node_id: int) -> list[str]:
        """How a node is started."""
        settings = self.folder / f"node-{node_id}.toml"
        settings.write_text(toml(self._settings))
        command = [sys.executable, "-c", "from octopii.cli import main; main()", "serve", "--config", str(settings)]
        command += ["--node-id", str(node_id), "--bind", self.addresses[node_id], "--machine", self._machine]
        command += ["--wal-dir", str(self.folder / f"node-{node_id}")]
        for peer, address in self.addresses.items():
            if peer != node_id:
                command += ["--peer", f"{peer}={address}"]
        if node_id == 1:
            command.append("--initial-leader")
        return command

    def _spawn(self, node_id: int) -> None:
        command = self.command(node_id)
        with (self.folder / f"node-{node_id}.log").open("a") as log:
            self.processes[node_id] = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self.folder
            )

    def kill(self, *node_ids: int) -> None:
        """End nodes (all, without ids) as a power cut would, without a word."""
        for node_id in node_ids or tuple(self.processes):
            process = self.processes.pop(node_id)
            process.kill()
            process.wait(patience)
            if process.stdout is not None:
                process.stdout.close()

    async def end(self, *node_ids: int) -> None:
        """Ask nodes (all, without ids) to end in order, and see that they do."""
        chosen = node_ids or tuple(self.processes)
        for node_id in chosen:
            self.processes[node_id].terminate()
        loop = asyncio.get_running_loop()
        for node_id in chosen:
            process = self.processes[node_id]
            assert await loop.run_in_executor(None, process.wait, patience) == 0, self.log_of(node_id)
            del self.processes[node_id]
            if process.stdout is not None:
                process.stdout.close()

    async def all_joined(self) -> None:
        """Wait until every node has something of the log: from then on, any majority of them can elect a leader."""
        for address in self.all_addresses:
            async with Client([address]) as client:

                async def joined(client: Client = client) -> bool:
                    return int((await client.status(timeout=1.0))["last_index"]) > 0

                await eventually(joined, f"the node at {address} has joined")

    async def leader(self, client: Client) -> int:
        """Id of the running node that leads, as a running node says."""
        found: list[int] = []

        async def there() -> bool:
            leader = int((await client.status(timeout=1.0))["leader"])
            found[:] = [leader] if leader in self.processes else []
            return bool(found)

        await eventually(there, "a leader")
        return found[0]

    async def ask_each(self, command: bytes, consistency: Any = "linearizable") -> dict[int, bytes]:
        """The same query, asked of each running node by a client that knows no other."""
        answers = {}
        for node_id in self.processes:
            async with Client([self.addresses[node_id]]) as client:
                answers[node_id] = await client.query(command, consistency=consistency, timeout=patience)
        return answers


@contextlib.asynccontextmanager
async def running_processes(folder: Path, size: int = 3, **settings: Any) -> AsyncIterator[ProcessCluster]:
    """A cluster of processes that takes calls; none is left at the end."""
    cluster = ProcessCluster(folder, size, **settings)
    try:
        await cluster.start()
        await cluster.all_joined()
        yield cluster
    finally:
        cluster.kill()


async def retried(client: Client, command: bytes) -> bytes:
    """Propose until it is known to be applied; for commands that may be applied twice."""
    answers: list[bytes] = []

    async def done() -> bool:
        with contextlib.suppress(NotApplied, OutcomeUnknown):
            answers.append(await client.propose(command, timeout=5.0))
        return bool(answers)

    await eventually(done, f"{command!r} is applied")
    return answers[0]
