"""Small disks that can be filled: a file system in memory for a node's folder, where this process may mount one."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

DISK_BYTES = 320 << 20
"""Room for the log's segments (64 MiB each, two beyond what is live) and for snapshots."""

_FILLER = "filler"


class SmallDisk:
    """A mounted file system of `DISK_BYTES`."""

    def __init__(self, folder: Path) -> None:
        """Mount it; raises `OSError` where this process may not."""
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "octopii-chaos", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            folder.rmdir()
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

    def fill(self) -> None:
        """Take all the room that is left."""
        with (self.folder / _FILLER).open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 20))

    def empty(self) -> None:
        """Give it back."""
        (self.folder / _FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=False)


def may_mount(folder: Path) -> bool:
    """Whether this process may mount file systems."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    try:
        SmallDisk(folder).close()
    except OSError:
        return False
    folder.rmdir()
    return True
