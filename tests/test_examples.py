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
    "audit_log": "120 events are logged\nthe leader is stopped\n"
    "the trail has 140 events without a gap: {'ann': 50, 'bob': 50, 'eve': 40}\n",
    "configuration": "revision 1: log_level = info\nrevision 2: log_level = debug\n"
    "conflict: changed at revision 2\nit is debug since revision 2\nrevision 3: log_level = error\n",
    "service_registry": "web is at 10.0.0.1:80\ndatabase is at 10.0.0.2:5432\n"
    "web sends no heartbeats any more\nweb: NOT_FOUND, database: 10.0.0.2:5432\n",
    "task_queue": 'Submitted task: 1\nClaimed task: {"id":1,"payload":"process_video.mp4","status":"Assigned",'
    '"assigned_to":"worker-1","created_at":TIME,"completed_at":null}\nCompleted: OK\n',
    "task_workers": "20 tasks are submitted\nworker-1 has task 1 in hand, and is killed\n"
    "20 tasks are completed; task 1 took 2 attempts\n",
    "zero_copy": "sum: 499500\nreadme: to be read\ncells are in an array of its own, readme is in bytes\n"
    "sum: 499500\nreadme: to be read\ncells are in the file, readme is in mmap\n",
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


def run(program: str | Path, folder: Path) -> str:
    """Run a Python program, given as text or as a file, in a folder, warnings as errors; returns what it prints."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", *(["-c", program] if isinstance(program, str) else [str(program)])],
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
    shown = re.sub(r'(?<="created_at":)\d+', "TIME", run(program, tmp_path))
    assert shown == SHOWN[program.stem]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_an_example_is_short(program: Path) -> None:
    """Nobody has to read more than 120 lines."""
    assert len(program.read_text().splitlines()) <= 120


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
