"""Plays of one list of commands: what a play gives, and the ways of playing that this process can do.

Replicated time moves on by uneven steps, entries hold one to three commands, and compaction runs now and then, at the
same places in every play.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import msgspec
import xxhash

from octopii.errors import CommandError
from octopii.state_machine import ClockDriver, SnapshotSource, StateMachine, restore_snapshot
from octopii.testing.clock import START_TIME

Factory = Callable[[], StateMachine]

CLUSTER_ID = b"check_determinism"
COMPACT_EVERY = 16
"""Entries between two compactions."""

VIEW_AGE_COMMANDS = 5
"""Commands that are applied while a frozen view is being read."""


class Cause(StrEnum):
    """What is most likely wrong with a machine whose plays differ."""

    WALL_CLOCK = "the wall clock"
    RANDOM = "random numbers"
    HASH_ORDER = "hash order"
    PROCESS = "the process"
    SHARED_STATE = "state outside of the machine"
    SNAPSHOT = "the snapshot"
    FROZEN_VIEW = "the frozen view"
    QUERY = "a query"

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _ADVICE[self]


_ADVICE = {
    Cause.WALL_CLOCK: "it reads time.time(), datetime.now() or the like. Use self.clock.now()",
    Cause.RANDOM: "it draws from random, secrets, uuid4 or os.urandom. Use self.rng, anew in each command",
    Cause.HASH_ORDER: "it iterates over a set, or uses hash(): both differ between processes. Sort, or use a dict",
    Cause.PROCESS: "it uses what differs between processes: id(), the process number, the environment, files",
    Cause.SHARED_STATE: "state lives in a class attribute, a global or outside of the process, not in the instance",
    Cause.SNAPSHOT: "snapshot() leaves out a part of the state, or restore() does not bring all of it back",
    Cause.FROZEN_VIEW: "the function that snapshot() returned reads what later commands change. Copy it before",
    Cause.QUERY: "query() changes the state: what a query does happens on one replica only",
}


class Play(msgspec.Struct, array_like=True):
    """What one play gave.

    `answers` are the outcomes of the commands, `states` the checksum of the state after each of them (None where it was
    not looked at), `queries` the outcomes of the queries after the last command, `snapshot` the final state.
    """

    answers: list[tuple[str, bytes]]
    states: list[int | None]
    queries: list[tuple[str, bytes]]
    snapshot: bytes


class Found(Exception):
    """A play in itself showed a fault: `what`, with its cause, at the command at `position`."""

    def __init__(self, cause: Cause, what: str, *, position: int, command: bytes, pair: tuple[object, object]) -> None:
        super().__init__(what)
        self.cause = cause
        self.what = what
        self.position = position
        self.command = command
        self.expected, self.found = pair


class Stage:
    """A machine, its clock, and where in the log it stands."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        self.machine = factory()
        self.driver = ClockDriver(self.machine, cluster_id=CLUSTER_ID)
        self._index = 0
        self._left = 0

    def apply(self, command: bytes) -> tuple[str, bytes]:
        """Apply the next command, after a new entry and a compaction where there is one; returns its outcome."""
        if self._left == 0:
            self._enter()
            self._left = 1 + self._index % 3
            if self._index % COMPACT_EVERY == 0:
                self.machine.compact()
                self._enter()
        self._left -= 1
        self.driver.at(self._left)
        return outcome(self.machine.apply, command)

    def _enter(self) -> None:
        self._index += 1
        index = self._index
        self.driver.enter(index, 1 + index // 50, START_TIME + index * 0.75 + index // 20 * 40_000)

    def snapshot(self) -> bytes:
        """The machine's state as bytes."""
        return b"".join(SnapshotSource(self.machine.snapshot()))

    def renew(self, data: bytes) -> None:
        """Go on with a new machine, restored from `data`, as on a replica that restarts or falls behind."""
        version, term, time = self.machine.snapshot_version, self.machine.clock.term, self.driver.time
        self.machine = self.factory()
        self.driver = ClockDriver(self.machine, cluster_id=CLUSTER_ID)
        restore_snapshot(self.machine, version=version, data=memoryview(data))
        self.driver.restore(index=self._index, term=term, time=time)
        self.driver.at(self._left)


def play(factory: Factory, commands: Sequence[bytes], queries: Sequence[bytes], *, every: int) -> Play:
    """Play straight through, with a look at the state after every `every` commands."""
    stage = Stage(factory)
    answers: list[tuple[str, bytes]] = []
    states: list[int | None] = []
    for position, command in enumerate(commands, 1):
        answers.append(stage.apply(command))
        states.append(checksum(stage.snapshot()) if position % every == 0 else None)
    found = [outcome(stage.machine.query, query) for query in queries]
    return Play(answers, states, found, stage.snapshot())


def play_restored(
    factory: Factory, commands: Sequence[bytes], queries: Sequence[bytes], *, every: int, same_bytes: bool
) -> Play:
    """Play with a snapshot and a restore into a new machine after every `every` commands.

    Raises `Found` when the new machine's own snapshot differs, unless `same_bytes` is false.
    """
    stage = Stage(factory)
    answers: list[tuple[str, bytes]] = []
    states: list[int | None] = []
    for position, command in enumerate(commands):
        answers.append(stage.apply(command))
        if (position + 1) % every:
            states.append(None)
            continue
        data = stage.snapshot()
        states.append(checksum(data))
        stage.renew(data)
        again = stage.snapshot()
        if same_bytes and again != data:
            raise Found(
                Cause.SNAPSHOT,
                f"after command {position} ({shown(command)}) a restored machine has another snapshot",
                position=position,
                command=command,
                pair=differing_bytes(data, again),
            )
    found = [outcome(stage.machine.query, query) for query in queries]
    return Play(answers, states, found, stage.snapshot())


def play_asked(factory: Factory, commands: Sequence[bytes], queries: Sequence[bytes], *, every: int) -> Play:
    """Play with one query after each command, in turns, and all of them at the end; raises `Found` when one writes."""
    stage = Stage(factory)
    answers: list[tuple[str, bytes]] = []
    states: list[int | None] = []

    def ask(query: bytes, position: int) -> bytes:
        before = stage.snapshot()
        outcome(stage.machine.query, query)
        after = stage.snapshot()
        if before != after:
            raise Found(
                Cause.QUERY,
                f"after command {position} query {shown(query)} changed the state",
                position=position,
                command=query,
                pair=differing_bytes(before, after),
            )
        return after

    for position, command in enumerate(commands):
        answers.append(stage.apply(command))
        query = queries[position % len(queries)]
        if (position + 1) % every:
            outcome(stage.machine.query, query)
            states.append(None)
        else:
            states.append(checksum(ask(query, position)))
    for query in queries:
        ask(query, len(commands) - 1)
    found = [outcome(stage.machine.query, query) for query in queries]
    return Play(answers, states, found, stage.snapshot())


class _View:
    """A frozen view that is being read: its first piece when `late` is false, then one after each command."""

    def __init__(self, position: int, source: SnapshotSource, expected: bytes, *, late: bool) -> None:
        self.position = position
        self._expected = expected
        self._pieces = iter(source)
        self._parts: list[bytes] = []
        self._late = late

    def read_on(self, position: int, command: bytes) -> None:
        if not self._late:
            self._read(position, command, lambda: itertools.islice(self._pieces, 1))

    def finish(self, position: int, command: bytes) -> None:
        self._read(position, command, lambda: self._pieces)
        found = b"".join(self._parts)
        if found != self._expected:
            raise self._fault(position, command, *differing_bytes(self._expected, found))

    def _read(self, position: int, command: bytes, pieces: Callable[[], Iterator[memoryview]]) -> None:
        try:
            self._parts += map(bytes, pieces())
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
            raise self._fault(position, command, "the snapshot's bytes", raised) from error

    def _fault(self, position: int, command: bytes, expected: object, found: object) -> Found:
        return Found(
            Cause.FROZEN_VIEW,
            f"a frozen view taken after command {self.position} changed with later ones, up to command {position} "
            f"({shown(command)})",
            position=position,
            command=command,
            pair=(expected, found),
        )


def play_with_views(factory: Factory, commands: Sequence[bytes], *, every: int) -> None:
    """Take a frozen view after every `every` commands and read it while later ones are applied; raises `Found`."""
    stage = Stage(factory)
    views: list[_View] = []
    position, command = 0, b""
    for position, command in enumerate(commands):
        stage.apply(command)
        for view in views:
            view.read_on(position, command)
        while views and position - views[0].position >= VIEW_AGE_COMMANDS:
            views.pop(0).finish(position, command)
        if (position + 1) % every == 0:
            expected = stage.snapshot()
            for late in (False, True):
                source = SnapshotSource(stage.machine.snapshot())
                if source.frozen:
                    views.append(_View(position, source, expected, late=late))
    stage.machine.compact()
    for view in views:
        view.finish(position, command)


# --- outcomes ---------------------------------------------------------------------------------------------------


def outcome(call: Callable[[bytes], bytes], command: bytes) -> tuple[str, bytes]:
    """Return what is replicated of a call: an answer, an error's text, or only the type of any other exception."""
    try:
        return "answer", bytes(call(command))
    except CommandError as error:
        return "CommandError", str(error).encode()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - it may raise anything, and its type is what is compared
        return "ApplyFailed", type(error).__name__.encode()


def checksum(data: bytes) -> int:
    """Tell states apart without keeping them."""
    return xxhash.xxh3_64_intdigest(data)


def differing_bytes(one: bytes, other: bytes) -> tuple[bytes, bytes]:
    """Return what stands around the first byte in which two snapshots differ."""
    at = next((at for at, (left, right) in enumerate(zip(one, other)) if left != right), min(len(one), len(other)))
    around = slice(max(at - 20, 0), at + 40)
    return one[around], other[around]


def shown(thing: object) -> str:
    """Return a short form for messages."""
    text = repr(thing)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
