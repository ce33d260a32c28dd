"""The contract between a state machine and the replica that drives it."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from octopii.errors import CommandError, QueryNotSupported
from octopii.state_machine import (
    Buffer,
    Clock,
    ClockDriver,
    Snapshot,
    SnapshotSource,
    StateMachine,
    restore_snapshot,
)


class Recorder(StateMachine):
    """Notes what it sees; its initialiser does not call the base class's."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int, int]] = []
        self.state = b""

    def apply(self, command: bytes) -> bytes:
        if command == b"bad":
            raise CommandError("no")
        self.seen.append((self.clock.now(), self.clock.index, self.clock.term))
        return b"%d" % self.rng.getrandbits(64)

    def snapshot(self) -> Snapshot:
        return self.state

    def restore(self, data: memoryview) -> None:
        self.state = bytes(data)


class Compacting(Recorder):
    def compact(self) -> None:
        self.state = b""


def driven(cluster_id: bytes = b"cluster") -> tuple[Recorder, ClockDriver]:
    machine = Recorder()
    return machine, ClockDriver(machine, cluster_id=cluster_id)


def chunks(result: object, *, chunk_bytes: int = 4) -> list[bytes]:
    return [bytes(chunk) for chunk in SnapshotSource(result, chunk_bytes=chunk_bytes)]


def test_bare_machine_needs_no_initialiser_and_no_cluster() -> None:
    """Clock and rng work on an instance whose class never called super().__init__, on a manual clock from 0."""
    machine = Recorder()
    assert machine.clock.now() == 0.0
    machine.clock.set(1_700_000_000.0, index=7, term=2)
    machine.clock.advance(1.5)
    machine.apply(b"x")
    assert machine.seen == [(1_700_000_001.5, 7, 2)]
    assert machine.clock is machine.clock


@pytest.mark.parametrize("time", [-1.0, float("nan"), float("inf")])
def test_manual_clock_never_goes_back(time: float) -> None:
    """Setting an earlier or a meaningless time is refused, and nothing moves."""
    clock = Clock()
    with pytest.raises(ValueError, match="never goes back"):
        clock.set(time)
    with pytest.raises(ValueError, match="never goes back"):
        clock.advance(time)
    assert clock.now() == 0.0


def test_driven_clock_cannot_be_set_by_the_user() -> None:
    """Once a replica drives the clock, setting it by hand is an error."""
    machine, driver = driven()
    driver.enter(1, 1, 5.0)
    with pytest.raises(RuntimeError, match="cluster's log"):
        machine.clock.set(10.0)
    assert machine.clock.now() == 5.0


def test_applied_time_is_the_maximum_of_the_stamps_so_far() -> None:
    """A leader whose wall clock is behind holds time still, it never moves it back."""
    machine, driver = driven()
    for index, stamp in enumerate([100.0, 40.0, 101.0], start=1):
        driver.enter(index, 3, stamp)
        machine.apply(b"x")
    assert machine.seen == [(100.0, 1, 3), (100.0, 2, 3), (101.0, 3, 3)]
    assert driver.time == 101.0


def test_restored_clock_goes_back_to_the_snapshot() -> None:
    """A snapshot's clock replaces the machine's, even when it is earlier."""
    machine, driver = driven()
    driver.enter(9, 4, 500.0)
    driver.restore(index=3, term=2, time=100.0)
    assert (machine.clock.now(), machine.clock.index, machine.clock.term) == (100.0, 3, 2)


def test_each_command_has_random_numbers_of_its_own() -> None:
    """Two commands of one entry, and the same position of two entries, get different numbers."""
    machine, driver = driven()
    answers = []
    for index in (1, 2):
        driver.enter(index, 1, 0.0)
        for position in range(3):
            driver.at(position)
            answers.append(machine.apply(b"x"))
    assert len(set(answers)) == 6


def test_random_numbers_depend_on_cluster_index_and_position_only() -> None:
    """A replica that skipped earlier commands, as after a snapshot, draws the same numbers as one that did not."""
    first, driver = driven()
    for index in range(1, 6):
        driver.enter(index, 1, float(index))
        first.apply(b"x")
    driver.at(2)
    expected = first.apply(b"x")
    second, driver = driven()
    driver.enter(5, 1, 0.0)
    driver.at(2)
    assert second.apply(b"x") == expected
    other, driver = driven(b"another cluster")
    driver.enter(5, 1, 0.0)
    driver.at(2)
    assert other.apply(b"x") != expected


def test_random_numbers_go_on_within_one_command() -> None:
    """Asking for `rng` twice within a command continues the sequence instead of starting it again."""
    machine, driver = driven()
    driver.enter(1, 1, 0.0)
    assert machine.rng.getrandbits(64) != machine.rng.getrandbits(64)


def test_random_numbers_are_fixed_by_the_format() -> None:
    """The seeding is part of the replicated history: a change to it would split a cluster during an upgrade."""
    machine, driver = driven(b"c")
    driver.enter(12, 3, 0.0)
    driver.at(4)
    assert machine.rng.random() == FIRST_NUMBER


FIRST_NUMBER = 0.8870010412929751


def test_random_numbers_do_not_depend_on_the_hash_seed() -> None:
    """Processes with different hash seeds draw the same numbers."""
    program = (
        "import tests.test_state_machine as t\n"
        "machine, driver = t.driven()\n"
        "driver.enter(3, 1, 0.0)\n"
        "print(machine.apply(b'x').decode())\n"
    )
    out = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(out) == 1


def test_query_is_refused_by_default() -> None:
    """A machine without `query` says so by name."""
    with pytest.raises(QueryNotSupported, match="Recorder"):
        Recorder().query(b"x")


def test_compaction_is_wanted_by_machines_that_know_time() -> None:
    """Overriding `compact` or reading the clock asks for regular compaction entries; doing neither does not."""
    machine, driver = driven()
    assert not driver.wants_compaction
    machine.clock.now()
    assert driver.wants_compaction
    assert ClockDriver(Compacting()).wants_compaction


def test_a_machine_without_the_three_methods_cannot_be_built() -> None:
    """Forgetting apply, snapshot or restore fails at construction, not at the first command."""

    class Half(StateMachine):
        def apply(self, command: bytes) -> bytes:
            return command

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_snapshot_buffers_are_cut_into_bounded_chunks() -> None:
    """A buffer, an iterable of buffers and a function returning either give the same bytes in bounded chunks."""

    def generate() -> Iterator[Buffer]:
        yield b"012"
        yield bytearray(b"")
        yield memoryview(b"3456789")

    assert chunks(b"0123456789") == [b"0123", b"4567", b"89"]
    assert chunks(generate()) == [b"012", b"3456", b"789"]
    assert chunks(generate) == [b"012", b"3456", b"789"]
    assert chunks(lambda: bytearray(b"0123456789")) == [b"0123", b"4567", b"89"]
    assert chunks([b"ab", b"c"]) == [b"ab", b"c"]
    assert chunks(b"") == []
    assert chunks(memoryview(b"abcdef")[::2]) == [b"ace"]


def test_only_callables_and_bytes_may_be_written_beside_commands() -> None:
    """A mutable buffer or a live iterable has to be consumed before the next command."""
    assert SnapshotSource(b"x").frozen
    assert SnapshotSource(lambda: b"x").frozen
    assert not SnapshotSource(bytearray(b"x")).frozen
    assert not SnapshotSource(memoryview(bytearray(b"x"))).frozen
    assert not SnapshotSource(iter([b"x"])).frozen


@pytest.mark.parametrize("result", [None, 7, "text", lambda: None, [b"x", "text"], [3], lambda: "text"])
def test_a_wrong_snapshot_type_is_named(result: object) -> None:
    """What is no snapshot raises TypeError naming the type, never an empty or wrong snapshot."""
    with pytest.raises(TypeError, match=r"NoneType|int|str"):
        chunks(result)


def test_snapshots_of_another_version_go_through_migrate() -> None:
    """The current version is restored as it is; another is migrated first; without migrate it is refused, unchanged."""

    class Second(Recorder):
        snapshot_version = 2

        def migrate(self, version: int, data: memoryview) -> Buffer:
            return b"from %d: " % version + bytes(data)

    machine = Second()
    restore_snapshot(machine, version=2, data=memoryview(b"as is"))
    assert machine.state == b"as is"
    restore_snapshot(machine, version=1, data=memoryview(b"old"))
    assert machine.state == b"from 1: old"
    plain = Recorder()
    plain.state = b"kept"
    with pytest.raises(ValueError, match=r"Recorder reads snapshots of version 1, this one has version 9"):
        restore_snapshot(plain, version=9, data=memoryview(b"new"))
    assert plain.state == b"kept"
