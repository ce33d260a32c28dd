"""Backup and restore through the real executable: what is saved is all there, and becomes a cluster of its own."""

import json
from pathlib import Path

import pytest

from tests.cli.processes import Server, Servers, free_addresses, octopii, one_line

VALUE = b"x" * 900_000  # several parts


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot saved from a cluster of three that has ended since."""
    folder = tmp_path_factory.mktemp("old")
    servers = Servers(folder)
    try:
        servers.start()
        assert octopii("propose", "--cluster", servers.cluster, "SET colour green").stdout == b"OK"
        assert octopii("propose", "--cluster", servers.cluster, "-", data=b"SET big " + VALUE).stdout == b"OK"
        ran = octopii("snapshot", "save", "--cluster", servers.cluster, folder / "saved")
        assert ran.returncode == 0, ran.stderr
        again = octopii("snapshot", "save", "--cluster", servers.cluster, folder / "saved")
        assert (again.returncode, "not overwritten" in one_line(again)) == (2, True)
    finally:
        servers.close()
    assert [path.name for path in folder.glob("saved*")] == ["saved"]
    return folder / "saved"


def test_a_snapshot_becomes_a_new_cluster(saved: Path, tmp_path: Path) -> None:
    """Three empty nodes, one of them with --restore: a cluster that holds everything, and takes more."""
    servers = Servers(tmp_path)
    servers.servers[1].close()
    arguments = ["--bind", servers.addresses[1], "--wal-dir", tmp_path / "node-1", "--restore", saved]
    for peer in (2, 3):
        arguments += ["--peer", f"{peer}={servers.addresses[peer]}"]
    servers.servers[1] = Server(arguments, tmp_path / "node-1.log")
    try:
        servers.start()
        assert octopii("query", "--cluster", servers.cluster, "GET big").stdout == VALUE
        assert octopii("propose", "--cluster", servers.cluster, "SET colour blue").stdout == b"OK"
        nodes = json.loads(octopii("status", "--cluster", servers.cluster, "--json").stdout)["nodes"]
        assert len({node["cluster_id"] for node in nodes}) == 1
        assert all(node["snapshot"]["index"] > 0 for node in nodes)
    finally:
        servers.close()


def test_a_restored_node_starts_again_without_the_file(saved: Path, tmp_path: Path) -> None:
    """--restore is for the first start: with it a folder in use is refused, without it the node goes on."""
    (address,) = free_addresses(1)
    arguments: list[object] = ["--bind", address, "--wal-dir", tmp_path / "node"]
    server = Server([*arguments, "--restore", saved], tmp_path / "first.log")
    try:
        server.start()
        assert octopii("query", "--cluster", address, "GET colour").stdout == b"green"
    finally:
        server.close()
    ran = octopii("serve", *arguments, "--restore", saved)
    assert ran.returncode == 2
    assert "not empty" in one_line(ran)
    server = Server(arguments, tmp_path / "second.log")
    try:
        server.start()
        assert octopii("query", "--cluster", address, "GET colour").stdout == b"green"
    finally:
        server.close()


@pytest.mark.parametrize("position", [0, 9, 13, 17, 40, -1])
def test_damage_in_the_file_is_found(saved: Path, tmp_path: Path, position: int) -> None:
    """A flipped bit anywhere in the saved file is status 7 and named; no folder is made."""
    data = bytearray(saved.read_bytes())
    data[position] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    ran = octopii("serve", "--wal-dir", tmp_path / "node", "--restore", tmp_path / "damaged")
    assert ran.returncode == 7
    assert str(tmp_path / "damaged") in one_line(ran)
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize("size", [0, 10, 100, -1])
def test_a_file_that_was_cut_is_refused(saved: Path, tmp_path: Path, size: int) -> None:
    """A file that ends early is refused."""
    (tmp_path / "cut").write_bytes(saved.read_bytes()[:size])
    ran = octopii("serve", "--wal-dir", tmp_path / "node", "--restore", tmp_path / "cut")
    assert ran.returncode == 7
    assert not (tmp_path / "node").exists()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    """A file that is not there is status 2."""
    ran = octopii("serve", "--wal-dir", tmp_path / "node", "--restore", tmp_path / "missing")
    assert ran.returncode == 2
    assert str(tmp_path / "missing") in one_line(ran)
