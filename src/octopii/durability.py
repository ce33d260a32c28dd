"""When written bytes reach the disk: the three schedules, shared by Walrus and by nodes.

`SyncEach` is the default everywhere: nothing is acknowledged before `fdatasync` has returned. The two others
trade durability for speed and have to be asked for by name.
"""

import msgspec


class SyncEach(msgspec.Struct, frozen=True):
    """Every acknowledged write is on disk: `fdatasync` has returned before the call does."""


class Milliseconds(msgspec.Struct, frozen=True):
    """Writes are on disk at most `interval` milliseconds after they were acknowledged.

    A process that dies loses nothing; an operating system or a machine that dies may lose the last `interval`
    milliseconds of acknowledged writes.
    """

    interval: int

    def __post_init__(self) -> None:
        if isinstance(self.interval, bool) or not isinstance(self.interval, int) or not 1 <= self.interval <= 60_000:
            raise ValueError(
                f"Milliseconds takes a whole number of milliseconds from 1 to 60000, not {self.interval!r}"
            )


class NoFsync(msgspec.Struct, frozen=True):
    """Nothing is synced but by `sync()` and `close()`: a machine that dies may lose everything since then."""


FsyncSchedule = SyncEach | Milliseconds | NoFsync
