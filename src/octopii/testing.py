"""Checks for people who write state machines; needs no cluster and no test framework.

`check_determinism` plays one list of commands in several ways that must not matter, and reports the first difference:

    straight    one instance, from the first command to the last
    restored    every few commands the state goes through snapshot and restore into a new instance, as on a replica that
                restarts or falls behind; the bytes are overwritten after `restore`, and a frozen view is encoded only
                after later commands
    elsewhere   in other processes, each with another hash seed and its own random numbers, and with a wall clock that
                is years away

Replicated time moves on by uneven steps, entries hold one to three commands, and compaction runs now and then, at the
same places in every play.
"""

import datetime
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import xxhash

from octopii.errors import CommandError
from octopii.state_machine import ClockDriver, SnapshotSource, StateMachine, restore_snapshot

Factory = Callable[[], StateMachine]

START_TIME = 1_700_000_000.0
"""Replicated time of the first entry, UTC seconds."""

CLUSTER_ID = b"check_determinism"
COMPACT_EVERY = 16
"""Entries between two compactions."""

WALL_CLOCK_SHIFT = 7 * 365.25 * 86_400 + 12_345.678
"""Seconds by which the wall clock of the first other process is off; the second one is off by twice that."""

HASH_SEEDS = ("1", "2")
CHILD_TIMEOUT = 60.0
"""Seconds that another process may take."""


class NotDeterministic(AssertionError):
    """Two plays of the same commands differed.

    `position` counts commands from 0 and is None where a snapshot or a query differs; `command` is the command or query
    in question; `play` names the play that differed from the straight one; `expected` and `found` are the straight and
    the other outcome.
    """

    def __init__(
        self, what: str, *, play: str, position: int | None, command: bytes | None, expected: object, found: object
    ) -> None:
        super().__init__(f"{what}\n  straight: {_shown(expected)}\n  {play}: {_shown(found)}")
        self.play = play
        self.position = position
        self.command = command
        self.expected = expected
        self.found = found


class _Play(msgspec.Struct, array_like=True):
    """What one play gave: outcomes of commands, then of queries, then the final snapshot."""

    answers: list[tuple[str, bytes]]
    queries: list[tuple[str, bytes]]
    snapshot: bytes


class _Script(msgspec.Struct, array_like=True):
    """What another process has to play."""

    module: str
    name: str
    path: list[str]
    clock_shift: float
    commands: list[bytes]
    queries: list[bytes]


def check_determinism(
    factory: Factory,
    commands: Sequence[bytes],
    *,
    queries: Sequence[bytes] = (),
    snapshot_every: int = 7,
    compare_snapshots: bool = True,
    other_processes: bool = True,
) -> None:
    """Play `commands`, then `queries`, on machines made by `factory`, and raise `NotDeterministic` if plays differ.

    `snapshot_every` is in commands. `compare_snapshots=False` allows equal states to have different snapshots, as when
    their order is not fixed; then only answers tell. `other_processes=False` skips the plays in other processes, which
    need a `factory` that can be imported by name (a class or a function at the top of a module).

    Raises `ValueError` for a factory that cannot be imported, `RuntimeError` when another process fails, and whatever
    the machine raises in `snapshot`, `restore` or `compact`.
    """
    script = _script(factory, commands, queries) if other_processes else None
    straight = _play(factory, commands, queries, snapshot_every=0)
    restored = _play(factory, commands, queries, snapshot_every=snapshot_every)
    _compare(straight, restored, "restored", commands, queries, compare_snapshots=compare_snapshots)
    if script is None:
        return
    for times, seed in enumerate(HASH_SEEDS, start=1):
        script.clock_shift = WALL_CLOCK_SHIFT * times
        found = _play_elsewhere(script, seed)
        play = f"process with hash seed {seed} and the wall clock {times * 7} years ahead"
        _compare(straight, found, play, commands, queries, compare_snapshots=compare_snapshots)


def _compare(
    straight: _Play,
    other: _Play,
    play: str,
    commands: Sequence[bytes],
    queries: Sequence[bytes],
    *,
    compare_snapshots: bool,
) -> None:
    for position, (expected, found) in enumerate(zip(straight.answers, other.answers)):
        if expected != found:
            command = commands[position]
            raise NotDeterministic(
                f"command {position} ({_shown(command)}) was answered differently",
                play=play,
                position=position,
                command=command,
                expected=expected,
                found=found,
            )
    for query, expected, found in zip(queries, straight.queries, other.queries):
        if expected != found:
            raise NotDeterministic(
                f"after the last command, query {_shown(query)} was answered differently",
                play=play,
                position=None,
                command=query,
                expected=expected,
                found=found,
            )
    if compare_snapshots and straight.snapshot != other.snapshot:
        at = _first_difference(straight.snapshot, other.snapshot)
        around = slice(max(at - 20, 0), at + 40)
        raise NotDeterministic(
            f"the final snapshots differ from byte {at} (if their order has no meaning: compare_snapshots=False)",
            play=play,
            position=None,
            command=None,
            expected=straight.snapshot[around],
            found=other.snapshot[around],
        )


def _first_difference(one: bytes, other: bytes) -> int:
    for at, (left, right) in enumerate(zip(one, other)):
        if left != right:
            return at
    return min(len(one), len(other))


# --- playing ----------------------------------------------------------------------------------------------------


def _play(factory: Factory, commands: Sequence[bytes], queries: Sequence[bytes], *, snapshot_every: int) -> _Play:
    machine = factory()
    driver = ClockDriver(machine, cluster_id=CLUSTER_ID)
    answers: list[tuple[str, bytes]] = []
    late_view: tuple[SnapshotSource, bytes] | None = None
    index, left, since_snapshot = 0, 0, 0
    for position, command in enumerate(commands):
        if left == 0:
            index += 1
            left = 1 + index % 3
            _enter(driver, index)
            if index % COMPACT_EVERY == 0:
                machine.compact()
                index += 1
                _enter(driver, index)
        left -= 1
        driver.at(left)
        answers.append(_outcome(machine.apply, command))
        since_snapshot += 1
        if snapshot_every and since_snapshot >= snapshot_every:
            since_snapshot = 0
            _check_late_view(late_view, position)
            machine, driver = _renewed(factory, machine, driver, index)
            late_view = _frozen_view(machine)
            driver.at(left)
    if late_view is not None:
        _check_late_view(late_view, len(commands))
    before = _snapshot(machine)
    found = [_outcome(machine.query, query) for query in queries]
    after = _snapshot(machine)
    if before != after:
        raise NotDeterministic(
            "queries changed the state", play="after queries", position=None, command=None, expected=before, found=after
        )
    return _Play(answers, found, after)


def _enter(driver: ClockDriver, index: int) -> None:
    driver.enter(index, 1 + index // 50, START_TIME + index * 0.75 + index // 20 * 40_000)


def _renewed(
    factory: Factory, machine: StateMachine, driver: ClockDriver, index: int
) -> tuple[StateMachine, ClockDriver]:
    memory = bytearray(_snapshot(machine))
    view = memoryview(memory).toreadonly()
    renewed = factory()
    renewed_driver = ClockDriver(renewed, cluster_id=CLUSTER_ID)
    restore_snapshot(renewed, version=machine.snapshot_version, data=view)
    renewed_driver.restore(index=index, term=machine.clock.term, time=driver.time)
    # A replica unmaps the bytes: what the machine still refers to must not look right by accident.
    memory[:] = b"\xa5" * len(memory)
    return renewed, renewed_driver


def _frozen_view(machine: StateMachine) -> tuple[SnapshotSource, bytes] | None:
    view = SnapshotSource(machine.snapshot())
    return (view, _snapshot(machine)) if view.frozen else None


def _check_late_view(late: tuple[SnapshotSource, bytes] | None, position: int) -> None:
    if late is None:
        return
    view, expected = late
    found = b"".join(view)
    if found != expected:
        raise NotDeterministic(
            f"a frozen snapshot changed with commands applied after it (seen at command {position})",
            play="encoded later",
            position=position,
            command=None,
            expected=expected,
            found=found,
        )


def _snapshot(machine: StateMachine) -> bytes:
    return b"".join(SnapshotSource(machine.snapshot()))


def _outcome(call: Callable[[bytes], bytes], command: bytes) -> tuple[str, bytes]:
    """Return what is replicated of a call: an answer, an error's text, or only the type of any other exception."""
    try:
        return "answer", bytes(call(command))
    except CommandError as error:
        return "CommandError", str(error).encode()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - it may raise anything, and its type is what is compared
        return "ApplyFailed", type(error).__name__.encode()


def _shown(thing: object) -> str:
    text = repr(thing)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


# --- in another process -----------------------------------------------------------------------------------------


def _script(factory: Factory, commands: Sequence[bytes], queries: Sequence[bytes]) -> _Script:
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    importable = isinstance(module, str) and isinstance(name, str) and module != "__main__" and "<" not in name
    if not importable:
        raise ValueError(
            f"{factory!r} cannot be imported by another process: pass a class or a function from the top of a module, "
            "or other_processes=False"
        )
    return _Script(str(module), str(name), [entry or os.getcwd() for entry in sys.path], 0.0, [*commands], [*queries])


def _play_elsewhere(script: _Script, hash_seed: str) -> _Play:
    done = subprocess.run(
        [sys.executable, "-c", "import octopii.testing as testing; testing._play_for_parent()"],
        input=msgspec.msgpack.encode(script),
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(script.path)},
        capture_output=True,
        timeout=CHILD_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the play in another process failed:\n{done.stderr.decode(errors='replace')}")
    # The machine's module may have printed; the play is what follows the last mark.
    return msgspec.msgpack.decode(done.stdout.rpartition(_mark(script))[2], type=_Play)


def _mark(script: _Script) -> bytes:
    return b"\0play %b\0" % xxhash.xxh3_128_digest(msgspec.msgpack.encode(script))


def _play_for_parent() -> None:
    script = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Script)
    # Before the machine's module is imported, so that `from time import time` is shifted as well.
    _shift_wall_clock(script.clock_shift)
    factory: Any = importlib.import_module(script.module)
    for part in script.name.split("."):
        factory = getattr(factory, part)
    play = _play(factory, script.commands, script.queries, snapshot_every=0)
    sys.stdout.flush()
    sys.stdout.buffer.write(_mark(script) + msgspec.msgpack.encode(play))


def _shift_wall_clock(seconds: float) -> None:
    """Make what the standard library says of the time `seconds` later, except to C code that asks the system itself."""
    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, _later(getattr(time, name), seconds))
        setattr(time, f"{name}_ns", _later(getattr(time, f"{name}_ns"), int(seconds * 1e9)))
    for name in ("gmtime", "localtime", "ctime"):
        setattr(time, name, _of_shifted_now(getattr(time, name)))
    datetime.datetime = _shifted_datetime(datetime.timedelta(seconds=seconds))  # type: ignore[misc]
    # `date.today` asks `time.time`, which is shifted by now.


def _later(read: Callable[[], Any], by: float) -> Callable[[], Any]:
    return lambda: read() + by


def _of_shifted_now(convert: Callable[[float], Any]) -> Callable[..., Any]:
    return lambda at=None: convert(time.time() if at is None else at)


def _shifted_datetime(shift: datetime.timedelta) -> type[datetime.datetime]:
    class ShiftedDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return super().now(tz) + shift

        @classmethod
        def utcnow(cls) -> Any:
            return super().now(datetime.UTC).replace(tzinfo=None) + shift

        @classmethod
        def today(cls) -> Any:
            return super().now() + shift

    return ShiftedDatetime
