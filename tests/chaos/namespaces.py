"""A network of namespaces: each node in one of its own, with a virtual cable to one bridge. Needs root and `ip`.

A direction is cut by a wrong entry in the sender's table of neighbours: its packets go to an Ethernet address that
nobody has. Nothing tells it, as with a broken cable. Delay and loss are `tc netem`'s, where the kernel has it.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
from pathlib import Path

PORT = 5001
MOST_NODES = 253
"""Addresses of a /24 beside the bridge's own; with a member replaced each minute that is four hours."""

NOBODY = "02:00:00:00:de:ad"
_FOLDER = Path("/run/netns")
_PREFIX = "octopii-chaos-"


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def _must(*command: str) -> None:
    done = _run(*command)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def available() -> bool:
    """Whether this process may make network namespaces and a bridge."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe, bridge = f"{_PREFIX}{os.getpid()}-probe", f"opb{os.getpid() % 100_000}"
    try:
        ready = _run("ip", "netns", "add", probe).returncode == 0
        return ready and _run("ip", "link", "add", bridge, "type", "bridge").returncode == 0
    finally:
        _run("ip", "link", "del", bridge)
        _run("ip", "netns", "del", probe)


def remove_leftovers() -> None:
    """Take away what a run has left that was ended by SIGKILL."""
    for name in os.listdir(_FOLDER) if _FOLDER.exists() else []:
        owner = name.removeprefix(_PREFIX).partition("-")[0]
        if name.startswith(_PREFIX) and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _run("ip", "netns", "del", name)
            _run("ip", "link", "del", _bridge_name(int(owner)))


def _bridge_name(pid: int) -> str:
    return f"opc{pid % 1_000_000}"


class NamespaceNetwork:
    """Nodes in network namespaces on a bridge; the clients reach them from outside over the bridge."""

    name = "network namespaces"

    def __init__(self) -> None:
        """Make the bridge; raises `OSError`."""
        pid = os.getpid()
        self._bridge = _bridge_name(pid)
        self._subnet = f"10.{100 + pid // 250 % 100}.{pid % 250}"  # one for each run, in a range for private use
        self._namespaces: dict[int, str] = {}
        self._cuts: set[tuple[int, int]] = set()
        self._slowed: set[int] = set()
        _must("ip", "link", "add", self._bridge, "type", "bridge")
        try:
            _must("ip", "addr", "add", f"{self._subnet}.254/24", "dev", self._bridge)
            _must("ip", "link", "set", self._bridge, "up")
            netem = _run("tc", "qdisc", "add", "dev", self._bridge, "root", "netem", "delay", "1ms")
            self.can_slow = netem.returncode == 0
            if self.can_slow:
                _must("tc", "qdisc", "del", "dev", self._bridge, "root")
        except BaseException:
            _run("ip", "link", "del", self._bridge)
            raise

    def _ip(self, node_id: int) -> str:
        return f"{self._subnet}.{node_id}"

    async def attach(self, node_id: int) -> None:
        if node_id > MOST_NODES:
            raise OSError(f"no address is left for node {node_id}: run for a shorter time")
        namespace, outside = f"{_PREFIX}{os.getpid()}-{node_id}", f"{self._bridge}n{node_id}"
        _must("ip", "netns", "add", namespace)
        self._namespaces[node_id] = namespace
        _must("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _must("ip", "link", "set", outside, "master", self._bridge, "up")
        _must("ip", "-n", namespace, "addr", "add", f"{self._ip(node_id)}/24", "dev", "eth0")
        _must("ip", "-n", namespace, "link", "set", "eth0", "up")
        _must("ip", "-n", namespace, "link", "set", "lo", "up")

    def bind_address(self, node_id: int) -> str:
        return self.address(node_id)

    def address(self, node_id: int) -> str:
        return f"{self._ip(node_id)}:{PORT}"

    def prefix(self, node_id: int) -> list[str]:
        return ["ip", "netns", "exec", self._namespaces[node_id]]

    async def cut(self, source: int, target: int) -> None:
        self._cuts.add((source, target))
        entry = ["ip", "-n", self._namespaces[source], "neigh", "replace", self._ip(target), "lladdr", NOBODY]
        await asyncio.to_thread(_must, *entry, "dev", "eth0", "nud", "permanent")

    async def slow(self, node_id: int, *, delay: float, loss: float) -> None:
        self._slowed.add(node_id)
        rules = ["netem", "delay", f"{delay * 1e3:.0f}ms", f"{delay * 5e2:.0f}ms", "loss", f"{loss * 100:.1f}%"]
        await asyncio.to_thread(
            _must, "tc", "-n", self._namespaces[node_id], "qdisc", "replace", "dev", "eth0", "root", *rules
        )

    async def heal(self) -> None:
        for source, target in self._cuts:
            entry = ["ip", "-n", self._namespaces[source], "neigh", "del", self._ip(target), "dev", "eth0"]
            await asyncio.to_thread(_must, *entry)
        for node_id in self._slowed:
            await asyncio.to_thread(_must, "tc", "-n", self._namespaces[node_id], "qdisc", "del", "dev", "eth0", "root")
        self._cuts.clear()
        self._slowed.clear()

    async def close(self) -> None:
        with contextlib.suppress(OSError):
            for namespace in self._namespaces.values():
                _run("ip", "netns", "del", namespace)
        _run("ip", "link", "del", self._bridge)
