"""Options that the cluster commands share, and the client that they lead to."""

from typing import Annotated

import typer

from octopii.client import BlockingClient

ClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="HOST:PORT,...",
        help="Addresses of some nodes; one that answers is enough.",
        envvar="OCTOPII_CLUSTER",
        show_default=False,
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="How long the call may take.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table for people.")]
CaOption = Annotated[
    str | None, typer.Option("--tls-ca", metavar="FILE", help="The cluster's CA (PEM).", envvar="OCTOPII_TLS_CA")
]
CertificateOption = Annotated[
    str | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate (PEM).", envvar="OCTOPII_TLS_CERT")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--tls-key", metavar="FILE", help="The certificate's key (PEM).", envvar="OCTOPII_TLS_KEY"),
]

default_timeout = 10.0
"""Seconds that a call may take when the command line names none."""


class Tls:
    """The three TLS options of a client command."""

    def __init__(self, ca: str | None, certificate: str | None, key: str | None) -> None:
        self.ca = ca
        self.certificate = certificate
        self.key = key

    def client(self, addresses: str | list[str], *, timeout: float) -> BlockingClient:
        """A client; raises `ConfigError`."""
        return BlockingClient(
            addresses,
            tls_ca_file=self.ca,
            tls_certificate_file=self.certificate,
            tls_key_file=self.key,
            timeout=timeout,
        )
