"""A cluster of `octopii serve` processes that can be killed, paused, filled up, and given other members."""

import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.chaos.disks import SmallDisk, may_mount
from tests.chaos.network import Network
from tests.node.processes import ProcessCluster

ROOT = Path(__file__).resolve().parents[2]

ELECTION_SECONDS = 0.5
"""The election timeout of the nodes."""

SETTINGS: dict[str, Any] = {
    "election_timeout": ELECTION_SECONDS,
    "heartbeat_interval": 0.05,
    "reconnect_delay_max": 0.5,
    "disk_low_water_bytes": 8 << 20,
    "disk_reserve_bytes": 256 << 10,
    # Small, so that minutes hold many snapshots, and followers that have to be sent one.
    "snapshot_every_entries": 2_000,
    "log_keep_entries": 500,
    "compact_interval": 5.0,
}


class ChaosCluster(ProcessCluster):
    """Nodes as processes, by id. Ids grow: a node that was removed never comes back, another takes its place."""

    start_seconds = 120.0  # several interpreters at once, on a machine that may be busy with other things

    def __init__(self, folder: Path, network: Network, size: int) -> None:
        super().__init__(folder, 0, machine="tests.chaos.machine:ChaosStateMachine", **SETTINGS)
        self.network = network
        self.size = size
        self.disks: dict[int, SmallDisk] = {}
        self.paused: set[int] = set()
        self.next_id = 1
        self._mounts = may_mount(folder / "probe")

    async def found(self) -> None:
        """Start the founding members and wait until all have joined."""
        for _ in range(self.size):
            await self.place()
        await self.start()
        await self.all_joined()

    async def place(self) -> int:
        """Give a new node an id, an address and a folder; every other one gets a small disk where that is allowed."""
        node_id = self.next_id
        self.next_id += 1
        await self.network.attach(node_id)
        self.addresses[node_id] = self.network.address(node_id)
        if self._mounts and node_id % 2 == 0:
            self.disks[node_id] = SmallDisk(self.folder / f"disk-{node_id}")
        return node_id

    def command(self, node_id: int) -> list[str]:
        """How a node is started: where the network says, in its folder."""
        command = super().command(node_id)
        command[command.index("--bind") + 1] = self.network.bind_address(node_id)
        command += ["--advertise", self.network.address(node_id), "--insecure"]
        if node_id in self.disks:
            command[command.index("--wal-dir") + 1] = str(self.disks[node_id].folder / "log")
        return self.network.prefix(node_id) + command

    def _spawn(self, node_id: int) -> None:
        with (self.folder / f"node-{node_id}.log").open("a") as log:
            self.processes[node_id] = subprocess.Popen(
                self.command(node_id), stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )

    def kill(self, *node_ids: int) -> None:
        """End nodes (all, without ids) without a word, paused ones too."""
        super().kill(*node_ids)
        self.paused.difference_update(node_ids or tuple(self.paused))

    def pause(self, node_id: int) -> None:
        """Stop a node in its tracks."""
        self.processes[node_id].send_signal(signal.SIGSTOP)
        self.paused.add(node_id)

    def resume(self) -> None:
        """Let all paused nodes go on."""
        for node_id in self.paused:
            self.processes[node_id].send_signal(signal.SIGCONT)
        self.paused.clear()

    def forget(self, node_id: int) -> None:
        """Drop a node that was removed, its process and its disk."""
        if node_id in self.processes:
            self.kill(node_id)
        del self.addresses[node_id]
        if node_id in self.disks:
            self.disks.pop(node_id).close()

    def dead(self) -> dict[int, int]:
        """Nodes whose process has ended by itself, with its exit code."""
        codes = {node_id: process.poll() for node_id, process in self.processes.items()}
        return {node_id: code for node_id, code in codes.items() if code is not None}

    def cpu_seconds(self) -> float:
        """Processor time that the nodes have taken, those that have ended included."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        ticks = 0
        for process in self.processes.values():
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")

    def complaints(self) -> list[str]:
        """Lines of the nodes' logs that speak of a bug: tracebacks, failed assertions."""
        found = []
        for path in sorted(self.folder.glob("node-*.log")):
            for line in path.read_text().splitlines():
                if "Traceback" in line or "AssertionError" in line:
                    found.append(f"{path.stem}: {line[:200]}")
        return found

    async def close(self) -> None:
        """End everything."""
        self.kill()
        for disk in self.disks.values():
            disk.close()
        await self.network.close()
