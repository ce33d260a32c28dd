"""Octopii as a contestant: nodes in processes of their own, asked through their standard input."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench import measure
from bench.bare_cluster import free_ports

NAME = "octopii"

_patience_seconds = 60

Answer = dict[str, Any]


class Node:
    """One process."""

    def __init__(self, node_id: int, folder: str, addresses: list[str], options: Answer) -> None:
        self.id = node_id
        command = [sys.executable, "-m", "bench.octopii_node", str(node_id), folder, ",".join(addresses)]
        self.process = subprocess.Popen(
            [*command, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=measure.WORK.parent.parent,
        )

    def ask(self, do: str, **arguments: int) -> Answer:
        """Have it measure something and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, f"node {self.id} has died"
        answer: Answer = json.loads(line)
        return answer

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.communicate()


class Cluster:
    """So many nodes on this machine."""

    def __init__(self, folder: str, *, size: int = 3, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self.addresses = [f"127.0.0.1:{port}" for port in free_ports(size)]
        self.nodes = [Node(number, folder, self.addresses, options) for number in range(1, size + 1)]

    def leader(self) -> Node:
        """The node that leads, once there is one."""
        deadline = time.monotonic() + _patience_seconds
        while time.monotonic() < deadline:
            for node in self.nodes:
                if node.ask("leads")["leads"]:
                    return node
            time.sleep(0.02)
        raise AssertionError(f"no leader within {_patience_seconds} s")

    def restart(self, node: Node) -> None:
        """Start a killed node again."""
        self.nodes[node.id - 1] = Node(node.id, self.folder, self.addresses, self.options)

    def close(self) -> None:
        """End all processes at once: the folder goes as well."""
        for node in self.nodes:
            node.kill()


@contextlib.contextmanager
def running(*, size: int = 3, **options: Any) -> Iterator[Cluster]:
    """A cluster that has a leader and has answered once."""
    with measure.scratch_folder() as folder:
        cluster = Cluster(folder, size=size, **options)
        try:
            cluster.leader().ask("propose", in_flight=1, count=1)
            yield cluster
        finally:
            cluster.close()


def run_module(module: str, *arguments: str) -> list[Answer]:
    """Run a bare loop or a peer in a process of its own; returns its lines, each a JSON object."""
    ran = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=measure.WORK.parent.parent, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return [json.loads(line) for line in ran.stdout.splitlines()]
