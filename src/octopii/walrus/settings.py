"""The arguments that a log is opened with: defaults, and what is refused before anything is made on disk."""

import os
from typing import Final

from octopii.durability import FsyncSchedule, Milliseconds, NoFsync, SyncEach
from octopii.errors import ConfigError
from octopii.walrus.cursors import AtLeastOnce, Consistency, StrictlyAtOnce
from octopii.walrus.record import largest_block_bytes

default_block_bytes: Final = 64 * 1024
default_segment_blocks: Final = 1024  # 64 MiB
default_max_entry_bytes: Final = 64 << 20

smallest_block_bytes: Final = 512  # a sector, of which every block is a multiple
most_segment_blocks: Final = 1 << 20
most_entry_bytes: Final = 1 << 31


def check_settings(
    path: str | os.PathLike[str],
    *,
    consistency: Consistency,
    fsync_schedule: FsyncSchedule,
    max_entry_bytes: int,
    block_bytes: int,
    segment_blocks: int,
) -> None:
    """Raises `ConfigError` for a value that is of the wrong type or out of range."""
    fits = isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str) and os.fspath(path) != ""
    _require(fits, "path", "has to be a string or a path object that names a folder", path)
    # A class instead of an instance would pass for a schedule that never syncs.
    fits = isinstance(fsync_schedule, SyncEach | Milliseconds | NoFsync)
    _require(fits, "fsync_schedule", "has to be SyncEach(), Milliseconds(n) or NoFsync()", fsync_schedule)
    fits = isinstance(consistency, StrictlyAtOnce | AtLeastOnce)
    _require(fits, "consistency", "has to be StrictlyAtOnce() or AtLeastOnce(n)", consistency)
    fits = _is_count(max_entry_bytes, most_entry_bytes)
    _require(fits, "max_entry_bytes", "has to be a whole number from 1 to 2 GiB", max_entry_bytes)
    fits = _is_count(block_bytes, largest_block_bytes - 1) and not block_bytes % smallest_block_bytes
    _require(fits, "block_bytes", "has to be a multiple of 512 below 16 MiB", block_bytes)
    fits = _is_count(segment_blocks, most_segment_blocks)
    _require(fits, "segment_blocks", f"has to be a whole number from 1 to {most_segment_blocks}", segment_blocks)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _require(condition: bool, field: str, rule: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{field} {rule}, not {value!r}", field=field)
