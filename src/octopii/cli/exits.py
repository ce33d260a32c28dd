"""How the cluster commands end: exit codes, and one line on standard error that says what went wrong and what to do."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from octopii.errors import (
    BadCertificate,
    CallTimeout,
    ConfigError,
    LogInUse,
    NoLeader,
    NotApplied,
    OctopiiError,
    OutcomeUnknown,
    RefusedError,
    Rejected,
    WalrusError,
    WrongCluster,
)

EXIT_FAILED = 1
"""Damage was found, something was lost, or an error that has no code of its own."""

EXIT_USAGE = 2
"""The command line or a setting is wrong; nothing was done."""

EXIT_NOT_APPLIED = 3
"""The call was not applied and never will be; trying again is safe."""

EXIT_UNKNOWN = 4
"""The call may or may not have been applied."""

EXIT_REJECTED = 5
"""The state machine answered with an error."""

EXIT_REFUSED = 6
"""A node refused: certificate, cluster, removed or wiped node."""

EXIT_LOG = 7
"""The log or its folder cannot be used: locked, damaged, full."""

EXIT_NETWORK = 8
"""An address cannot be bound: in use, or not this machine's."""

EXIT_INTERRUPTED = 130
"""Ctrl-C."""

CODES: tuple[tuple[type[OctopiiError], int], ...] = (
    (ConfigError, EXIT_USAGE),
    (OutcomeUnknown, EXIT_UNKNOWN),
    (NotApplied, EXIT_NOT_APPLIED),
    (Rejected, EXIT_REJECTED),
    (RefusedError, EXIT_REFUSED),
    (WalrusError, EXIT_LOG),
)
"""What each branch of the error tree ends a command with."""

MEANINGS = {
    0: "all went well",
    EXIT_FAILED: "damage was found, something was lost, or an error without a code of its own",
    EXIT_USAGE: "the command line or a setting is wrong; nothing was done",
    EXIT_NOT_APPLIED: "the call was not applied and never will be; trying again is safe",
    EXIT_UNKNOWN: "the call may or may not have been applied",
    EXIT_REJECTED: "the state machine answered with an error",
    EXIT_REFUSED: "a node refused: certificate, cluster, removed or wiped node",
    EXIT_LOG: "the log or its folder cannot be used: locked, damaged, full",
    EXIT_NETWORK: "an address cannot be bound: in use, or not this machine's",
    EXIT_INTERRUPTED: "Ctrl-C; a server that it ends in good order has status 0",
}
"""The codes as the reference explains them."""

_ADVICE: tuple[tuple[type[OctopiiError], str], ...] = (
    (NoLeader, "check with octopii status that a majority of the nodes runs and that --cluster names them"),
    (CallTimeout, "the command may still count; ask the cluster before you repeat it, or raise --timeout"),
    (WrongCluster, "check --cluster: all its addresses have to lead to one cluster, the one that is meant"),
    (BadCertificate, "check --tls-ca, --tls-cert and --tls-key, and that the certificate's name fits"),
    (LogInUse, "stop the process that has it open, or choose another --wal-dir"),
)


def exit_code_of(error: BaseException) -> int:
    """The exit code that says what an error means."""
    return next((code for kind, code in CODES if isinstance(error, kind)), EXIT_FAILED)


def fail(text: str, code: int) -> NoReturn:
    """Say what went wrong in one line, and end."""
    print(f"octopii: {' '.join(text.split())}", file=sys.stderr)
    raise typer.Exit(code)


def fail_with(error: OctopiiError) -> NoReturn:
    """Say an exception in one line with what to do about it, and end."""
    text = str(error) or type(error).__name__
    advice = next((advice for kind, advice in _ADVICE if isinstance(error, kind)), None)
    fail(text if advice is None or advice in text else f"{text}: {advice}", exit_code_of(error))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the package's exceptions, and Ctrl-C, into one line and an exit code."""
    try:
        yield
    except OctopiiError as error:
        fail_with(error)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
