"""A file system in memory that forgets what was not synced: for tests and for the simulator.

Every file has two images: the *live* one, which programs read and write, and the *durable* one, which a power loss
leaves behind. `datasync` carries the live image over. Names work alike: created, renamed and removed names are
durable after `sync_folder`. `unsynced` lists what the two differ in, sector by sector and name by name, and `crash`
keeps whichever of these changes its caller chooses, in any combination, which is how writes come to be torn, lost
or reordered. A disk may also write any sector at any time on its own: `write_back` does that.

A chooser is a plain function (`Survives`) of one change; `survive_all`, `survive_none` and `survive_randomly` are
given. Nothing here draws a random number or reads a clock of its own accord.

Faults come from the `Faults` of the file system: a hook before each operation (which may raise an `OSError`, a
`ShortWrite`, or `PowerLoss` to stop the program at that very operation), a capacity, a read-only state. Stores by
slice into the buffer of `File.map` are operations, too; stores by `struct.pack_into` go unseen by the hook, but are
subject to a crash like any others.

Not modelled: growing a file while it is mapped, and hard or symbolic links.
"""

# ruff: noqa: D102  (what a method promises stands once, on its protocol in vfs.py)

import errno
import os
import posixpath
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import msgspec

from octopii.walrus.faults import (
    Faults,
    Operation,
    OperationKind,
    PowerLoss,
    ShortWrite,
    Survives,
    Unsynced,
    survive_all,
    survive_none,
    survive_randomly,
)
from octopii.walrus.vfs import Buffer, MappedBuffer, sector_bytes

__all__ = [
    "Faults",
    "MemoryFile",
    "MemoryFileSystem",
    "MemorySync",
    "Operation",
    "PowerLoss",
    "ShortWrite",
    "Survives",
    "Unsynced",
    "survive_all",
    "survive_none",
    "survive_randomly",
]

_chunk_bytes = 16 * sector_bytes
"""Images are compared in runs of this many bytes first, and only unequal runs by the sector."""


class _Image(bytearray):
    """A live image; as long as it is mapped, stores by slice are reported."""

    on_store: Callable[[int, int], None] | None = None

    def __setitem__(self, key: SupportsIndex | slice, value: Any) -> None:
        if self.on_store is not None:
            start, stop, _ = key.indices(len(self)) if isinstance(key, slice) else (int(key), int(key) + 1, 1)
            self.on_store(start, stop - start)
        super().__setitem__(key, value)


class _Inode:
    """The contents of a file, apart from its names."""

    __slots__ = ("dropped", "durable", "in_flight", "live", "pins")

    def __init__(self) -> None:
        self.live = _Image()
        self.durable = bytearray()
        self.pins: list[memoryview] = []  # one per mapping: keeps the image from being resized
        self.in_flight: list[MemorySync] = []
        self.dropped: dict[int, bytes] = {}  # sectors that a failed sync marked clean without writing them

    def clone(self) -> "_Inode":
        twin = _Inode()
        twin.live[:] = self.live
        twin.durable[:] = self.durable
        twin.in_flight = [MemorySync(twin, sync.size, sync.sectors) for sync in self.in_flight]
        twin.dropped = dict(self.dropped)
        return twin

    def resize(self, size: int) -> None:
        if self.pins and size != len(self.live):
            raise AssertionError("resizing a mapped file is not modelled")
        if size > len(self.live):
            self.live.extend(bytes(size - len(self.live)))
        else:
            del self.live[size:]

    def dirty_sectors(self) -> list[int]:
        """Numbers of the sectors that differ; where the durable image ends earlier it counts as zeros."""
        live, durable = self.live, self.durable
        if len(live) == len(durable) and live == durable:
            return []
        size, old = len(live), len(durable)
        dirty = []
        for chunk in range(0, size, _chunk_bytes):
            end = min(chunk + _chunk_bytes, size)
            if end <= old and live[chunk:end] == durable[chunk:end]:
                continue
            for start in range(chunk, end, sector_bytes):
                stop = min(start + sector_bytes, size)
                if live[start:stop] != durable[start:stop].ljust(stop - start, b"\0"):
                    dirty.append(start // sector_bytes)
        return dirty

    def sector(self, index: int) -> bytes:
        return bytes(self.live[index * sector_bytes : (index + 1) * sector_bytes])

    def resize_durable(self, size: int) -> None:
        if size > len(self.durable):
            self.durable.extend(bytes(size - len(self.durable)))
        else:
            del self.durable[size:]

    def store_durable(self, index: int, data: bytes) -> None:
        start = index * sector_bytes
        room = len(self.durable) - start
        if room > 0:  # else the size that would hold it was lost
            self.durable[start : start + min(len(data), room)] = data[:room]


class MemorySync:
    """A `datasync` that has begun: what the file held then becomes durable at `finish`."""

    __slots__ = ("_inode", "sectors", "size")

    def __init__(self, inode: _Inode, size: int, sectors: list[tuple[int, bytes]]) -> None:
        self._inode = inode
        self.size = size
        self.sectors = sectors

    def finish(self) -> None:
        """The disk has said that all is written."""
        inode = self._inode
        inode.in_flight = [sync for sync in inode.in_flight if sync is not self]
        inode.resize_durable(self.size)
        for index, data in self.sectors:
            inode.store_durable(index, data)


class MemoryFile:
    """An open file of a `MemoryFileSystem`."""

    def __init__(self, system: "MemoryFileSystem", *, path: str, inode: _Inode, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._system = system
        self._epoch = system.epoch
        self._inode: _Inode | None = inode
        self._pin: memoryview | None = None

    def read_at(self, size: int, position: int) -> bytes:
        inode = self._open_inode()
        hook = self._system.faults.before_read
        if hook is not None:
            hook(Operation(self._system.operations, "read", self.path, position, size))
        return bytes(inode.live[position : position + size])

    def write_at(self, data: Buffer, position: int) -> None:
        inode = self._open_inode(writing=True)
        system = self._system
        failure = None
        try:
            system.begin_operation("write", self.path, position=position, size=len(data))
        except ShortWrite as short:
            data = bytes(data)[: short.written]
            failure = OSError(short.error, os.strerror(short.error), self.path)
        end = position + len(data)
        if end > len(inode.live):
            room = system.room()
            if end - len(inode.live) > room:
                data = bytes(data)[: max(0, len(inode.live) + room - position)]
                end = position + len(data)
                failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            inode.resize(max(end, len(inode.live)))
        bytearray.__setitem__(inode.live, slice(position, end), data)
        if failure is not None:
            raise failure

    def write_parts_at(self, parts: Sequence[Buffer], position: int) -> None:
        self.write_at(b"".join(parts), position)

    def allocate(self, size: int) -> None:
        inode = self._open_inode(writing=True)
        self._system.begin_operation("allocate", self.path, size=size)
        more = size - len(inode.live)
        if more <= 0:
            return
        if more > self._system.room():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        inode.resize(size)

    def size(self) -> int:
        return len(self._open_inode().live)

    def truncate(self, size: int) -> None:
        inode = self._open_inode(writing=True)
        self._system.begin_operation("truncate", self.path, size=size)
        inode.resize(size)

    def map(self, size: int) -> MappedBuffer:
        inode = self._open_inode()
        if self._pin is not None:
            raise OSError(errno.EBUSY, "the file is mapped already", self.path)
        if size > len(inode.live):
            raise OSError(errno.EINVAL, "the file is shorter than the mapping asked for", self.path)
        self._pin = memoryview(inode.live)
        inode.pins.append(self._pin)
        if not self.writable:
            return self._pin[:size].toreadonly()
        if size < len(inode.live):
            return self._pin[:size]
        inode.live.on_store = self._before_store
        return inode.live

    def unmap(self) -> None:
        pin, self._pin = self._pin, None
        if pin is None or self._inode is None:
            return
        pins = self._inode.pins
        pins[:] = [other for other in pins if other is not pin]
        if not pins:
            self._inode.live.on_store = None

    def datasync(self) -> None:
        self.begin_datasync().finish()

    def begin_datasync(self) -> MemorySync:
        """The first half of `datasync`, for callers that let time pass before they call `finish`."""
        inode = self._open_inode()
        try:
            self._system.begin_operation("datasync", self.path)
        except OSError:
            inode.dropped.update((index, inode.sector(index)) for index in inode.dirty_sectors())
            raise
        sectors = [(index, inode.sector(index)) for index in inode.dirty_sectors()]
        if inode.dropped:
            sectors = [(index, data) for index, data in sectors if inode.dropped.get(index) != data]
        if self._system.faults.slow_sync is not None:
            self._system.faults.slow_sync(self.path, sector_bytes * len(sectors))
        sync = MemorySync(inode, len(inode.live), sectors)
        inode.in_flight.append(sync)
        return sync

    def close(self) -> None:
        self.unmap()
        self._inode = None

    def _before_store(self, position: int, size: int) -> None:
        if self._epoch is self._system.epoch:  # a store after the crash reaches an image that nobody reads
            self._system.begin_operation("store", self.path, position=position, size=size)

    def _open_inode(self, *, writing: bool = False) -> _Inode:
        if self._inode is None:
            raise OSError(errno.EBADF, "the file was closed", self.path)
        if self._epoch is not self._system.epoch:
            raise OSError(errno.EBADF, "the file was open when the power went", self.path)
        if writing and not self.writable:
            raise OSError(errno.EBADF, "the file was opened for reading", self.path)
        return self._inode


class MemoryLock:
    """A lock held in a `MemoryFileSystem`."""

    def __init__(self, system: "MemoryFileSystem", path: str) -> None:
        self._system = system
        self._epoch = system.epoch
        self._path = path

    def release(self) -> None:
        if self._epoch is self._system.epoch:
            self._epoch = object()
            self._system.locked.discard(self._path)


class _NameChange(msgspec.Struct, frozen=True):
    """A change of one folder that `sync_folder` has not yet made durable."""

    folder: str
    name: str
    """The full path that is gained, or lost when `inode` is None."""
    inode: _Inode | None
    old: str | None = None
    """The full path that a rename takes away with it."""

    def apply(self, names: dict[str, _Inode]) -> None:
        if self.old is not None:
            names.pop(self.old, None)
        if self.inode is None:
            names.pop(self.name, None)
        else:
            names[self.name] = self.inode


class MemoryFileSystem:
    """A crashable file system; see the module's docstring. One program at a time, but any number of threads."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.operations = 0
        """Changes and syncs so far."""
        self.epoch = object()
        """Another object after each crash: handles of an earlier one are dead."""
        self.locked: set[str] = set()
        self._folders = {"/"}
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._pending: list[_NameChange] = []

    # --- the protocol -------------------------------------------------------------------------------------------

    def make_folder(self, path: str) -> None:
        path = _absolute(path)
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        missing = []
        while path not in self._folders:
            missing.append(path)
            path = posixpath.dirname(path)
        for folder in reversed(missing):
            self.begin_operation("make_folder", folder)
            self._folders.add(folder)

    def list_folder(self, path: str) -> list[str]:
        path = self._existing_folder(path)
        return sorted(posixpath.basename(each) for each in [*self._names, *self._folders] if _folder(each) == path)

    def exists(self, path: str) -> bool:
        path = _absolute(path)
        return path in self._names or path in self._folders

    def open(self, path: str, *, create: bool = False, writable: bool = True) -> MemoryFile:
        path = _absolute(path)
        inode = self._names.get(path)
        if inode is None:
            if not create or path in self._folders:
                code = errno.EISDIR if path in self._folders else errno.ENOENT
                raise OSError(code, os.strerror(code), path)
            folder = self._existing_folder(posixpath.dirname(path))
            self.begin_operation("create", path)
            inode = _Inode()
            self._change_names(_NameChange(folder, path, inode))
        elif writable and self.faults.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return MemoryFile(self, path=path, inode=inode, writable=writable)

    def rename(self, old: str, new: str) -> None:
        old, new = _absolute(old), _absolute(new)
        inode = self._existing_inode(old)
        if posixpath.dirname(old) != posixpath.dirname(new):
            raise OSError(errno.EXDEV, "the log renames within a folder only", new)
        self.begin_operation("rename", new)
        self._change_names(_NameChange(posixpath.dirname(new), new, inode, old))

    def remove(self, path: str) -> None:
        path = _absolute(path)
        self._existing_inode(path)
        self.begin_operation("remove", path)
        self._change_names(_NameChange(posixpath.dirname(path), path, None))

    def sync_folder(self, path: str) -> None:
        path = self._existing_folder(path)
        self.begin_operation("sync_folder", path)
        self._pending = [change for change in self._pending if change.folder != path]
        kept = {name: inode for name, inode in self._durable_names.items() if _folder(name) != path}
        self._durable_names = kept | {name: inode for name, inode in self._names.items() if _folder(name) == path}

    def lock(self, path: str) -> MemoryLock:
        path = _absolute(path)
        if path in self.locked:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        self.open(path, create=True).close()
        self.locked.add(path)
        return MemoryLock(self, path)

    def free_bytes(self, path: str) -> int:
        return self.room()

    # --- crashes ------------------------------------------------------------------------------------------------

    def unsynced(self) -> list[Unsynced]:
        """All that a crash at this moment may lose, in the order in which `crash` asks for it."""
        changes: list[Unsynced] = []

        def note(change: Unsynced) -> bool:
            changes.append(change)
            return False

        self._write_back(note)
        for number, pending in enumerate(self._pending):
            changes.append(Unsynced("name", pending.name, number))
        return changes

    def write_back(self, survives: Survives) -> None:
        """Make the chosen sectors and sizes durable, as a disk may do unasked; the program goes on unaware."""
        self._write_back(survives)

    def crash(self, survives: Survives) -> None:
        """Lose power: of what is not synced, keep what `survives` says. Open files and locks are gone."""
        self._write_back(survives)
        for number, change in enumerate(self._pending):
            if survives(Unsynced("name", change.name, number)):
                change.apply(self._durable_names)
        self._pending = []
        self.epoch = object()
        self.locked = set()
        fresh: dict[int, _Inode] = {}
        for inode in self._durable_names.values():
            if id(inode) not in fresh:
                fresh[id(inode)] = reborn = _Inode()
                reborn.live[:] = inode.durable
                reborn.durable[:] = inode.durable  # a copy: an old handle's sync may still come to its end
        self._durable_names = {name: fresh[id(inode)] for name, inode in self._durable_names.items()}
        self._names = dict(self._durable_names)

    def end_process(self) -> None:
        """The program is killed, and the machine goes on: open files and locks are gone, and no byte is.

        What was not synced stays so: a program that starts anew reads it, and a later crash may still lose it.
        """
        self.epoch = object()
        self.locked = set()
        for inode in self._names.values():
            inode.pins = []
            inode.live = _Image(inode.live)  # an old mapping may still be held, and written to by nobody

    def clone(self) -> "MemoryFileSystem":
        """A copy of both images and of the pending names, without open files, locks and faults."""
        twin = MemoryFileSystem()
        twin._folders = set(self._folders)
        copies: dict[int, _Inode] = {}

        def copy(inode: _Inode) -> _Inode:
            if id(inode) not in copies:
                copies[id(inode)] = inode.clone()
            return copies[id(inode)]

        twin._names = {name: copy(inode) for name, inode in self._names.items()}
        twin._durable_names = {name: copy(inode) for name, inode in self._durable_names.items()}
        twin._pending = [
            _NameChange(change.folder, change.name, copy(change.inode) if change.inode else None, change.old)
            for change in self._pending
        ]
        return twin

    def after_crash(self, survives: Survives) -> "MemoryFileSystem":
        """What a crash would leave, as a file system of its own; this one goes on."""
        twin = self.clone()
        twin.crash(survives)
        return twin

    def contents(self, path: str) -> bytearray:
        """The live bytes of a file, to look at or, for damage, to change behind the log's back."""
        return self._existing_inode(_absolute(path)).live

    def flip(self, path: str, position: int, mask: int) -> None:
        """Change bits of a byte on the disk itself, behind everybody's back."""
        inode = self._existing_inode(_absolute(path))
        bytearray.__setitem__(inode.live, position, inode.live[position] ^ mask)
        if position < len(inode.durable):
            inode.durable[position] ^= mask

    # --- used by the files --------------------------------------------------------------------------------------

    def begin_operation(self, kind: OperationKind, path: str, *, position: int = 0, size: int = 0) -> None:
        """Count an operation and let the faults have their say."""
        self.operations += 1
        if self.faults.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        if self.faults.before is not None:
            self.faults.before(Operation(self.operations, kind, path, position, size))

    def room(self) -> int:
        """Bytes that can still be allocated."""
        if self.faults.capacity is None:
            return 1 << 60
        return max(0, self.faults.capacity - self.used_bytes())

    def used_bytes(self) -> int:
        """Bytes that all files have together: what `Faults.capacity` limits."""
        return sum(len(inode.live) for inode in set(self._names.values()))

    # --- inside -------------------------------------------------------------------------------------------------

    def _write_back(self, survives: Survives) -> None:
        inodes = {id(inode): (name, inode) for name, inode in self._durable_names.items()}
        inodes |= {id(inode): (name, inode) for name, inode in self._names.items()}
        for name, inode in inodes.values():
            for sync in inode.in_flight:
                if sync.size > len(inode.durable) and survives(Unsynced("size", name, sync.size)):
                    inode.resize_durable(sync.size)
                for index, data in sync.sectors:
                    if data != inode.sector(index) and survives(Unsynced("in_flight", name, index)):
                        inode.store_durable(index, data)
            size = len(inode.live)
            dirty = inode.dirty_sectors()
            if size != len(inode.durable) and survives(Unsynced("size", name, size)):
                inode.resize_durable(size)
            for index in dirty:
                if survives(Unsynced("sector", name, index)):
                    inode.store_durable(index, inode.sector(index))

    def _change_names(self, change: _NameChange) -> None:
        change.apply(self._names)
        self._pending.append(change)

    def _existing_inode(self, path: str) -> _Inode:
        inode = self._names.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return inode

    def _existing_folder(self, path: str) -> str:
        path = _absolute(path)
        if path not in self._folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return path


def _absolute(path: str) -> str:
    return posixpath.normpath(posixpath.join("/", path))


def _folder(path: str) -> str | None:
    """The folder that a path lies in; the root lies in none."""
    return posixpath.dirname(path) if path != "/" else None
