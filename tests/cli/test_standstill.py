"""What an operator sees when a command stops every node, and that the way out which is named leads out."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Servers, octopii, one_line

POISON = """
from octopii import StateMachine


class Poison(StateMachine):
    def __init__(self):
        self.names = []

    def apply(self, command):
        if command == b"poison":
            open("/nofile").read()
        self.names.append(command)
        return b"%d" % len(self.names)

    def snapshot(self):
        return b"\\n".join(self.names)

    def restore(self, data):
        self.names = bytes(data).split(b"\\n") if data else []
"""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Three nodes with the machine that can be poisoned."""
    (tmp_path / "poison.py").write_text(POISON)
    servers = Servers(tmp_path, extra=("--machine", "poison:Poison"), cwd=tmp_path)
    try:
        servers.start()
        yield servers
    finally:
        servers.close()


def test_a_command_that_stops_every_node(servers: Servers) -> None:
    """Callers hear it soon, the term stays, `status` begins with it, and --skip-index on every node leads out."""
    assert octopii("propose", "one", "--cluster", servers.cluster, "--timeout", 20).returncode == 0
    poison = octopii("propose", "poison", "--cluster", servers.cluster, "--timeout", 20)
    assert poison.returncode == 4, poison.stderr
    assert "no member applies any more" in one_line(poison)
    began = time.monotonic()
    after = octopii("propose", "two", "--cluster", servers.cluster, "--timeout", 20)
    assert time.monotonic() - began < 10
    assert after.returncode == 3, after.stderr
    found = re.search(r"start every node with --skip-index (\d+)", one_line(after))
    assert found is not None

    lines = octopii("status", "--cluster", servers.cluster).stdout.decode().splitlines()
    assert "no member applies any more" in lines[0]
    assert "stopped at entry" in lines[0]
    assert ["stopped" in line for line in lines[2:5]] == [True] * 3
    ran = json.loads(octopii("status", "--cluster", servers.cluster, "--json").stdout)
    assert {node["stopped_at"] for node in ran["nodes"]} == {int(found[1])}
    assert max(node["term"] for node in ran["nodes"]) < 10

    for server in servers.servers.values():
        server.end()
        server.add("--skip-index", found[1])
    servers.start()
    assert octopii("propose", "three", "--cluster", servers.cluster, "--timeout", 20).stdout.strip() == b"2"
