"""The file system as the log sees it: the only module of the package that opens files.

Everything above takes a `FileSystem` as an argument and reaches the disk through it and the `File`s it opens.
`RealFileSystem` is the operating system's; `memory_vfs.MemoryFileSystem` loses unsynced data at a crash, tears
writes and injects errors, so that the same code runs under test and in the simulator.

What is durable when:

- Bytes written with `write_at` or stored into a `map` are durable once a `datasync` of that file that began after
  them has returned. Before that each sector of 512 bytes may be found old or new after a power loss. A process
  that dies, without the machine dying, loses nothing that was written or stored.
- The size given by `allocate` and `truncate` is durable with the same `datasync`.
- A name that was created, renamed or removed is durable once `sync_folder` of its folder has returned.
- After a `datasync` that raised nothing is known about the bytes it covered, and a later one that returns does not
  vouch for them.
"""

# ruff: noqa: D102  (what a method promises stands once, on its protocol)

import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What may be written: any contiguous run of bytes."""

MappedBuffer: TypeAlias = mmap.mmap | bytearray | memoryview
"""What `File.map` returns: index and assign slices of it, or pack into it; its length is fixed."""

sector_bytes = 512
"""The unit that a disk writes whole or not at all, in bytes."""

_zero_fill_bytes = 64 * 1024
"""Step in which space is filled with zeros where the platform cannot reserve it, in bytes: larger fills leave the
page cache with large folios, which make later syncs of single pages several times slower."""


class Lock(Protocol):
    """An exclusive lock on a file, held until `release` or until the process ends."""

    def release(self) -> None:
        """Give the lock back; doing so twice is harmless."""
        ...


class File(Protocol):
    """An open file. Every method raises `OSError` when the operating system does."""

    @property
    def path(self) -> str:
        """The path that it was opened by."""
        ...

    def read_at(self, size: int, position: int) -> bytes:
        """`size` bytes from `position`; fewer only where the file ends."""
        ...

    def write_at(self, data: Buffer, position: int) -> None:
        """Write all of `data` at `position`, or raise; after an error a part of it may have been written."""
        ...

    def write_parts_at(self, parts: Sequence[Buffer], position: int) -> None:
        """As `write_at` of the parts joined."""
        ...

    def allocate(self, size: int) -> None:
        """Grow to at least `size` bytes, new ones zero, with the space reserved: a full disk is `ENOSPC` here."""
        ...

    def size(self) -> int:
        """The length in bytes."""
        ...

    def truncate(self, size: int) -> None:
        """Set the length to `size` bytes without reserving space. The part of a file that is mapped must remain."""
        ...

    def map(self, size: int) -> MappedBuffer:
        """The first `size` bytes as a buffer shared with the file; writable if the file is. One at a time.

        A real mapping holds a descriptor of its own beside the file's.
        """
        ...

    def unmap(self) -> None:
        """Give the buffer of `map` back. It must not be used afterwards."""
        ...

    def datasync(self) -> None:
        """Return when all bytes and the size are on disk. May be called from another thread than the writer's."""
        ...

    def close(self) -> None:
        """Unmap and close; doing so twice is harmless. Makes nothing durable."""
        ...


class FileSystem(Protocol):
    """Folders, names and locks. Every method raises `OSError` when the operating system does."""

    def make_folder(self, path: str) -> None:
        """Create the folder and its missing parents, durably; an existing one is left as it is."""
        ...

    def list_folder(self, path: str) -> list[str]:
        """The names in the folder, sorted."""
        ...

    def exists(self, path: str) -> bool:
        """Whether a file or folder has this path."""
        ...

    def open(self, path: str, *, create: bool = False, writable: bool = True) -> File:
        """Open a file; with `create` an empty one is made if there is none. `FileNotFoundError` if there is none."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file another name in the same folder, atomically replacing what had it."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file's name; open handles go on working."""
        ...

    def sync_folder(self, path: str) -> None:
        """Make the names created, renamed and removed in this folder durable."""
        ...

    def lock(self, path: str) -> Lock:
        """Lock a file, made if missing, against every other holder, those in this process included.

        Raises `BlockingIOError` when it is held.
        """
        ...

    def free_bytes(self, path: str) -> int:
        """Bytes that can still be allocated on the volume that holds `path`."""
        ...


def _choose_datasync() -> Callable[[int], None]:
    """The platform's call that returns only when a file's data is on the medium itself."""
    if sys.platform == "darwin":
        full_sync: int = fcntl.F_FULLFSYNC

        def datasync(descriptor: int) -> None:
            fcntl.fcntl(descriptor, full_sync)

        return datasync
    return os.fdatasync if hasattr(os, "fdatasync") else os.fsync


_datasync = _choose_datasync()


class RealFile:
    """A file of the operating system."""

    __slots__ = ("_descriptor", "_mapped", "path", "writable")

    def __init__(self, path: str, descriptor: int, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._descriptor = descriptor
        self._mapped: mmap.mmap | None = None

    def read_at(self, size: int, position: int) -> bytes:
        data = os.pread(self._open_descriptor(), size, position)
        if len(data) == size or not data:
            return data
        parts = [data]
        done = len(data)
        while done < size and (data := os.pread(self._open_descriptor(), size - done, position + done)):
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def write_at(self, data: Buffer, position: int) -> None:
        written = os.pwrite(self._open_descriptor(), data, position)
        size = len(data)
        if written == size:
            return
        rest = memoryview(data)
        while written < size:
            step = os.pwrite(self._open_descriptor(), rest[written:], position + written)
            if step == 0:
                raise OSError(errno.EIO, "the operating system wrote nothing", self.path)
            written += step

    def write_parts_at(self, parts: Sequence[Buffer], position: int) -> None:
        written = os.pwritev(self._open_descriptor(), parts, position)
        if written < sum(map(len, parts)):
            self.write_at(memoryview(b"".join(parts))[written:], position + written)

    def allocate(self, size: int) -> None:
        present = self.size()
        if size <= present:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._open_descriptor(), present, size - present)
            return
        for position in range(present, size, _zero_fill_bytes):
            self.write_at(bytes(min(_zero_fill_bytes, size - position)), position)

    def size(self) -> int:
        return os.fstat(self._open_descriptor()).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._open_descriptor(), size)

    def map(self, size: int) -> mmap.mmap:
        if self._mapped is not None:
            raise OSError(errno.EBUSY, "the file is mapped already", self.path)
        if size > self.size():  # a store beyond the end of the file would be a SIGBUS
            raise OSError(errno.EINVAL, "the file is shorter than the mapping asked for", self.path)
        access = mmap.ACCESS_WRITE if self.writable else mmap.ACCESS_READ
        self._mapped = mmap.mmap(self._open_descriptor(), size, access=access)
        return self._mapped

    def unmap(self) -> None:
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            try:
                mapped.close()
            except BufferError:
                pass  # a reader still holds a view: the mapping goes when the last view does

    def datasync(self) -> None:
        _datasync(self._open_descriptor())

    def close(self) -> None:
        self.unmap()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open_descriptor(self) -> int:
        if self._descriptor < 0:
            raise OSError(errno.EBADF, "the file was closed", self.path)
        return self._descriptor


class RealLock:
    """A `flock` on a file of the operating system, bound to this open of it."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class RealFileSystem:
    """The operating system's files."""

    def make_folder(self, path: str) -> None:
        path = os.path.abspath(path)
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        self.make_folder(parent)
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        self.sync_folder(parent)

    def list_folder(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def open(self, path: str, *, create: bool = False, writable: bool = True) -> RealFile:
        flags = os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY) | (os.O_CREAT if create else 0)
        return RealFile(path, os.open(path, flags, 0o644), writable)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def sync_folder(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: str) -> RealLock:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return RealLock(descriptor)

    def free_bytes(self, path: str) -> int:
        volume = os.statvfs(path)
        return volume.f_bavail * volume.f_frsize
