"""Settings are validated on construction, documented, and readable from TOML."""

import ast
import copy
import inspect
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octopii import config as config_module
from octopii.config import Config, is_loopback, parse_address
from octopii.durability import Milliseconds, NoFsync, SyncEach
from octopii.errors import ConfigError

TLS: dict[str, Any] = {"tls_ca_file": "ca.pem", "tls_certificate_file": "node.pem", "tls_key_file": "node.key"}


def refused(**settings: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    return caught.value


def test_defaults_are_valid_and_follow_from_the_node_id() -> None:
    """A configuration without arguments is valid, bound to loopback, synced, and keeps its log in its own folder."""
    config = Config()
    assert config.fsync_schedule == SyncEach()
    assert config.wal_path == Path("octopii-1")
    assert config.advertised_addr == config.bind_addr
    assert not config.uses_tls
    assert Config(node_id=7).wal_path == Path("octopii-7")
    assert Config(wal_dir=Path("/data/x")).wal_path == Path("/data/x")


def test_every_field_has_a_default_and_a_description_with_its_unit() -> None:
    """Each field is followed by a docstring, and a quantity's name or docstring says its unit."""
    [struct] = [
        node
        for node in ast.parse(inspect.getsource(config_module)).body
        if isinstance(node, ast.ClassDef) and node.name == "Config"
    ]
    documented: dict[str, str] = {
        before.target.id: str(after.value.value)
        for before, after in zip(struct.body, struct.body[1:])
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    assert list(documented) == list(Config.__struct_fields__)
    for field in msgspec.structs.fields(Config):
        assert not field.required
        _, _, meta = config_module._FIELDS[field.name]
        if meta is not None and meta.extra:
            unit = meta.extra["unit"]
            assert unit.rstrip("s") in field.name + documented[field.name].lower(), field.name


def test_configuration_is_frozen_and_keyword_only() -> None:
    """Fields cannot be set, positions mean nothing, and the caller's mapping can change without changing it."""
    peers = {2: "127.0.0.1:5002"}
    config = Config(peers=peers)
    peers[3] = "127.0.0.1:5003"
    assert config.peers == {2: "127.0.0.1:5002"}
    with pytest.raises(AttributeError):
        config.node_id = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Config(1)  # type: ignore[call-arg]


def test_configuration_survives_copying_and_pickling() -> None:
    """A copy made through the pickling protocol, as for another process, is equal."""
    config = Config(peers={2: "127.0.0.1:5002"}, fsync_schedule=Milliseconds(5))
    assert copy.deepcopy(config) == config
    assert copy.copy(config) == config


def test_replace_checks_like_construction() -> None:
    """A changed copy is validated, keeps the rest, and derives its folder anew."""
    config = Config(node_id=1, call_timeout=3.0)
    changed = config.replace(node_id=2)
    assert (changed.node_id, changed.call_timeout, changed.wal_path) == (2, 3.0, Path("octopii-2"))
    with pytest.raises(ConfigError, match="call_timeout"):
        config.replace(call_timeout=-1.0)
    with pytest.raises(ConfigError, match="nearest is 'call_timeout'"):
        config.replace(cal_timeout=1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_id", 0),
        ("node_id", True),
        ("node_id", "1"),
        ("node_id", 1 << 63),
        ("bind_addr", 5001),
        ("bind_addr", "127.0.0.1"),
        ("bind_addr", "127.0.0.1:65536"),
        ("bind_addr", ":5001"),
        ("bind_addr", "::1:5001"),
        ("advertise_addr", "somewhere"),
        ("advertise_addr", "somewhere:0"),
        ("peers", [1, 2]),
        ("peers", {0: "127.0.0.1:1"}),
        ("peers", {1: "127.0.0.1:1"}),
        ("peers", {"2": "127.0.0.1:1"}),
        ("peers", {2: 5002}),
        ("peers", {2: "127.0.0.1:0"}),
        ("peers", {2: "127.0.0.1:5001"}),
        ("peers", {2: "127.0.0.1:7", 3: "127.0.0.1:7"}),
        ("peers", {n: f"127.0.0.1:{n}" for n in range(2, 70)}),
        ("wal_dir", 3),
        ("is_initial_leader", 1),
        ("election_timeout", 0),
        ("election_timeout", float("nan")),
        ("election_timeout", float("inf")),
        ("election_timeout", 0.2),
        ("election_timeout", 101.0),
        ("heartbeat_interval", 0.5),
        ("call_timeout", None),
        ("lease_drift_max", 0.6),
        ("fsync_schedule", "sync-each"),
        ("max_command_bytes", 1.5),
        ("max_command_bytes", 0),
        ("insecure", "yes"),
    ],
)
def test_wrong_values_are_refused_by_name(field: str, value: object) -> None:
    """A value of the wrong type or out of range raises ConfigError that names the field and shows the value."""
    error = refused(**{field: value})
    assert error.field == field or (field, error.field) == ("heartbeat_interval", "election_timeout")
    assert str(error).startswith(str(error.field))


def test_a_range_error_reads_like_a_sentence() -> None:
    """The message has the field, the range with its unit, and the value given."""
    assert str(refused(call_timeout=0)) == "call_timeout has to be from 0.001 to 86400 seconds, not 0"


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("max_batch_bytes", {"max_command_bytes": 8 << 20}),
        ("max_frame_bytes", {"max_frame_bytes": 4 << 20}),
        ("session_window_bytes", {"session_window_bytes": 1 << 20}),
        ("session_window_calls", {"session_window_calls": 100}),
        ("max_pending_bytes", {"max_pending_bytes": 1 << 20}),
        ("max_uncommitted_bytes", {"max_uncommitted_bytes": 1 << 20}),
        ("max_inflight_bytes", {"max_inflight_bytes": 1000}),
        ("peer_queue_bytes", {"peer_queue_bytes": 1 << 20}),
        ("client_queue_bytes", {"client_queue_bytes": 1 << 20}),
        ("snapshot_window_bytes", {"snapshot_window_bytes": 8192}),
        ("reconnect_delay_max", {"reconnect_delay_min": 30.0}),
        ("session_ttl", {"session_ttl": 5.0}),
        ("session_ttl", {"session_ttl": 20.0}),
    ],
)
def test_settings_at_odds_with_each_other_are_refused(field: str, settings: dict[str, Any]) -> None:
    """Limits that could never be met together are found at construction, before a call hangs on them."""
    assert refused(**settings).field == field


def test_election_ticks_are_derived_from_seconds() -> None:
    """The election timeout is at least as many heartbeats as were asked for, whatever the rounding of floats."""
    assert Config().election_ticks == 10
    assert Config(election_timeout=1.1, heartbeat_interval=0.1).election_ticks == 11
    assert Config(election_timeout=0.3, heartbeat_interval=0.1).election_ticks == 3
    assert Config(election_timeout=2.1, heartbeat_interval=0.7).election_ticks == 3
    assert Config(election_timeout=0.35, heartbeat_interval=0.1).election_ticks == 4
    assert Config(heartbeat_interval=0.25).tick_interval == 0.25


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "[::]", "db.example.org"])
def test_without_tls_only_loopback_is_allowed(host: str) -> None:
    """Listening beyond the machine needs TLS or the word `insecure`."""
    settings: dict[str, Any] = {"bind_addr": f"{host}:5001", "advertise_addr": "db.example.org:5001"}
    error = refused(**settings)
    assert error.field == "bind_addr"
    assert "insecure=True" in str(error)
    assert Config(**settings, insecure=True).insecure
    assert Config(**settings, **TLS).uses_tls


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
def test_loopback_needs_no_tls(host: str) -> None:
    """Every spelling of the loopback interface is accepted without TLS."""
    assert Config(bind_addr=f"{host}:5001").bind_addr == f"{host}:5001"
    assert is_loopback(parse_address(f"{host}:1")[0])


def test_tls_files_come_together() -> None:
    """One or two of the three files is an error that names a missing one; TLS and insecure exclude each other."""
    for left_out in TLS:
        assert refused(**{name: file for name, file in TLS.items() if name != left_out}).field == left_out
    assert refused(**TLS, insecure=True).field == "insecure"


def test_a_wildcard_address_is_not_advertised() -> None:
    """Others cannot connect to 0.0.0.0, so binding to it with peers needs an advertised address."""
    error = refused(bind_addr="0.0.0.0:5001", insecure=True, peers={2: "10.0.0.2:5001"})
    assert error.field == "advertise_addr"
    assert refused(advertise_addr="[::]:5001").field == "advertise_addr"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("db-1:80", ("db-1", 80)), ("[::1]:5001", ("::1", 5001)), ("10.0.0.1:0", ("10.0.0.1", 0))],
)
def test_addresses_are_parsed(text: str, expected: tuple[str, int]) -> None:
    """Host names, IPv4 and bracketed IPv6 addresses are taken apart."""
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "host", "host:", "host:-1", "host:1a", ":1", "[]:1", "a b:1", "::1:5", "h:\u0661"]
)
def test_wrong_addresses_are_refused(text: str) -> None:
    """What is no "host:port" raises ValueError with the text in it."""
    with pytest.raises(ValueError, match="address"):
        parse_address(text)


TOML = """
node_id = 2
bind_addr = "127.0.0.1:5002"
call_timeout = 3
fsync_schedule = "20ms"

[peers]
1 = "127.0.0.1:5001"
3 = "127.0.0.1:5003"
"""


def test_toml_text_and_file_give_the_same_settings(tmp_path: Path) -> None:
    """Settings are read from text, from a path object or a path string, and keywords override them."""
    file = tmp_path / "node.toml"
    file.write_text(TOML)
    expected = Config(
        node_id=2,
        bind_addr="127.0.0.1:5002",
        call_timeout=3,
        fsync_schedule=Milliseconds(20),
        peers={1: "127.0.0.1:5001", 3: "127.0.0.1:5003"},
    )
    assert Config.from_toml(TOML) == expected
    assert Config.from_toml(file) == expected
    assert Config.from_toml(str(file)) == expected
    assert Config.from_toml(file, call_timeout=9.0) == expected.replace(call_timeout=9.0)
    assert Config.from_toml("") == Config()


@pytest.mark.parametrize(
    ("name", "schedule"), [("sync-each", SyncEach()), ("no-fsync", NoFsync()), ("1ms", Milliseconds(1))]
)
def test_schedules_have_names_in_toml(name: str, schedule: object) -> None:
    """The three fsync schedules can be written in TOML."""
    assert Config.from_toml(f'fsync_schedule = "{name}"').fsync_schedule == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("election_timout = 1", "no setting 'election_timout'; the nearest is 'election_timeout'"),
        ("nodeid = 1", "nearest is 'node_id'"),
        ("node_id = ", "not valid TOML"),
        ('fsync_schedule = "0ms"', "from 1 to 60000"),
        ('fsync_schedule = "never"', '"sync-each", "no-fsync"'),
        ("fsync_schedule = 5", '"sync-each", "no-fsync"'),
        ('[peers]\nx = "127.0.0.1:1"', "keys are node ids, not 'x'"),
        ("peers = 3", "peers has to be a mapping"),
    ],
)
def test_wrong_toml_is_refused_clearly(text: str, message: str) -> None:
    """Unknown settings name the nearest known one; other mistakes name the setting."""
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(text)
    assert message in str(caught.value)


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    """A path that cannot be read is an error with the path, never empty settings."""
    with pytest.raises(ConfigError, match="absent"):
        Config.from_toml(tmp_path / "absent")
    with pytest.raises(ConfigError, match="absent"):
        Config.from_toml(str(tmp_path / "absent"))


def test_a_wrong_override_is_refused() -> None:
    """Overrides are checked for their names as the file is."""
    with pytest.raises(ConfigError, match="nearest is 'insecure'"):
        Config.from_toml("", inscure=True)
