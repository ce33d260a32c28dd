"""Runs the real executable: single commands, and nodes that are started, killed and ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

OCTOPII = Path(sys.executable).with_name("octopii")

patience_seconds = 40.0


def octopii(
    *arguments: object, data: bytes | None = None, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command to its end."""
    return subprocess.run(
        [OCTOPII, *map(str, arguments)],
        input=data,
        stdin=None if data is not None else subprocess.DEVNULL,
        capture_output=True,
        timeout=patience_seconds,
        check=False,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )


def one_line(ran: "subprocess.CompletedProcess[bytes]") -> str:
    """The one line that a failed command says on standard error; standard output is empty."""
    assert ran.stdout == b"", ran.stdout
    lines = [line for line in ran.stderr.decode().splitlines() if line.startswith("octopii: ")]
    assert len(lines) == 1, ran.stderr
    assert b"Traceback" not in ran.stderr
    return lines[0]


def free_addresses(count: int) -> list[str]:
    """Addresses on loopback that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Server:
    """One `octopii serve` process; its log goes to a file."""

    def __init__(
        self, arguments: Iterable[object], log: Path, *, cwd: Path | None = None, prefix: Iterable[str] = ()
    ) -> None:
        self._command = [*prefix, str(OCTOPII), "serve", *map(str, arguments)]
        self._log = log
        self._cwd = cwd
        self.process: subprocess.Popen[bytes] | None = None

    def add(self, *arguments: object) -> None:
        """Have it started with more arguments from now on."""
        self._command += map(str, arguments)

    def start(self) -> str:
        """Start it and return the line that it prints once it listens."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, cwd=self._cwd)
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert "listens on" in line, self.log
        return line

    @property
    def log(self) -> str:
        """Everything that it has logged."""
        return self._log.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait, and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(patience_seconds)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def wait_for_log(self, text: str) -> None:
        """Wait until something was logged."""
        deadline = time.monotonic() + patience_seconds
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)


class Servers:
    """A cluster of `octopii serve` processes in one folder."""

    def __init__(self, folder: Path, size: int = 3, *, extra: tuple[object, ...] = (), cwd: Path | None = None) -> None:
        self.folder = folder
        self.addresses = dict(enumerate(free_addresses(size), 1))
        self.servers: dict[int, Server] = {}
        for node_id, address in self.addresses.items():
            arguments: list[object] = ["--node-id", node_id, "--bind", address, "--wal-dir", folder / f"node-{node_id}"]
            for peer, its_address in self.addresses.items():
                if peer != node_id:
                    arguments += ["--peer", f"{peer}={its_address}"]
            arguments += ["--initial-leader"] if node_id == 1 else []
            arguments += [str(one).replace("{id}", str(node_id)) for one in extra]
            self.servers[node_id] = Server(arguments, folder / f"node-{node_id}.log", cwd=cwd)

    @property
    def cluster(self) -> str:
        """The addresses as `--cluster` takes them."""
        return ",".join(self.addresses.values())

    def start(self) -> None:
        """Start all nodes and wait until a call is answered."""
        for server in self.servers.values():
            server.start()

    def close(self) -> None:
        """Kill what still runs."""
        for server in self.servers.values():
            server.close()
