"""TLS between nodes and clients: who gets in, and who does not."""

import asyncio
import contextlib
import datetime
import logging
from pathlib import Path
from typing import Any

import pytest

from octopii import BadCertificate, Client, Config, ConfigError, NoLeader
from octopii.node.authority import create_authority, issue
from tests.node.cluster import Cluster, patience

NOW = datetime.datetime.now(datetime.UTC)


class Certificates:
    """A folder with an authority and what it has issued."""

    def __init__(self, folder: Path, name: str = "test-ca") -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._authority, self._key = create_authority(name=name, now=NOW)
        (folder / "ca.pem").write_bytes(self._authority)

    def issue(self, name: str, *, now: datetime.datetime = NOW, days: int = 30) -> tuple[str, str]:
        """Files of a new certificate: (certificate, key)."""
        certificate, key = issue(name, authority=self._authority, authority_key=self._key, now=now, days=days)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate)
        paths[1].write_bytes(key)
        return str(paths[0]), str(paths[1])

    @property
    def ca(self) -> str:
        """The authority's file."""
        return str(self.folder / "ca.pem")

    def node(self, node_id: int) -> dict[str, Any]:
        """TLS settings of a node."""
        certificate, key = self.issue(f"node-{node_id}")
        return {"tls_ca_file": self.ca, "tls_certificate_file": certificate, "tls_key_file": key}

    def client(self, name: str = "client-test") -> dict[str, Any]:
        """TLS arguments of a client."""
        certificate, key = self.issue(name)
        return {"tls_ca_file": self.ca, "tls_certificate_file": certificate, "tls_key_file": key}


async def _tls_cluster(folder: Path, certificates: Certificates) -> Cluster:
    cluster = Cluster(folder)
    await asyncio.gather(*(cluster.start(node_id, **certificates.node(node_id)) for node_id in cluster.addresses))
    await (await cluster.leader()).propose(b"SET secure yes", timeout=patience)
    return cluster


def test_a_cluster_and_its_clients_speak_over_mutual_tls(tmp_path: Path) -> None:
    """Nodes with certificates of one authority form a cluster; a client with one of its own is served."""

    async def play() -> None:
        certificates = Certificates(tmp_path / "certs")
        cluster = await _tls_cluster(tmp_path, certificates)
        async with Client(list(cluster.addresses.values()), **certificates.client()) as client:
            assert await client.query(b"GET secure", timeout=patience) == b"yes"
            assert await client.propose(b"SET more yes", timeout=patience) == b"OK"
        await cluster.stop()

    asyncio.run(play())


@pytest.mark.parametrize("kind", ["none", "wrong authority", "expired"])
def test_a_client_without_a_good_certificate_is_not_served(tmp_path: Path, kind: str) -> None:
    """One of another authority, or an expired one, is `BadCertificate`, soon; without any, the error points to TLS."""

    async def play() -> None:
        certificates = Certificates(tmp_path / "certs")
        cluster = await _tls_cluster(tmp_path, certificates)
        arguments: dict[str, Any] = {}
        if kind == "wrong authority":
            arguments = Certificates(tmp_path / "other", "other-ca").client() | {"tls_ca_file": certificates.ca}
        elif kind == "expired":
            certificate, key = certificates.issue("client-old", now=NOW - datetime.timedelta(days=90))
            arguments = {"tls_ca_file": certificates.ca, "tls_certificate_file": certificate, "tls_key_file": key}
        async with Client(list(cluster.addresses.values()), **arguments) as client:
            if kind == "none":
                with pytest.raises(NoLeader, match="may expect TLS"):
                    await client.query(b"GET secure", timeout=1.5)
            else:
                with pytest.raises(BadCertificate):
                    await client.query(b"GET secure", timeout=2 * patience)
        await cluster.stop()

    asyncio.run(play())


def _settings_of_an_impostor(kind: str, folder: Path, certificates: Certificates) -> dict[str, Any]:
    """TLS settings of a node 3 that must not be let in."""
    if kind == "no certificate":
        return {}
    if kind == "wrong authority":
        return Certificates(folder / "other", "other-ca").node(3) | {"tls_ca_file": certificates.ca}
    if kind == "expired":
        certificate, key = certificates.issue("node-3", now=NOW - datetime.timedelta(days=90))
    else:
        certificate, key = certificates.issue(kind)
    return {"tls_ca_file": certificates.ca, "tls_certificate_file": certificate, "tls_key_file": key}


@pytest.mark.parametrize("kind", ["node-2", "client-x", "no certificate", "wrong authority", "expired"])
def test_a_node_needs_a_good_certificate_of_its_own_name(tmp_path: Path, kind: str) -> None:
    """Another node's certificate, a client's, none, a strange or an expired one: not let in; two go on without it."""

    async def play() -> None:
        certificates = Certificates(tmp_path / "certs")
        cluster = Cluster(tmp_path)
        impostor_settings = _settings_of_an_impostor(kind, tmp_path, certificates)
        for node_id in (1, 2):
            await cluster.start(node_id, **certificates.node(node_id))
        await cluster.start(3, **impostor_settings)
        leader = await cluster.leader(among={1, 2})
        await leader.propose(b"SET two yes", timeout=patience)
        impostor = cluster.nodes[3]
        with pytest.raises(NoLeader):
            await impostor.propose(b"SET three no", timeout=1.0)
        assert impostor.leader is None
        assert not leader.status["members"]["3"]["connected"]
        assert impostor.status["last_index"] == 0
        if kind in ("wrong authority", "expired"):
            assert "certificate" in impostor.status["warnings"]["refused-by-1"]
        await cluster.stop()

    asyncio.run(play())


@pytest.mark.parametrize("attack", [b"GET / HTTP/1.1\r\n\r\n", bytes(3000), b"\x16\x03\x01\x02\x00\x01\x00"])
def test_what_is_no_tls_is_cut_off_quietly(tmp_path: Path, attack: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage on a port that expects TLS closes the connection, fills no log, and others are served."""

    async def play() -> None:
        certificates = Certificates(tmp_path / "certs")
        cluster = Cluster(tmp_path, 1, handshake_timeout=0.5)
        await cluster.start(1, **certificates.node(1))
        node = await cluster.leader()
        host, port = node.address.split(":")
        for _ in range(10):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(attack)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), patience)
            writer.close()
        async with Client(node.address, **certificates.client()) as client:
            assert await client.propose(b"SET served yes", timeout=patience) == b"OK"
        await cluster.stop()

    with caplog.at_level(logging.WARNING):
        asyncio.run(play())
    assert len(caplog.records) <= 1


def test_a_node_without_tls_listens_on_loopback_only() -> None:
    """Listening beyond this machine without TLS has to be asked for in so many words."""
    with pytest.raises(ConfigError):
        Config(bind_addr="0.0.0.0:0", advertise_addr="10.0.0.1:7000")
    assert Config(bind_addr="0.0.0.0:0", advertise_addr="10.0.0.1:7000", insecure=True).insecure


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """A certificate file that is none stops the node before it binds, and the error names the file."""

    async def play() -> None:
        certificates = Certificates(tmp_path / "certs")
        broken = tmp_path / "broken.pem"
        broken.write_text("nothing")
        cluster = Cluster(tmp_path, 1)
        settings = certificates.node(1) | {"tls_certificate_file": str(broken)}
        with pytest.raises(ConfigError, match=r"broken\.pem"):
            await cluster.start(1, **settings)

    asyncio.run(play())
