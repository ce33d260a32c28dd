"""What can go wrong beneath the log, as plain data and hooks, and what may survive a power loss.

`memory_vfs` plays these faults; the tests and the simulator choose them.
"""

import errno
import random
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

OperationKind: TypeAlias = Literal[
    "write", "store", "allocate", "truncate", "datasync", "create", "rename", "remove", "make_folder", "sync_folder"
]


class Operation(msgspec.Struct, frozen=True):
    """One change or sync, as the hook sees it before it happens."""

    number: int
    """Count of operations of this file system, from 1."""
    kind: OperationKind | Literal["read"]
    path: str
    position: int = 0
    size: int = 0


class Unsynced(msgspec.Struct, frozen=True):
    """One change that a crash may keep or lose."""

    kind: Literal["in_flight", "size", "sector", "name"]
    """`in_flight` is a sector as it was when a `datasync` began that has not ended."""
    path: str
    index: int
    """Sector number in the file, new size in bytes, or count among the pending name changes."""


Survives: TypeAlias = Callable[[Unsynced], bool]
"""Whether a change that was not synced is found after the crash."""


class PowerLoss(BaseException):
    """Raised by a hook to stop the program under test where it is; no handler of `Exception` catches it."""


class ShortWrite(Exception):
    """Raised by a hook before a write: `written` bytes of it happen, then it fails with `error`."""

    def __init__(self, written: int, error: int = errno.ENOSPC) -> None:
        super().__init__(f"{written} bytes, then {errno.errorcode[error]}")
        self.written = written
        self.error = error


def survive_all(_change: Unsynced) -> bool:
    """The crash of a process: the machine goes on, and nothing is lost."""
    return True


def survive_none(_change: Unsynced) -> bool:
    """The disk had written nothing that it was not told to."""
    return False


def survive_randomly(rng: random.Random) -> Survives:
    """A chooser with a random share of survivors, drawn once, and the extremes more often than by chance."""
    share = rng.choice((0.0, 0.1, 0.5, 0.5, 0.9, 1.0))
    return lambda _change: rng.random() < share


class Faults:
    """What goes wrong. Set the attributes at any time."""

    def __init__(self) -> None:
        self.before: Callable[[Operation], None] | None = None
        """Called before each change and sync; what it raises, the operation raises."""
        self.before_read: Callable[[Operation], None] | None = None
        """Called before each `read_at`."""
        self.slow_sync: Callable[[str, int], None] | None = None
        """Told the path and the bytes that a `datasync` is about to carry over, to account for its time."""
        self.capacity: int | None = None
        """Bytes that all files together may have; None is no limit."""
        self.read_only = False
        """Whether every change is refused with `EROFS`."""
