"""The two file systems: what both promise, what the real one does with short writes, what the one in memory forgets."""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.walrus.memory_vfs import (
    MemoryFileSystem,
    Operation,
    PowerLoss,
    ShortWrite,
    Unsynced,
    survive_all,
    survive_none,
    survive_randomly,
)
from octopii.walrus.vfs import FileSystem, RealFileSystem, sector_bytes


@pytest.fixture(params=["real", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    """Each file system with a folder to work in."""
    if request.param == "real":
        return RealFileSystem(), str(tmp_path)
    system = MemoryFileSystem()
    system.make_folder("/log")
    return system, "/log"


# --- what both promise ----------------------------------------------------------------------------------------------


def test_written_bytes_are_read_back(place: tuple[FileSystem, str]) -> None:
    """`write_at` and `read_at` work at any position, and a read is short only where the file ends."""
    system, folder = place
    file = system.open(f"{folder}/a", create=True)
    file.write_at(b"world", 5)
    file.write_parts_at((b"he", memoryview(b"l"), bytearray(b"lo")), 0)
    file.write_at(memoryview(b"w"), 5)
    assert file.read_at(100, 0) == b"helloworld"
    assert file.read_at(3, 8) == b"ld"
    assert file.read_at(3, 20) == b""
    assert file.size() == 10
    file.datasync()
    file.close()
    file.close()


def test_map_shares_bytes_with_the_file(place: tuple[FileSystem, str]) -> None:
    """Stores into the map are seen by reads, and writes are seen in the map."""
    system, folder = place
    file = system.open(f"{folder}/a", create=True)
    file.allocate(8192)
    mapped = file.map(8192)
    mapped[10:13] = b"abc"
    file.write_at(b"xyz", 4000)
    assert file.read_at(5, 9) == b"\0abc\0"
    assert bytes(mapped[4000:4003]) == b"xyz"
    with pytest.raises(OSError, match="mapped already"):
        file.map(8192)
    file.unmap()
    assert len(file.map(4096)) == 4096
    file.close()


def test_map_never_reaches_beyond_the_file(place: tuple[FileSystem, str]) -> None:
    """A map longer than the file is refused: a store behind the end would kill the process."""
    system, folder = place
    file = system.open(f"{folder}/a", create=True)
    file.allocate(100)
    with pytest.raises(OSError, match="shorter"):
        file.map(101)


def test_allocate_grows_and_never_shrinks(place: tuple[FileSystem, str]) -> None:
    """`allocate` keeps what is there, adds zeros, and leaves a longer file alone; `truncate` sets any length."""
    system, folder = place
    file = system.open(f"{folder}/a", create=True)
    file.write_at(b"abc", 0)
    file.allocate(5000)
    assert file.size() == 5000
    assert file.read_at(5000, 0) == b"abc" + bytes(4997)
    file.allocate(10)
    assert file.size() == 5000
    file.truncate(2)
    assert file.read_at(10, 0) == b"ab"


def test_names(place: tuple[FileSystem, str]) -> None:
    """Folders, renaming over an existing file, removing, and the error for what is not there."""
    system, folder = place
    system.make_folder(f"{folder}/x/y")
    system.make_folder(f"{folder}/x/y")
    for name in ("b", "a"):
        file = system.open(f"{folder}/x/{name}", create=True)
        file.write_at(name.encode(), 0)
        file.close()
    assert system.list_folder(f"{folder}/x") == ["a", "b", "y"]
    system.rename(f"{folder}/x/a", f"{folder}/x/b")
    system.sync_folder(f"{folder}/x")
    assert system.open(f"{folder}/x/b").read_at(9, 0) == b"a"
    assert not system.exists(f"{folder}/x/a")
    system.remove(f"{folder}/x/b")
    assert system.list_folder(f"{folder}/x") == ["y"]
    with pytest.raises(FileNotFoundError):
        system.open(f"{folder}/x/b")
    with pytest.raises(FileNotFoundError):
        system.list_folder(f"{folder}/missing")
    with pytest.raises(FileNotFoundError):
        system.remove(f"{folder}/missing")
    with pytest.raises(FileNotFoundError):
        system.rename(f"{folder}/missing", f"{folder}/other")


def test_lock_is_exclusive_within_a_process(place: tuple[FileSystem, str]) -> None:
    """A second holder in the same process is refused until the first gives the lock back."""
    system, folder = place
    first = system.lock(f"{folder}/lock")
    with pytest.raises(BlockingIOError):
        system.lock(f"{folder}/lock")
    first.release()
    second = system.lock(f"{folder}/lock")
    first.release()
    with pytest.raises(BlockingIOError):
        system.lock(f"{folder}/lock")
    second.release()


def test_closed_files_say_so(place: tuple[FileSystem, str]) -> None:
    """Every method of a closed file raises `OSError`, never anything of the layers below."""
    system, folder = place
    file = system.open(f"{folder}/a", create=True)
    file.close()
    calls: list[Callable[[], object]] = [
        lambda: file.read_at(1, 0),
        lambda: file.write_at(b"x", 0),
        lambda: file.write_parts_at((b"x",), 0),
        lambda: file.allocate(1),
        lambda: file.truncate(1),
        lambda: file.map(0),
        file.size,
        file.datasync,
    ]
    for call in calls:
        with pytest.raises(OSError, match="closed"):
            call()


def test_reading_handle_does_not_write(place: tuple[FileSystem, str]) -> None:
    """A file that was opened for reading refuses writes, and its map refuses stores."""
    system, folder = place
    system.open(f"{folder}/a", create=True).allocate(100)
    file = system.open(f"{folder}/a", writable=False)
    with pytest.raises(OSError, match=r".") as failure:
        file.write_at(b"x", 0)
    assert failure.value.errno == errno.EBADF
    mapped = file.map(100)
    with pytest.raises(TypeError):
        mapped[0:1] = b"x"


def test_free_bytes_is_positive(place: tuple[FileSystem, str]) -> None:
    """The room on the volume is told in bytes."""
    system, folder = place
    assert system.free_bytes(folder) > 0


# --- the real one ---------------------------------------------------------------------------------------------------


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the operating system writes a part, `write_at` writes the rest."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, position: pwrite(descriptor, data[:7], position))
    file = RealFileSystem().open(str(tmp_path / "a"), create=True)
    file.write_at(bytes(range(100)), 3)
    assert file.read_at(200, 0) == bytes(3) + bytes(range(100))
    monkeypatch.setattr(os, "pwritev", lambda descriptor, parts, position: pwrite(descriptor, parts[0][:2], position))
    file.write_parts_at((b"three", b"four", b""), 50)
    assert file.read_at(12, 48) == bytes((45, 46)) + b"threefour" + bytes((56,))


def test_write_that_makes_no_progress_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of nothing ends in an error, not in a loop."""
    file = RealFileSystem().open(str(tmp_path / "a"), create=True)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        file.write_at(b"abc", 0)


def test_no_room_for_a_segment_is_said_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`allocate` raises what the operating system says, long before a store to the mapping would be a signal."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    file = RealFileSystem().open(str(tmp_path / "a"), create=True)
    with pytest.raises(OSError, match="no space left"):
        file.allocate(4096)
    file.close()


def test_short_reads_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the operating system reads a part, `read_at` reads the rest."""
    file = RealFileSystem().open(str(tmp_path / "a"), create=True)
    file.write_at(bytes(range(100)), 0)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, position: pread(descriptor, min(size, 7), position))
    assert file.read_at(200, 10) == bytes(range(10, 100))


def test_lock_is_exclusive_between_processes(tmp_path: Path) -> None:
    """Another process is refused, and the lock of a process that was killed is free."""
    path = str(tmp_path / "lock")
    program = (
        "import sys; from octopii.walrus.vfs import RealFileSystem; lock = RealFileSystem().lock(sys.argv[1]);"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            RealFileSystem().lock(path)
        child.kill()
        child.wait()
    RealFileSystem().lock(path).release()


def test_view_of_a_map_outlives_unmap(tmp_path: Path) -> None:
    """A view that a reader still holds stays valid after the file was closed."""
    file = RealFileSystem().open(str(tmp_path / "a"), create=True)
    file.allocate(4096)
    file.write_at(b"abc", 0)
    view = memoryview(file.map(4096))[:3]
    file.close()
    assert bytes(view) == b"abc"
    view.release()


# --- the one in memory: what a crash takes --------------------------------------------------------------------------


def _file_with_synced(content: bytes) -> tuple[MemoryFileSystem, str]:
    system = MemoryFileSystem()
    system.make_folder("/log")
    file = system.open("/log/a", create=True)
    file.write_at(content, 0)
    file.datasync()
    system.sync_folder("/log")
    return system, "/log/a"


def test_synced_bytes_and_names_survive_any_crash() -> None:
    """What `datasync` and `sync_folder` covered is there whatever the crash keeps of the rest."""
    system, path = _file_with_synced(b"abc" * 1000)
    assert system.unsynced() == []
    for survives in (survive_all, survive_none):
        assert system.after_crash(survives).open(path).read_at(4000, 0) == b"abc" * 1000


def test_every_subset_of_unsynced_sectors_can_survive() -> None:
    """Each sector that differs is kept or lost by itself, so writes tear at every sector boundary."""
    size = 3 * sector_bytes
    system, path = _file_with_synced(b"-" * size)
    system.open(path).write_at(b"+" * size, 0)
    changes = system.unsynced()
    assert changes == [Unsynced("sector", path, index) for index in range(3)]
    seen = set()
    for subset in range(8):
        after = system.after_crash(lambda change, subset=subset: bool(subset >> change.index & 1))  # type: ignore[misc]
        seen.add(after.open(path).read_at(size, 0)[::sector_bytes])
    assert len(seen) == 8
    assert system.open(path).read_at(size, 0) == b"+" * size


def test_mapped_stores_are_lost_like_writes() -> None:
    """A store into the map, by slice or otherwise, is durable only after `datasync`."""
    system, path = _file_with_synced(bytes(2000))
    file = system.open(path)
    mapped = file.map(2000)
    mapped[0:1] = b"a"
    memoryview(mapped)[1000:1001] = b"b"
    assert [change.index for change in system.unsynced()] == [0, 1]
    file.datasync()
    assert system.unsynced() == []


def test_name_is_lost_without_folder_sync() -> None:
    """A new file whose folder was not synced may be gone, however often its data was."""
    system = MemoryFileSystem()
    system.make_folder("/log")
    file = system.open("/log/a", create=True)
    file.write_at(b"abc", 0)
    file.datasync()
    assert system.after_crash(survive_none).list_folder("/log") == []
    assert system.after_crash(survive_all).list_folder("/log") == ["a"]


def test_rename_is_atomic_across_a_crash() -> None:
    """After a crash the name shows the old file or the new one, never neither."""
    system, path = _file_with_synced(b"old")
    file = system.open("/log/new", create=True)
    file.write_at(b"new", 0)
    file.datasync()
    system.rename("/log/new", path)
    seen = {system.after_crash(lambda change, n=n: change.index < n).open(path).read_at(3, 0) for n in range(3)}  # type: ignore[misc]
    assert seen == {b"old", b"new"}


def test_removed_name_comes_back_without_folder_sync() -> None:
    """A removal is durable only with its folder, and space is free again at once."""
    system, path = _file_with_synced(b"abc")
    system.remove(path)
    assert system.after_crash(survive_none).open(path).read_at(3, 0) == b"abc"
    system.sync_folder("/log")
    assert not system.after_crash(survive_none).exists(path)


def test_size_is_lost_with_the_data() -> None:
    """Allocated space that was not synced may be gone, and what was written there with it."""
    system, path = _file_with_synced(b"abc")
    file = system.open(path)
    file.allocate(2000)
    file.write_at(b"x", 1500)
    assert system.after_crash(survive_none).open(path).size() == 3
    kept = system.after_crash(lambda change: change.kind == "size").open(path)
    assert kept.read_at(2000, 0) == b"abc" + bytes(1997)
    lost = system.after_crash(lambda change: change.kind == "sector").open(path)
    assert lost.read_at(2000, 0) == b"abc"


def test_handles_and_locks_die_with_the_crash() -> None:
    """After a crash old handles raise, old maps reach nothing, and locks are free."""
    system, path = _file_with_synced(bytes(1000))
    file = system.open(path)
    mapped = file.map(1000)
    system.lock("/log/lock")
    system.crash(survive_all)
    mapped[0:1] = b"x"
    assert system.open(path).read_at(1, 0) == b"\0"
    with pytest.raises(OSError, match="power"):
        file.datasync()
    system.lock("/log/lock").release()


def test_sync_in_flight_may_or_may_not_have_written() -> None:
    """A `datasync` that has begun and not ended vouches for nothing; each of the versions can be found."""
    system, path = _file_with_synced(b"1")
    file = system.open(path)
    file.write_at(b"2", 0)
    sync = file.begin_datasync()
    file.write_at(b"3", 0)

    def found(*kinds: str) -> bytes:
        return system.after_crash(lambda change: change.kind in kinds).open(path).read_at(1, 0)

    assert (found(), found("in_flight"), found("in_flight", "sector")) == (b"1", b"2", b"3")
    sync.finish()
    assert found() == b"2"


def test_failed_sync_drops_what_it_should_have_written() -> None:
    """After a `datasync` that failed, one that succeeds does not make the earlier bytes durable."""
    system, path = _file_with_synced(bytes(2 * sector_bytes))
    file = system.open(path)
    file.write_at(b"lost", 0)
    system.faults.before = _fail_with(errno.EIO, "datasync")
    with pytest.raises(OSError, match="Input/output"):
        file.datasync()
    system.faults.before = None
    file.write_at(b"kept", sector_bytes)
    file.datasync()
    found = system.after_crash(survive_none).open(path)
    assert found.read_at(4, 0) == bytes(4)
    assert found.read_at(4, sector_bytes) == b"kept"


def test_disk_may_write_back_unasked() -> None:
    """`write_back` makes an earlier version of a sector durable that later stores then replace."""
    system, path = _file_with_synced(b"1")
    file = system.open(path)
    file.write_at(b"2", 0)
    system.write_back(survive_all)
    file.write_at(b"3", 0)
    assert system.after_crash(survive_none).open(path).read_at(1, 0) == b"2"


@given(seed=st.integers(0, 2**32), writes=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), max_size=8))
def test_each_sector_is_old_or_new(seed: int, writes: list[tuple[int, int]]) -> None:
    """Whatever was written, a crash leaves each sector as it was at the last sync or as it was last written."""
    old = bytes(range(250)) * 32
    system, path = _file_with_synced(old)
    file = system.open(path)
    for position, size in writes:
        file.write_at(bytes([size % 251]) * size, position)
    new = file.read_at(len(old) * 2, 0)
    found = system.after_crash(survive_randomly(random.Random(seed))).open(path).read_at(len(old) * 2, 0)
    assert len(found) in (len(old), len(new))
    for start in range(0, len(found), sector_bytes):
        sector = slice(start, start + sector_bytes)
        before = old[sector].ljust(len(new[sector]), b"\0")
        assert found[sector] in (before[: len(found[sector])], new[sector][: len(found[sector])])


# --- the one in memory: faults --------------------------------------------------------------------------------------


def _fail_with(code: int, kind: str) -> Callable[[Operation], None]:
    def hook(operation: Operation) -> None:
        if operation.kind == kind:
            raise OSError(code, os.strerror(code), operation.path)

    return hook


def test_hook_sees_every_change_and_sync() -> None:
    """Each change and sync is announced once, in order and numbered, before it happens; stores in the map too."""
    system = MemoryFileSystem()
    seen: list[Operation] = []
    system.faults.before = seen.append
    system.make_folder("/log")
    file = system.open("/log/a", create=True)
    file.allocate(100)
    file.write_at(b"abc", 7)
    file.map(100)[5:9] = b"wxyz"
    file.datasync()
    file.close()
    system.rename("/log/a", "/log/b")
    system.remove("/log/b")
    system.sync_folder("/log")
    assert [operation.kind for operation in seen] == [
        "make_folder", "create", "allocate", "write", "store", "datasync", "rename", "remove", "sync_folder",
    ]  # fmt: skip
    assert [operation.number for operation in seen] == list(range(1, 10))
    assert (seen[3].position, seen[3].size) == (7, 3)
    assert (seen[4].position, seen[4].size) == (5, 4)


def test_power_loss_stops_the_program_before_the_operation() -> None:
    """A hook that raises `PowerLoss` keeps the operation from happening, and no `except Exception` hides it."""
    system, path = _file_with_synced(b"abc")

    def hook(operation: Operation) -> None:
        raise PowerLoss

    system.faults.before = hook
    with pytest.raises(PowerLoss):
        system.open(path).write_at(b"xyz", 0)
    assert system.open(path).read_at(3, 0) == b"abc"
    assert not issubclass(PowerLoss, Exception)


def test_full_disk() -> None:
    """Beyond the capacity `allocate` and growing writes raise `ENOSPC`; more capacity is enough to go on."""
    system, path = _file_with_synced(bytes(600))
    system.faults.capacity = 1000
    file = system.open(path)
    with pytest.raises(OSError, match="No space") as failure:
        file.allocate(1001)
    assert failure.value.errno == errno.ENOSPC
    assert file.size() == 600
    with pytest.raises(OSError, match="No space"):
        file.write_at(bytes(1000), 500)
    assert system.free_bytes("/log") == 0
    system.faults.capacity = 2000
    file.allocate(1001)
    system.remove(path)
    assert system.free_bytes("/log") == 2000


def test_short_write_writes_a_part_and_fails() -> None:
    """After a `ShortWrite` the error is raised and the first bytes are in the file."""
    system, path = _file_with_synced(b"......")

    def hook(operation: Operation) -> None:
        raise ShortWrite(2)

    system.faults.before = hook
    with pytest.raises(OSError, match="No space"):
        system.open(path).write_at(b"abcdef", 0)
    assert system.open(path).read_at(6, 0) == b"ab...."


def test_failing_read_and_read_only_folder() -> None:
    """Reads can be made to fail, and in a read-only state nothing can be changed or locked."""
    system, path = _file_with_synced(b"abc")

    def hook(operation: Operation) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), operation.path)

    system.faults.before_read = hook
    with pytest.raises(OSError, match="Input/output"):
        system.open(path).read_at(1, 0)
    system.faults.before_read = None
    system.faults.read_only = True
    assert system.open(path, writable=False).read_at(1, 0) == b"a"
    for call in (lambda: system.open(path), lambda: system.lock("/log/lock"), lambda: system.remove(path)):
        with pytest.raises(OSError, match="Read-only") as failure:
            call()
        assert failure.value.errno == errno.EROFS


def test_slow_sync_is_told_its_size() -> None:
    """The simulator hears of each sync and of the bytes it carries over."""
    system, path = _file_with_synced(bytes(5000))
    told: list[tuple[str, int]] = []
    system.faults.slow_sync = lambda path, size: told.append((path, size))
    file = system.open(path)
    file.write_at(b"x", 0)
    file.write_at(b"x", 4000)
    file.datasync()
    assert told == [(path, 2 * sector_bytes)]


def test_clone_is_independent() -> None:
    """A clone has the same live and durable state, and neither side sees what the other does next."""
    system, path = _file_with_synced(b"abc")
    system.open(path).write_at(b"x", 0)
    system.open("/log/b", create=True)
    twin = system.clone()
    assert twin.unsynced() == system.unsynced()
    twin.open(path).write_at(b"y", 0)
    twin.open(path).datasync()
    assert system.open(path).read_at(1, 0) == b"x"
    assert system.after_crash(survive_none).open(path).read_at(1, 0) == b"a"
    system.contents(path)[0:1] = b"z"
    assert twin.open(path).read_at(1, 0) == b"y"


# --- the end of a process, and rot ----------------------------------------------------------------------------------


def test_a_killed_process_loses_no_byte_and_makes_none_durable() -> None:
    """After the end of a process its bytes are read by the next one, and a power loss may still take them."""
    system = MemoryFileSystem()
    system.make_folder("/log")
    file = system.open("/log/a", create=True)
    file.write_at(b"old", 0)
    file.datasync()
    system.sync_folder("/log")
    system.lock("/log/lock")
    file.write_at(b"new", 0)
    system.end_process()
    with pytest.raises(OSError, match="when the power went"):
        file.read_at(3, 0)
    system.lock("/log/lock")
    assert system.open("/log/a").read_at(3, 0) == b"new"
    system.crash(survive_none)
    assert system.open("/log/a").read_at(3, 0) == b"old"


def test_a_byte_that_rots_is_another_one_for_ever() -> None:
    """`flip` changes what is read now and what a crash leaves."""
    system = MemoryFileSystem()
    system.make_folder("/log")
    file = system.open("/log/a", create=True)
    file.write_at(b"abc", 0)
    file.datasync()
    system.sync_folder("/log")
    system.flip("/log/a", 1, 0x20)
    assert file.read_at(3, 0) == b"aBc"
    system.crash(survive_none)
    assert system.open("/log/a").read_at(3, 0) == b"aBc"
