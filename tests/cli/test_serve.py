"""`octopii serve` through the real executable: how it starts, how it ends, and each refusal in one line."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octopii.cli.serve import stop_seconds
from octopii.version import VERSION
from tests.cli.processes import Server, free_addresses, octopii, one_line


@pytest.fixture
def address() -> str:
    """An address that nobody listens on."""
    return free_addresses(1)[0]


@pytest.fixture
def server(tmp_path: Path, address: str) -> Iterator[Server]:
    """A node by itself that founds its cluster."""
    arguments = ["--bind", address, "--wal-dir", tmp_path / "node", "--initial-leader", "--log-format", "json"]
    server = Server(arguments, tmp_path / "node.log")
    yield server
    server.close()


def refused(*arguments: object, code: int = 2, cwd: Path | None = None) -> str:
    """Run `serve`, which is to end at once with this exit code; returns its one line."""
    ran = octopii("serve", *arguments, cwd=cwd)
    assert ran.returncode == code, ran.stderr
    return one_line(ran)


def test_a_node_says_that_it_listens_and_ends_in_order(server: Server, address: str) -> None:
    """One line on standard output once the node listens; SIGTERM ends it with status 0, and no error is logged."""
    assert server.start() == f"node 1 listens on {address}\n"
    assert server.end(signal.SIGTERM) == 0
    assert not [line for line in server.log.splitlines() if json.loads(line)["level"] in ("error", "critical")]


def test_ctrl_c_ends_a_node_in_order(server: Server) -> None:
    """SIGINT is taken as SIGTERM is."""
    server.start()
    assert server.end(signal.SIGINT) == 0


def test_the_log_is_one_json_object_a_line(server: Server) -> None:
    """With --log-format json every line has time, level, logger and message, and leadership is among what is logged."""
    server.start()
    server.wait_for_log("leads in term")
    server.end()
    records = [json.loads(line) for line in server.log.splitlines()]
    assert all(record.keys() == {"time", "level", "logger", "message"} for record in records)


def test_a_node_that_was_killed_starts_again(server: Server, address: str) -> None:
    """After SIGKILL the same command starts the node again with what was acknowledged; --initial-leader is ignored."""
    server.start()
    assert octopii("propose", "--cluster", address, "SET a 1").stdout == b"OK"
    server.end(signal.SIGKILL)
    server.start()
    assert octopii("query", "--cluster", address, "GET a").stdout == b"1"


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """Status 8, the address, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = refused("--bind", address, "--wal-dir", tmp_path / "node", code=8)
    assert address in text
    assert "in use" in text
    assert "--bind" in text


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    """An address that cannot be bound is status 8."""
    text = refused("--bind", "192.0.2.1:5001", "--insecure", "--wal-dir", tmp_path / "node", code=8)
    assert "192.0.2.1:5001" in text


def test_a_locked_folder_is_named(server: Server, tmp_path: Path) -> None:
    """A second node in the same folder is refused with status 7 and the folder's path."""
    server.start()
    text = refused("--bind", free_addresses(1)[0], "--wal-dir", tmp_path / "node", code=7)
    assert str(tmp_path / "node") in text
    assert "--wal-dir" in text


def test_another_node_s_folder_is_refused(server: Server, tmp_path: Path) -> None:
    """A folder belongs to one node id for ever."""
    server.start()
    server.end()
    text = refused("--node-id", 2, "--bind", free_addresses(1)[0], "--wal-dir", tmp_path / "node")
    assert "belongs to node 1" in text


def test_a_damaged_log_is_refused(server: Server, address: str, tmp_path: Path) -> None:
    """A flipped byte in a durable entry is status 7 and names the file; the node does not start with less."""
    server.start()
    for number in range(2):
        octopii("propose", "--cluster", address, f"SET key-{number} {'x' * 100}")
    server.end()
    needle = b"SET key-0"
    (file,) = [path for path in (tmp_path / "node").rglob("*") if path.is_file() and needle in path.read_bytes()]
    data = bytearray(file.read_bytes())
    data[data.index(needle)] ^= 1
    file.write_bytes(data)
    text = refused("--bind", address, "--wal-dir", tmp_path / "node", code=7)
    assert str(file) in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bind", "nonsense"], "bind_addr"),
        (["--bind", "127.0.0.1:99999"], "65535"),
        (["--bind", "0.0.0.0:5001"], "insecure"),
        (["--peer", "2"], "ID=HOST:PORT"),
        (["--peer", "2=127.0.0.1:5002", "--peer", "2=127.0.0.1:5003"], "twice"),
        (["--peer", "1=127.0.0.1:5002"], "other nodes only"),
        (["--peer", "2=nonsense"], "peers"),
        (["--tls-ca", "ca.pem"], "all three files"),
        (["--tls-ca", "ca.pem", "--tls-cert", "no.pem", "--tls-key", "no.key"], "ca.pem"),
        (["--machine", "nonsense"], "package.module:Class"),
        (["--machine", "no.such.module:Machine"], "no.such.module"),
        (["--machine", "octopii.machines:Nothing"], "has no Nothing"),
        (["--machine", "octopii.config:Config"], "no subclass of octopii.StateMachine"),
        (["--config", "missing.toml"], "missing.toml"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    """Status 2, one line that names what is wrong, and no folder is made."""
    text = refused("--wal-dir", tmp_path / "node", *arguments, cwd=tmp_path)
    assert words in text
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_raises_is_one_line(tmp_path: Path) -> None:
    """What a machine's module or constructor raises is said with its type, and the folder is not made."""
    (tmp_path / "broken.py").write_text("1/0\n")
    (tmp_path / "abstract.py").write_text("from octopii import StateMachine\nclass Machine(StateMachine): pass\n")
    assert "ZeroDivisionError" in refused("--machine", "broken:Machine", cwd=tmp_path)
    assert "TypeError" in refused("--machine", "abstract:Machine", cwd=tmp_path)
    (tmp_path / "coroutine.py").write_text(
        "from octopii.machines import KvStateMachine\n"
        "class Machine(KvStateMachine):\n    async def apply(self, command): return command\n"
    )
    assert "--machine coroutine:Machine: Machine.apply is async" in refused(
        "--machine", "coroutine:Machine", cwd=tmp_path
    )


def test_an_unknown_setting_names_the_nearest(tmp_path: Path) -> None:
    """A misspelt option in the TOML file is refused with the known one that is most like it."""
    (tmp_path / "node.toml").write_text("election_timout = 2.0\n")
    text = refused("--config", "node.toml", cwd=tmp_path)
    assert "'election_timout'" in text
    assert "'election_timeout'" in text


def status_of(address: str) -> dict[str, Any]:
    """What the node at this address says of itself."""
    (node,) = [
        node
        for node in json.loads(octopii("status", "--cluster", address, "--json").stdout)["nodes"]
        if node["address"] == address
    ]
    assert isinstance(node, dict)
    return node


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "it waits for the one node that is started with --initial-leader"),
        (["--initial-leader"], "it waits to meet a majority, and of its peers [2, 3] has met []"),
    ],
)
def test_a_node_without_a_cluster_says_what_it_waits_for(
    tmp_path: Path, address: str, arguments: list[str], words: str
) -> None:
    """Forgotten --initial-leader, or peers that are not there: the log and `status` say what is missing."""
    others = free_addresses(2)
    (tmp_path / "node.toml").write_text("election_timeout = 0.2\nheartbeat_interval = 0.05\n")
    peers = ["--peer", f"2={others[0]}", "--peer", f"3={others[1]}"]
    command = [
        "--config",
        tmp_path / "node.toml",
        "--bind",
        address,
        "--wal-dir",
        tmp_path / "node",
        *peers,
        *arguments,
    ]
    server = Server(command, tmp_path / "node.log")
    try:
        server.start()
        server.wait_for_log(words)
        assert words in status_of(address)["warnings"]["waiting"]
    finally:
        server.close()


def test_a_founder_of_a_cluster_that_is_there_ends(tmp_path: Path) -> None:
    """--initial-leader in an empty folder, while a peer belongs to a cluster already: status 6, and what to do."""
    first, second = free_addresses(2)
    member = Server(
        ["--node-id", 1, "--bind", first, "--wal-dir", tmp_path / "node-1", "--initial-leader"], tmp_path / "1.log"
    )
    try:
        member.start()
        assert octopii("propose", "--cluster", first, "SET a 1").stdout == b"OK"
        arguments = ["--node-id", 2, "--bind", second, "--peer", f"1={first}", "--wal-dir", tmp_path / "node-2"]
        ran = octopii("serve", *arguments, "--initial-leader")
        assert ran.returncode == 6, ran.stderr
        (line,) = [line for line in ran.stderr.decode().splitlines() if line.startswith("octopii: ")]
        assert "node 2 cannot take part" in line
        assert "cluster" in line
    finally:
        member.close()


def test_a_node_that_does_not_end_is_ended(tmp_path: Path, address: str) -> None:
    """SIGTERM while `apply` hangs: after the stated time the process is ended as it is, with status 7."""
    (tmp_path / "stuck.py").write_text(
        "import time\n"
        "from octopii.machines import KvStateMachine\n"
        "class Stuck(KvStateMachine):\n"
        "    def apply(self, command):\n"
        "        print('stuck', flush=True)\n"
        "        time.sleep(1000)\n"
    )
    arguments = ["--machine", "stuck:Stuck", "--bind", address, "--wal-dir", tmp_path / "node", "--initial-leader"]
    server = Server(arguments, tmp_path / "node.log", cwd=tmp_path)
    try:
        server.start()
        octopii("propose", "--cluster", address, "--timeout", 0.5, "SET a 1")
        began = time.monotonic()
        assert server.end(signal.SIGTERM) == 7
        assert time.monotonic() - began < stop_seconds + 10
        assert "did not end within 10 s" in server.log
    finally:
        server.close()


def test_the_version_is_told() -> None:
    """`--version` prints name and version, on standard output."""
    assert octopii("--version").stdout.decode() == f"octopii {VERSION}\n"


def test_options_win_over_the_file(tmp_path: Path, address: str) -> None:
    """What the command line says counts, whatever the file says; the rest comes from the file."""
    (tmp_path / "node.toml").write_text(f'node_id = 7\nbind_addr = "nonsense"\nwal_dir = "{tmp_path}/seven"\n')
    server = Server(["--config", tmp_path / "node.toml", "--bind", address], tmp_path / "node.log")
    try:
        assert server.start() == f"node 7 listens on {address}\n"
    finally:
        server.close()
    assert (tmp_path / "seven").is_dir()


def test_a_machine_beside_the_command_is_found(tmp_path: Path, address: str) -> None:
    """--machine looks in the folder where the command is run."""
    (tmp_path / "mine.py").write_text(
        "from octopii import StateMachine\n"
        "class Echo(StateMachine):\n"
        "    def apply(self, command): return command[::-1]\n"
        "    def snapshot(self): return b''\n"
        "    def restore(self, data): pass\n"
    )
    arguments = ["--machine", "mine:Echo", "--bind", address, "--wal-dir", tmp_path / "node", "--initial-leader"]
    server = Server(arguments, tmp_path / "node.log", cwd=tmp_path)
    try:
        server.start()
        assert octopii("propose", "--cluster", address, "abc").stdout == b"cba"
    finally:
        server.close()


def test_what_a_replica_does_that_differs_is_chosen_at_the_start(tmp_path: Path, address: str) -> None:
    """--on-divergence takes "halt", the default, and "resync"; status shows which it is."""
    for option in ("resync", None):
        chosen = ["--on-divergence", option] if option is not None else []
        arguments = ["--bind", address, "--wal-dir", tmp_path / "node", "--initial-leader", *chosen]
        server = Server(arguments, tmp_path / "node.log")
        try:
            server.start()
            (node,) = json.loads(octopii("status", "--json", "--cluster", address).stdout)["nodes"]
            assert node["digest"]["on_divergence"] == (option or "halt")
        finally:
            server.close()
    ran = octopii("serve", "--bind", address, "--on-divergence", "never")
    assert ran.returncode == 2
    assert b"resync" in ran.stderr


def test_a_module_that_fails_is_told_with_its_line(tmp_path: Path) -> None:
    """What is wrong inside a machine's module is not said to be missing, and the line in it is named."""
    (tmp_path / "half_done.py").write_text("import octopii\n\nx = 1 / 0\n", encoding="utf-8")
    for name, words in (
        ("half_done:Machine", f"ZeroDivisionError: division by zero ({tmp_path / 'half_done.py'}:3)"),
        ("not_there:Machine", "it is looked for among the installed packages and in the folder"),
    ):
        ran = octopii("serve", "--bind", "127.0.0.1:0", "--machine", name, cwd=tmp_path)
        assert ran.returncode == 2
        assert words in one_line(ran)
