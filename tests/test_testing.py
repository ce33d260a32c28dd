"""`check_determinism` finds each way in which a state machine can depend on more than its commands."""

import datetime
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime as imported_datetime
from time import time as imported_time
from typing import Any

import pytest

from octopii.errors import CommandError
from octopii.machines import KvStateMachine
from octopii.state_machine import Snapshot, StateMachine
from octopii.testing import NotDeterministic, check_determinism

COMMANDS = [b"%d" % (n % 40) for n in range(120)]


class Good(StateMachine):
    """A sound machine that uses time, chance, sets and errors as it may; the faulty ones override a part of it."""

    def __init__(self) -> None:
        self.words: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        if command == b"13":
            raise CommandError("unlucky")
        if command == b"14":
            raise KeyError(hash(command))
        self.words.append(command)
        return b"%d %f %f" % (len(self.words), self.clock.now(), self.rng.random())

    def query(self, command: bytes) -> bytes:
        return b"%d" % self.words.count(command)

    def snapshot(self) -> Snapshot:
        return b",".join(self.words)

    def restore(self, data: memoryview) -> None:
        self.words = bytes(data).split(b",") if len(data) else []

    def compact(self) -> None:
        del self.words[: int(self.clock.now()) % 3]


class WallClock(Good):
    def apply(self, command: bytes) -> bytes:
        return b"%d" % (time.time() // 1e6)


class ImportedWallClock(Good):
    def apply(self, command: bytes) -> bytes:
        return b"%d" % (imported_time() // 1e6)


class Calendar(Good):
    def apply(self, command: bytes) -> bytes:
        return b"%d" % datetime.datetime.now(datetime.UTC).year


class ImportedCalendar(Good):
    def apply(self, command: bytes) -> bytes:
        return b"%d" % imported_datetime.now(datetime.UTC).year


class Today(Good):
    def apply(self, command: bytes) -> bytes:
        return b"%d" % datetime.date.today().year


class Dice(Good):
    def apply(self, command: bytes) -> bytes:
        return b"%f" % random.random()


class UniqueIds(Good):
    def apply(self, command: bytes) -> bytes:
        return uuid.uuid4().bytes


class HashOrder(Good):
    def apply(self, command: bytes) -> bytes:
        return b",".join({b"apple", b"pear", b"plum", b"fig", b"lime"})


class HashOrderInSnapshot(Good):
    def apply(self, command: bytes) -> bytes:
        self.words.append(command)
        return b"OK"

    def snapshot(self) -> Snapshot:
        return b",".join(sorted(self.words, key=hash))

    def compact(self) -> None:
        return


class ProcessNumber(Good):
    def apply(self, command: bytes) -> bytes:
        return b"%d" % os.getpid()


class KeptGenerator(Good):
    """Keeps the generator of the first command: a restored replica draws other numbers."""

    def apply(self, command: bytes) -> bytes:
        self.kept = getattr(self, "kept", None) or self.rng
        return b"%f" % self.kept.random()


class Forgetful(Good):
    def restore(self, data: memoryview) -> None:
        super().restore(data)
        del self.words[-1:]


class ForgetfulInSnapshotOnly(Good):
    """State that no answer shows; only the snapshots differ."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def apply(self, command: bytes) -> bytes:
        self.total += 1
        return b"OK"

    def snapshot(self) -> Snapshot:
        return b"%d" % self.total

    def restore(self, data: memoryview) -> None:
        self.total = 0

    def compact(self) -> None:
        return


class KeepsView(Good):
    """Refers to the snapshot's bytes after `restore`."""

    view: memoryview | None = None

    def restore(self, data: memoryview) -> None:
        self.view = data

    def load(self) -> None:
        if self.view is not None:
            super().restore(self.view)
            self.view = None

    def apply(self, command: bytes) -> bytes:
        self.load()
        return super().apply(command)

    def compact(self) -> None:
        self.load()
        super().compact()

    def query(self, command: bytes) -> bytes:
        self.load()
        return super().query(command)

    def snapshot(self) -> Snapshot:
        return self.view if self.view is not None else super().snapshot()


class LeakyView(Good):
    """Its frozen view reads the live machine."""

    def snapshot(self) -> Snapshot:
        def encode() -> Iterator[bytes]:
            yield b",".join(self.words)

        return encode


class WritingQuery(Good):
    def query(self, command: bytes) -> bytes:
        self.words.append(command)
        return b"OK"


def check(factory: Callable[[], StateMachine], **settings: Any) -> None:
    check_determinism(factory, COMMANDS, queries=[b"3", b"13"], **settings)


def test_a_sound_machine_passes() -> None:
    """Replicated time, `rng`, errors of both kinds, compaction and queries are no cause for alarm."""
    check(Good)
    check_determinism(KvStateMachine, [b"SET a 1", b"DELETE a", b"bad", b"GET a"], queries=[b"GET a"])
    check_determinism(Good, [])


@pytest.mark.parametrize(
    ("machine", "play"),
    [
        (WallClock, "process"),
        (ImportedWallClock, "process"),
        (Calendar, "process"),
        (ImportedCalendar, "process"),
        (Today, "process"),
        (HashOrder, "process"),
        (HashOrderInSnapshot, "process"),
        (ProcessNumber, "process"),
        (Dice, "restored"),
        (UniqueIds, "restored"),
        (KeptGenerator, "restored"),
        (Forgetful, "restored"),
        (ForgetfulInSnapshotOnly, "restored"),
        (KeepsView, "restored"),
        (LeakyView, "encoded later"),
        (WritingQuery, "after queries"),
    ],
)
def test_each_fault_is_found(machine: type[StateMachine], play: str) -> None:
    """Every faulty machine fails, and the error names the play that differed."""
    with pytest.raises(NotDeterministic) as caught:
        check(machine)
    assert caught.value.play.startswith(play)


def test_the_first_difference_is_reported() -> None:
    """The error tells the command, its position and both answers."""
    with pytest.raises(NotDeterministic) as caught:
        check_determinism(Forgetful, [b"a", b"b", b"c", b"d"], snapshot_every=2)
    error = caught.value
    assert (error.position, error.command) == (2, b"c")
    assert isinstance(error.expected, tuple)
    assert isinstance(error.found, tuple)
    assert error.expected[1].startswith(b"3 ")
    assert error.found[1].startswith(b"2 ")
    assert "command 2 (b'c')" in str(error)


def test_snapshots_without_a_fixed_order_can_be_allowed() -> None:
    """With compare_snapshots=False only answers count."""
    with pytest.raises(NotDeterministic, match="from byte"):
        check(ForgetfulInSnapshotOnly)
    check(ForgetfulInSnapshotOnly, compare_snapshots=False)


def test_a_factory_has_to_be_importable_or_stay_at_home() -> None:
    """A lambda is refused with the way out, which works."""
    with pytest.raises(ValueError, match="other_processes=False"):
        check(lambda: Good())
    check(lambda: Good(), other_processes=False)


class BrokenElsewhere(Good):
    def __init__(self) -> None:
        super().__init__()
        if os.environ.get("PYTHONHASHSEED") == "1":
            raise RuntimeError("not here")


def test_trouble_in_another_process_is_shown() -> None:
    """When the other process fails, its traceback is in the error."""
    if os.environ.get("PYTHONHASHSEED") == "1":
        pytest.skip("this process has the hash seed of the other one")
    with pytest.raises(RuntimeError, match="not here"):
        check(BrokenElsewhere)
