"""Reasons for a leader to hand over although its cluster is well: its disk, its clock.

    room      less than `disk_low_water_bytes` free on the volume; a reserve file makes sure that votes, trims and
              manifests can be written even when something else has filled the volume
    clock     its wall clock is further than `clock_skew_max` from the median of a majority of the members
    stall     a sync has been under way for longer than an election timeout
    stopped   it stopped applying, for a reason of this machine (`standstill` is about all of them)

All members tell each other their wall clock, whether they have room and whether they apply (`Pulse`), a few times per
election timeout, so that a new leader knows at once whether its clock can be trusted with stamping entries.
"""

import statistics
from collections.abc import Callable, Iterable

import msgspec

from octopii.config import Config
from octopii.walrus.vfs import FileSystem


class DiskRoom:
    """Watches free space, and holds the reserve: a file whose blocks are given back when the volume is full."""

    def __init__(self, config: Config, *, vfs: FileSystem, folder: str) -> None:
        self._config = config
        self._vfs = vfs
        self._folder = folder
        self._path = f"{folder}/reserve"
        self.free = vfs.free_bytes(folder)
        self._hold()

    @property
    def low(self) -> bool:
        """Whether the volume is below the low-water mark."""
        return self.free < self._config.disk_low_water_bytes

    @property
    def critical(self) -> bool:
        """Whether what is left is for votes, trims and manifests alone."""
        return self.free < self._config.disk_reserve_bytes

    def check(self) -> None:
        """Look again; take the reserve back when there is room for it."""
        self.free = self._vfs.free_bytes(self._folder)
        if not self.low:
            self._hold()

    def release(self) -> bool:
        """Give the reserve's blocks to the writes that must succeed; False when they were given already."""
        if not self._vfs.exists(self._path):
            return False
        self._vfs.remove(self._path)
        self.free = self._vfs.free_bytes(self._folder)
        return True

    def _hold(self) -> None:
        size = self._config.disk_reserve_bytes
        if self._vfs.exists(self._path) or self.free < size + self._config.disk_low_water_bytes:
            return
        file = self._vfs.open(self._path, create=True)
        try:
            file.allocate(size)
        except OSError:
            self._vfs.remove(self._path)
        finally:
            file.close()


class Vital(msgspec.Struct):
    """What a member last said of itself: its wall clock, whether its disk has room, the entry that it stopped at, or 0.

    The wall clock is kept as nanoseconds ahead of our monotonic clock, so that a jump of our own wall clock is seen at
    once, and not only with the next pulses.
    """

    ahead: int
    disk_low: bool
    stopped_at: int
    heard: float


class Vitals:
    """What is known of the other members' clocks and disks, and of whether they apply."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._vitals: dict[int, Vital] = {}

    def heard(self, peer: int, *, wall: int, disk_low: bool, stopped_at: int, now: float) -> None:
        """Note a peer's pulse."""
        self._vitals[peer] = Vital(_ahead(wall, now), disk_low, stopped_at, now)

    def forget(self, peer: int) -> None:
        """The peer is gone from the cluster."""
        self._vitals.pop(peer, None)

    def _fresh(self, members: Iterable[int], now: float) -> dict[int, Vital]:
        oldest = now - 2 * self._config.election_timeout
        return {
            peer: self._vitals[peer] for peer in members if peer in self._vitals and self._vitals[peer].heard >= oldest
        }

    def skew(self, members: list[int], *, now: float, wall: int) -> float | None:
        """Seconds by which this node's clock, `wall`, is ahead of the median; None while no majority was heard.

        `members` are the voters without this node.
        """
        fresh = self._fresh(members, now)
        if 2 * (len(fresh) + 1) <= len(members) + 1:
            return None
        own = _ahead(wall, now)
        return (own - statistics.median([own, *(vital.ahead for vital in fresh.values())])) / 1e9

    def clock_is_good(self, peer: int, members: list[int], *, now: float, wall: int) -> bool:
        """Whether a peer's clock is near the median, as far as this node can tell."""
        fresh = self._fresh(members, now)
        if peer not in fresh:
            return False
        middle = statistics.median([_ahead(wall, now), *(vital.ahead for vital in fresh.values())])
        return abs(fresh[peer].ahead - middle) <= self._config.clock_skew_max * 1e9

    def has_room(self, peer: int) -> bool:
        """Whether a peer's disk had room when it was last heard of."""
        vital = self._vitals.get(peer)
        return vital is not None and not vital.disk_low

    def stopped_at(self, peer: int) -> int:
        """The entry at which a peer stopped applying, when it was last heard of; 0: it applies, or is not known."""
        vital = self._vitals.get(peer)
        return vital.stopped_at if vital is not None else 0


def _ahead(wall: int, now: float) -> int:
    return wall - int(now * 1e9)


def best_successor(candidates: dict[int, int], fits: Callable[[int], bool]) -> int | None:
    """The fitting member whose log is furthest (`candidates`: id -> match index), or None."""
    fitting = [peer for peer in candidates if fits(peer)]
    return max(fitting, key=lambda peer: (candidates[peer], -peer), default=None)
