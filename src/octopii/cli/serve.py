"""`octopii serve`: one node of a cluster as a process.

Standard output gets one line, once the node listens. The log goes to standard error: what an operator cares about, and
nothing while all runs as it should.
"""

import errno
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import typer

from octopii.cli.exits import (
    EXIT_LOG,
    EXIT_NETWORK,
    EXIT_REFUSED,
    EXIT_USAGE,
    exit_code_of,
    fail,
    one_line_errors,
)
from octopii.cli.loading import load_class
from octopii.config import Config
from octopii.errors import ConfigError, ShuttingDown
from octopii.node import BlockingNode
from octopii.node.security import server_context
from octopii.replica.backup import found_from_file
from octopii.replica.founding import CLUSTER_ID_BYTES
from octopii.replica.replica import GROUP
from octopii.state_machine import StateMachine, require_machine
from octopii.walrus.vfs import RealFileSystem
from octopii.wire.handshake import STORAGE_ID_BYTES

default_machine = "octopii.machines.kv:KvStateMachine"

stop_seconds = 10.0
"""Within this time after SIGTERM or SIGINT a node has ended in order; after it, it is ended as it is."""

_watch_seconds = 0.5
"""How often a running node is asked whether it has failed."""

_unusable_addresses = {
    errno.EADDRINUSE: "it is in use by another process",
    errno.EADDRNOTAVAIL: "it is no address of this machine",
    errno.EACCES: "this user may not listen there",
}


class JsonLines(logging.Formatter):
    """Log records as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def set_up_logging(log_format: str) -> None:
    """Send the package's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("octopii")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False


def load_machine(name: str) -> StateMachine:
    """Import "package.module:Class" and make one; raises `ConfigError` that says what is wrong."""
    found = load_class(name, option="--machine", base=StateMachine)
    try:
        made = found()
    except Exception as error:
        raise ConfigError(f"{name}() raised {type(error).__name__}: {error}", field="machine") from error
    try:
        require_machine(made)
    except TypeError as error:
        raise ConfigError(f"--machine {name}: {error}", field="machine") from None
    return made


def parse_peers(peers: list[str]) -> dict[int, str]:
    """Read "2=HOST:PORT" options; raises `ConfigError`."""
    found: dict[int, str] = {}
    for text in peers:
        node_id, equals, address = text.partition("=")
        if not equals or not node_id.isascii() or not node_id.isdigit():
            raise ConfigError(f'--peer is "ID=HOST:PORT", not {text!r}', field="peers")
        if int(node_id) in found:
            raise ConfigError(f"--peer names node {node_id} twice", field="peers")
        found[int(node_id)] = address
    return found


def serve(
    node_id: Annotated[
        int | None, typer.Option(metavar="ID", min=1, help="Number of this node in the cluster.")
    ] = None,
    bind: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where to listen.")] = None,
    advertise: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where others reach this node.")] = None,
    peer: Annotated[
        list[str] | None, typer.Option(metavar="ID=HOST:PORT", help="Another founding member; once for each.")
    ] = None,
    wal_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the log and the snapshots.")] = None,
    machine: Annotated[str, typer.Option(metavar="MODULE:CLASS", help="The state machine.")] = default_machine,
    initial_leader: Annotated[bool, typer.Option("--initial-leader", help="Found the cluster, on one node.")] = False,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings; options win over it.")] = None,
    restore: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Found a new cluster from a saved snapshot, in a new folder.")
    ] = None,
    skip_index: Annotated[
        list[int] | None,
        typer.Option(metavar="INDEX", help="A log entry to answer instead of applying it; see operations."),
    ] = None,
    on_divergence: Annotated[
        Literal["halt", "resync"] | None,
        typer.Option(
            metavar="ACTION",
            help="halt or resync: what to do when the state here differs from that of a majority; see operations.",
        ),
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="The cluster's CA (PEM).")] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="This node's certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's key (PEM).")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without TLS.")] = False,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(metavar="FORMAT", help="How log lines look: text or json.")
    ] = "text",
) -> None:
    """Run one node until SIGTERM or Ctrl-C."""
    set_up_logging(log_format)
    settings = {
        "node_id": node_id,
        "bind_addr": bind,
        "advertise_addr": advertise,
        "wal_dir": str(wal_dir) if wal_dir is not None else None,
        "is_initial_leader": True if initial_leader else None,
        "on_divergence": on_divergence,
        "tls_ca_file": tls_ca,
        "tls_certificate_file": tls_cert,
        "tls_key_file": tls_key,
        "insecure": True if insecure else None,
    }
    overrides: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    with one_line_errors():
        if peer:
            overrides["peers"] = parse_peers(peer)
        chosen = Config.from_toml(config, **overrides) if config is not None else Config(**overrides)
        server_context(chosen)  # files that cannot be used are found before a folder is made
        loaded = load_machine(machine)
        if restore is not None:
            _restore(restore, chosen)
        node = BlockingNode(chosen, loaded, skip_indexes=frozenset(skip_index or ()))
        _run(node, chosen)


def _restore(path: Path, config: Config) -> None:
    """Fill the node's folder, which must be empty, from a saved snapshot."""
    try:
        found_from_file(
            config,
            str(path),
            prefix=f"group-{GROUP}",
            vfs=RealFileSystem(),
            storage_id=secrets.token_bytes(STORAGE_ID_BYTES),
            cluster_id=secrets.token_bytes(CLUSTER_ID_BYTES),
        )
    except OSError as error:
        fail(f"node {config.node_id} cannot be restored from {path}: {error}", EXIT_USAGE)


def _run(node: BlockingNode, config: Config) -> None:
    """Start the node, watch it, and end it in order."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        node.start()
    except OSError as error:
        _cannot_start(error, config)
    print(f"node {config.node_id} listens on {node.address}", flush=True)
    while not stop.wait(_watch_seconds):
        if node.failure is not None:
            failure = node.failure
            _shut_down(node, config)
            fail(f"node {config.node_id} has stopped: {failure}", exit_code_of(failure))
        refused = _refusal_of(node)
        if refused is not None:
            _shut_down(node, config)
            fail(f"node {config.node_id} cannot take part: {refused}", EXIT_REFUSED)
    _shut_down(node, config)


def _refusal_of(node: BlockingNode) -> str | None:
    """Why the cluster wants nothing of this node, if that is so; a node that cannot say it now is asked again."""
    try:
        refused: str | None = node.status["refused"]
    except (ShuttingDown, TimeoutError):
        return None
    return refused


def _shut_down(node: BlockingNode, config: Config) -> None:
    """End in order; when that takes too long, as on a disk that hangs, end without it: the log is made for that."""
    ending = threading.Thread(target=node.shutdown, name="shutdown", daemon=True)
    ending.start()
    ending.join(stop_seconds)
    if ending.is_alive():
        text = f"octopii: node {config.node_id} did not end within {stop_seconds:g} s and is ended as it is"
        print(text, file=sys.stderr, flush=True)
        os._exit(EXIT_LOG)  # an orderly exit would wait for the thread that hangs


def _cannot_start(error: OSError, config: Config) -> NoReturn:
    """Say why the operating system did not let the node start, and end."""
    reason = _unusable_addresses.get(error.errno or 0)
    if reason is not None and error.filename is None:
        fail(f"cannot listen on {config.bind_addr}: {reason}; choose another --bind", EXIT_NETWORK)
    if isinstance(error, socket.gaierror):
        fail(f"cannot listen on {config.bind_addr}: {error.strerror}; check --bind", EXIT_NETWORK)
    fail(f"node {config.node_id} cannot start in {config.wal_path}: {error}; check --wal-dir", EXIT_USAGE)
