"""What goes wrong with the disk of one simulated machine.

Faults are armed one at a time for an operation to come; each happens once, and those that are still armed when the
machine goes down are forgotten, unless they were armed while it was down: then they meet its recovery.
"""

import errno
import os
import random
from typing import TYPE_CHECKING, Literal

import msgspec

from octopii.walrus.faults import Operation, PowerLoss

if TYPE_CHECKING:
    from octopii.sim.node import Node

Trouble = Literal["power", "write", "sync", "read"]

_writes = frozenset({"write", "allocate", "create", "rename", "remove", "truncate"})
_syncs = frozenset({"datasync", "sync_folder"})


class Armed(msgspec.Struct):
    """A fault that waits: it happens at the `left`-th of the operations that it may meet."""

    trouble: Trouble
    left: int

    def meets(self, operation: Operation) -> bool:
        """Count an operation; whether it is the one."""
        kind = operation.kind
        if self.trouble == "write" and kind not in _writes:
            return False
        if self.trouble == "sync" and kind not in _syncs:
            return False
        self.left -= 1
        return self.left <= 0


class DiskTrouble:
    """The armed faults of one disk, as the hooks of its file system."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._armed: list[Armed] = []
        self._armed_reads: list[Armed] = []
        self.has_power = True

    def arm(self, armed: Armed) -> None:
        """Wait for an operation."""
        if armed.trouble == "read":
            self._armed_reads.append(armed)
        else:
            self._armed.append(armed)

    def before(self, operation: Operation) -> None:
        """A change or a sync is about to happen."""
        self._meet(self._armed, operation)

    def before_read(self, operation: Operation) -> None:
        """A read is about to happen."""
        self._meet(self._armed_reads, operation)

    def _meet(self, waiting: list[Armed], operation: Operation) -> None:
        if not self.has_power:
            raise PowerLoss  # nor does what a handler on the way out does reach the disk
        for armed in waiting:
            if armed.meets(operation):
                waiting.remove(armed)
                node = self._node
                detail = f"{armed.trouble} error at {operation.kind} {operation.path}"
                node.world.trace.note(node.world.now, node.id, "disk", detail)
                if armed.trouble == "power":
                    self.has_power = False
                    raise PowerLoss
                raise OSError(errno.EIO, os.strerror(errno.EIO), operation.path)


def arm(node: "Node", trouble: Trouble, *, after: int) -> None:
    """Have a disk fail at the operation `after` this one."""
    faults = node.vfs.faults
    hook = getattr(faults.before, "__self__", None)
    if not isinstance(hook, DiskTrouble):
        hook = DiskTrouble(node)
        faults.before, faults.before_read = hook.before, hook.before_read
    hook.arm(Armed(trouble, after))


def has_power(node: "Node") -> bool:
    """Whether the machine's power is on; when it went, what a program does on its way out reaches nothing."""
    hook = getattr(node.vfs.faults.before, "__self__", None)
    return not isinstance(hook, DiskTrouble) or hook.has_power


def used_bytes(node: "Node") -> int:
    """Bytes that a machine's files have."""
    return node.vfs.used_bytes()


def rot(node: "Node", rng: random.Random, where: bytes = b"") -> None:
    """Change one bit of what a machine's disk holds, where it holds certain bytes if it does.

    Bytes that are zero are passed over, most of them hold nothing.
    """
    vfs, folder = node.vfs, str(node.config.wal_path)
    if not vfs.exists(folder):
        return
    paths = [f"{folder}/{name}" for name in vfs.list_folder(folder) if name != "reserve"]
    sizes = [len(vfs.contents(path)) for path in paths]
    if not any(sizes):
        return
    for path in paths:
        position = vfs.contents(path).rfind(where) if where else -1
        if position >= 0:
            _flip(node, path, position + rng.randrange(len(where)), rng)
            return
    (path,) = rng.choices(paths, sizes)
    data = vfs.contents(path)
    for _ in range(1000):
        position = rng.randrange(len(data))
        if data[position]:
            _flip(node, path, position, rng)
            return


def _flip(node: "Node", path: str, position: int, rng: random.Random) -> None:
    node.vfs.flip(path, position, 1 << rng.randrange(8))
    node.world.trace.note(node.world.now, node.id, "rots", f"{path} at byte {position}")
