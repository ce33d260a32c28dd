"""TLS between nodes and clients: mutual, 1.3 only, one certificate authority per cluster.

A certificate says who its holder is by its common name: "node-<id>" or "client-<name>". Names of hosts play no part, so
that addresses may change. `create_authority` and `issue` make the files that `octopii certs` writes.
"""

import datetime
import ssl
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from octopii.config import Config
from octopii.errors import ConfigError

authority_days = 3650
"""How long a new authority is valid."""

certificate_days = 825
"""How long a new certificate is valid unless it is said otherwise."""

_clock_tolerance = datetime.timedelta(minutes=5)


def certificate_name(certificate: Mapping[str, Any] | None) -> str | None:
    """The common name in a peer's verified certificate, as the `ssl` module gives it."""
    if not certificate:
        return None
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return None


def server_context(config: Config) -> ssl.SSLContext | None:
    """TLS for accepting, None without TLS; raises `ConfigError` for files that cannot be used."""
    return _context(config, ssl.PROTOCOL_TLS_SERVER)


def client_context(config: Config) -> ssl.SSLContext | None:
    """TLS for dialling other nodes, None without TLS; raises `ConfigError`."""
    return _context(config, ssl.PROTOCOL_TLS_CLIENT)


def _context(config: Config, protocol: int) -> ssl.SSLContext | None:
    if not config.uses_tls:
        return None
    return make_context(
        protocol, ca=str(config.tls_ca_file), certificate=str(config.tls_certificate_file), key=str(config.tls_key_file)
    )


def make_context(protocol: int, *, ca: str, certificate: str, key: str) -> ssl.SSLContext:
    """A context for one side; raises `ConfigError` naming the file that cannot be used."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the CA file {ca} cannot be used: {error}", field="tls_ca_file") from error
    try:
        context.load_cert_chain(certfile=certificate, keyfile=key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificate {certificate} with the key {key} cannot be used: {error}", field="tls_certificate_file"
        ) from error
    return context


# --- making certificates ----------------------------------------------------------------------------------------


def create_authority(*, name: str, now: datetime.datetime, days: int = authority_days) -> tuple[bytes, bytes]:
    """A new authority as (certificate, key), both PEM; the key is not encrypted."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, subject, key.public_key(), now=now, days=days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key)


def issue(
    name: str, *, authority: bytes, authority_key: bytes, now: datetime.datetime, days: int = certificate_days
) -> tuple[bytes, bytes]:
    """A certificate for `name` ("node-1", "client-web"), signed by an authority: (certificate, key), both PEM.

    Raises `ValueError` when the authority's files cannot be read.
    """
    issuer = x509.load_pem_x509_certificate(authority)
    signer = serialization.load_pem_private_key(authority_key, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is no elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), now=now, days=days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _clock_tolerance)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
