"""Every setting of a node: one frozen, validated `Config`, built from keywords or from a TOML file.

A wrong value raises `ConfigError`, whose `field` names the setting, before anything is opened or bound. Sizes are in
bytes, times in seconds, and each name or description says which. Every queue, cache, message and table of a node has
its limit here.

Settings under "agreed" below must not differ between the nodes of a cluster in ways that matter: they are checked where
a command enters the log, never where it is applied, so that different values cannot split the state.
"""

import difflib
import ipaddress
import math
import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from octopii.durability import FsyncSchedule, Milliseconds, NoFsync, SyncEach
from octopii.errors import ConfigError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

MAX_NODE_ID = (1 << 63) - 1
MAX_PEERS = 63
"""Most entries in `peers`: a cluster far beyond this size would spend its time on heartbeats."""

FRAME_OVERHEAD_BYTES = 64 * KIB
"""Room that a frame keeps beside the commands in it, for headers and call numbers."""

MIN_ELECTION_TICKS = 3
"""Fewest heartbeats in an election timeout: two may be lost without an election."""

MAX_ELECTION_TICKS = 1000

_SECONDS = {"unit": "seconds"}
_BYTES = {"unit": "bytes"}


def _seconds(least: float, most: float) -> Meta:
    return Meta(ge=least, le=most, extra=_SECONDS)


def _bytes(least: int, most: int) -> Meta:
    return Meta(ge=least, le=most, extra=_BYTES)


def _count(most: int, unit: str, *, least: int = 1) -> Meta:
    return Meta(ge=least, le=most, extra={"unit": unit})


class Config(msgspec.Struct, frozen=True, kw_only=True, eq=True):
    """Settings of one node. Keyword-only, immutable, checked on construction.

    Raises `ConfigError` for a value that is of the wrong type, out of range, or at odds with another one.
    """

    # --- who and where ---

    node_id: Annotated[int, Meta(ge=1, le=MAX_NODE_ID)] = 1
    """Number of this node, unique in the cluster for ever: a removed node's number is not used again."""

    bind_addr: str = "127.0.0.1:5001"
    """"host:port" to listen on, for nodes and clients alike. Port 0 takes any free port."""

    advertise_addr: str | None = None
    """"host:port" under which others reach this node. None means `bind_addr`."""

    peers: Mapping[int, str] = {}
    """Other founding members, id -> "host:port", without this node. Only seeds the first start: afterwards the
    membership in the log wins."""

    wal_dir: str | os.PathLike[str] | None = None
    """Folder of the log and the snapshots, private to the node. None means `octopii-<node_id>`."""

    is_initial_leader: bool = False
    """Whether this node founds the cluster: say so on one node alone, later if forgotten. Ignored once it has one."""

    # --- times ---

    election_timeout: Annotated[float, _seconds(0.01, 3600)] = 1.0
    """Seconds without a leader before an election, randomised up to twice this."""

    heartbeat_interval: Annotated[float, _seconds(0.001, 60)] = 0.1
    """Seconds between a leader's heartbeats; also the length of a tick."""

    call_timeout: Annotated[float, _seconds(0.001, 86_400)] = 10.0
    """Seconds that a call may take when it names none: by `timeout=`, for `call` by `method.options(timeout=...)`."""

    session_ttl: Annotated[float, _seconds(1, 31_536_000)] = 3600.0
    """Seconds of replicated time after its last call before a client's session expires."""

    compact_interval: Annotated[float, _seconds(0.1, 86_400)] = 60.0
    """Most seconds between two compaction entries, which also move replicated time on in an idle cluster."""

    digest_interval: Annotated[float, _seconds(0.1, 86_400)] = 10.0
    """Least seconds between two log entries at which the replicas' answers are compared; idle clusters write none."""

    on_divergence: str = "halt"
    """What a replica does whose answers or state differ from those of a majority: "halt", it stops serving until it is
    restarted, or "resync", it stops serving until it has replaced its state by a snapshot from the leader."""

    clock_skew_max: Annotated[float, _seconds(0.01, 86_400)] = 5.0
    """Seconds that a leader's wall clock may be from the median of the members' before it hands leadership over."""

    lease_drift_max: Annotated[float, Meta(ge=0, le=0.5, extra={"unit": "fraction"})] = 0.1
    """Fraction by which two nodes' clocks may run apart: lease reads stop that much before the election timeout."""

    handshake_timeout: Annotated[float, _seconds(0.01, 600)] = 5.0
    """Seconds that a new connection may take to say who it is, TLS included."""

    reconnect_delay_min: Annotated[float, _seconds(0.001, 60)] = 0.05
    """Seconds before the first new try to reach a lost peer; doubles with each try, with jitter."""

    reconnect_delay_max: Annotated[float, _seconds(0.001, 3600)] = 2.0
    """Most seconds between two tries to reach a lost peer."""

    slow_apply_threshold: Annotated[float, _seconds(0, 3600)] = 0.01
    """Seconds above which one `apply` is logged with its size and index."""

    # --- durability, log and snapshots ---

    fsync_schedule: FsyncSchedule = SyncEach()
    """When log entries are synced. Anything but `SyncEach` may lose acknowledged entries at a power cut; term and vote
    are always synced. In TOML: "sync-each", "no-fsync", or milliseconds as in "20ms"."""

    snapshot_every_entries: Annotated[int, _count(1 << 40, "entries")] = 100_000
    """Log entries after which a snapshot is taken."""

    snapshot_every_bytes: Annotated[int, _bytes(1, 1 << 50)] = 256 * MIB
    """Bytes of log after which a snapshot is taken."""

    snapshot_lag_threshold: Annotated[int, _count(1 << 40, "entries")] = 50_000
    """Entries that a peer may lag before it is sent a snapshot, where that has fewer bytes than those entries."""

    log_keep_entries: Annotated[int, _count(1 << 40, "entries", least=0)] = 10_000
    """Log entries kept behind the newest snapshot, so that a peer that is a little late needs no snapshot."""

    snapshot_chunk_bytes: Annotated[int, _bytes(4 * KIB, MIB)] = 256 * KIB
    """Bytes of one chunk of a snapshot on its way to disk or to a peer."""

    snapshot_sync_bytes: Annotated[int, _bytes(64 * KIB, GIB)] = 4 * MIB
    """Bytes of a snapshot written between two syncs, so that no sync of the log waits behind much of it."""

    snapshot_window_bytes: Annotated[int, _bytes(4 * KIB, GIB)] = 2 * MIB
    """Bytes of a snapshot sent to a peer and not yet confirmed by it."""

    disk_reserve_bytes: Annotated[int, _bytes(64 * KIB, GIB)] = 8 * MIB
    """Bytes set aside on disk for votes, trims and manifests when the volume is full."""

    disk_low_water_bytes: Annotated[int, _bytes(0, 1 << 50)] = 128 * MIB
    """Free bytes on the volume below which a leader hands over and, with no other to take over, refuses writes."""

    # --- transport security ---

    tls_ca_file: str | os.PathLike[str] | None = None
    """PEM file of the cluster's certificate authority. The three TLS files come together or not at all."""

    tls_certificate_file: str | os.PathLike[str] | None = None
    """PEM file of this node's certificate, whose name has to match `node_id`."""

    tls_key_file: str | os.PathLike[str] | None = None
    """PEM file of the certificate's private key."""

    insecure: bool = False
    """Whether a node without TLS may listen beyond the loopback interface: whoever reaches the port owns the data."""

    # --- limits, agreed ---

    max_command_bytes: Annotated[int, _bytes(1, 64 * MIB)] = MIB
    """Bytes of one command or query; more is refused as `TooLarge`."""

    max_batch_bytes: Annotated[int, _bytes(1, 256 * MIB)] = 4 * MIB
    """Bytes of commands in one log entry, hence of a `propose_batch`; more is refused as `TooLarge`."""

    max_batch_commands: Annotated[int, _count(1 << 20, "commands")] = 16_384
    """Commands in one log entry, hence of a `propose_batch`."""

    max_frame_bytes: Annotated[int, _bytes(128 * KIB, GIB)] = 16 * MIB
    """Bytes of one frame on a connection; a longer one ends the connection before it is read."""

    session_window_calls: Annotated[int, _count(1 << 20, "calls")] = 65_536
    """Calls of one session that may be unacknowledged; at the limit new calls wait."""

    session_window_bytes: Annotated[int, _bytes(1, GIB)] = 16 * MIB
    """Bytes of commands of one session that are not answered yet; at the limit new calls wait. They wait likewise while
    16 MiB of answers are kept for the session, which is the same on every node."""

    max_sessions: Annotated[int, _count(1 << 24, "sessions")] = 10_000
    """Open sessions in the cluster; at the limit opening another is refused as `Overloaded`."""

    # --- limits of this node ---

    max_pending_calls: Annotated[int, _count(1 << 24, "calls")] = 65_536
    """Calls accepted and not yet answered; at the limit callers in this process wait and others are `Overloaded`."""

    max_pending_bytes: Annotated[int, _bytes(1, 1 << 40)] = 64 * MIB
    """Bytes of calls accepted and not yet answered."""

    max_uncommitted_bytes: Annotated[int, _bytes(1, 1 << 40)] = 64 * MIB
    """Bytes of entries in a leader's log that are not yet committed."""

    max_append_bytes: Annotated[int, _bytes(1, GIB)] = MIB
    """Bytes of entries in one message to a peer (one entry at least)."""

    max_inflight_appends: Annotated[int, _count(1 << 16, "messages")] = 256
    """Messages with entries sent to a peer and not yet answered by it."""

    max_inflight_bytes: Annotated[int, _bytes(1, 1 << 40)] = 32 * MIB
    """Bytes of entries sent to a peer and not yet answered by it."""

    entry_cache_bytes: Annotated[int, _bytes(0, 1 << 40)] = 64 * MIB
    """Bytes of recent log entries kept in memory; older ones are read from disk."""

    peer_queue_bytes: Annotated[int, _bytes(1, 1 << 40)] = 64 * MIB
    """Bytes of messages waiting to be sent to one peer; beyond it messages are dropped and counted."""

    client_queue_bytes: Annotated[int, _bytes(1, 1 << 40)] = 32 * MIB
    """Bytes of answers waiting to be sent to one client; beyond it nothing more is read from the client."""

    max_connections: Annotated[int, _count(1 << 20, "connections")] = 1_000
    """Connections accepted at once; beyond it new ones are closed."""

    max_handshakes: Annotated[int, _count(1 << 16, "connections")] = 128
    """Accepted connections that have not yet said who they are; beyond it the oldest is closed."""

    def __post_init__(self) -> None:
        _check_fields(self)
        _check_addresses(self)
        _check_security(self)
        _check_times(self)
        _check_limits(self)

    # --- what follows from the settings ---

    @property
    def tick_interval(self) -> float:
        """Seconds per tick of the Raft core."""
        return self.heartbeat_interval

    @property
    def heartbeat_ticks(self) -> int:
        """Ticks between a leader's heartbeats."""
        return 1

    @property
    def election_ticks(self) -> int:
        """Ticks without a leader before an election, before randomisation."""
        # Rounded first: 2.1 / 0.7 is a hair above 3.
        return math.ceil(round(self.election_timeout / self.heartbeat_interval, 6))

    @property
    def wal_path(self) -> Path:
        """Folder of the node's log and snapshots."""
        return Path(f"octopii-{self.node_id}" if self.wal_dir is None else self.wal_dir)

    @property
    def advertised_addr(self) -> str:
        """Address given to others; its port is 0 when any free port is to be taken."""
        return self.bind_addr if self.advertise_addr is None else self.advertise_addr

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted and both sides show certificates."""
        return self.tls_ca_file is not None

    def replace(self, **changes: Any) -> "Config":
        """Return a copy with some settings changed, checked like a new one; raises `ConfigError`."""
        return Config(**{**{name: getattr(self, name) for name in _FIELDS}, **_known(changes)})

    @classmethod
    def from_toml(cls, source: str | os.PathLike[str], **overrides: Any) -> "Config":
        """Read settings from a TOML file, or from TOML text (a string with a line break or a "="), and `overrides`.

        Raises `ConfigError` when the file cannot be read or parsed, for an unknown setting (naming the nearest known
        one), and for what construction refuses.
        """
        settings = _known(_read_toml(source))
        if "peers" in settings:
            settings["peers"] = _peers_from_toml(settings["peers"])
        if "fsync_schedule" in settings:
            settings["fsync_schedule"] = parse_fsync_schedule(settings["fsync_schedule"])
        return cls(**{**settings, **_known(overrides)})


def parse_address(text: str) -> tuple[str, int]:
    """Split "host:port" (IPv6 in brackets) into host and port; raises `ValueError` that says what is wrong."""
    host, colon, digits = text.rpartition(":")
    if not colon or not digits.isascii() or not digits.isdigit() or int(digits) > 65_535:
        raise ValueError(f'an address is "host:port" with a port up to 65535, not {text!r}')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f'an IPv6 address needs brackets, as in "[::1]:5001", not {text!r}')
    if not host or any(character.isspace() or character in "[]/" for character in host):
        raise ValueError(f'an address is "host:port" with a host name or IP address, not {text!r}')
    return host, int(digits)


def is_loopback(host: str) -> bool:
    """Whether listening on `host` reaches this machine only. A name other than "localhost" counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_fsync_schedule(value: object) -> FsyncSchedule:
    """Read a schedule's name: "sync-each", "no-fsync" or "<n>ms"; raises `ConfigError`."""
    if isinstance(value, FsyncSchedule):
        return value
    if value == "sync-each":
        return SyncEach()
    if value == "no-fsync":
        return NoFsync()
    if isinstance(value, str) and value.endswith("ms") and value[:-2].isascii() and value[:-2].isdigit():
        try:
            return Milliseconds(int(value[:-2]))
        except ValueError as error:
            raise ConfigError(f"fsync_schedule: {error}", field="fsync_schedule") from None
    raise ConfigError(
        f'fsync_schedule has to be "sync-each", "no-fsync" or milliseconds as in "20ms", not {value!r}',
        field="fsync_schedule",
    )


# --- reading ----------------------------------------------------------------------------------------------------


def _read_toml(source: str | os.PathLike[str]) -> dict[str, Any]:
    if isinstance(source, str) and ("\n" in source or "=" in source or not source.strip()):
        where, text = "the settings", source
    else:
        where = str(os.fspath(source))
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the settings file {where}: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from error


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    for name in settings:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.0)[0]
            hint = "it is given by --machine" if name == "machine" else f"the nearest is {near!r}"
            raise ConfigError(f"there is no setting {name!r}; {hint}", field=name)
    return dict(settings)


def _peers_from_toml(peers: object) -> object:
    if not isinstance(peers, dict):
        return peers
    try:
        return {int(key): address for key, address in peers.items()}
    except ValueError:
        raise ConfigError(f"peers: keys are node ids, not {', '.join(map(repr, peers))}", field="peers") from None


# --- checking ---------------------------------------------------------------------------------------------------


def _require(condition: bool, field: str, rule: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{field} {rule}, not {value!r}", field=field)


def _check_fields(config: Config) -> None:
    for name, (kinds, expected, meta) in _FIELDS.items():
        value = getattr(config, name)
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        _require(fits, name, f"has to be {expected}", value)
        if meta is None:
            continue
        assert meta.ge is not None
        assert meta.le is not None
        # Written so that NaN, which compares false with everything, fails.
        unit = f" {meta.extra['unit']}" if meta.extra else ""
        _require(meta.ge <= value <= meta.le, name, f"has to be from {meta.ge:g} to {meta.le:g}{unit}", value)


def _check_addresses(config: Config) -> None:
    host, port = _address(config.bind_addr, "bind_addr")
    if config.advertise_addr is not None:
        host, port = _address(config.advertise_addr, "advertise_addr")
        _require(port > 0, "advertise_addr", "has to name a port", config.advertise_addr)
    field = "bind_addr" if config.advertise_addr is None else "advertise_addr"
    if host in ("0.0.0.0", "::") and (config.peers or field == "advertise_addr"):
        raise ConfigError(
            f"others cannot reach this node at {host}: set advertise_addr to an address that they can reach",
            field="advertise_addr",
        )
    _require(len(config.peers) <= MAX_PEERS, "peers", f"may name at most {MAX_PEERS} nodes", len(config.peers))
    seen = {(host, port): config.node_id}
    for node_id, address in config.peers.items():
        fits = isinstance(node_id, int) and not isinstance(node_id, bool) and 1 <= node_id <= MAX_NODE_ID
        _require(fits, "peers", "has node ids from 1 as keys", node_id)
        _require(node_id != config.node_id, "peers", "names the other nodes only", node_id)
        _require(isinstance(address, str), "peers", 'has addresses ("host:port") as values', address)
        at = _address(address, "peers")
        _require(at[1] > 0, "peers", "has to name ports", address)
        other = seen.setdefault(at, node_id)
        if other != node_id:
            raise ConfigError(f"peers: nodes {other} and {node_id} have the same address {address!r}", field="peers")
    # A caller who changes the mapping afterwards must not change a frozen configuration.
    msgspec.structs.force_setattr(config, "peers", dict(config.peers))


def _address(text: str, field: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except ValueError as error:
        raise ConfigError(f"{field}: {error}", field=field) from None


def _check_security(config: Config) -> None:
    files = {name: getattr(config, name) for name in ("tls_ca_file", "tls_certificate_file", "tls_key_file")}
    missing = [name for name, file in files.items() if file is None]
    if missing and len(missing) < len(files):
        raise ConfigError(f"TLS needs all three files; {' and '.join(missing)} is missing", field=missing[0])
    if config.insecure and not missing:
        raise ConfigError("insecure=True contradicts the TLS files: leave out the one or the others", field="insecure")
    host, _ = parse_address(config.bind_addr)
    if missing and not config.insecure and not is_loopback(host):
        raise ConfigError(
            f"bind_addr {config.bind_addr!r} can be reached from other machines: give the three TLS files, bind to a "
            "loopback address such as 127.0.0.1, or say insecure=True (--insecure)",
            field="bind_addr",
        )


def _check_times(config: Config) -> None:
    ticks = config.election_ticks
    _require(
        MIN_ELECTION_TICKS <= ticks <= MAX_ELECTION_TICKS,
        "election_timeout",
        f"has to be {MIN_ELECTION_TICKS} to {MAX_ELECTION_TICKS} heartbeat_intervals of {config.heartbeat_interval} s",
        config.election_timeout,
    )
    _at_least(config, "reconnect_delay_max", "reconnect_delay_min")
    # A retried call has to find its session, and in an idle cluster only compaction entries move replicated time.
    _at_least(config, "session_ttl", "call_timeout")
    _at_least(config, "session_ttl", "compact_interval")
    _require(
        config.on_divergence in ("halt", "resync"),
        "on_divergence",
        'has to be "halt" or "resync"',
        config.on_divergence,
    )


def _check_limits(config: Config) -> None:
    _at_least(config, "max_batch_bytes", "max_command_bytes")
    _at_least(config, "max_frame_bytes", "max_batch_bytes", room=FRAME_OVERHEAD_BYTES)
    _at_least(config, "max_frame_bytes", "max_append_bytes", room=FRAME_OVERHEAD_BYTES)
    _at_least(config, "max_frame_bytes", "snapshot_chunk_bytes", room=FRAME_OVERHEAD_BYTES)
    _at_least(config, "session_window_bytes", "max_batch_bytes")
    _at_least(config, "session_window_calls", "max_batch_commands")
    _at_least(config, "max_pending_bytes", "max_batch_bytes")
    _at_least(config, "max_uncommitted_bytes", "max_batch_bytes")
    _at_least(config, "max_inflight_bytes", "max_append_bytes")
    _at_least(config, "peer_queue_bytes", "max_frame_bytes")
    _at_least(config, "client_queue_bytes", "max_frame_bytes")
    _at_least(config, "snapshot_window_bytes", "snapshot_chunk_bytes")


def _at_least(config: Config, field: str, other: str, *, room: int = 0) -> None:
    value, least = getattr(config, field), getattr(config, other) + room
    extra = f" + {room}" if room else ""
    _require(value >= least, field, f"has to be at least {other}{extra} = {least}", value)


def _describe_fields() -> dict[str, tuple[tuple[type, ...], str, Meta | None]]:
    """Per field: the types it takes, how to call them, and its range."""
    path = ((str, os.PathLike, type(None)), "a path")
    special: dict[str, tuple[tuple[type, ...], str]] = {
        "advertise_addr": ((str, type(None)), "a string"),
        "peers": ((Mapping,), "a mapping of node ids to addresses"),
        "fsync_schedule": ((SyncEach, Milliseconds, NoFsync), "SyncEach(), Milliseconds(n) or NoFsync()"),
        **dict.fromkeys(("wal_dir", "tls_ca_file", "tls_certificate_file", "tls_key_file"), path),
    }
    plain: dict[type, tuple[tuple[type, ...], str]] = {
        bool: ((bool,), "True or False"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "a string"),
    }
    described = {}
    for name, hint in typing.get_type_hints(Config, include_extras=True).items():
        kind, *metas = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        kinds, expected = special[name] if name in special else plain[kind]
        described[name] = (kinds, expected, metas[0] if metas else None)
    return described


_FIELDS = _describe_fields()
