"""Machines with one fault each, which `check_determinism` has to find; other processes import them from here.

The module imports little, since a check starts many processes.
"""

import datetime
import os
import random
import time
import uuid
from collections.abc import Iterator
from datetime import datetime as imported_datetime
from time import time as imported_time

from octopii.errors import CommandError
from octopii.state_machine import Snapshot, StateMachine


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


class OwnGenerator(Good):
    def apply(self, command: bytes) -> bytes:
        return b"%f" % random.Random().random()


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
    """Decodes the snapshot's bytes only when a command comes."""

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


class SharedList(Good):
    """Its state is the class's, so a second machine goes on where the first one stopped."""

    words: list[bytes] = []

    def __init__(self) -> None:
        self.words = type(self).words


class Address(Good):
    def apply(self, command: bytes) -> bytes:
        return b"%d" % id(self)


class LeakyView(Good):
    """Its frozen view reads the live machine."""

    def snapshot(self) -> Snapshot:
        def encode() -> Iterator[bytes]:
            yield b",".join(self.words)

        return encode


class LiveDictView(Good):
    """Its frozen view iterates over a dict that later commands grow."""

    def __init__(self) -> None:
        super().__init__()
        self.by_word: dict[bytes, int] = {}

    def apply(self, command: bytes) -> bytes:
        if len(self.by_word) > 30:
            self.by_word.clear()
        self.by_word[b"%b %d" % (command, self.clock.index)] = 1
        return b"OK"

    def snapshot(self) -> Snapshot:
        return lambda: (word + b"," for word in self.by_word)

    def restore(self, data: memoryview) -> None:
        self.by_word = dict.fromkeys(bytes(data).split(b",")[:-1], 1)

    def query(self, command: bytes) -> bytes:
        return b"%d" % len(self.by_word)

    def compact(self) -> None:
        return


class SecretlyWritingQuery(Good):
    """Its query changes what answers depend on, and no snapshot holds."""

    asked = 0

    def query(self, command: bytes) -> bytes:
        self.asked += 1
        return b"OK"

    def apply(self, command: bytes) -> bytes:
        return b"%d" % self.asked


class WritingQuery(Good):
    def query(self, command: bytes) -> bytes:
        self.words.append(command)
        return b"OK"
