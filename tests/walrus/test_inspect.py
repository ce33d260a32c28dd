"""Reading a log from outside: what it sees, that it changes nothing, that a busy owner is not taken for damage."""

import random
from pathlib import Path

import pytest

from octopii.errors import CorruptLogError, OffsetTrimmedError, UnknownFormatError
from octopii.walrus import Log, NoFsync, Walrus
from octopii.walrus.inspect import ReadOnlyLog
from octopii.walrus.memory_vfs import MemoryFileSystem

BLOCK_BYTES = 1024
TOPICS = ("a", "b", "c")


def data_of(topic: str, offset: int) -> bytes:
    """What an entry holds: anybody can tell whether it is the right one. Some of them span blocks."""
    return b"%s %d " % (topic.encode(), offset) + b"x" * (offset * 37 % (3 * BLOCK_BYTES))


class BusyOwner:
    """Appends, trims, truncates, resets: some of it before each read that anybody else does on its disk."""

    def __init__(self, seed: int) -> None:
        self.disk = MemoryFileSystem()
        self.log = Log("log", vfs=self.disk, fsync_schedule=NoFsync(), block_bytes=BLOCK_BYTES, segment_blocks=16)
        self._rng = random.Random(seed)
        self._works = False
        for topic in TOPICS:
            self.log.append_for_topic(topic, data_of(topic, 0))
        self.disk.faults.before_read = self._before_read

    def _before_read(self, _operation: object) -> None:
        if not self._works:  # not before its own reads
            self._works = True
            for _ in range(self._rng.choice((0, 0, 1, 3))):
                self._work()
            self._works = False

    def _work(self) -> None:
        log, rng = self.log, self._rng
        topic = rng.choice(TOPICS)
        first, following = log.first_offset(topic), log.next_offset(topic)
        act = rng.random()
        if act < 0.6:
            log.batch_append_for_topic(topic, [data_of(topic, following + n) for n in range(rng.randint(1, 4))])
        elif act < 0.8:
            log.trim(topic, max(first, following - rng.randint(0, 5)))
        elif act < 0.9:
            log.truncate_from(topic, rng.randint(first, following))
        elif act < 0.95:
            log.reset_topic(topic, following)
        else:
            log.commit(topic, rng.randint(first, following), cursor="reader")
        if rng.random() < 0.5 and (ticket := log.begin_sync()) is not None:
            ticket.run()
            log.finish_sync(ticket)


@pytest.mark.parametrize("seed", range(20))
def test_a_busy_owner_is_never_taken_for_damage(seed: int) -> None:
    """Blocks are freed, used again and cut back between any two reads; each look and each check finds a sound log."""
    owner = BusyOwner(seed)
    log = ReadOnlyLog("log", vfs=owner.disk)
    for _ in range(5):
        log.refresh()
        assert {facts.name for facts in log.topics()} == set(TOPICS)
        assert log.verify() == []
    log.close()


@pytest.mark.parametrize("seed", range(20))
def test_entries_read_beside_a_busy_owner_are_the_right_ones(seed: int) -> None:
    """Every entry that is read is whole and the one of its offset; what is gone meanwhile is said to be trimmed."""
    owner = BusyOwner(seed)
    log = ReadOnlyLog("log", vfs=owner.disk)
    read = 0
    while read < 30:
        log.refresh()
        for facts in log.topics():
            try:
                entries = log.read_from(facts.name, facts.first_offset, 16 * BLOCK_BYTES)
            except OffsetTrimmedError:
                continue
            for number, entry in enumerate(entries):
                assert entry.offset == facts.first_offset + number
                assert entry.data == data_of(facts.name, entry.offset)
            read += len(entries)
    log.close()


def test_damage_is_found_beside_a_running_owner(tmp_path: Path) -> None:
    """A flipped byte in a block that the owner does not touch is reported, at each look, however often one looks."""
    folder = tmp_path / "log"
    with Walrus(str(folder)) as owner:
        owner.append_for_topic("t", b"sound")
        owner.append_for_topic("t", b"needle")
        owner.append_for_topic("t", b"behind")
        segment = next(folder.glob("segment-*.wal"))
        position = segment.read_bytes().index(b"needle")
        with segment.open("r+b") as file:
            file.seek(position)
            file.write(b"N")
        with pytest.raises(CorruptLogError) as damage:
            ReadOnlyLog(str(folder))
        assert damage.value.path == str(segment)
        assert damage.value.topic == "t"
        assert damage.value.position is not None
        assert damage.value.position <= position < damage.value.position + BLOCK_BYTES


def test_looking_at_a_log_writes_nothing() -> None:
    """Opening, reading and checking a log that was not closed, torn tail included, does no change and no sync."""
    disk = MemoryFileSystem()
    owner = Walrus("log", vfs=disk, block_bytes=BLOCK_BYTES, segment_blocks=8)
    owner.append_for_topic("t", b"one")
    owner.append_for_topic("t", b"two" * BLOCK_BYTES)
    touched: list[object] = []
    disk.faults.before = touched.append
    log = ReadOnlyLog("log", vfs=disk)
    assert [entry.data for entry in log.read_from("t", 0, 1 << 20)] == [b"one", b"two" * BLOCK_BYTES]
    assert log.verify() == []
    log.refresh()
    log.close()
    assert touched == []
    disk.faults.before = None
    owner.close()


def test_the_owner_s_writes_are_seen_at_the_next_look() -> None:
    """`refresh` shows what was appended, trimmed and committed since; before it the picture stays as it was."""
    disk = MemoryFileSystem()
    with Walrus("log", vfs=disk, block_bytes=BLOCK_BYTES, segment_blocks=8) as owner:
        owner.batch_append_for_topic("t", [b"0", b"1", b"2"])
        log = ReadOnlyLog("log", vfs=disk)
        owner.append_for_topic("t", b"3")
        owner.trim("t", 1)
        owner.commit("t", 2, cursor="reader")
        (before,) = log.topics()
        assert (before.first_offset, before.next_offset, before.cursors) == (0, 3, {})
        log.refresh()
        (after,) = log.topics()
        assert (after.first_offset, after.next_offset, after.cursors) == (1, 4, {"reader": 2})
        with pytest.raises(OffsetTrimmedError):
            log.read_from("t", 0, 1)
        assert log.read_from("nothing", 0, 1) == []
        log.close()


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    """An empty folder is no log, and looking does not make it one."""
    with pytest.raises(UnknownFormatError):
        ReadOnlyLog(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
