"""Every way in which the log refuses or fails: the exception, its fields, and that the log is right afterwards."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octopii.errors import (
    ConfigError,
    CorruptLogError,
    EntryTooLarge,
    InvalidTopic,
    LogClosed,
    LogFull,
    LogInUse,
    LogPoisoned,
    OffsetBeyondEndError,
    OffsetTrimmedError,
    UnknownFormatError,
    WalrusError,
)
from octopii.walrus import AtLeastOnce, Log, Milliseconds, NoFsync, StrictlyAtOnce, SyncEach, Walrus
from octopii.walrus.memory_vfs import MemoryFileSystem, Operation
from octopii.walrus.record import format_version

folder = "/log"


def _memory() -> MemoryFileSystem:
    system = MemoryFileSystem()
    system.make_folder(folder)
    return system


def _log(system: MemoryFileSystem, **settings: int) -> Walrus:
    return Walrus(folder, vfs=system, **{"block_bytes": 1024, "segment_blocks": 4, **settings})  # type: ignore[arg-type]


def _used_bytes(system: MemoryFileSystem) -> int:
    return sum(len(system.contents(f"{folder}/{name}")) for name in system.list_folder(folder))


def _fill(log: Walrus) -> None:
    for _ in range(100):
        log.append_for_topic("t", bytes(300))


def _fail_from(kind: str, code: int, *, after: int = 0) -> Callable[[Operation], None]:
    left = after

    def fault(operation: Operation) -> None:
        nonlocal left
        if operation.kind == kind:
            if left == 0:
                raise OSError(code, os.strerror(code), operation.path)
            left -= 1

    return fault


# --- a full disk --------------------------------------------------------------------------------------------------


def test_full_disk_leaves_no_trace_and_room_is_enough() -> None:
    """An append that finds no room writes nothing; with room appends go on, and a reopen shows exactly them."""
    system = _memory()
    log = _log(system)
    log.append_for_topic("t", b"first")
    system.faults.capacity = _used_bytes(system)
    with pytest.raises(LogFull) as caught:
        _fill(log)
    assert caught.value.path == folder
    assert caught.value.needed > 0
    kept = log.stats("t").next_offset
    with pytest.raises(LogFull):
        log.batch_append_for_topic("t", [bytes(900)] * 9)
    with pytest.raises(LogFull):
        log.append_for_topic("new topic", bytes(5000))
    assert log.topics() == ["t"]
    assert log.stats("t").next_offset == kept
    system.faults.capacity = None
    assert log.batch_append_for_topic("t", [bytes(900)] * 9) == range(kept, kept + 9)
    log.close()
    with _log(system) as again:
        assert len(again.read_from("t", 0, 1 << 20)) == kept + 9
        assert again.verify() == []


def test_trim_makes_room_on_a_full_disk() -> None:
    """Trims and cursors use the blocks kept in reserve, so that a full log can be emptied and filled again."""
    system = _memory()
    log = _log(system, segment_blocks=8)
    log.append_for_topic("t", b"first")
    system.faults.capacity = _used_bytes(system)
    with pytest.raises(LogFull):
        _fill(log)
    end = log.stats("t").next_offset
    assert log.read_next("t") is not None
    log.trim("t", end)
    assert [log.append_for_topic("t", bytes(300)) for _ in range(3)] == [end, end + 1, end + 2]


# --- failing disks ------------------------------------------------------------------------------------------------


def test_failed_sync_poisons() -> None:
    """After a failed fdatasync the append fails, and so does every later write, saying so; reading goes on."""
    system = _memory()
    log = _log(system)
    log.append_for_topic("t", b"kept")
    system.faults.before = _fail_from("datasync", errno.EIO)
    with pytest.raises(LogPoisoned):
        log.append_for_topic("t", b"lost")
    system.faults.before = None
    for write in (
        lambda: log.append_for_topic("t", b"x"),
        lambda: log.batch_append_for_topic("t", [b"x"]),
        lambda: log.truncate_from("t", 0),
        lambda: log.trim("t", 1),
        lambda: log.reset_topic("t", 5),
        lambda: log.delete_topic("t"),
        lambda: log.commit("t", 0),
        log.sync,
    ):
        with pytest.raises(LogPoisoned, match="close and open again") as caught:
            write()
        assert (caught.value.path, caught.value.error.errno) == (folder, errno.EIO)
    assert [entry.data for entry in log.read_from("t", 0, 1000)] == [b"kept"]
    log.close()
    with _log(system) as again:
        assert again.read_from("t", 0, 1000)[0].data == b"kept"
        again.append_for_topic("t", b"more")


def test_a_sync_that_failed_once_is_never_tried_again() -> None:
    """The operating system may have dropped the bytes, and says after a second fdatasync that all is well."""
    system = _memory()
    log = _log(system)
    log.append_for_topic("t", b"kept")
    syncs = 0

    def fault(operation: Operation) -> None:
        nonlocal syncs
        if operation.kind == "datasync":
            syncs += 1
            if syncs == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), operation.path)

    system.faults.before = fault
    with pytest.raises(LogPoisoned):
        log.append_for_topic("t", b"lost")
    with pytest.raises(LogPoisoned):
        log.sync()
    log.close()
    assert syncs == 1


def test_failed_write_poisons() -> None:
    """An error of a write that is not for lack of room is not survived, either."""
    system = _memory()
    log = _log(system, block_bytes=16384)
    log.append_for_topic("t", b"kept")
    system.faults.before = _fail_from("write", errno.EIO)
    with pytest.raises(LogPoisoned):
        log.append_for_topic("t", bytes(10000))
    system.faults.before = None
    with pytest.raises(LogPoisoned):
        log.append_for_topic("t", b"x")
    log.close()


def test_unreadable_block_is_an_error_with_its_place() -> None:
    """EIO of a read is `CorruptLogError` with path, position and the cause; nothing is taken for the end of the log."""
    system = _memory()
    log = _log(system)
    log.append_for_topic("t", b"there")
    system.faults.before_read = _fail_from("read", errno.EIO)
    with pytest.raises(CorruptLogError) as caught:
        log.read_from("t", 0, 1000)
    assert caught.value.path.endswith(".wal")
    assert caught.value.position is not None
    system.faults.before_read = None
    assert log.read_from("t", 0, 1000)[0].data == b"there"
    log.close()


# --- who may open -------------------------------------------------------------------------------------------------


def test_second_instance_in_one_process(tmp_path: Path) -> None:
    """A folder that is open can't be opened again in the same process, and can once it is closed."""
    path = str(tmp_path / "log")
    with Walrus(path), pytest.raises(LogInUse) as caught:
        Walrus(path)
    assert caught.value.path == path
    Walrus(path).close()


def test_second_process(tmp_path: Path) -> None:
    """Another process is refused as well."""
    path = str(tmp_path / "log")
    program = (
        "import sys; from octopii.walrus import Walrus; from octopii.errors import LogInUse\n"
        "try: Walrus(sys.argv[1])\n"
        "except LogInUse: sys.exit(7)"
    )
    with Walrus(path):
        assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 7


def test_read_only_folder_is_the_systems_error() -> None:
    """A folder that can't be written raises the operating system's error, with its number and file name."""
    system = _memory()
    _log(system).close()
    system.faults.read_only = True
    with pytest.raises(OSError) as caught:
        _log(system)
    assert caught.value.errno in (errno.EROFS, errno.EACCES)


def test_wrong_magic_and_newer_version() -> None:
    """A superblock of something else, or of a later release, is named as that and left as it is."""
    system = _memory()
    _log(system).close()
    path = f"{folder}/superblock"
    before = bytes(system.contents(path))
    from octopii.walrus import superblock

    block, _ = superblock.read(system, folder)
    copy = superblock.encode(block)
    _write(system, path, b"another kind of file".ljust(len(before), b"."))
    with pytest.raises(UnknownFormatError) as caught:
        _log(system)
    assert caught.value.version is None
    newer = bytearray(copy)
    newer[16:20] = (format_version + 1).to_bytes(4, "little")
    from xxhash import xxh3_64_digest

    newer[0:8] = xxh3_64_digest(bytes(newer[8:]))
    half = len(before) // 2
    _write(system, path, bytes(newer).ljust(half, b"\0") * 2)
    with pytest.raises(UnknownFormatError, match="version 2") as caught:
        _log(system)
    assert caught.value.version == format_version + 1


def test_missing_superblock_beside_segments_is_damage() -> None:
    """A folder with segments and no superblock is a damaged log, not a new one."""
    system = _memory()
    with _log(system) as log:
        log.append_for_topic("t", b"x")
    system.remove(f"{folder}/superblock")
    with pytest.raises(CorruptLogError, match="superblock is missing"):
        _log(system)


def _write(system: MemoryFileSystem, path: str, data: bytes) -> None:
    file = system.open(path)
    file.write_at(data, 0)
    file.datasync()
    file.close()


# --- arguments ----------------------------------------------------------------------------------------------------


def test_entry_too_large() -> None:
    """An entry over the limit is refused with its size and the limit; one at the limit is taken; batches have four."""
    with _log(_memory(), max_entry_bytes=2000) as log:
        with pytest.raises(EntryTooLarge) as caught:
            log.append_for_topic("t", bytes(2001))
        assert (caught.value.size, caught.value.limit) == (2001, 2000)
        assert log.topics() == []
        log.append_for_topic("t", bytes(2000))
        log.batch_append_for_topic("t", [bytes(2000)] * 4)
        with pytest.raises(EntryTooLarge) as caught:
            log.batch_append_for_topic("t", [bytes(2000)] * 5)
        assert caught.value.limit == 8000
        assert log.stats("t").next_offset == 5


@pytest.mark.parametrize("name", ["", "x" * 1025, "é" * 513, "\ud800", 7, None, b"bytes"])
def test_bad_names(name: object) -> None:
    """Empty, too long, or no text: refused for topics and cursors alike, and nothing is made."""
    with _log(_memory()) as log:
        log.append_for_topic("t", b"x")
        for call in (
            lambda: log.append_for_topic(name, b"x"),  # type: ignore[arg-type]
            lambda: log.batch_append_for_topic(name, [b"x"]),  # type: ignore[arg-type]
            lambda: log.batch_append_for_topic(name, []),  # type: ignore[arg-type]
            lambda: log.read_next(name, True),  # type: ignore[arg-type]
            lambda: log.read_from(name, 0, 1),  # type: ignore[arg-type]
            lambda: log.trim(name, 0),  # type: ignore[arg-type]
            lambda: log.reset_topic(name, 0),  # type: ignore[arg-type]
            lambda: log.stats(name),  # type: ignore[arg-type]
            lambda: log.read_next("t", True, cursor=name),  # type: ignore[arg-type]
            lambda: log.commit("t", 0, cursor=name),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidTopic) as caught:
                call()
            assert caught.value.topic is name
        assert log.topics() == ["t"]


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc/passwd", "nul\0", "x" * 1024, "日本", ".", "lock"])
def test_any_text_is_a_name(tmp_path: Path, name: str) -> None:
    """Names are data: any text works, and nothing outside of the folder, or beside the usual files, comes to be."""
    path = tmp_path / "log"
    with Walrus(str(path)) as log:
        log.append_for_topic(name, b"x")
        assert log.read_next(name, True, cursor=name) is not None
    with Walrus(str(path)) as log:
        assert log.topics() == [name]
        assert log.stats(name).cursors == {name: 1}
    assert sorted(os.listdir(tmp_path)) == ["log"]
    assert sorted(os.listdir(path)) == ["lock", "segment-00000001.wal", "superblock"]


def test_offsets_outside_of_the_topic() -> None:
    """Below the trim point and beyond the end are errors that tell the bounds; an unknown topic ends at 0."""
    with _log(_memory()) as log:
        log.batch_append_for_topic("t", [b"x"] * 10)
        log.trim("t", 4)
        for call in (
            lambda: log.read_from("t", 3, 1),
            lambda: log.truncate_from("t", 3),
            lambda: log.replace_from("t", 3, [b"y"]),
            lambda: log.commit("t", 3),
        ):
            with pytest.raises(OffsetTrimmedError) as trimmed:
                call()
            assert (trimmed.value.topic, trimmed.value.offset, trimmed.value.first_offset) == ("t", 3, 4)
        for topic, offset, end in (("t", 11, 10), ("new", 1, 0)):
            for method in (log.trim, log.truncate_from, log.commit):
                with pytest.raises(OffsetBeyondEndError) as beyond:
                    method(topic, offset)
                assert (beyond.value.topic, beyond.value.offset, beyond.value.next_offset) == (topic, offset, end)
            with pytest.raises(OffsetBeyondEndError):
                log.replace_from(topic, offset, [b"y"])
        assert log.read_from("t", 11, 1) == []
        with pytest.raises(ValueError, match="negative"):
            log.reset_topic("t", -1)
        assert log.topics() == ["t"]


def test_entries_are_bytes() -> None:
    """Anything that holds bytes is taken as it is, whatever its item size; text and numbers are refused."""
    with _log(_memory()) as log:
        for wrong in ("text", 7, None, [1, 2]):
            with pytest.raises(TypeError):
                log.append_for_topic("t", wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                log.batch_append_for_topic("t", [b"x", wrong])  # type: ignore[list-item]
        assert log.topics() == []
        wide = memoryview(b"abcdefgh").cast("I")
        log.batch_append_for_topic("t", [bytearray(b"a"), wide, memoryview(b"xyz")[::2]])
        assert [entry.data for entry in log.read_from("t", 0, 100)] == [b"a", b"abcdefgh", b"xz"]


def test_closed_log() -> None:
    """Every call on a closed log says so; closing again is harmless."""
    log = _log(_memory())
    log.append_for_topic("t", b"x")
    log.close()
    log.close()
    for call in (
        lambda: log.append_for_topic("t", b"x"),
        lambda: log.batch_append_for_topic("t", [b"x"]),
        lambda: log.read_next("t", True),
        lambda: log.batch_read_for_topic("t", 10, True),
        lambda: log.read_from("t", 0, 1),
        lambda: log.commit("t", 0),
        lambda: log.trim("t", 1),
        lambda: log.truncate_from("t", 0),
        lambda: log.replace_from("t", 0, [b"x"]),
        lambda: log.reset_topic("t", 0),
        lambda: log.delete_topic("t"),
        log.topics,
        lambda: log.stats("t"),
        log.sync,
        log.verify,
    ):
        with pytest.raises(LogClosed) as caught:
            call()
        assert caught.value.path == folder


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"block_bytes": 1000}, "block_bytes"),
        ({"block_bytes": 0}, "block_bytes"),
        ({"block_bytes": 1 << 24}, "block_bytes"),
        ({"segment_blocks": 0}, "segment_blocks"),
        ({"max_entry_bytes": 0}, "max_entry_bytes"),
        ({"block_bytes": 4096.0}, "block_bytes"),
        ({"block_bytes": "64k"}, "block_bytes"),
        ({"segment_blocks": True}, "segment_blocks"),
        ({"segment_blocks": (1 << 20) + 1}, "segment_blocks"),
        ({"max_entry_bytes": None}, "max_entry_bytes"),
        ({"max_entry_bytes": (1 << 31) + 1}, "max_entry_bytes"),
        ({"fsync_schedule": SyncEach}, "fsync_schedule"),
        ({"fsync_schedule": Milliseconds}, "fsync_schedule"),
        ({"fsync_schedule": "sync-each"}, "fsync_schedule"),
        ({"fsync_schedule": 20}, "fsync_schedule"),
        ({"consistency": StrictlyAtOnce}, "consistency"),
        ({"consistency": "strictly"}, "consistency"),
        ({"consistency": 5}, "consistency"),
    ],
)
@pytest.mark.parametrize("kind", [Log, Walrus])
def test_impossible_settings(kind: type[Log] | type[Walrus], settings: dict[str, Any], field: str) -> None:
    """A setting that can't be is a `ConfigError` that names it and shows the value, before anything is made."""
    system = MemoryFileSystem()
    with pytest.raises(ConfigError) as caught:
        kind(folder, vfs=system, **settings)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} has to be ")
    assert repr(settings[field]) in str(caught.value)
    assert not system.exists(folder)


@pytest.mark.parametrize("path", ["", None, 5, b"log"])
def test_what_names_no_folder_is_refused(path: Any) -> None:
    """What is neither a string nor a path object is a `ConfigError`, not a folder of a strange name."""
    with pytest.raises(ConfigError, match=r"path has to be a string or a path object that names a folder, not "):
        Walrus(path, vfs=MemoryFileSystem())


def test_a_path_object_names_a_folder(tmp_path: Path) -> None:
    """`pathlib` paths are taken, and `path` is then the string."""
    with Walrus(tmp_path / "log") as log:
        assert log.path == str(tmp_path / "log")


@pytest.mark.parametrize("every", [0, -1, True, 1.5])
def test_persist_every_is_a_count(every: object) -> None:
    """`AtLeastOnce` takes a whole number from 1 on."""
    with pytest.raises(ValueError, match="persist_every"):
        AtLeastOnce(every)  # type: ignore[arg-type]


def test_all_are_walrus_errors() -> None:
    """One root for `except`; the two about arguments are `ValueError`s as well."""
    for kind in (CorruptLogError, EntryTooLarge, LogClosed, LogFull, LogInUse, LogPoisoned, UnknownFormatError):
        assert issubclass(kind, WalrusError)
    assert issubclass(InvalidTopic, ValueError)
    assert issubclass(OffsetBeyondEndError, ValueError)


def test_failed_sync_of_milliseconds_and_none() -> None:
    """Without a sync in the call, the failure of a later one is met by `sync`, and by what is written after it."""
    system = _memory()
    log = Walrus(folder, vfs=system, fsync_schedule=NoFsync(), block_bytes=1024, segment_blocks=4)
    log.append_for_topic("t", b"x")
    system.faults.before = _fail_from("datasync", errno.EIO)
    with pytest.raises(LogPoisoned):
        log.sync()
    with pytest.raises(LogPoisoned):
        log.append_for_topic("t", b"x")
    log.close()
