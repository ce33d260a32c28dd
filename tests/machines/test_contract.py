"""What holds of every built-in machine: determinism, sound snapshots, and no other refusal than CommandError."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.errors import CommandError
from octopii.state_machine import SnapshotSource, StateMachine
from octopii.testing import check_determinism
from tests.machines.specimens import SPECIMENS, Specimen, state_of, written

pytestmark = pytest.mark.parametrize("specimen", SPECIMENS.values(), ids=SPECIMENS.keys())


def alive(specimen: Specimen) -> StateMachine:
    machine = specimen.factory()
    machine.clock.set(1_700_000_000.0)
    apply_all(machine, specimen.commands)
    return machine


def apply_all(machine: StateMachine, commands: list[bytes]) -> None:
    for command in commands:
        try:
            machine.apply(command)
        except CommandError:
            pass
        machine.clock.advance(0.5)


def answers(machine: StateMachine, specimen: Specimen) -> list[bytes]:
    return [outcome(machine, query) for query in specimen.queries]


def outcome(machine: StateMachine, query: bytes) -> bytes:
    try:
        return machine.query(query)
    except CommandError as error:
        return str(error).encode()


def test_it_is_deterministic(specimen: Specimen) -> None:
    """Snapshots in between, other processes, other hash seeds and other wall clocks change nothing."""
    check_determinism(
        specimen.factory, specimen.commands, queries=specimen.queries, compare_snapshots=specimen.fixed_order
    )


def test_a_restored_copy_answers_alike(specimen: Specimen) -> None:
    """The copy has the same answers and the same snapshot, and replaces whatever was there."""
    machine = alive(specimen)
    copy = specimen.factory()
    apply_all(copy, specimen.commands[:3])
    copy.restore(memoryview(written(machine)))
    assert answers(copy, specimen) == answers(machine, specimen)
    assert state_of(copy) == state_of(machine)
    empty = specimen.factory()
    copy.restore(memoryview(written(empty)))
    assert state_of(copy) == state_of(empty) != state_of(machine)


def test_a_snapshot_is_frozen(specimen: Specimen) -> None:
    """Commands and compaction after `snapshot` returned do not show in the bytes written later."""
    machine = specimen.factory()
    half = len(specimen.commands) // 2
    apply_all(machine, specimen.commands[:half])
    expected = written(machine)
    view = SnapshotSource(machine.snapshot())
    assert view.frozen
    apply_all(machine, specimen.commands[half:])
    machine.clock.set(4_000_000_000.0)
    machine.compact()
    assert written(machine) != expected
    assert b"".join(view) == expected


def test_a_snapshot_that_is_cut_is_refused(specimen: Specimen) -> None:
    """A snapshot that ends at any earlier byte raises ValueError and changes nothing."""
    whole = written(alive(specimen))
    machine = specimen.factory()
    machine.apply(specimen.commands[0])
    before = written(machine)
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match="snapshot"):
            machine.restore(memoryview(whole)[:cut])
    with pytest.raises(ValueError, match="snapshot"):
        machine.restore(memoryview(whole + b"\x00"))
    assert written(machine) == before


def test_a_snapshot_of_another_machine_is_refused(specimen: Specimen) -> None:
    """No machine takes another one's snapshot."""
    machine = specimen.factory()
    for name, other in SPECIMENS.items():
        if other.inside or name == specimen.inside:
            continue
        if other is not specimen:
            with pytest.raises(ValueError, match="snapshot"):
                machine.restore(memoryview(written(alive(other))))


@given(data=st.data())
def test_a_damaged_snapshot_raises_nothing_but_value_error(specimen: Specimen, data: st.DataObject) -> None:
    """With any bytes changed, restore either raises ValueError and changes nothing, or gives a sound machine."""
    whole = bytearray(written(alive(specimen)))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    machine = specimen.factory()
    machine.apply(specimen.commands[0])
    before = written(machine)
    try:
        machine.restore(memoryview(bytes(whole)))
    except ValueError:
        assert written(machine) == before
    else:
        answers(machine, specimen)
        machine.compact()
        machine.restore(memoryview(written(machine)))


@given(data=st.data())
def test_a_bad_command_raises_nothing_but_command_error(specimen: Specimen, data: st.DataObject) -> None:
    """Random commands answer with bytes or raise CommandError, and one that raised has changed nothing."""
    machine = specimen.factory()
    apply_all(machine, specimen.commands[:6])
    verb = data.draw(st.sampled_from([*specimen.verbs, b""]))
    separator = verb[-1:] or b" "
    parts = data.draw(st.lists(st.one_of(st.binary(max_size=5), st.sampled_from([b"1", b"-9", b"+5", b"1e5", b"1_0"]))))
    command = verb + separator.join(parts)
    before = state_of(machine)
    for call in (machine.apply, machine.query):
        refusal = None
        try:
            assert isinstance(call(command), bytes)
        except CommandError as error:
            refusal = str(error)
        if refusal is not None:
            assert state_of(machine) == before
            assert refusal.isascii()
            assert len(refusal) < 300
        before = state_of(machine)


def test_queries_change_nothing(specimen: Specimen) -> None:
    """Every query answers without a change, and no command that writes passes as a query."""
    machine = alive(specimen)
    before = state_of(machine)
    answers(machine, specimen)
    with pytest.raises(CommandError):
        machine.query(specimen.commands[0])
    assert state_of(machine) == before
