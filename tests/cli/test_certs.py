"""`octopii certs`: the files that TLS needs, who may read them, and what is refused."""

import stat
from pathlib import Path

from cryptography import x509

from tests.cli.processes import octopii, one_line


def test_certificates_are_made_and_named(tmp_path: Path) -> None:
    """`init` and `issue` print the files they make; a certificate is signed by the authority and bears its name."""
    made = octopii("certs", "init", "--dir", tmp_path / "certs")
    assert made.stdout.decode().split() == [str(tmp_path / "certs" / name) for name in ("ca.key", "ca.pem")]
    for name in ("node-1", "client-web"):
        issued = octopii("certs", "issue", name, "--dir", tmp_path / "certs", "--days", 30)
        assert issued.returncode == 0, issued.stderr
        certificate = x509.load_pem_x509_certificate((tmp_path / "certs" / f"{name}.pem").read_bytes())
        authority = x509.load_pem_x509_certificate((tmp_path / "certs" / "ca.pem").read_bytes())
        certificate.verify_directly_issued_by(authority)
        assert certificate.subject.rfc4514_string() == f"CN={name}"
        assert 29 <= (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days <= 31


def test_keys_are_their_owner_s_alone(tmp_path: Path) -> None:
    """No key can be read by the group or by others."""
    octopii("certs", "init", "--dir", tmp_path)
    octopii("certs", "issue", "node-1", "--dir", tmp_path)
    for key in tmp_path.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(list(tmp_path.glob("*.key"))) == 2


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A second `init` in the same folder is refused, and the first authority stays as it is."""
    octopii("certs", "init", "--dir", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = octopii("certs", "init", "--dir", tmp_path)
    assert again.returncode == 2
    assert "not overwritten" in one_line(again)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_name_that_says_nothing_is_refused(tmp_path: Path) -> None:
    """A certificate that is neither a node's nor a client's is not made."""
    octopii("certs", "init", "--dir", tmp_path)
    refused = octopii("certs", "issue", "web server", "--dir", tmp_path)
    assert refused.returncode == 2
    assert '"node-<id>"' in one_line(refused)


def test_the_authority_comes_first(tmp_path: Path) -> None:
    """`issue` without an authority says which file is missing and what makes it."""
    refused = octopii("certs", "issue", "node-1", "--dir", tmp_path)
    assert refused.returncode == 2
    assert "ca.pem" in one_line(refused)
    assert "certs init" in one_line(refused)


def test_a_damaged_authority_is_one_line(tmp_path: Path) -> None:
    """Files that are no certificate are named, without a traceback."""
    (tmp_path / "ca.pem").write_text("hello")
    (tmp_path / "ca.key").write_text("hello")
    refused = octopii("certs", "issue", "node-1", "--dir", tmp_path)
    assert refused.returncode == 2
    assert str(tmp_path) in one_line(refused)
