"""What opening reads, what it takes for granted, and what it refuses to take for granted."""

import pytest

from octopii.durability import NoFsync
from octopii.errors import CorruptLogError
from octopii.walrus import Log
from octopii.walrus.memory_vfs import MemoryFileSystem, Operation, survive_all
from octopii.walrus.vfs import sector_bytes
from tests.walrus.crashing import CoreLog, folder, small_block_bytes
from tests.walrus.model import Append


def _system() -> MemoryFileSystem:
    system = MemoryFileSystem()
    system.make_folder(folder)
    return system


def _sync(log: Log) -> None:
    ticket = log.begin_sync()
    assert ticket is not None
    ticket.run()
    log.finish_sync(ticket)


def _without(system: MemoryFileSystem, entry: bytes) -> MemoryFileSystem:
    """The files with one byte of an entry changed."""
    damaged = system.after_crash(survive_all)
    places = []
    for name in damaged.list_folder(folder):
        data = damaged.contents(f"{folder}/{name}")
        if (at := data.find(entry)) >= 0:
            places.append(at)
            data[at] ^= 1
    assert len(places) == 1
    return damaged


def _bytes_read(system: MemoryFileSystem) -> int:
    """How many bytes of segments an opening reads."""
    read = 0

    def note(operation: Operation) -> None:
        nonlocal read
        if operation.path.endswith(".wal"):
            read += operation.size

    system.faults.before_read = note
    CoreLog(system, eager=False)
    system.faults.before_read = None
    return read


def test_a_sync_that_was_asked_for_vouches_at_once() -> None:
    """Under `NoFsync`, what `sync` covered is damage when it is changed, not a torn tail."""
    system = _system()
    log = Log(folder, vfs=system, fsync_schedule=NoFsync(), block_bytes=small_block_bytes, segment_blocks=4)
    log.append_for_topic("t", b"before")
    log.append_for_topic("t", b"the newest of all")
    assert CoreLog(_without(system, b"the newest of all")).look()["t"].items == (b"before",)
    _sync(log)
    with pytest.raises(CorruptLogError):
        CoreLog(_without(system, b"the newest of all")).look()


def test_what_was_recovered_is_vouched_for() -> None:
    """What an opening after a crash has shown is damage when it is changed later, not a torn tail."""
    system = _system()
    log = CoreLog(system)
    log.log.append_for_topic("t", b"before")
    log.log.append_for_topic("t", b"the newest of all")
    system.crash(survive_all)
    again = CoreLog(system)
    assert again.look()["t"].items == (b"before", b"the newest of all")
    with pytest.raises(CorruptLogError):
        CoreLog(_without(system, b"the newest of all")).look()


def test_opening_reads_only_what_nothing_vouches_for() -> None:
    """After a crash only tables and tails are read; where nothing was ever synced, each block once."""
    system = _system()
    log = Log(folder, vfs=system, fsync_schedule=NoFsync(), block_bytes=small_block_bytes, segment_blocks=64)
    for number in range(200):
        log.append_for_topic(f"t{number % 2}", bytes(500))
    blocks = sum(log.stats(topic).blocks for topic in log.topics())
    tables = 8192 * 2
    tails = 3 * 3 * small_block_bytes
    assert blocks > 100
    never_synced = _bytes_read(system.after_crash(survive_all))
    assert blocks * small_block_bytes <= never_synced <= blocks * small_block_bytes + tables + tails
    _sync(log)
    assert _bytes_read(system.after_crash(survive_all)) <= tables + tails


def test_what_a_cut_block_held_never_returns() -> None:
    """A block that was cut off, and is given to the same topic again at the same place and seq, shows nothing stale.

    A second crash keeps the block's new line in the table and loses what was written to it: the bytes of its life
    before are all there, with the seqs that would follow.
    """
    system = _system()
    log = CoreLog(system)
    log.take(Append("t", bytes(30)))
    first = _fill_three_blocks(log, b"old")
    _crash_without(system, first[0])
    log = CoreLog(system)
    assert log.look()["t"].items == (bytes(30),)
    second = _fill_three_blocks(log, b"new")
    assert second[2] == first[2]
    _crash_without(system, second[2])
    assert CoreLog(system).look()["t"].items[1:] == (_long(b"new"),) * 2


def _long(name: bytes) -> bytes:
    return name.ljust(900, b"-")


def _fill_three_blocks(log: CoreLog, name: bytes) -> list[tuple[str, int]]:
    """Append three entries that nearly fill a block, unsynced; returns where the block of each is."""
    places = []
    for _ in range(3):
        log.log.append_for_topic("t", _long(name))
        topic = log.log._topics["t"]
        assert topic.segment is not None
        places.append((topic.segment.path, topic.base))
    assert len(set(places)) == 3
    return places


def _crash_without(system: MemoryFileSystem, place: tuple[str, int]) -> None:
    """Crash, losing what is not synced of one block alone."""
    path, base = place
    system.crash(
        lambda change: change.path != path or not base <= change.index * sector_bytes < base + small_block_bytes
    )
