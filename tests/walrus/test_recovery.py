"""What opening reads, what it takes for granted, and what it refuses to take for granted."""

import pytest
from xxhash import xxh3_64_digest

from octopii.durability import NoFsync
from octopii.errors import CorruptLogError
from octopii.walrus import Log
from octopii.walrus.memory_vfs import MemoryFileSystem, Operation, survive_all
from octopii.walrus.record import (
    HEAD,
    ONE,
    USED,
    Slot,
    block_seed,
    decode_slot,
    encode_slot,
    free_slot,
    slot_bytes,
    table_bytes,
)
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


def _set_slot(system: MemoryFileSystem, path: str, block: int, slot: Slot) -> None:
    at = (block + 1) * slot_bytes
    system.contents(path)[at : at + slot_bytes] = encode_slot(slot, 1, block)


def _crashed_with_two_blocks() -> tuple[MemoryFileSystem, str, dict[int, Slot]]:
    """A log that was not closed, with a topic of two blocks in one segment; its used slots by block."""
    system = _system()
    log = CoreLog(system, segment_blocks=8)
    log.take(Append("t", bytes(900)))
    log.take(Append("t", bytes(900)))
    (name,) = (name for name in system.list_folder(folder) if name.endswith(".wal"))
    path = f"{folder}/{name}"
    system.crash(survive_all)
    slots = {
        block: decode_slot(bytes(system.contents(path)[(block + 1) * slot_bytes :][:slot_bytes]), 1, block)
        for block in range(8)
    }
    return system, path, {block: slot for block, slot in slots.items() if slot.flags & USED}


def test_two_blocks_at_one_place_of_a_topic_are_damage() -> None:
    """Blocks that claim the same place in a topic are an error that names the second, not one taken for the other."""
    system, path, slots = _crashed_with_two_blocks()
    (_, first), (block, second) = [item for item in slots.items() if item[1].topic]
    _set_slot(system, path, block, second._replace(ordinal=first.ordinal))
    with pytest.raises(CorruptLogError, match="claim place") as caught:
        CoreLog(system)
    assert (caught.value.path, caught.value.position) == (path, (block + 1) * slot_bytes)


def test_block_that_is_missing_from_a_chain_is_damage() -> None:
    """A chain that names a block which is not there is an error with the topic's name, not a shorter topic."""
    system, path, slots = _crashed_with_two_blocks()
    (gone, _), (block, second) = [item for item in slots.items() if item[1].topic]
    _set_slot(system, path, gone, free_slot)
    _set_slot(system, path, block, second._replace(mark_seq=second.first_seq))  # vouched for, so what is before it is
    with pytest.raises(CorruptLogError) as caught:
        CoreLog(system)
    assert caught.value.topic == "t"


def test_a_trim_that_was_lost_makes_no_beginning() -> None:
    """A block is no beginning because a slot behind it says so of a trim that a crash took back: the topic is empty.

    The first block of a batch never got to the disk. The second did, and so did the slot of the block of the trim, but
    not the trim itself. What is there of the batch is torn, although nothing before it were needed if the trim counted.
    """
    system = _system()
    log = CoreLog(system, eager=False, segment_blocks=8)
    log.log.batch_append_for_topic("t", [bytes(200)] * 6)
    log.log.append_for_topic("t", bytes(300))
    log.log.trim("t", 7)
    (name,) = (name for name in system.list_folder(folder) if name.endswith(".wal"))
    path = f"{folder}/{name}"
    system.crash(survive_all)
    contents = system.contents(path)
    blocks = {
        slot.ordinal: block
        for block in range(8)
        if (slot := decode_slot(bytes(contents[(block + 1) * slot_bytes :][:slot_bytes]), 1, block)).topic == 1
    }
    assert sorted(blocks) == [0, 1, 2]
    _set_slot(system, path, blocks[0], free_slot)
    start = table_bytes(8, small_block_bytes) + blocks[2] * small_block_bytes
    contents[start : start + small_block_bytes] = bytes(small_block_bytes)
    again = CoreLog(system, segment_blocks=8)
    assert again.look()["t"].items == ()
    again.take(Append("t", b"after"))
    assert again.look()["t"].items == (b"after",)


def test_unknown_topic_is_damage_once_it_was_on_disk() -> None:
    """Blocks of a number that the catalog never gave out are a crash's, unless anything of them is vouched for.

    A mark in the table vouches, and so does a fragment that says its topic was synced before.
    """
    stranger = free_slot._replace(topic=99, flags=USED, life=1 << 40, first_seq=1)

    def crashed(*, mark_seq: int, synced: int) -> MemoryFileSystem:
        system, path, slots = _crashed_with_two_blocks()
        block = max(slots) + 1
        _set_slot(system, path, block, stranger._replace(mark_seq=mark_seq))
        seed = block_seed(99, 1, block, stranger.life)
        head = HEAD.pack(seed >> 32, ONE << 24 | 5, 1, 0, synced)
        fragment = xxh3_64_digest(head + b"entry", seed) + head + b"entry"
        start = table_bytes(8, small_block_bytes) + block * small_block_bytes
        system.contents(path)[start : start + len(fragment)] = fragment
        return system

    assert set(CoreLog(crashed(mark_seq=0, synced=0)).look()) == {"t"}
    for mark_seq, synced in ((1, 0), (0, 1)):
        with pytest.raises(CorruptLogError, match="missing from the catalog"):
            CoreLog(crashed(mark_seq=mark_seq, synced=synced))


def test_segment_that_the_superblock_does_not_list_is_removed() -> None:
    """A segment file that a crash left half made, or half removed, is no part of the log and goes at the next open."""
    system, path, _ = _crashed_with_two_blocks()
    stray = f"{folder}/segment-00000077.wal"
    system.open(stray, create=True).write_at(bytes(system.contents(path)), 0)
    assert CoreLog(system).look()["t"].end == 2
    assert not system.exists(stray)
    assert system.exists(path)


def test_damaged_line_of_a_table_is_met_at_once() -> None:
    """A table that was not closed is compared line by line before anything in it is believed, free blocks' as well."""
    system, path, slots = _crashed_with_two_blocks()
    at = (max(slots) + 2) * slot_bytes
    system.contents(path)[at + 100] ^= 1
    with pytest.raises(CorruptLogError) as caught:
        CoreLog(system)
    assert (caught.value.path, caught.value.position) == (path, at)


def test_what_lies_behind_a_hole_vouches_for_it() -> None:
    """A damaged fragment is damage, not the end of the log, once a later one says that it was on disk."""
    system = _system()
    log = CoreLog(system)
    for entry in (b"the first of three", b"the second", b"the third"):
        log.take(Append("t", entry))
    with pytest.raises(CorruptLogError):
        CoreLog(_without(system, b"the first of three"))


def test_what_lies_behind_a_tear_never_returns() -> None:
    """A valid fragment behind a torn one stays gone when one of the same size and seq takes the torn one's place."""
    system = _system()
    log = CoreLog(system)
    log.take(Append("t", b"kept"))
    fills_the_sector = sector_bytes - 48 - 40
    log.log.append_for_topic("t", bytes(fills_the_sector))
    log.log.append_for_topic("t", b"in the next sector")
    topic = log.log._topics["t"]
    assert topic.segment is not None
    torn = (topic.segment.path, topic.base // sector_bytes)
    system.crash(lambda change: (change.path, change.index) != torn)
    log = CoreLog(system)
    assert log.look()["t"].items == (b"kept",)
    log.take(Append("t", b"n" * fills_the_sector))
    system.crash(survive_all)
    assert CoreLog(system).look()["t"].items == (b"kept", b"n" * fills_the_sector)
