"""The key-value machine: commands, queries, snapshots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.blocks import MAX_BLOCK_ITEMS, TARGET_BLOCK_BYTES
from octopii.errors import CommandError
from octopii.machines import KvStateMachine
from octopii.state_machine import MAX_SNAPSHOT_CHUNK_BYTES, SnapshotSource

KEYS = st.binary(min_size=1, max_size=6).map(lambda key: key.replace(b" ", b"_"))


def written(machine: KvStateMachine) -> bytes:
    return b"".join(SnapshotSource(machine.snapshot()))


def filled(*pairs: tuple[bytes, bytes]) -> KvStateMachine:
    machine = KvStateMachine()
    for key, value in pairs:
        assert machine.apply(b"SET " + key + b" " + value) == b"OK"
    return machine


def test_set_get_delete() -> None:
    """SET answers OK, GET the value or NOT_FOUND, DELETE OK once and NOT_FOUND then."""
    machine = filled((b"a", b"1"))
    assert machine.apply(b"GET a") == machine.query(b"GET a") == b"1"
    assert machine.apply(b"SET a 2") == b"OK"
    assert machine.query(b"GET a") == b"2"
    assert machine.apply(b"DELETE a") == b"OK"
    assert machine.apply(b"DELETE a") == b"NOT_FOUND"
    assert machine.query(b"GET a") == b"NOT_FOUND"


@pytest.mark.parametrize("value", [b"", b"two words", b" lead and trail ", b"\x00\xff\n", b"SET a b"])
def test_values_are_kept_byte_for_byte(value: bytes) -> None:
    """Everything behind the second space is the value, the empty one included."""
    machine = filled((b"\xffkey", value))
    assert machine.query(b"GET \xffkey") == value
    assert machine.apply(b"DELETE \xffkey") == b"OK"


@pytest.mark.parametrize(
    "command",
    [b"", b" ", b"SET", b"SET a", b"SET  a", b"GET", b"GET ", b"GET a b", b"GET  a", b"DELETE", b"DELETE a b"]
    + [b"set a b", b"PUT a b", b"SETa b c", b"\xff\x00", b"x" * 10_000, b"DELETE "],
)
def test_bad_commands_are_refused_and_change_nothing(command: bytes) -> None:
    """Every malformed command raises CommandError, with a short message, and leaves the state."""
    machine = filled((b"a", b"1"))
    with pytest.raises(CommandError) as caught:
        machine.apply(command)
    assert len(str(caught.value)) < 200
    assert written(machine) == written(filled((b"a", b"1")))


@pytest.mark.parametrize("command", [b"SET a 2", b"DELETE a", b"", b"GET", b"GET a b"])
def test_queries_only_read(command: bytes) -> None:
    """A query that would write, or is malformed, is refused and changes nothing."""
    machine = filled((b"a", b"1"))
    with pytest.raises(CommandError):
        machine.query(command)
    assert machine.query(b"GET a") == b"1"
    assert len(machine) == 1


@given(st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=8)))))
def test_commands_behave_like_a_dict(steps: list[tuple[bytes, bytes | None]]) -> None:
    """Any sequence of SET and DELETE gives what a dict gives, before and after a snapshot."""
    machine, model = KvStateMachine(), dict[bytes, bytes]()
    for key, value in steps:
        if value is None:
            expected = b"OK" if model.pop(key, None) is not None else b"NOT_FOUND"
            assert machine.apply(b"DELETE " + key) == expected
        else:
            model[key] = value
            assert machine.apply(b"SET " + key + b" " + value) == b"OK"
    restored = filled((b"old", b"state"))
    restored.restore(memoryview(written(machine)))
    for tested in (machine, restored):
        assert len(tested) == len(model)
        assert all(tested.query(b"GET " + key) == value for key, value in model.items())
    assert written(restored) == written(machine)


def test_snapshot_is_a_frozen_view() -> None:
    """Commands applied after `snapshot` returned do not show in it, however late it is encoded."""
    machine = filled(*((b"%d" % n, b"old") for n in range(10_000)))
    view = machine.snapshot()
    encoding = iter(SnapshotSource(view))
    first = bytes(next(encoding))
    for n in range(5_000):
        machine.apply(b"SET %d new" % n)
        machine.apply(b"DELETE %d" % (n + 5_000))
    restored = KvStateMachine()
    restored.restore(memoryview(first + b"".join(encoding)))
    assert len(restored) == 10_000
    assert restored.query(b"GET 0") == restored.query(b"GET 9999") == b"old"


def test_snapshot_comes_in_small_pieces() -> None:
    """No piece that one call encodes is much above its target, with many small and with large values."""
    machine = filled(*((b"small%d" % n, b"x") for n in range(3 * MAX_BLOCK_ITEMS)))
    for n in range(40):
        machine.apply(b"SET large%d %b" % (n, b"y" * 100_000))
    machine.apply(b"SET huge " + b"z" * (3 << 20))
    pieces = [len(piece) for piece in machine.snapshot()()]
    assert sorted(pieces)[-2] <= TARGET_BLOCK_BYTES + 64 * 1024 < MAX_SNAPSHOT_CHUNK_BYTES
    assert max(len(chunk) for chunk in SnapshotSource(machine.snapshot())) <= MAX_SNAPSHOT_CHUNK_BYTES
    restored = KvStateMachine()
    restored.restore(memoryview(written(machine)))
    assert written(restored) == written(machine)


def test_empty_store_has_a_snapshot() -> None:
    """The empty state is a snapshot like any other, and replaces what was there; no bytes at all are no snapshot."""
    machine = filled((b"a", b"1"))
    machine.restore(memoryview(written(KvStateMachine())))
    assert len(machine) == 0
    with pytest.raises(ValueError, match="ends"):
        machine.restore(memoryview(b""))


def test_damaged_snapshots_are_refused_and_change_nothing() -> None:
    """Every cut, and every foreign or repeated part, raises ValueError and leaves the state as it was."""
    whole = written(filled((b"a", b"1"), (b"b", b"22")))
    head = whole.index(b"kv/1")
    damaged = [whole[:cut] for cut in range(len(whole))]
    damaged += [
        whole + b"\x00",
        b"X" + whole[1:],
        whole[:head] + b"kw/1" + whole[head + 4 :],
        whole.replace(b"b", b"a"),
    ]
    machine = filled((b"kept", b"yes"))
    for data in damaged:
        with pytest.raises(ValueError, match="snapshot"):
            machine.restore(memoryview(data))
    assert machine.query(b"GET kept") == b"yes"
    assert len(machine) == 1


@given(st.binary(), st.integers(0, 60), st.integers(0, 255))
def test_random_and_mutated_snapshots_raise_only_value_error(data: bytes, at: int, value: int) -> None:
    """Whatever the bytes, restore succeeds or raises ValueError: never another exception."""
    whole = bytearray(written(filled((b"a", b"1"), (b"bcd", b"22"))))
    whole[min(at, len(whole) - 1)] = value
    for candidate in (data, bytes(whole)):
        try:
            KvStateMachine().restore(memoryview(candidate))
        except ValueError:
            pass
