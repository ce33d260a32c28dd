"""What the log's methods mean: offsets, cursors, trims, cuts, resets, topics, space, and the core's syncs."""

import os
from pathlib import Path

import pytest

from octopii.walrus import AtLeastOnce, Consistency, Entry, Log, NoFsync, StrictlyAtOnce, SyncEach, Walrus
from octopii.walrus.memory_vfs import MemoryFileSystem, survive_all
from octopii.walrus.vfs import FileSystem

folder = "/log"
block_bytes = 1024


def _open(
    system: FileSystem, *, consistency: Consistency | None = None, each: bool = False, segment_blocks: int = 8
) -> Log:
    return Log(
        folder,
        vfs=system,
        consistency=consistency,
        fsync_schedule=SyncEach() if each else NoFsync(),
        block_bytes=block_bytes,
        segment_blocks=segment_blocks,
    )


def _sync(log: Log) -> None:
    ticket = log.begin_sync()
    if ticket is not None:
        ticket.run()
        log.finish_sync(ticket)


def _data(entries: list[Entry]) -> list[bytes]:
    return [entry.data for entry in entries]


def _all(log: Log, topic: str = "t") -> list[bytes]:
    return _data(log.read_from(topic, log.first_offset(topic), 1 << 30))


@pytest.fixture
def system() -> MemoryFileSystem:
    """An empty file system."""
    return MemoryFileSystem()


def _reopened(system: MemoryFileSystem, log: Log, *, closed: bool) -> Log:
    """The log opened again, after an orderly close or the death of its process."""
    if closed:
        log.close()
        return _open(system)
    return _open(system.after_crash(survive_all))


reopenings = pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])

# --- offsets and sizes --------------------------------------------------------------------------------------------


def test_offsets_are_dense_and_per_topic(system: MemoryFileSystem) -> None:
    """Each topic counts from 0 on its own; a batch gets a range."""
    log = _open(system)
    assert [log.append_for_topic("a", b"x") for _ in range(3)] == [0, 1, 2]
    assert log.batch_append_for_topic("b", [b"1", b"2"]) == range(2)
    assert log.batch_append_for_topic("a", [b"3", b"4"]) == range(3, 5)
    assert log.batch_append_for_topic("a", []) == range(5, 5)
    assert log.topics() == ["a", "b"]


@reopenings
@pytest.mark.parametrize(
    "size", [0, 1, 7, 8, 9, block_bytes - 41, block_bytes - 40, block_bytes - 39, block_bytes, 5 * block_bytes, 70_001]
)
def test_entries_of_any_size(system: MemoryFileSystem, size: int, closed: bool) -> None:
    """Sizes around the block's, and far beyond, come back as they were, singly and in batches."""
    log = _open(system)
    entries = [os.urandom(size) for _ in range(6)]
    log.append_for_topic("t", entries[0])
    log.batch_append_for_topic("t", entries[1:4])
    log.append_for_topic("t", entries[4])
    log.append_for_topic("t", entries[5])
    assert _all(log) == entries
    again = _reopened(system, log, closed=closed)
    assert _all(again) == entries
    assert again.verify() == []
    assert again.append_for_topic("t", b"goes on") == 6


def test_large_batch_in_default_blocks(tmp_path: Path) -> None:
    """Blocks of 64 KiB and real files: 10,000 small entries and 3 MiB in one batch."""
    entries = [str(number).encode() * 9 for number in range(10_000)] + [bytes(3 << 20)]
    with Walrus(str(tmp_path / "log")) as log:
        assert log.batch_append_for_topic("t", entries) == range(10_001)
    with Walrus(str(tmp_path / "log")) as log:
        assert _data(log.read_from("t", 0, 1 << 30)) == entries


# --- reading ------------------------------------------------------------------------------------------------------


def test_read_next_moves_and_peeks(system: MemoryFileSystem) -> None:
    """With `checkpoint` the cursor moves on, without it stays; at the end there is None, and appends are seen."""
    log = _open(system)
    log.batch_append_for_topic("t", [b"a", b"b"])
    assert log.read_next("t", False) == Entry(b"a", 0)
    assert log.read_next("t", True) == Entry(b"a", 0)
    assert log.read_next("t", True) == Entry(b"b", 1)
    assert log.read_next("t", True) is None
    assert log.read_next("unknown", True) is None
    log.append_for_topic("t", b"c")
    assert log.read_next("t", True) == Entry(b"c", 2)


def test_batch_read_takes_what_fits(system: MemoryFileSystem) -> None:
    """As many entries as have `max_bytes` together, but at least one."""
    log = _open(system)
    log.batch_append_for_topic("t", [bytes(10)] * 30 + [bytes(3000)] + [bytes(10)] * 3)
    assert len(log.batch_read_for_topic("t", 100, False)) == 10
    assert len(log.batch_read_for_topic("t", 100, True)) == 10
    assert len(log.batch_read_for_topic("t", 109, True)) == 10
    assert len(log.batch_read_for_topic("t", 9, True)) == 1
    assert len(log.batch_read_for_topic("t", 1000, True)) == 9
    assert [len(entry.data) for entry in log.batch_read_for_topic("t", 1000, True)] == [3000]
    assert len(log.batch_read_for_topic("t", 1000, True)) == 3
    assert log.batch_read_for_topic("t", 1000, True) == []


def test_read_from_moves_nothing(system: MemoryFileSystem) -> None:
    """`read_from` begins anywhere and has no state."""
    log = _open(system)
    entries = [str(number).encode() * (number % 90) for number in range(300)]
    for start in range(0, 300, 50):
        log.batch_append_for_topic("t", entries[start : start + 50])
    for offset in (0, 1, 49, 50, 177, 299):
        assert _data(log.read_from("t", offset, 1 << 20)) == entries[offset:]
        assert log.read_from("t", offset, 0) == [Entry(entries[offset], offset)]
    assert log.read_from("t", 300, 100) == []
    assert log.read_next("t", False) == Entry(entries[0], 0)


def test_named_cursors_are_independent(system: MemoryFileSystem) -> None:
    """Each cursor has its own position; `commit` puts one anywhere in the topic."""
    log = _open(system)
    log.batch_append_for_topic("t", [b"a", b"b", b"c"])
    assert log.read_next("t", True, cursor="one") == Entry(b"a", 0)
    assert log.read_next("t", True, cursor="two") == Entry(b"a", 0)
    log.commit("t", 2, cursor="one")
    assert log.read_next("t", True, cursor="one") == Entry(b"c", 2)
    log.commit("t", 0, cursor="one")
    assert log.read_next("t", True, cursor="one") == Entry(b"a", 0)
    assert log.stats("t").cursors == {"one": 1, "two": 1}


@reopenings
def test_strict_cursors_survive(system: MemoryFileSystem, closed: bool) -> None:
    """Under `StrictlyAtOnce` no entry is read twice, whatever the end."""
    log = _open(system, consistency=StrictlyAtOnce())
    log.batch_append_for_topic("t", [b"a", b"b", b"c"])
    log.read_next("t", True)
    log.batch_read_for_topic("t", 1, True)
    assert _reopened(system, log, closed=closed).read_next("t", True) == Entry(b"c", 2)


@pytest.mark.parametrize("batch", [1, 2, 7, 10, 23])
def test_at_least_once_reads_few_again(system: MemoryFileSystem, batch: int) -> None:
    """After a crash at most `persist_every` entries are read again, batch reads included; after a close none."""
    log = _open(system, consistency=AtLeastOnce(10))
    log.batch_append_for_topic("t", [bytes(4)] * 100)
    for _ in range(0, 69, batch):
        end = log.batch_read_for_topic("t", 4 * batch, True)[-1].offset + 1
        again = _open(system.after_crash(survive_all)).read_next("t", False)
        assert again is not None
        assert end - 10 < again.offset <= end
    log.close()
    found = _open(system).read_next("t", False)
    assert found is not None
    assert found.offset == end


def test_polling_at_the_end_writes_nothing(system: MemoryFileSystem) -> None:
    """A poll that finds nothing changes nothing, on disk or in the cursor."""
    log = _open(system)
    log.append_for_topic("t", b"x")
    log.read_next("t", True)
    _sync(log)
    for _ in range(100):
        assert log.read_next("t", True) is None
        assert log.batch_read_for_topic("t", 100, True) == []
    assert log.begin_sync() is None


# --- trims, cuts, resets ------------------------------------------------------------------------------------------


@reopenings
def test_trim_drops_the_front(system: MemoryFileSystem, closed: bool) -> None:
    """Entries below are gone, the others keep their offsets; cursors below are moved and named."""
    log = _open(system)
    entries = [bytes([number]) * 200 for number in range(40)]
    log.batch_append_for_topic("t", entries)
    log.commit("t", 5, cursor="behind")
    log.commit("t", 30, cursor="ahead")
    blocks = log.stats("t").blocks
    assert log.trim("t", 20) == ("behind",)
    assert log.trim("t", 20) == ()
    assert log.trim("t", 3) == ()
    assert log.stats("t").blocks < blocks
    assert log.read_next("t", False, cursor="behind") == Entry(entries[20], 20)
    log = _reopened(system, log, closed=closed)
    assert (log.first_offset("t"), log.next_offset("t")) == (20, 40)
    assert _all(log) == entries[20:]
    assert log.stats("t").cursors == {"behind": 20, "ahead": 30}
    assert log.append_for_topic("t", b"x") == 40


@reopenings
@pytest.mark.parametrize("offset", [0, 1, 19, 39, 40])
def test_truncate_drops_the_end(system: MemoryFileSystem, offset: int, closed: bool) -> None:
    """The next append gets the offset; cursors beyond are set to it; what was dropped is not seen again."""
    log = _open(system)
    entries = [bytes([number]) * 200 for number in range(40)]
    log.batch_append_for_topic("t", entries)
    log.commit("t", 30)
    log.truncate_from("t", offset)
    assert _all(log) == entries[:offset]
    assert log.append_for_topic("t", b"new") == offset
    log = _reopened(system, log, closed=closed)
    assert _all(log) == [*entries[:offset], b"new"]
    assert log.stats("t").cursors == {"default": min(30, offset)}
    assert log.verify() == []


@reopenings
@pytest.mark.parametrize("sizes", [(200, 200), (200, 3000), (3000, 10), (10, 10)])
def test_replace_is_truncate_and_append(system: MemoryFileSystem, sizes: tuple[int, int], closed: bool) -> None:
    """Any suffix gives way to any batch, again and again, within blocks and across them."""
    log = _open(system)
    expected = [bytes([number]) * sizes[0] for number in range(20)]
    log.batch_append_for_topic("t", expected)
    for turn, offset in enumerate((20, 19, 12, 14, 3, 3, 5, 0, 2)):
        batch = [bytes([100 + turn]) * sizes[1]] * (turn + 1)
        assert log.replace_from("t", offset, batch) == range(offset, offset + len(batch))
        expected = expected[:offset] + batch
        assert _all(log) == expected
    log = _reopened(system, log, closed=closed)
    assert _all(log) == expected
    assert log.verify() == []


@reopenings
@pytest.mark.parametrize("offset", [0, 3, 5, 1000])
def test_reset_begins_anew(system: MemoryFileSystem, offset: int, closed: bool) -> None:
    """Nothing remains, cursors stand at the new beginning, and the topic is made if it was not there."""
    log = _open(system)
    log.batch_append_for_topic("t", [bytes(300)] * 5)
    log.commit("t", 4)
    for topic in ("t", "new"):
        log.reset_topic(topic, offset)
        assert (log.first_offset(topic), log.next_offset(topic)) == (offset, offset)
        assert log.read_from(topic, offset, 100) == []
        assert log.append_for_topic(topic, b"x") == offset
    log = _reopened(system, log, closed=closed)
    assert log.read_from("t", offset, 100) == log.read_from("new", offset, 100) == [Entry(b"x", offset)]
    assert log.read_next("t", False) == Entry(b"x", offset)


@reopenings
def test_deleted_topic_is_gone(system: MemoryFileSystem, closed: bool) -> None:
    """Entries and cursors go; a topic of the same name begins at 0 with neither."""
    log = _open(system)
    log.batch_append_for_topic("t", [bytes(300)] * 5)
    log.append_for_topic("other", b"stays")
    log.commit("t", 3)
    log.delete_topic("t")
    log.delete_topic("t")
    assert log.topics() == ["other"]
    assert log.append_for_topic("t", b"again") == 0
    log = _reopened(system, log, closed=closed)
    assert _all(log) == [b"again"]
    assert log.read_next("t", False) == Entry(b"again", 0)
    assert log.stats("t").cursors == {}


def test_many_topics_and_cursors_in_a_small_catalog(system: MemoryFileSystem) -> None:
    """The catalog is written anew as it grows: it stays small under thousands of commits, and is right afterwards."""
    log = _open(system)
    for number in range(40):
        log.batch_append_for_topic(f"topic {number}", [b"x"] * 50)
    for turn in range(50):
        for number in range(40):
            log.commit(f"topic {number}", (turn * 7 + number) % 50)
        _sync(log)
    expected = {f"topic {number}": (49 * 7 + number) % 50 for number in range(40)}
    size = sum(len(system.contents(f"{folder}/{name}")) for name in system.list_folder(folder))
    assert size < 40 * 3 * block_bytes + 60 * block_bytes
    for again in (_open(system.after_crash(survive_all)), _reopened(system, log, closed=True)):
        assert {name: again.stats(name).cursors["default"] for name in again.topics()} == expected


# --- space --------------------------------------------------------------------------------------------------------


def test_new_log_is_small_and_grows_by_doubling(tmp_path: Path) -> None:
    """A new log takes 1 MiB, not a whole large segment; a larger one has few segments."""
    path = tmp_path / "log"
    with Walrus(str(path), fsync_schedule=NoFsync()) as log:
        log.append_for_topic("t", b"x")
        assert sum(each.stat().st_size for each in path.iterdir()) < 1_200_000
        for _ in range(20):
            log.batch_append_for_topic("t", [bytes(60_000)] * 16)
        assert len(list(path.glob("*.wal"))) <= 6


def test_freed_blocks_are_used_again(system: MemoryFileSystem) -> None:
    """A log that is trimmed as it is written keeps its size."""
    log = _open(system)
    for number in range(2000):
        log.append_for_topic("t", bytes(300))
        if number % 10 == 9:
            log.trim("t", number - 5)
            _sync(log)
    assert len([name for name in system.list_folder(folder) if name.endswith(".wal")]) <= 3
    assert log.verify() == []


def test_few_descriptors_for_many_segments(tmp_path: Path) -> None:
    """A log of hundreds of segments keeps few files open, and topics whose tails are in closed ones still work."""
    with Walrus(str(tmp_path / "log"), fsync_schedule=NoFsync(), block_bytes=1024, segment_blocks=2) as log:
        for number in range(300):
            log.append_for_topic(f"topic {number}", b"first")
        log.sync()
        assert len(list((tmp_path / "log").glob("*.wal"))) >= 150
        assert len(os.listdir("/proc/self/fd")) < 150
        for number in range(300):
            assert log.append_for_topic(f"topic {number}", b"second") == 1
            assert len(log.read_from(f"topic {number}", 0, 100)) == 2
        assert log.verify() == []


# --- the core's syncs ---------------------------------------------------------------------------------------------


def test_readers_see_what_a_finished_sync_covers(system: MemoryFileSystem) -> None:
    """Under `SyncEach` entries are visible once their sync is finished, not those written while it ran."""
    log = _open(system, each=True)
    log.append_for_topic("t", b"a")
    assert log.read_from("t", 0, 100) == []
    assert log.read_next("t", True) is None
    ticket = log.begin_sync()
    assert ticket is not None
    log.append_for_topic("t", b"b")
    ticket.run()
    assert log.read_from("t", 0, 100) == []
    assert log.begin_sync() is None  # one at a time
    log.finish_sync(ticket)
    assert _all(log) == [b"a"]
    _sync(log)
    assert _all(log) == [b"a", b"b"]
    assert log.begin_sync() is None


def test_cut_during_a_sync(system: MemoryFileSystem) -> None:
    """A sync that began before a cut shows nothing of what the cut dropped or put there instead."""
    log = _open(system, each=True)
    log.batch_append_for_topic("t", [b"a", b"b", b"c"])
    ticket = log.begin_sync()
    assert ticket is not None
    log.replace_from("t", 1, [b"B", b"C", b"D"])
    ticket.run()
    log.finish_sync(ticket)
    assert _all(log) == [b"a"]
    _sync(log)
    assert _all(log) == [b"a", b"B", b"C", b"D"]


def test_delete_during_a_sync(system: MemoryFileSystem) -> None:
    """A topic may go while a sync that covers it runs."""
    log = _open(system, each=True)
    log.append_for_topic("t", b"a")
    ticket = log.begin_sync()
    assert ticket is not None
    log.delete_topic("t")
    ticket.run()
    log.finish_sync(ticket)
    _sync(log)
    assert log.append_for_topic("t", b"again") == 0
    _sync(log)
    assert _all(log) == [b"again"]
    assert log.verify() == []
