"""The contract between Octopii and the state that its users replicate.

A `StateMachine` is driven by one replica, one call at a time and always from the same thread: it needs no locks. What
it must be is deterministic. The same commands in the same order, whatever snapshots and restores lie between them, must
give the same state and the same answers on every machine and in every process. So `apply` takes time from `self.clock`
and chance from `self.rng`, both of which follow the log, and never looks at the wall clock, at `random`, at the
environment, at the order of a `set` (it depends on the process's hash seed), or at anything else outside the machine.

    commands    apply(command) -> answer      replicated, in log order, exactly once
    questions   query(command) -> answer      local, between two applies, changes nothing
    upkeep      compact()                     replicated like a command: every replica compacts at the same index
    snapshots   snapshot() / restore(data)    the whole state as bytes, and back
    upgrades    snapshot_version, migrate     reading what an earlier version of the program wrote
                command_version,              new commands, which all replicas follow from one index on
                active_version

The rest of the module is the replica's side of the contract: `ClockDriver` moves a machine's clock and random numbers
along the log, `SnapshotSource` turns whatever `snapshot` returned into bounded chunks, and `restore_snapshot` picks
between `restore` and `migrate`. Programs that only write state machines never need these.
"""

import inspect
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import msgspec
import xxhash

from octopii.errors import QueryNotSupported

MAX_SNAPSHOT_CHUNK_BYTES = 1 << 20
"""Largest chunk a snapshot is written in, in bytes: one C call over it holds the interpreter for well under 1 ms."""

Buffer = bytes | bytearray | memoryview
"""What counts as a run of bytes. (At run time every object with the buffer protocol is taken.)"""

SnapshotBuffers = Buffer | Iterable[Buffer]
"""A snapshot's bytes: in one piece, or in pieces that are joined in order."""

Snapshot = SnapshotBuffers | Callable[[], SnapshotBuffers]
"""What `StateMachine.snapshot` may return; the method says how the three kinds differ."""


class Place(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A command's place: cluster, log index, term, position in its entry, and replicated time in UTC seconds.

    And the active version of the commands, 0 outside a cluster.
    """

    cluster_id: bytes
    index: int
    term: int
    position: int
    time: float
    active_version: int = 0


class Clock:
    """Replicated time and position in the log, as the command being applied sees them.

    In a cluster the replica moves the clock; `now()` is the same on every replica and never goes back. Outside a
    cluster the clock is manual: it starts at 0 and moves only by `set` and `advance`, so that time in tests is exact.
    """

    __slots__ = (
        "_active_version",
        "_cluster_id",
        "_driven",
        "_index",
        "_position",
        "_random",
        "_seeded_at",
        "_term",
        "_time",
        "_used",
    )

    def __init__(self) -> None:
        self._time = 0.0
        self._index = 0
        self._term = 0
        self._position = 0
        self._cluster_id = b""
        self._active_version = 0
        self._driven = False
        self._used = False
        self._random: random.Random | None = None
        self._seeded_at = (-1, -1)

    def __repr__(self) -> str:
        kind = "replicated" if self._driven else "manual"
        return f"<{kind} Clock time={self._time!r} index={self._index} term={self._term}>"

    def now(self) -> float:
        """UTC seconds since 1970, as stamped into the log by the leader; equal for all commands of one entry."""
        self._used = True
        return self._time

    @property
    def index(self) -> int:
        """Log index of the entry being applied, or of the last one applied; 0 before the first."""
        return self._index

    @property
    def term(self) -> int:
        """Term of the entry at `index`; 0 before the first."""
        return self._term

    def set(self, time: float, *, index: int | None = None, term: int | None = None) -> None:
        """Move a manual clock to `time` (UTC seconds), and optionally to a log position.

        Raises `ValueError` for a time that is earlier or no finite number, `RuntimeError` when a replica drives the
        clock.
        """
        if self._driven:
            raise RuntimeError("this clock follows the cluster's log and cannot be set by hand")
        if not math.isfinite(time) or time < self._time:
            raise ValueError(f"replicated time never goes back: cannot go from {self._time!r} to {time!r}")
        self._time = float(time)
        if index is not None:
            self._index = index
        if term is not None:
            self._term = term

    def advance(self, seconds: float) -> None:
        """Move a manual clock on by `seconds`; raises as `set` does."""
        self.set(self._time + seconds)

    @property
    def place(self) -> "Place":
        """Where the command being applied stands: enough to give another machine the same time and random numbers."""
        return Place(self._cluster_id, self._index, self._term, self._position, self._time, self._active_version)

    def _rng(self) -> random.Random:
        """Return the generator of the command being applied, seeded when the command first asks for it."""
        at = (self._index, self._position)
        if self._seeded_at != at or self._random is None:
            seed = b"%b|%d|%d" % (self._cluster_id, self._index, self._position)
            if self._random is None:
                self._random = random.Random()
            self._random.seed(xxhash.xxh3_128_intdigest(seed))
            self._seeded_at = at
        return self._random


def as_bytes(command: bytes | bytearray | memoryview | str) -> bytes:
    """A command as plain bytes: text is encoded as UTF-8. Raises `TypeError` for anything else."""
    if type(command) is bytes:
        return command
    if isinstance(command, str):
        return command.encode()
    if isinstance(command, bytes | bytearray | memoryview):  # a subclass of bytes too: the codec takes only plain ones
        return bytes(command)
    raise TypeError(f"a command is bytes (or str, taken as UTF-8), not {type(command).__name__}")


class StateMachine(ABC):
    """Base class of everything that Octopii replicates: override `apply`, `snapshot` and `restore`.

    `clock` and `rng` work without `super().__init__()`. An instance without a cluster is an ordinary object on a manual
    clock: tests call its methods directly.
    """

    snapshot_version: int = 1
    """Version of the format that `snapshot` writes; raise it when the format changes, and override `migrate`."""

    command_version: int = 1
    """Version of the commands that `apply` understands; raise it when they change, and look at `active_version`."""

    @cached_property
    def clock(self) -> Clock:
        """Replicated time: the only clock that `apply` and `compact` may read."""
        return Clock()

    @property
    def rng(self) -> random.Random:
        """Random numbers that are the same on every replica: seeded anew for each command from its place in the log.

        Ask for it within each command; a generator kept from an earlier command is a fork of the state. The sequences
        are for choosing and spreading, not for secrets: whoever reads the log can compute them.
        """
        return self.clock._rng()

    @property
    def active_version(self) -> int:
        """The version of the commands that all replicas follow at this index, at most `command_version`.

        A cluster begins with 1 and raises it, by a log entry, once every member's program has the higher one. Outside a
        cluster it is the machine's own.
        """
        return self.clock._active_version or self.command_version

    def use_clock(self, clock: Clock) -> None:
        """Follow `clock` from now on, as a machine inside another one does; it gives the random numbers too.

        A machine that holds others overrides this to pass the clock on.
        """
        self.__dict__["clock"] = clock

    @abstractmethod
    def apply(self, command: bytes) -> bytes:
        """Apply one committed command and return the answer, both part of the replicated history.

        Raise `CommandError` to refuse a command: a normal answer that the caller gets. Any other `Exception` becomes
        `ApplyFailed` for the caller, on every replica alike; whatever was changed before it was raised stays changed,
        so check first and change last. `MemoryError`, `OSError` and timeouts are taken for trouble of this one machine
        and stop its replica.
        """

    def query(self, command: bytes) -> bytes:
        """Answer a question from the state without changing it; `CommandError` refuses. Not replicated.

        Raises `QueryNotSupported` unless overridden.
        """
        raise QueryNotSupported(f"{type(self).__name__} answers no queries")

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Return the whole state as bytes that `restore` understands, in one of three kinds.

        - A buffer: simple, but one call over much data stops every thread of the process while it runs.
        - An iterable of buffers (a generator, say): read to its end before the next command is applied, which spreads
          the work but holds up commands meanwhile. Pieces of 1 MiB or less keep the node responsive.
        - A function without arguments that returns one of the above: a frozen view. It runs beside later commands, on
          another thread, so it must only touch what `snapshot` copied or what never changes.
        """

    @abstractmethod
    def restore(self, data: memoryview) -> None:
        """Replace the whole state by the snapshot in `data` (read-only, contiguous, its checksum already verified).

        Decode first and assign last: either everything is replaced, or an exception is raised and nothing has changed.
        `data` stays what it is for as long as something refers to it, so a codec need not copy: a view that is kept
        keeps the mapped file, and its room on the disk, until it goes.
        """

    def compact(self) -> None:
        """Drop what has run out, by `self.clock`. Runs as a log entry, at the same index on every replica."""
        return

    def digest(self) -> Buffer | None:
        """Return a digest of the state, equal on all replicas with equal state; None (unless overridden) for none.

        Asked for now and then, at one index on every replica: those that differ from a majority stop serving. The
        answers of all commands are compared in any case; a digest also finds what no answer has shown yet. It should
        cost no more than a command: keep it up to date in `apply`.
        """
        return None

    def migrate(self, version: int, data: memoryview) -> Buffer:
        """Turn a snapshot of an earlier `snapshot_version` into the current format, without touching the state.

        The result goes to `restore`. Raises `ValueError` unless overridden.
        """
        name = type(self).__name__
        raise ValueError(
            f"{name} reads snapshots of version {self.snapshot_version}, this one has version {version}, "
            f"and {name} has no migrate() for it"
        )


def require_machine(machine: object) -> None:
    """Raises `TypeError` for what no replica can drive: a class, another object, methods that are coroutines."""
    if isinstance(machine, type):
        name = machine.__name__
        raise TypeError(f"state_machine is an instance of a StateMachine, not the class {name}: give {name}(...)")
    if not isinstance(machine, StateMachine):
        raise TypeError(f"state_machine is an instance of a StateMachine, not {machine!r}")
    for name in ("apply", "query", "compact", "snapshot", "restore", "migrate", "digest"):
        method = getattr(machine, name)
        if not inspect.iscoroutinefunction(method) and not inspect.isasyncgenfunction(method):
            continue
        way_out = "it has to be a plain method"
        if name in ("apply", "query", "compact") and inspect.iscoroutinefunction(method):
            way_out = "derive the class from octopii.machines.AsyncStateMachine, or make it a plain method"
        raise TypeError(f"{type(machine).__name__}.{name} is async, which a StateMachine's methods are not: {way_out}")


# --- the replica's side -----------------------------------------------------------------------------------------


class ClockDriver:
    """A replica's hold on its machine's clock: the only thing that moves it from then on.

    Order of calls: `restore` after a snapshot was restored, `enter` before the commands of each entry (a compaction
    too), `at` before each command of it.
    """

    __slots__ = ("_clock", "_machine")

    def __init__(self, machine: StateMachine, *, cluster_id: bytes = b"") -> None:
        self._machine = machine
        self._clock = machine.clock
        self._clock._driven = True
        self._clock._cluster_id = cluster_id

    def enter(self, index: int, term: int, stamp: float) -> None:
        """Move to the entry at `index`; time becomes max(previous, `stamp` of the leader), so it never goes back."""
        clock = self._clock
        clock._index = index
        clock._term = term
        clock._position = 0
        if stamp > clock._time:
            clock._time = stamp

    def at(self, position: int) -> None:
        """Move to the command at `position` (from 0) of the entry: each gets random numbers of its own."""
        self._clock._position = position

    def restore(self, *, index: int, term: int, time: float) -> None:
        """Set the clock to where a snapshot was taken, backwards as well."""
        self.go(Place(self._clock._cluster_id, index, term, 0, time, self._clock._active_version))

    def go(self, place: Place) -> None:
        """Set the clock to a command's place, backwards as well, as for a replay."""
        clock = self._clock
        clock._cluster_id, clock._index, clock._term = place.cluster_id, place.index, place.term
        clock._position, clock._time, clock._active_version = place.position, place.time, place.active_version

    def activate(self, version: int) -> None:
        """Say which version of the commands is followed from now on."""
        self._clock._active_version = version

    def found(self, cluster_id: bytes) -> None:
        """Say which cluster the machine belongs to, as soon as entry 1 has told; it seeds the random numbers."""
        self._clock._cluster_id = cluster_id

    @property
    def time(self) -> float:
        """Applied time, UTC seconds: belongs into every snapshot."""
        return self._clock._time

    @property
    def wants_compaction(self) -> bool:
        """Whether time matters to the machine: it overrides `compact`, or has read its clock in this process."""
        return type(self._machine).compact is not StateMachine.compact or self._clock._used


class SnapshotSource:
    """What `StateMachine.snapshot` returned, as chunks of bounded size.

    Iterating yields read-only memoryviews of bytes, none empty, none over `chunk_bytes`; big pieces are cut, small ones
    passed as they are. It works once. Raises `TypeError` when a piece is no buffer, else whatever the machine's own
    code raises.
    """

    __slots__ = ("_chunk_bytes", "_result", "frozen")

    frozen: bool
    """Whether iterating may go on beside later commands and on another thread: a callable, or `bytes`."""

    def __init__(self, result: object, *, chunk_bytes: int = MAX_SNAPSHOT_CHUNK_BYTES) -> None:
        """Take the result of `snapshot`; raises `TypeError`, which names the type, when it is of no known kind."""
        self.frozen = callable(result) or isinstance(result, bytes)
        if not self.frozen:
            _check_snapshot_type(result)
        self._result = result
        self._chunk_bytes = chunk_bytes

    def __iter__(self) -> Iterator[memoryview]:
        result = self._result
        if callable(result):
            result = result()
            _check_snapshot_type(result)
        for piece in _pieces(result):
            view = memoryview(piece).toreadonly()
            if not view.c_contiguous:
                view = memoryview(view.tobytes())
            if not view.nbytes:
                continue
            view = view.cast("B")
            for start in range(0, view.nbytes, self._chunk_bytes):
                yield view[start : start + self._chunk_bytes]


def restore_snapshot(machine: StateMachine, *, version: int, data: memoryview) -> None:
    """Restore `machine` from a snapshot written as `version`, through `migrate` when that is not the current one.

    Raises whatever the machine raises; the machine is then as it was.
    """
    if version != machine.snapshot_version:
        data = memoryview(machine.migrate(version, data)).toreadonly().cast("B")
    machine.restore(data)


def _check_snapshot_type(result: object) -> None:
    if _is_buffer(result) or (isinstance(result, Iterable) and not isinstance(result, str)):
        return
    raise TypeError(
        "snapshot() has to return a buffer, an iterable of buffers, or a function that returns one of these, "
        f"not {type(result).__name__}"
    )


def _pieces(result: object) -> Iterator[Buffer]:
    if _is_buffer(result):
        yield result  # type: ignore[misc]
        return
    assert isinstance(result, Iterable)
    for piece in result:
        if not _is_buffer(piece):
            raise TypeError(f"a piece of a snapshot has to be a buffer of bytes, not {type(piece).__name__}")
        yield piece


def _is_buffer(thing: object) -> bool:
    try:
        memoryview(thing)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True
