"""Chapters 2 and 3 of the specification: the state machine's interface, and the log."""

from collections.abc import Callable
from pathlib import Path

import pytest

from octopii.machines import (
    KvStateMachine,
    RegistryStateMachine,
)
from octopii.state_machine import SnapshotSource
from octopii.walrus import AtLeastOnce, Log, Milliseconds, StrictlyAtOnce, SyncEach, Walrus
from octopii.walrus.faults import survive_none
from octopii.walrus.memory_vfs import MemoryFileSystem
from tests.machines.replicas import ThreeReplicas
from tests.specification.steps import written

# --- chapter 2: the interface -----------------------------------------------------------------------------------


def test_2_apply() -> None:
    """A committed command gives the same answer on every replica; bad input is refused with a reason."""
    cluster = ThreeReplicas(KvStateMachine)
    assert cluster.ask(b"SET a 1") == b"OK"
    assert cluster.ask(b"GET a") == b"1"
    assert cluster.ask(b"nonsense") is None
    cluster.come_to_rest()
    assert [node.machine.query(b"GET a") for node in cluster.nodes] == [b"1"] * 3


def test_2_snapshot() -> None:
    """It is the complete state at one point: a view that is frozen, whatever comes later."""
    machine = KvStateMachine()
    machine.apply(b"SET a 1")
    view = SnapshotSource(machine.snapshot())
    machine.apply(b"SET a 2")
    copy = KvStateMachine()
    copy.restore(memoryview(b"".join(view)))
    assert (copy.query(b"GET a"), machine.query(b"GET a")) == (b"1", b"2")


def test_2_restore() -> None:
    """It replaces everything, or raises and leaves everything."""
    machine, other = KvStateMachine(), KvStateMachine()
    machine.apply(b"SET old 1")
    other.apply(b"SET new 2")
    with pytest.raises(ValueError, match="snapshot"):
        machine.restore(memoryview(written(other)[:-1]))
    assert machine.query(b"GET old") == b"1"
    machine.restore(memoryview(written(other)))
    assert (machine.query(b"GET old"), machine.query(b"GET new")) == (b"NOT_FOUND", b"2")


def test_2_compact() -> None:
    """It drops what has run out, by replicated time, at one index on every replica."""
    cluster = ThreeReplicas(lambda: RegistryStateMachine(expiry_seconds=30))
    cluster.ask(b"REGISTER web 10.0.0.1 80")
    assert cluster.ask(b"LOOKUP web") == b"10.0.0.1:80"
    cluster.world.run(700.0)  # compaction comes every 600 seconds here
    assert cluster.ask(b"LOOKUP web") == b"NOT_FOUND"
    cluster.come_to_rest()
    assert len({written(node.machine) for node in cluster.nodes}) == 1


# --- chapter 3: Walrus ------------------------------------------------------------------------------------------


def test_3_architecture(tmp_path: Path) -> None:
    """Topics own blocks of 64 KiB, mapped and checksummed: a flipped byte is found, and named."""
    with Walrus(str(tmp_path / "log")) as log:
        log.append_for_topic("custom", b"x" * 100_000)
        assert log.stats("custom").blocks == 2
        assert log.verify() == []
    (segment,) = [path for path in (tmp_path / "log").iterdir() if b"xxxx" in path.read_bytes()]
    data = bytearray(segment.read_bytes())
    data[data.index(b"xxxx")] ^= 1
    segment.write_bytes(data)
    with Walrus(str(tmp_path / "log")) as log:
        assert [damage.topic for damage in log.verify()] == ["custom"]


def test_3_creation(tmp_path: Path) -> None:
    """With the defaults, with a consistency, and with a consistency and a schedule."""
    for name, settings in (
        ("plain", {}),
        ("consistency", {"consistency": AtLeastOnce(100)}),
        ("both", {"consistency": StrictlyAtOnce(), "fsync_schedule": Milliseconds(200)}),
    ):
        with Walrus(str(tmp_path / name), **settings) as log:
            assert log.append_for_topic("topic", b"entry") == 0
    with Walrus(str(tmp_path / "plain")) as log:
        assert log.fsync_schedule == SyncEach()


def test_3_append_for_topic(tmp_path: Path) -> None:
    """An entry gets the topic's next offset."""
    with Walrus(str(tmp_path / "log")) as log:
        assert [log.append_for_topic("wal_data", b"SET key val") for _ in range(3)] == [0, 1, 2]


def test_3_batch_append_for_topic(tmp_path: Path) -> None:
    """A batch is appended as a whole."""
    with Walrus(str(tmp_path / "log")) as log:
        assert log.batch_append_for_topic("wal_data", [b"SET key%d val%d" % (n, n) for n in (1, 2, 3)]) == range(3)


def test_3_read_next(tmp_path: Path) -> None:
    """Entries come in order and end with None; without a checkpoint it is a peek."""
    with Walrus(str(tmp_path / "log")) as log:
        log.batch_append_for_topic("t", [b"a", b"b"])
        peeked = log.read_next("t", False)
        entries = [log.read_next("t", True), log.read_next("t", True)]
        assert peeked == entries[0]
        assert [entry.data for entry in entries if entry is not None] == [b"a", b"b"]
        assert log.read_next("t", True) is None


def test_3_batch_read_for_topic(tmp_path: Path) -> None:
    """Up to so many bytes of entries at once."""
    with Walrus(str(tmp_path / "log")) as log:
        log.batch_append_for_topic("t", [b"x" * 1000] * 10)
        assert len(log.batch_read_for_topic("t", 4_500, True)) == 4
        assert len(log.batch_read_for_topic("t", 1 << 20, True)) == 6


def test_3_topic_based_organization(tmp_path: Path) -> None:
    """Topics are independent: each has its own entries and its own position."""
    with Walrus(str(tmp_path / "log")) as log:
        log.append_for_topic("wal_data", b"SET key val")
        log.append_for_topic("audit_log", b"user_action")
        entry = log.read_next("audit_log", True)
        assert entry is not None
        assert entry.data == b"user_action"
        assert log.read_next("audit_log", True) is None
        assert sorted(log.topics()) == ["audit_log", "wal_data"]
        assert len(log.batch_read_for_topic("wal_data", 1000, True)) == 1


def read_again_after_a_crash(consistency: StrictlyAtOnce | AtLeastOnce, reads: int) -> int:
    """How many of ten entries are handed out again after `reads` reads and a power loss."""
    disk = MemoryFileSystem()
    log = Walrus("log", vfs=disk, consistency=consistency)
    log.batch_append_for_topic("t", [b"%d" % n for n in range(10)])
    for _ in range(reads):
        assert log.read_next("t", True) is not None
    disk.crash(survive_none)
    with Walrus("log", vfs=disk, consistency=consistency) as log:
        return reads - (10 - len(log.batch_read_for_topic("t", 1000, True)))


def test_3_strictly_at_once() -> None:
    """Nothing that was read is handed out again after a crash."""
    assert [read_again_after_a_crash(StrictlyAtOnce(), reads) for reads in range(11)] == [0] * 11


def test_3_at_least_once() -> None:
    """At most `persist_every` entries are handed out again after a crash."""
    again = [read_again_after_a_crash(AtLeastOnce(4), reads) for reads in range(11)]
    assert max(again) <= 4
    assert sum(again) > 0


def kept_after_a_crash(schedule: SyncEach | Milliseconds, wait: Callable[[Walrus], None]) -> int:
    disk = MemoryFileSystem()
    log = Walrus("log", vfs=disk, fsync_schedule=schedule)
    log.append_for_topic("t", b"entry")
    wait(log)
    disk.crash(survive_none)
    with Walrus("log", vfs=disk) as log:
        return len(log.batch_read_for_topic("t", 1000, True))


def test_3_sync_each() -> None:
    """An entry is on disk when its append returns."""
    assert kept_after_a_crash(SyncEach(), lambda log: None) == 1


def test_3_milliseconds() -> None:
    """An entry is on disk a few milliseconds later, or when asked for."""
    assert kept_after_a_crash(Milliseconds(60_000), lambda log: None) == 0
    assert kept_after_a_crash(Milliseconds(60_000), Walrus.sync) == 1


def test_3_batch_operations() -> None:
    """After a crash a batch is there as a whole or not at all, and shares one sync."""
    disk = MemoryFileSystem()
    log = Log("log", vfs=disk)
    log.batch_append_for_topic("t", [b"x" * 1000] * 100)
    ticket = log.begin_sync()
    assert ticket is not None
    disk.crash(lambda change: change.index % 2 == 0)
    with Walrus("log", vfs=disk) as again:
        assert len(again.batch_read_for_topic("t", 1 << 20, True)) in (0, 100)


def test_3_write_path() -> None:
    """A write goes to a block's mapped memory with its checksum, then the sync that the schedule wants."""
    disk = MemoryFileSystem()
    log = Log("log", vfs=disk)
    log.append_for_topic("t", b"first")
    begin = []
    disk.faults.before = lambda operation: begin.append(operation.kind)
    log.append_for_topic("t", b"second")
    ticket = log.begin_sync()
    assert ticket is not None
    ticket.run()
    log.finish_sync(ticket)
    assert "datasync" in begin
    assert begin.index("store") < begin.index("datasync")


def test_3_read_path(tmp_path: Path) -> None:
    """Reading crosses from sealed blocks to the active one, and compares checksums."""
    with Walrus(str(tmp_path / "log")) as log:
        sizes = [10_000 + n for n in range(30)]  # several blocks of 64 KiB
        for size in sizes:
            log.append_for_topic("t", b"x" * size)
        assert log.stats("t").blocks > 3
        found = []
        while (entry := log.read_next("t", True)) is not None:
            found.append(len(entry.data))
        assert found == sizes
