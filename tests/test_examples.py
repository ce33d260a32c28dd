"""Programs in `examples/`, and what the documents have a reader type: run as they stand, on real processes."""

import fcntl
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.processes import OCTOPII, Server, octopii, patience_seconds

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = [path for path in sorted((ROOT / "examples").glob("*.py")) if "__main__" in path.read_text()]
SHOWN = {
    "inventory": "refused: there are only 0 of pears\napples: 3, then 2\n",
    "blocking": "b'OK'\nb'green'\n",
    "deferred_work": "sending mail 1: your order has come in\nsending mail 2: your order is on its way\nleft: 0\n",
}


def blocks(document: str, language: str) -> list[str]:
    """The document's code blocks in one language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def serve_commands(document: str) -> list[list[str]]:
    """Arguments of each `octopii serve` that the document shows, in order."""
    joined = "".join(blocks(document, "sh")).replace("\\\n", " ")
    return [shlex.split(line)[2:] for line in joined.splitlines() if line.startswith("octopii serve")]


def run(program: str, folder: Path) -> str:
    """Run a Python program in a folder, with warnings as errors; returns what it prints."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=patience_seconds,
        check=False,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@contextmanager
def running(document: str, folder: Path, *extra: str) -> Iterator[list[Server]]:
    """The nodes that the document starts, in this folder; one test at a time, for the document's ports are fixed."""
    with open(Path(tempfile.gettempdir()) / f"octopii-test-{Path(document).stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield from _running(document, folder, *extra)


def _running(document: str, folder: Path, *extra: str) -> Iterator[list[Server]]:
    commands = serve_commands(document)
    servers = [
        Server([*command, *extra], folder / f"log-{number}", cwd=folder) for number, command in enumerate(commands)
    ]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.close()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_an_example_does_what_it_says(program: Path, tmp_path: Path) -> None:
    """Each program of `examples/` ends by itself and prints what is expected of it."""
    assert run(program.read_text(), tmp_path) == SHOWN[program.stem]


def test_the_readme_s_three_processes_serve_its_client(tmp_path: Path) -> None:
    """README's machine, served by README's three commands, answers README's blocking program."""
    machine, client = blocks("README.md", "python")[0], blocks("README.md", "py")[0]
    (tmp_path / "inventory.py").write_text(machine)
    with running("README.md", tmp_path):
        assert run(client, tmp_path).splitlines() == [
            "2",
            "refused by the machine, on every replica alike: there are only 2 of pears",
            "2",
        ]


def test_the_quick_start_can_be_typed(tmp_path: Path) -> None:
    """The quick start's commands, crash included, do what it says."""
    document = "docs/quickstart.md"
    (cluster,) = [part for block in blocks(document, "sh") for part in re.findall(r"OCTOPII_CLUSTER=(\S+)", block)]
    environment = {"OCTOPII_CLUSTER": cluster}
    with running(document, tmp_path) as servers:
        assert octopii("propose", "SET colour green", environment=environment).stdout == b"OK"
        assert octopii("query", "GET colour", environment=environment).stdout == b"green"
        assert len(octopii("status", environment=environment).stdout.splitlines()) == 4
        servers[0].close()
        assert octopii("propose", "SET colour blue", environment=environment).stdout == b"OK"
        servers[0].start()
        assert octopii("query", "GET colour", environment=environment).stdout == b"blue"


def test_the_quick_start_s_own_machine_can_be_typed(tmp_path: Path) -> None:
    """Its machine is deterministic, runs on three nodes, and answers its client."""
    document = "docs/quickstart.md"
    (tmp_path / "inventory.py").write_text(blocks(document, "python")[0])
    check, client = blocks(document, "py")
    run(check, tmp_path)
    with running(document, tmp_path, "--machine", "inventory:Inventory"):
        assert run(client, tmp_path).splitlines() == ["2", "2"]


def test_the_executable_is_where_the_tests_look() -> None:
    """The console script is installed beside the interpreter."""
    assert OCTOPII.exists()
