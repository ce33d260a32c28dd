"""Sixteen writers and four readers on shared topics: nothing lost, doubled, out of order, or shown too early."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from octopii.walrus import Entry, FsyncSchedule, Milliseconds, NoFsync, SyncEach, Walrus
from octopii.walrus.memory_vfs import MemoryFileSystem, Operation, survive_none
from tests.walrus.crashing import folder, small_block_bytes, small_segment_blocks

writers = 16
readers = 4
topics = ("a", "b", "ü")


def _run_all(tasks: list[Callable[[], None]]) -> None:
    """Run each task on a thread of its own; the first error of any is raised here."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


class Writer:
    """Writes numbered entries round robin to all topics, singly and in batches, and notes the offsets it was given."""

    def __init__(self, log: Walrus, name: int, *, steps: int) -> None:
        self.log = log
        self.name = name
        self.steps = steps
        self.given: dict[tuple[str, int], bytes] = {}
        self.batches: list[tuple[str, range]] = []

    def run(self) -> None:
        number = 0
        for step in range(self.steps):
            topic = topics[(self.name + step) % len(topics)]
            if step % 4 == 3:
                batch = [self._entry(number + each, size=200 * each) for each in range(5)]
                offsets = self.log.batch_append_for_topic(topic, batch)
                assert len(offsets) == 5
                self.batches.append((topic, offsets))
            else:
                batch = [self._entry(number, size=40)]
                offset = self.log.append_for_topic(topic, batch[0])
                offsets = range(offset, offset + 1)
            number += len(batch)
            self.given.update(((topic, offset), data) for offset, data in zip(offsets, batch, strict=True))

    def _entry(self, number: int, *, size: int) -> bytes:
        return f"{self.name}:{number}|".encode().ljust(size, b".")


class Reader:
    """Reads all topics until it has seen `total` entries: the first two by a cursor, the others by offset."""

    def __init__(self, log: Walrus, name: str, *, total: int) -> None:
        self.log = log
        self.cursor = name
        self.total = total
        self.seen: dict[str, list[Entry]] = {topic: [] for topic in topics}

    def run(self) -> None:
        while sum(map(len, self.seen.values())) < self.total:
            for topic in topics:
                if self.cursor == "reader-0":
                    entry = self.log.read_next(topic, True, cursor=self.cursor)
                    self.seen[topic] += [entry] if entry else []
                elif self.cursor in ("reader-2", "reader-3"):
                    self.seen[topic] += self.log.read_from(topic, len(self.seen[topic]), 3000)
                else:
                    self.seen[topic] += self.log.batch_read_for_topic(topic, 3000, True, cursor=self.cursor)


def _check_topic(entries: list[bytes]) -> None:
    """No entry twice, and those of each writer in the order in which it wrote them."""
    latest: dict[str, int] = {}
    for data in entries:
        name, number = data.split(b"|")[0].decode().split(":")
        assert int(number) > latest.get(name, -1)
        latest[name] = int(number)


@pytest.mark.parametrize(
    ("schedule", "steps"), [(SyncEach(), 25), (Milliseconds(2), 60), (NoFsync(), 60)], ids=["each", "ms", "none"]
)
def test_writers_and_readers(tmp_path: Path, schedule: FsyncSchedule, steps: int) -> None:
    """Every reader sees every entry once, at the offset its writer was told, batches together, and so does a reopen."""
    path = str(tmp_path / "log")
    log = Walrus(path, fsync_schedule=schedule)
    all_writers = [Writer(log, number, steps=steps) for number in range(writers)]
    total = writers * sum(5 if step % 4 == 3 else 1 for step in range(steps))
    all_readers = [Reader(log, f"reader-{number}", total=total) for number in range(readers)]
    _run_all([*(writer.run for writer in all_writers), *(reader.run for reader in all_readers)])
    given: dict[tuple[str, int], bytes] = {}
    for writer in all_writers:
        assert not given.keys() & writer.given.keys()
        given |= writer.given
        for _, offsets in writer.batches:
            assert list(offsets) == list(range(offsets[0], offsets[0] + 5))
    assert len(given) == total
    for reader in all_readers:
        for topic, entries in reader.seen.items():
            assert [entry.offset for entry in entries] == list(range(len(entries)))
            assert all(bytes(entry.data) == given[topic, entry.offset] for entry in entries)
            _check_topic([bytes(entry.data) for entry in entries])
    log.close()
    with Walrus(path) as again:
        for topic in topics:
            entries = again.read_from(topic, 0, 1 << 30)
            assert [bytes(entry.data) for entry in entries] == [given[topic, number] for number in range(len(entries))]
            assert Counter(name for name, _ in given)[topic] == len(entries)
            assert again.read_next(topic, False, cursor="reader-1") is None


def test_no_reader_sees_what_a_crash_takes_back() -> None:
    """Under `SyncEach` everything that any reader has seen by the time a sync begins is on disk already."""
    system = MemoryFileSystem()
    system.make_folder(folder)
    log = Walrus(folder, vfs=system, block_bytes=small_block_bytes, segment_blocks=small_segment_blocks)
    steps = 12
    total = writers * sum(5 if step % 4 == 3 else 1 for step in range(steps))
    all_writers = [Writer(log, number, steps=steps) for number in range(writers)]
    all_readers = [Reader(log, f"reader-{number}", total=total) for number in range(readers)]
    moments: list[tuple[dict[str, int], MemoryFileSystem]] = []

    disk = threading.Event()  # never set: waiting for it lets the other threads run, as waiting for a disk does

    def note_moment(operation: Operation) -> None:
        if operation.kind == "datasync":
            disk.wait(0.001)
            seen = {topic: max(len(reader.seen[topic]) for reader in all_readers) for topic in topics}
            moments.append((seen, system.after_crash(survive_none)))

    system.faults.before = note_moment
    _run_all([*(writer.run for writer in all_writers), *(reader.run for reader in all_readers)])
    system.faults.before = None
    assert len(moments) > 10
    assert any(total / 4 < sum(seen.values()) < total for seen, _ in moments)
    for seen, crashed in moments:
        after = Walrus(folder, vfs=crashed, block_bytes=small_block_bytes, segment_blocks=small_segment_blocks)
        for topic, count in seen.items():
            if count:
                found = after.read_from(topic, 0, 1 << 30)
                assert len(found) >= count
                shown = max((reader.seen[topic] for reader in all_readers), key=len)[:count]
                assert [bytes(entry.data) for entry in found[:count]] == [bytes(entry.data) for entry in shown]
        after.close()
    log.close()


def test_writers_share_a_sync() -> None:
    """While one sync runs, the writers that come gather for the next: far fewer syncs than appends."""
    system = MemoryFileSystem()
    system.make_folder(folder)
    log = Walrus(folder, vfs=system)
    syncs = 0
    gate = threading.Semaphore(0)

    def count_syncs(operation: Operation) -> None:
        nonlocal syncs
        if operation.kind == "datasync":
            syncs += 1
            gate.acquire(timeout=0.01)  # long enough for all the others to arrive

    system.faults.before = count_syncs
    all_writers = [Writer(log, number, steps=8) for number in range(writers)]
    _run_all([writer.run for writer in all_writers])
    system.faults.before = None
    log.close()
    assert syncs < writers * 8 / 3
