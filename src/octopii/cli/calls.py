"""`octopii propose`, `query`, `transfer-leader`, `compact`: one call of a client each."""

import sys
from typing import Annotated

import typer

from octopii.cli.exits import one_line_errors
from octopii.cli.options import (
    CaOption,
    CertificateOption,
    ClusterOption,
    KeyOption,
    TimeoutOption,
    Tls,
    default_timeout,
)
from octopii.typed import ConsistencyName

CommandArgument = Annotated[str, typer.Argument(metavar="COMMAND", help="The command; - reads standard input.")]


def _command_bytes(command: str) -> bytes:
    """The command as it was typed, byte for byte; or all of standard input."""
    return sys.stdin.buffer.read() if command == "-" else command.encode("utf-8", "surrogateescape")


def _print_answer(answer: bytes) -> None:
    """Write the answer's bytes and nothing else; on a terminal a newline, so that the prompt stands alone."""
    sys.stdout.buffer.write(answer)
    if sys.stdout.isatty() and not answer.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def propose(
    cluster: ClusterOption,
    command: CommandArgument,
    timeout: TimeoutOption = default_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Replicate a command and print the answer. A typed state machine takes calls from programs, by client.call."""
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        _print_answer(client.propose(_command_bytes(command)))


def query(
    cluster: ClusterOption,
    command: CommandArgument,
    consistency: Annotated[
        ConsistencyName,
        typer.Option(metavar="LEVEL", help="How fresh the state has to be: linearizable, lease or stale."),
    ] = "linearizable",
    timeout: TimeoutOption = default_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Ask the state machine and print the answer."""
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        _print_answer(client.query(_command_bytes(command), consistency=consistency))


def transfer_leader(
    cluster: ClusterOption,
    node_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="The voter that is to lead.")],
    timeout: TimeoutOption = default_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Hand leadership to a voter."""
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        client.transfer_leader(node_id)
        print(f"node {node_id} leads")


def compact(
    cluster: ClusterOption,
    timeout: TimeoutOption = default_timeout,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
) -> None:
    """Have every replica compact its state, at one log index."""
    with one_line_errors(), Tls(tls_ca, tls_cert, tls_key).client(cluster, timeout=timeout) as client:
        print(f"compacted at entry {client.compact()}")
