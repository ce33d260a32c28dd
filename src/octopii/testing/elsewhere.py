"""Plays in other processes, where what must not matter is chosen: hash seed, wall clock, random numbers."""

import datetime
import importlib
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import xxhash

from octopii.testing.plays import Factory, Play, play

CHILD_TIMEOUT = 60.0
"""Seconds that another process may take."""

WALL_CLOCK_START = 1_600_000_000.0
"""What the wall clock of another process says at first, UTC seconds, unless it is shifted."""

WALL_CLOCK_STEP_NS = 1_000_000
"""Nanoseconds between two readings of that clock: it moves by being read, so that plays can be repeated."""


class Surroundings(msgspec.Struct, frozen=True, array_like=True):
    """What a process is given: Python's hash seed, how far the wall clock is off (seconds), the seed of chance."""

    hash_seed: int = 0
    clock_shift: float = 0.0
    random_seed: int = 0

    def __str__(self) -> str:
        years = round(self.clock_shift / (365.25 * 86_400))
        return f"process with hash seed {self.hash_seed}, the clock {years} years on, random seed {self.random_seed}"


class Script(msgspec.Struct, array_like=True):
    """What another process has to play."""

    module: str
    name: str
    path: list[str]
    surroundings: Surroundings
    commands: list[bytes]
    queries: list[bytes]
    every: int


def importable_name(factory: Factory) -> tuple[str, str]:
    """Return module and name of a factory; raises `ValueError` for one that another process cannot import."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    importable = isinstance(module, str) and isinstance(name, str) and module != "__main__" and "<" not in name
    if not importable:
        raise ValueError(
            f"{factory!r} cannot be imported by another process: pass a class or a function from the top of a module, "
            "or other_processes=False"
        )
    return str(module), str(name)


def play_elsewhere(
    factory: Factory, commands: Sequence[bytes], queries: Sequence[bytes], surroundings: Surroundings, *, every: int
) -> Play:
    """Play straight through in a process of its own; raises `RuntimeError`, with its output, when that fails."""
    path = [entry or os.getcwd() for entry in sys.path]
    script = Script(*importable_name(factory), path, surroundings, [*commands], [*queries], every)
    done = subprocess.run(
        [sys.executable, "-c", "from octopii.testing.elsewhere import play_for_parent; play_for_parent()"],
        input=msgspec.msgpack.encode(script),
        env={**os.environ, "PYTHONHASHSEED": str(surroundings.hash_seed), "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        timeout=CHILD_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the play in another process failed:\n{done.stderr.decode(errors='replace')}")
    # The machine's module may have printed; the play is what follows the last mark.
    return msgspec.msgpack.decode(done.stdout.rpartition(_mark(script))[2], type=Play)


def _mark(script: Script) -> bytes:
    return b"\0play %b\0" % xxhash.xxh3_128_digest(msgspec.msgpack.encode(script))


def play_for_parent() -> None:
    """Be the other process: a script comes in on stdin, the play goes out on stdout."""
    script = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Script)
    # Before the machine's module is imported, so that `from time import time` is another clock as well.
    _set_wall_clock(script.surroundings.clock_shift)
    _set_random_numbers(script.surroundings.random_seed)
    factory: Any = importlib.import_module(script.module)
    for part in script.name.split("."):
        factory = getattr(factory, part)
    played = play(factory, script.commands, script.queries, every=script.every)
    sys.stdout.flush()
    sys.stdout.buffer.write(_mark(script) + msgspec.msgpack.encode(played))


# --- another world ----------------------------------------------------------------------------------------------


def _set_wall_clock(shift: float) -> None:
    """Replace what the standard library says of the time, except to C code that asks the system itself."""
    readings = itertools.count(int((WALL_CLOCK_START + shift) * 1e9), WALL_CLOCK_STEP_NS)
    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, lambda: next(readings) / 1e9)
        setattr(time, f"{name}_ns", lambda: next(readings))
    for name in ("gmtime", "localtime", "ctime"):
        setattr(time, name, _of_now(getattr(time, name)))
    datetime.datetime = _shifted_datetime()  # type: ignore[misc]
    # `date.today` asks `time.time`, which is another one by now.


def _of_now(convert: Callable[[float], Any]) -> Callable[..., Any]:
    return lambda at=None: convert(time.time() if at is None else at)


def _shifted_datetime() -> type[datetime.datetime]:
    class ShiftedDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

        @classmethod
        def today(cls) -> Any:
            return cls.fromtimestamp(time.time())

    return ShiftedDatetime


def _set_random_numbers(seed: int) -> None:
    """Make all chance follow `seed`: `random`, generators without a seed, and what the system's generator gives."""
    random.seed(seed)
    system = random.Random(seed + 1)
    seed_generator = random.Random.seed

    def seed_from(self: random.Random, a: Any = None, version: int = 2) -> None:
        seed_generator(self, system.randbytes(32) if a is None else a, version)

    os.urandom = system.randbytes
    random._urandom = system.randbytes  # type: ignore[attr-defined]
    random.Random.seed = seed_from  # type: ignore[method-assign]
