"""The commands that talk to a cluster, through the real executable, against real nodes."""

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octopii.version import VERSION
from tests.cli.processes import OCTOPII, Servers, free_addresses, octopii, one_line


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Three nodes that run the key-value machine; tests change nothing that others rely on."""
    servers = Servers(tmp_path_factory.mktemp("cluster"))
    servers.start()
    yield servers
    servers.close()


def answer(*arguments: object, data: bytes | None = None) -> bytes:
    """What a command that succeeds prints."""
    ran = octopii(*arguments, data=data)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == b""
    return ran.stdout


def status(servers: Servers) -> "dict[str, object]":
    """The cluster's status as JSON."""
    found: dict[str, object] = json.loads(answer("status", "--cluster", servers.cluster, "--json"))
    return found


def test_answers_are_their_bytes_alone(servers: Servers) -> None:
    """`propose` and `query` print the answer's bytes, with no newline where there is no terminal."""
    assert answer("propose", "--cluster", servers.cluster, "SET greeting hello  world") == b"OK"
    assert answer("query", "--cluster", servers.cluster, "GET greeting") == b"hello  world"


@pytest.mark.parametrize("consistency", ["linearizable", "lease"])
def test_queries_may_say_how_fresh(servers: Servers, consistency: str) -> None:
    """Each consistency that promises it sees the write before it."""
    answer("propose", "--cluster", servers.cluster, f"SET fresh {consistency}")
    ran = answer("query", "--cluster", servers.cluster, "--consistency", consistency, "GET fresh")
    assert ran == consistency.encode()


def test_a_stale_query_asks_the_node_at_hand(servers: Servers) -> None:
    """A stale query is answered, by whatever was true a moment ago."""
    assert (
        octopii("query", "--cluster", servers.cluster, "--consistency", "stale", "GET nothing").stdout == b"NOT_FOUND"
    )


def test_commands_come_from_standard_input(servers: Servers) -> None:
    """COMMAND - reads standard input, byte for byte, zero bytes and all."""
    value = bytes(range(256))
    assert answer("propose", "--cluster", servers.cluster, "-", data=b"SET bytes " + value) == b"OK"
    assert answer("query", "--cluster", servers.cluster, "-", data=b"GET bytes") == value


def test_a_terminal_gets_a_newline(servers: Servers) -> None:
    """On a terminal the answer ends with a newline."""
    answer("propose", "--cluster", servers.cluster, "SET shown yes")
    controller, terminal = pty.openpty()
    command = [str(OCTOPII), "query", "--cluster", servers.cluster, "GET shown"]
    subprocess.run(command, stdout=terminal, stdin=subprocess.DEVNULL, timeout=40, check=True)
    os.close(terminal)
    assert os.read(controller, 100) == b"yes\r\n"
    os.close(controller)


def test_the_cluster_may_come_from_the_environment(servers: Servers) -> None:
    """OCTOPII_CLUSTER stands in for --cluster."""
    ran = octopii("query", "GET nothing", environment={"OCTOPII_CLUSTER": servers.cluster})
    assert ran.stdout == b"NOT_FOUND"


def test_a_rejected_command_is_status_5(servers: Servers) -> None:
    """What the state machine refuses is one line with its text, and status 5."""
    ran = octopii("propose", "--cluster", servers.cluster, "NONSENSE")
    assert ran.returncode == 5
    assert "unknown command" in one_line(ran)


def test_too_large_a_command_is_status_3(servers: Servers) -> None:
    """A command over max_command_bytes was not applied: status 3 with the limit's name."""
    ran = octopii("propose", "--cluster", servers.cluster, "-", data=b"SET big " + bytes(2 << 20))
    assert ran.returncode == 3
    assert "max_command_bytes" in one_line(ran)


def test_no_leader_is_status_3() -> None:
    """Where nobody answers, the call was not applied, and the line says what to check."""
    ran = octopii("propose", "--cluster", free_addresses(1)[0], "--timeout", 1, "SET a 1")
    assert ran.returncode == 3
    assert "--cluster" in one_line(ran)


@pytest.mark.parametrize("command", [["propose", "x"], ["query", "x"], ["status"], ["member", "list"], ["compact"]])
def test_a_bad_address_is_status_2(command: list[str]) -> None:
    """An address that is none is named at once."""
    ran = octopii(*command, "--cluster", "nonsense")
    assert ran.returncode == 2
    assert "'nonsense'" in one_line(ran)


def agreed_status(servers: Servers) -> dict[str, Any]:
    """Status once every node has heard who leads: right after an election one may not have."""
    deadline = time.monotonic() + 30
    while True:
        ran: dict[str, Any] = json.loads(answer("status", "--cluster", servers.addresses[2], "--json"))
        if all(node.get("leader") == ran["leader"] != 0 for node in ran["nodes"]) or time.monotonic() > deadline:
            return ran


def test_status_shows_every_node(servers: Servers) -> None:
    """JSON status has each node once, with everything an operator asks for; one address is enough to find them all."""
    ran = agreed_status(servers)
    assert ran["leader"] in servers.addresses
    assert [node["id"] for node in ran["nodes"]] == [1, 2, 3]
    for node in ran["nodes"]:
        assert node["address"] == servers.addresses[node["id"]]
        assert node["role"] in ("leader", "follower")
        assert node["leader"] == ran["leader"]
        assert (node["fsync_schedule"], node["version"], node["warnings"]) == ("sync-each", VERSION, {})
        assert all(isinstance(node[name], int) for name in ("term", "commit", "applied", "lag", "protocol"))
        assert node["snapshot"].keys() == {"index", "bytes"}
        assert node["disk"]["free"] > 0


def test_status_is_a_table_for_people(servers: Servers) -> None:
    """Without --json there is a row for each node."""
    lines = answer("status", "--cluster", servers.cluster).decode().splitlines()
    assert lines[0].split()[:7] == ["node", "address", "role", "term", "leader", "commit", "applied"]
    assert [line.split()[:2] for line in lines[1:4]] == [[str(i), a] for i, a in servers.addresses.items()]


def test_status_of_nobody_is_status_3() -> None:
    """Where no node answers, one line names the address."""
    address = free_addresses(1)[0]
    ran = octopii("status", "--cluster", address, "--timeout", 1)
    assert ran.returncode == 3
    assert address in one_line(ran)


def test_members_are_listed(servers: Servers) -> None:
    """`member list` has the ids, addresses and roles."""
    listed = json.loads(answer("member", "list", "--cluster", servers.cluster, "--json"))
    assert [(one["id"], one["address"], one["role"]) for one in listed] == [
        (node_id, address, "voter") for node_id, address in servers.addresses.items()
    ]
    assert servers.addresses[3] in answer("member", "list", "--cluster", servers.cluster).decode()


def test_leadership_is_handed_over(servers: Servers) -> None:
    """`transfer-leader` returns when the node leads."""
    successor = 1 + status(servers)["leader"] % 3  # type: ignore[operator]
    assert answer("transfer-leader", "--cluster", servers.cluster, successor) == f"node {successor} leads\n".encode()
    assert status(servers)["leader"] == successor


def test_compaction_and_snapshots_are_asked_for(servers: Servers) -> None:
    """`compact` and `snapshot now` say at which entry."""
    assert answer("compact", "--cluster", servers.cluster).startswith(b"compacted at entry ")
    index = int(answer("snapshot", "now", "--cluster", servers.cluster).split()[-1])
    assert index in [node["snapshot"]["index"] for node in status(servers)["nodes"]]  # type: ignore[attr-defined]


def test_addresses_of_two_clusters_are_status_6(servers: Servers, tmp_path: Path) -> None:
    """`status` that is given nodes of two clusters says which belongs to which."""
    other = Servers(tmp_path, 1)
    try:
        other.start()
        assert answer("propose", "--cluster", other.cluster, "SET other yes") == b"OK"
        ran = octopii("status", "--cluster", f"{servers.addresses[1]},{other.cluster}")
        assert ran.returncode == 6
        assert f"{other.cluster} belongs to cluster" in one_line(ran)
    finally:
        other.close()


def test_a_node_that_is_gone_cannot_lead(tmp_path: Path) -> None:
    """`transfer-leader` to a voter that does not run is status 3, at once, and the leader stays."""
    servers = Servers(tmp_path)
    try:
        servers.start()
        agreed = agreed_status(servers)
        gone = 1 + agreed["leader"] % 3
        servers.servers[gone].end(signal.SIGKILL)
        ran = octopii("transfer-leader", "--cluster", servers.cluster, gone)
        assert ran.returncode == 3
        assert f"node {gone} cannot be reached" in one_line(ran)
        assert answer("propose", "--cluster", servers.cluster, "SET still led") == b"OK"
        shown = answer("status", "--cluster", servers.cluster).decode()
        assert f"node {gone} at {servers.addresses[gone]}: Connection refused" in shown
    finally:
        servers.close()


def test_a_stranger_cannot_be_promoted(servers: Servers) -> None:
    """A member that is none is named."""
    ran = octopii("member", "promote", "--cluster", servers.cluster, 9)
    assert ran.returncode == 2
    assert "node 9" in one_line(ran)
