"""Many calls and many bytes: memory and disk stay as they are, and a follower catches up from the leader's disk."""

import gc
import os
import resource
import time
from pathlib import Path

import pytest

from octopii.machines import KvStateMachine
from octopii.raft import Entry, EntryKind, Snapshot
from octopii.replica.log_store import LogStore
from octopii.state_machine import StateMachine
from octopii.walrus import Log, NoFsync
from octopii.walrus.vfs import RealFileSystem
from tests.replica.direct import Direct

MIB = 1 << 20
GROUP = 100


def resident_bytes() -> int:
    """What this process holds in memory now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def disk_bytes(folder: Path) -> int:
    """What stands on the disk below a folder."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def run_long(
    folder: Path, *, commands: int, value_bytes: int, settings: dict[str, object]
) -> tuple[list[int], list[int]]:
    """SETs over 1,000 keys on three replicas; returns memory and disk, in bytes, at ten moments."""
    cluster = Direct(folder, [KvStateMachine() for _ in range(3)], fsync_schedule=NoFsync(), **settings)
    memory, disk, value = [], [], b"v" * value_bytes
    for group in range(commands // GROUP):
        first = group * GROUP
        answers = cluster.propose([b"SET key-%d %d%b" % (n % 1000, n, value) for n in range(first, first + GROUP)])
        assert answers == [b"OK"] * GROUP
        if group % 100 == 0:
            cluster.tick()
        if (group + 1) % (commands // GROUP // 10) == 0:
            memory.append(resident_bytes())
            disk.append(disk_bytes(folder))
    cluster.tick()
    newest = [node.replica.snapshots.newest for node in cluster.nodes.values()]
    assert all(manifest is not None and manifest.index > commands // GROUP // 2 for manifest in newest)
    assert len({node.applier.index for node in cluster.nodes.values()}) == 1
    cluster.close()
    return memory, disk


def show(what: str, values: list[int]) -> None:
    """Print a row of sizes."""
    print(f"{what}: {' '.join(f'{value / MIB:.1f}' for value in values)} MiB")


def test_disk_is_flat_over_many_commands(tmp_path: Path) -> None:
    """With snapshots on, the log behind them goes: ten times the commands take no more room."""
    settings: dict[str, object] = {"snapshot_every_entries": 10, "log_keep_entries": 5}
    memory, disk = run_long(tmp_path, commands=10_000, value_bytes=1000, settings=settings)
    show("memory", memory)
    show("disk", disk)
    assert max(disk[5:]) <= max(disk[:5])


@pytest.mark.heavy
@pytest.mark.timeout(0)
def test_memory_and_disk_are_flat_over_a_million_commands(tmp_path: Path) -> None:
    """Three replicas, snapshots on: after the first tenth neither grows."""
    settings: dict[str, object] = {"snapshot_every_entries": 500, "log_keep_entries": 100, "entry_cache_bytes": 4 * MIB}
    memory, disk = run_long(tmp_path, commands=1_000_000, value_bytes=100, settings=settings)
    show("memory", memory)
    show("disk", disk)
    assert max(memory[1:]) - memory[0] < 32 * MIB
    assert max(disk[5:]) <= max(disk[:5]) + 4 * MIB


def write_log(folder: Path, *, size: int, entry_bytes: int) -> tuple[Log, LogStore]:
    """A log of so many bytes on the disk, of which next to nothing is in the cache."""
    log = Log(str(folder), vfs=RealFileSystem(), fsync_schedule=NoFsync(), max_entry_bytes=8 * MIB)
    store = LogStore(log, prefix="g", cache_bytes=0, newest_snapshot=Snapshot)
    data = os.urandom(entry_bytes)
    batch = max(1, MIB // entry_bytes)
    for first in range(1, size // entry_bytes + 1, batch):
        store.append([Entry(1, first + n, EntryKind.NORMAL, data) for n in range(batch)])
    return log, store


def read_all(store: LogStore) -> int:
    """Read a log as a leader does for a follower: a message's worth of entries at a time; returns the bytes."""
    size, index = 0, store.first_index()
    while index <= store.last_index():
        entries = store.entries(index, store.last_index() + 1, MIB)
        assert entries[0].index == index
        size += sum([len(entry.data) for entry in entries])
        index = entries[-1].index + 1
    return size


@pytest.mark.parametrize("entry_bytes", [100, 4096, 65_536])
def test_entries_are_read_back_from_disk(tmp_path: Path, entry_bytes: int) -> None:
    """All of a log that is not in the cache, in order."""
    log, store = write_log(tmp_path / "log", size=5 * MIB, entry_bytes=entry_bytes)
    assert read_all(store) == entry_bytes * store.last_index()
    log.close()


@pytest.mark.heavy
@pytest.mark.timeout(0)
@pytest.mark.parametrize("entry_bytes", [4096, 65_536, MIB])
def test_entries_are_read_back_from_disk_at_more_than_200_mb_per_second(tmp_path: Path, entry_bytes: int) -> None:
    """What a leader reads for a follower that catches up; each entry holds what gathered during a sync."""
    log, store = write_log(tmp_path / "log", size=512 * MIB, entry_bytes=entry_bytes)
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        size = read_all(store)
        rates.append(size / (time.perf_counter() - began) / 1e6)
    print(f"entries of {entry_bytes} bytes: {' '.join(f'{rate:.0f}' for rate in rates)} MB/s")
    log.close()
    assert sorted(rates)[1] > 200


class Sink(StateMachine):
    """Counts what it is given, and keeps none of it."""

    def __init__(self) -> None:
        self.size = 0

    def apply(self, command: bytes) -> bytes:
        """Count."""
        self.size += len(command)
        return b""

    def snapshot(self) -> bytes:
        """The count."""
        return b"%d" % self.size

    def restore(self, data: memoryview) -> None:
        """Take the count over."""
        self.size = int(bytes(data))


def catch_up(folder: Path, *, size: int) -> float:
    """A follower misses so many bytes of calls, and is sent them from the leader's disk; returns how many seconds."""
    sinks = [Sink() for _ in range(3)]
    cluster = Direct(folder, [*sinks], fsync_schedule=NoFsync(), entry_cache_bytes=0, snapshot_every_entries=1 << 30)
    command = bytes(64 << 10)
    cluster.propose([command])
    cluster.tick()
    assert cluster.leader is not None
    late = next(node_id for node_id, node in cluster.nodes.items() if node is not cluster.leader)
    cluster.cut(late)
    for _ in range(size // MIB):
        cluster.propose([command] * 16)
    behind = cluster.nodes[late]
    assert behind.replica.store.last_index() < cluster.leader.replica.store.last_index() - size // MIB + 2
    began = time.perf_counter()
    cluster.join(late)
    for _ in range(20):
        if behind.applier.index == cluster.leader.applier.index:
            break
        cluster.tick()
    took = time.perf_counter() - began
    assert len({sink.size for sink in sinks}) == 1
    cluster.close()
    return took


def test_a_follower_catches_up_from_the_leaders_disk(tmp_path: Path) -> None:
    """The leader's cache holds nothing of what it is sent."""
    catch_up(tmp_path, size=4 * MIB)


@pytest.mark.heavy
@pytest.mark.timeout(0)
def test_how_fast_a_follower_catches_up(tmp_path: Path) -> None:
    """400 MiB, read on one side, written and applied on the other, in one thread; the rate is printed."""
    size = 400 * MIB
    took = catch_up(tmp_path, size=size)
    print(f"caught up with {size / MIB:.0f} MiB in {took:.2f} s: {size / took / 1e6:.0f} MB/s")
