"""The shell: what is durable when a call returns, shared syncs, the background thread, and close."""

import threading
import time
from collections.abc import Callable

import pytest

from octopii.errors import CorruptLogError, LogClosed, LogPoisoned
from octopii.walrus import FsyncSchedule, Log, Milliseconds, NoFsync, SyncEach, Walrus
from octopii.walrus.memory_vfs import MemoryFileSystem, Operation, survive_none

folder = "/log"


def _open(system: MemoryFileSystem, schedule: FsyncSchedule) -> Walrus:
    return Walrus(folder, vfs=system, fsync_schedule=schedule, block_bytes=1024, segment_blocks=8)


def _memory() -> MemoryFileSystem:
    system = MemoryFileSystem()
    system.make_folder(folder)
    return system


def _survivors(system: MemoryFileSystem) -> list[bytes]:
    with _open(system.after_crash(survive_none), SyncEach()) as log:
        return [entry.data for entry in log.read_from("t", 0, 1 << 20)]


def _eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.002)
    return True


def test_sync_each_is_durable_on_return() -> None:
    """Under `SyncEach` every kind of write is on disk when its call returns."""
    system = _memory()
    log = _open(system, SyncEach())
    log.append_for_topic("t", b"a")
    assert _survivors(system) == [b"a"]
    log.batch_append_for_topic("t", [b"b", b"c"])
    assert _survivors(system) == [b"a", b"b", b"c"]
    log.replace_from("t", 1, [b"B"])
    assert _survivors(system) == [b"a", b"B"]
    log.truncate_from("t", 1)
    assert _survivors(system) == [b"a"]
    assert log.read_next("t", True) is not None
    with _open(system.after_crash(survive_none), SyncEach()) as again:
        assert again.read_next("t", True) is None
    log.close()


def test_no_fsync_is_durable_after_sync() -> None:
    """Under `NoFsync` a power loss takes what was written since `sync`, which makes all before it durable."""
    system = _memory()
    log = _open(system, NoFsync())
    log.append_for_topic("t", b"a")
    log.sync()
    log.append_for_topic("t", b"b")
    assert [entry.data for entry in log.read_from("t", 0, 100)] == [b"a", b"b"]
    assert _survivors(system) == [b"a"]
    log.close()
    assert _survivors(system) == [b"a", b"b"]


def test_milliseconds_becomes_durable_by_itself() -> None:
    """Under `Milliseconds` the background thread syncs without further calls."""
    system = _memory()
    log = _open(system, Milliseconds(1))
    log.append_for_topic("t", b"a")
    assert _eventually(lambda: not log.has_unsynced)
    assert _survivors(system) == [b"a"]
    log.close()


def test_syncs_are_shared() -> None:
    """What many threads write while one fdatasync runs is made durable by the next one, not by one for each."""
    system = _memory()
    log = _open(system, SyncEach())
    log.append_for_topic("t", b"first")
    running, release = threading.Event(), threading.Event()
    syncs = 0

    def hold_the_first(operation: Operation) -> None:
        nonlocal syncs
        if operation.kind == "datasync":
            syncs += 1
            if syncs == 1:
                running.set()
                assert release.wait(20)

    system.faults.before = hold_the_first
    threads = [threading.Thread(target=log.append_for_topic, args=("t", b"leader"), daemon=True)]
    threads[0].start()
    assert running.wait(20)
    threads += [threading.Thread(target=log.append_for_topic, args=("t", b"x"), daemon=True) for _ in range(12)]
    for thread in threads[1:]:
        thread.start()
    assert _eventually(lambda: log.stats("t").next_offset == 14)
    assert log.stats("t").synced_offset == 1
    assert len(log.read_from("t", 0, 1000)) == 1  # readers see nothing that is not on disk
    release.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert syncs == 2
    assert len(_survivors(system)) == 14
    log.close()


def test_failed_sync_is_told_to_every_thread_that_waits() -> None:
    """All threads that share a sync which fails are told so, each by an exception of its own."""
    system = _memory()
    log = _open(system, SyncEach())
    log.append_for_topic("t", b"first")
    running, release = threading.Event(), threading.Event()

    def fail(operation: Operation) -> None:
        if operation.kind == "datasync":
            running.set()
            assert release.wait(20)
            raise OSError(5, "Input/output error")

    system.faults.before = fail
    errors: list[LogPoisoned] = []

    def append() -> None:
        with pytest.raises(LogPoisoned) as caught:
            log.append_for_topic("t", b"x")
        errors.append(caught.value)

    threads = [threading.Thread(target=append, daemon=True) for _ in range(8)]
    threads[0].start()
    assert running.wait(20)
    for thread in threads[1:]:
        thread.start()
    assert _eventually(lambda: log.stats("t").next_offset == 9)
    release.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len({id(error) for error in errors}) == 8
    assert {(error.path, error.error.errno) for error in errors} == {(folder, 5)}
    log.close()


def test_damage_that_a_sync_meets_is_told_with_its_place() -> None:
    """A sync that finds a damaged line in a table fails with the file and the position, and so does the next."""
    system = _memory()
    log = _open(system, SyncEach())
    for _ in range(2):
        log.append_for_topic("t", bytes(900))  # fills a block each: the next sync vouches for the first
    path = f"{folder}/segment-00000001.wal"
    slots = [at for at in range(128, 1152, 128) if system.contents(path)[at + 8 : at + 12] == b"\1\0\0\0"]
    assert len(slots) == 2
    system.contents(path)[slots[0] + 20] ^= 1
    for _ in range(2):
        with pytest.raises(CorruptLogError) as caught:
            log.append_for_topic("t", b"x")
        assert (caught.value.path, caught.value.position) == (path, slots[0])


def test_idle_log_writes_its_marks() -> None:
    """A log left alone for a second stores the marks that vouch for its last records, under `SyncEach`, too."""
    system = _memory()
    log = _open(system, SyncEach())
    log.append_for_topic("t", b"last")
    assert log.has_unmarked
    assert _eventually(lambda: not log.has_unmarked)
    log.append_for_topic("t", b"goes on")
    assert _survivors(system) == [b"last", b"goes on"]
    log.close()


def test_close_waits_for_writers() -> None:
    """`close` while threads write loses nothing that was acknowledged; the others are told that the log is closed."""
    system = _memory()
    log = _open(system, SyncEach())
    acknowledged: list[bytes] = []
    started = threading.Semaphore(0)

    def write(name: int) -> None:
        number = 0
        while True:
            data = f"{name}:{number}".encode()
            try:
                log.append_for_topic("t", data)
            except LogClosed:
                return
            acknowledged.append(data)
            started.release()
            number += 1

    threads = [threading.Thread(target=write, args=(name,), daemon=True) for name in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        assert started.acquire(timeout=20)
    log.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert set(acknowledged) <= set(_survivors(system))


@pytest.mark.parametrize("schedule", [SyncEach(), Milliseconds(5), NoFsync()])
def test_close_ends_its_thread(schedule: FsyncSchedule) -> None:
    """A closed log leaves no thread behind."""
    before = set(threading.enumerate())
    with _open(_memory(), schedule) as log:
        log.append_for_topic("t", b"x")
    assert set(threading.enumerate()) <= before


def test_an_interrupted_sync_leaves_a_log_that_closes() -> None:
    """A `KeyboardInterrupt` out of a sync of the core is raised as it is, and `close` lets go of the files."""
    system = _memory()
    log = Log(folder, vfs=system, block_bytes=1024, segment_blocks=8)
    log.append_for_topic("t", b"a")
    ticket = log.begin_sync()
    assert ticket is not None

    def interrupt(operation: Operation) -> None:
        if operation.kind == "datasync":
            raise KeyboardInterrupt

    system.faults.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        ticket.run()
    log.close()
    system.faults.before = None
    with _open(system, SyncEach()) as again:
        assert [entry.data for entry in again.read_from("t", 0, 1 << 20)] == [b"a"]
