"""The demo shows what it says, would say so if it were otherwise, and leaves nothing behind."""

import asyncio
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from octopii.cli import demo
from octopii.cli.demo import compare
from tests.cli.processes import OCTOPII, patience_seconds


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended meanwhile
            if str(folder) in line:
                found.append(line)
    return found


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start the demo, with its folder inside this one."""
    return subprocess.Popen(
        [OCTOPII, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def test_the_demo_ends_well(tmp_path: Path) -> None:
    """The leader is killed, another leads, the dead one catches up by a snapshot, nothing is lost, nothing is left."""
    demo = start(tmp_path, "--seconds", "0.5")
    shown, errors = demo.communicate(timeout=110)
    assert (demo.returncode, errors) == (0, ""), shown
    for words in ("kill -9 of node", "every customer is served again", "installs a snapshot", "has caught up"):
        assert words in shown
    acknowledged = re.search(r"([\d,]+) orders were acknowledged", shown)
    assert acknowledged is not None
    assert int(acknowledged[1].replace(",", "")) > 100
    assert "lost 0, applied twice 0, and all three books are the same" in shown
    assert "\x1b" not in shown
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_the_books_are_compared_only_when_all_nodes_have_every_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen while customers still wrote says nothing of the end: the nodes are asked anew until they agree."""
    examples = Path(__file__).parents[2] / "examples"
    monkeypatch.syspath_prepend(str(examples))
    seen = [{1: 50, 2: 40}, {1: 50, 2: 50}]

    async def main() -> None:
        story = demo.Story(tmp_path, examples, Console(quiet=True), seconds=0.5)
        nodes = story._cluster.nodes
        del nodes[3]
        for node in nodes.values():
            node.answers, node.facts = True, {"last_index": 30, "applied": 30}

        async def look() -> None:
            for node_id, applied in seen.pop(0).items():
                nodes[node_id].facts = {"last_index": 50, "applied": applied}

        monkeypatch.setattr(story._cluster, "look", look)
        await story._finish(asyncio.create_task(asyncio.sleep(60)))

    asyncio.run(main())
    assert seen == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    """An interrupted demo (Ctrl-C, `kill`, a closed terminal) ends its nodes, removes its folder, with status 130."""
    demo = start(tmp_path)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "begin to place" in line:
            break
    assert processes_of(tmp_path) != []
    demo.send_signal(number)
    shown, errors = demo.communicate(timeout=patience_seconds)
    assert (demo.returncode, errors) == (130, ""), shown
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_what_is_kept_stays(tmp_path: Path) -> None:
    """A folder that is there already is refused, before anything starts."""
    demo = start(tmp_path, "--keep", str(tmp_path))
    _, errors = demo.communicate(timeout=patience_seconds)
    assert demo.returncode == 2
    assert "--keep" in errors


def test_a_lost_order_would_be_counted() -> None:
    """An order that was acknowledged and is in no book counts as lost."""
    assert compare({"ada": {0, 1, 2}}, {}, {"ada": [(0, 0), (2, 2)]}) == (1, 0)
    assert compare({"ada": {0, 1, 2}}, {}, {}) == (3, 0)


def test_an_order_of_unknown_outcome_may_be_there_or_not() -> None:
    """An unknown outcome is no promise, either way; an order that nobody placed is counted."""
    assert compare({"ada": {0}}, {"ada": {1, 2}}, {"ada": [(0, 1)]}) == (0, 0)
    assert compare({"ada": {0}}, {}, {"ada": [(0, 1)], "eve": [(0, 4)]}) == (0, 6)
