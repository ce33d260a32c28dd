"""docs/operations.md followed to the letter, on real processes: its files and commands, with addresses of our own."""

import configparser
import contextlib
import json
import re
import shlex
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from octopii import Config
from tests.cli.processes import Server, free_addresses, octopii, one_line, patience_seconds

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")


def blocks(section: str, language: str) -> list[str]:
    """Code blocks of one section."""
    text = PAGE.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def block_with(words: str) -> str:
    """The one block of commands for a deployment in which these words are."""
    (block,) = [block for block in blocks("Deploy three nodes", "sh") if words in block]
    return block


class Deployment:
    """The page's three machines as processes of this one, with TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.addresses = dict(enumerate(free_addresses(4), 1))
        self.servers: dict[int, Server] = {}
        for line in block_with("certs init").splitlines():
            ran = octopii(*shlex.split(line)[1:], cwd=folder)
            assert ran.returncode == 0, ran.stderr
        exports = dict(re.findall(r"(OCTOPII_\w+)=(\S+)", block_with("export ")))
        self.environment = {name: self.here(value) for name, value in exports.items()}

    def here(self, text: str) -> str:
        """The page's addresses and folders as they are in the test."""
        for number, address in self.addresses.items():
            text = text.replace(f"10.0.0.{number}:5001", address)
        text = text.replace("/etc/octopii/", f"{self.folder}/certs/").replace("/var/lib/octopii/", f"{self.folder}/")
        return text.replace("/backup/", f"{self.folder}/")

    def settings(self, node_id: int, *, founders: bool = True) -> Path:
        """The page's settings file, as it is to be on another machine."""
        (text,) = blocks("Deploy three nodes", "toml")
        settings = tomllib.loads(self.here(text))
        peers = {number: address for number, address in self.addresses.items() if number != node_id and number < 4}
        lines = [
            f"node_id = {node_id}",
            f'bind_addr = "{self.addresses[node_id]}"',
            f'wal_dir = "{settings["wal_dir"].replace("node-1", f"node-{node_id}")}"',
            f"is_initial_leader = {str(founders and node_id == 1).lower()}",
            f'tls_ca_file = "{settings["tls_ca_file"]}"',
            *(
                f'{name} = "{settings[name].replace("node-1", f"node-{node_id}")}"'
                for name in ("tls_certificate_file", "tls_key_file")
            ),
            "[peers]",
            *(f'{peer} = "{address}"' for peer, address in peers.items()),
        ]
        path = self.folder / f"node-{node_id}.toml"
        path.write_text("\n".join(lines))
        return path

    def start(self, node_id: int, *extra: object) -> None:
        """Start a node."""
        if node_id not in self.servers:
            self.servers[node_id] = Server(
                ["--config", self.settings(node_id), *extra], self.folder / f"node-{node_id}.log"
            )
        self.servers[node_id].start()

    def run(self, *arguments: object) -> bytes:
        """A command as the page has it; its output."""
        ran = octopii(*arguments, environment=self.environment, cwd=self.folder)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def type(self, block: str) -> None:
        """Type every line of a block; a command that says to try again later is tried again."""
        for line in block.splitlines():
            deadline = time.monotonic() + patience_seconds
            while True:
                ran = octopii(*shlex.split(self.here(line))[1:], environment=self.environment, cwd=self.folder)
                if ran.returncode != 3 or time.monotonic() > deadline:
                    break
            assert ran.returncode == 0, (line, ran.stderr)

    def close(self) -> None:
        """Kill what still runs."""
        for server in self.servers.values():
            server.close()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """Three nodes, deployed as the page says, with something in them."""
    deployment = Deployment(tmp_path)
    try:
        for node_id in (1, 2, 3):
            deployment.start(node_id)
        assert deployment.run("propose", "SET colour green") == b"OK"
        yield deployment
    finally:
        deployment.close()


def test_the_settings_file_is_one(tmp_path: Path) -> None:
    """Every name in the page's TOML is a setting, with a value that is accepted."""
    (text,) = blocks("Deploy three nodes", "toml")
    config = Config.from_toml(text)
    assert (config.node_id, config.peers, config.uses_tls) == (1, {2: "10.0.0.2:5001", 3: "10.0.0.3:5001"}, True)


def test_the_unit_s_command_is_one() -> None:
    """The unit can be parsed, its options are known, and the exit statuses that it does not restart on are ours."""
    (text,) = blocks("Deploy three nodes", "ini")
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    program, command, *options = shlex.split(unit["Service"]["ExecStart"])
    assert (program.rsplit("/", 1)[-1], command) == ("octopii", "serve")
    known = octopii("serve", "--help").stdout.decode()
    assert all(option in known for option in options if option.startswith("--"))
    assert unit["Service"]["RestartPreventExitStatus"] == "2 6 7"
    assert int(unit["Service"]["TimeoutStopSec"]) > 10


def test_three_nodes_are_deployed_with_tls(deployment: Deployment) -> None:
    """Status over TLS shows three nodes; without a certificate, or with one of another authority, nobody is let in."""
    nodes = json.loads(deployment.run("status", "--json"))["nodes"]
    assert [node["id"] for node in nodes] == [1, 2, 3]
    assert all("error" not in node for node in nodes)
    cluster = deployment.environment["OCTOPII_CLUSTER"]
    plain = octopii("query", "--cluster", cluster, "--timeout", 2, "GET colour")
    assert (plain.returncode in (3, 6), plain.stdout) == (True, b""), plain.stderr
    octopii("certs", "init", "--dir", "others", cwd=deployment.folder)
    octopii("certs", "issue", "client-ops", "--dir", "others", cwd=deployment.folder)
    others = {name: value.replace("certs/", "others/") for name, value in deployment.environment.items()}
    stranger = octopii("query", "--timeout", 2, "GET colour", environment=others, cwd=deployment.folder)
    assert (stranger.returncode in (3, 6), stranger.stdout) == (True, b""), stranger.stderr


def test_nodes_are_restarted_one_by_one(deployment: Deployment) -> None:
    """Each node in turn ends with status 0 and comes back; writes go on in between."""
    for node_id in (3, 2, 1):
        assert deployment.servers[node_id].end(signal.SIGTERM) == 0
        assert deployment.run("propose", f"SET while-{node_id} away") == b"OK"
        deployment.start(node_id)
    for node_id in (3, 2, 1):
        assert deployment.run("query", f"GET while-{node_id}") == b"away"


def test_a_node_is_replaced(deployment: Deployment) -> None:
    """With node 3 dead, the page's commands bring node 4 in, and take node 3 out."""
    deployment.servers[3].close()
    octopii("certs", "issue", "node-4", "--dir", "certs", cwd=deployment.folder)
    deployment.start(4)
    (block,) = blocks("Replace a node", "sh")
    deployment.type(block)
    members = json.loads(deployment.run("member", "list", "--json"))
    assert [(member["id"], member["role"]) for member in members] == [(1, "voter"), (2, "voter"), (4, "voter")]
    deployment.servers[2].close()  # the new node is half of what is left of the majority
    assert deployment.run("propose", "SET after replacement") == b"OK"


def test_a_wiped_node_is_refused(deployment: Deployment) -> None:
    """A node that comes back empty under its old number ends with status 6 and says what to do."""
    deployment.servers[3].close()
    folder = deployment.folder / "node-3"
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    ran = octopii("serve", "--config", deployment.settings(3))
    assert ran.returncode == 6, ran.stderr
    assert "new id" in ran.stderr.decode()


def test_a_backup_is_restored(deployment: Deployment) -> None:
    """The page's commands save a snapshot, and start a new cluster from it in empty folders."""
    save, restore = blocks("Backup and restore", "sh")
    deployment.type(save)
    for server in deployment.servers.values():
        server.close()
    for node_id in (1, 2, 3):
        (deployment.folder / f"node-{node_id}").rename(deployment.folder / f"old-{node_id}")
    (file,) = re.findall(r"--restore (\S+)", restore)
    deployment.servers.clear()
    deployment.start(1, "--restore", deployment.here(file))
    deployment.start(2)
    deployment.start(3)
    assert deployment.run("query", "GET colour") == b"green"


def test_reads_are_possible_without_a_majority(deployment: Deployment) -> None:
    """With two of three gone, writes are refused or time out, and stale reads go on."""
    deployment.servers[2].close()
    deployment.servers[3].close()
    ran = octopii(
        "propose", "--timeout", 3, "SET no majority", environment=deployment.environment, cwd=deployment.folder
    )
    assert ran.returncode in (3, 4)
    one_line(ran)
    alone = {**deployment.environment, "OCTOPII_CLUSTER": deployment.addresses[1]}
    ran = octopii("query", "--consistency", "stale", "GET colour", environment=alone, cwd=deployment.folder)
    assert ran.stdout == b"green", ran.stderr


def _can_mount() -> bool:
    """Whether this user may mount a small file system, in a namespace of its own."""
    try:
        return subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/tmp"], check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not _can_mount(), reason="needs a file system of its own: unshare and mount")
def test_a_full_disk_is_over_when_there_is_room(tmp_path: Path) -> None:
    """On a volume that something else has filled, writes are `DiskFull`, reads go on; with room, all is as before."""
    (address,) = free_addresses(1)
    (tmp_path / "volume").mkdir()
    arguments = ["--bind", address, "--wal-dir", tmp_path / "volume" / "node", "--initial-leader"]
    mount = f"mount -t tmpfs -o size=200m none {shlex.quote(str(tmp_path / 'volume'))}"
    server = Server(
        arguments, tmp_path / "node.log", prefix=["unshare", "-Urm", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    )
    try:
        server.start()
        assert octopii("propose", "--cluster", address, "SET colour green").stdout == b"OK"
        assert server.process is not None
        filler = Path(f"/proc/{server.process.pid}/root{tmp_path}/volume/filler")
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        server.wait_for_log("takes no writes")
        ran = octopii("propose", "--cluster", address, "--timeout", 2, "SET colour blue")
        assert ran.returncode == 3
        assert "free some space" in one_line(ran)
        assert octopii("query", "--cluster", address, "GET colour").stdout == b"green"
        (node,) = json.loads(octopii("status", "--cluster", address, "--json").stdout)["nodes"]
        assert node["disk"]["low"]
        assert "free some space" in node["warnings"]["disk"]
        filler.unlink()
        server.wait_for_log("has room on its disk again")
        assert octopii("propose", "--cluster", address, "SET colour blue").stdout == b"OK"
        (node,) = json.loads(octopii("status", "--cluster", address, "--json").stdout)["nodes"]
        assert node["warnings"] == {}
    finally:
        server.close()


def test_a_command_that_stops_a_replica_can_be_skipped(tmp_path: Path) -> None:
    """An entry at which `apply` runs out of memory stops the node, named; --skip-index goes on behind it."""
    (tmp_path / "greedy.py").write_text(
        "from octopii.machines import KvStateMachine\n"
        "class Greedy(KvStateMachine):\n"
        "    def apply(self, command):\n"
        "        if command == b'SET all memory': raise MemoryError\n"
        "        return super().apply(command)\n"
    )
    (address,) = free_addresses(1)
    arguments = ["--bind", address, "--wal-dir", tmp_path / "node", "--machine", "greedy:Greedy", "--initial-leader"]
    server = Server(arguments, tmp_path / "node.log", cwd=tmp_path)
    try:
        server.start()
        assert octopii("propose", "--cluster", address, "SET colour green").stdout == b"OK"
        assert octopii("propose", "--cluster", address, "--timeout", 2, "SET all memory").returncode in (3, 4)
        (node,) = json.loads(octopii("status", "--cluster", address, "--json").stdout)["nodes"]
        assert "MemoryError" in node["failure"]
        (index,) = re.findall(r"at entry (\d+)", node["warnings"]["apply"])
    finally:
        server.close()
    server = Server([*arguments, "--skip-index", index], tmp_path / "node.log", cwd=tmp_path)
    try:
        server.start()
        assert octopii("query", "--cluster", address, "GET colour").stdout == b"green"
        assert octopii("propose", "--cluster", address, "SET colour blue").stdout == b"OK"
    finally:
        server.close()
