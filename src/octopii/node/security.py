"""TLS between nodes and clients: mutual, 1.3 only, one certificate authority per cluster.

A certificate says who its holder is by its common name: "node-<id>" or "client-<name>". Names of hosts play no part, so
that addresses may change. `authority.py` makes the files.
"""

import ssl
from collections.abc import Mapping
from typing import Any

from octopii.config import Config
from octopii.errors import ConfigError

authority_days = 3650
"""How long a new authority is valid."""

certificate_days = 825
"""How long a new certificate is valid unless it is said otherwise."""


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
