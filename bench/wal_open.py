"""Opening a log of 4 GiB in 1,000 topics: time and memory, after an orderly close and after a crash.

There are two crashes: of a log that was synced, of which only the ends of topics are read, and of one that never was,
of which every byte has to be judged.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import measure
from bench.measure import Effort, Limit, Row

TOPICS = 1000
FULL_BYTES = 1 << 32

_entry_bytes = 100
_batch_entries = 1000
_mebibyte = 1 << 20
_saved_bytes = 1 << 18  # more than any table has
_root = Path(__file__).resolve().parent.parent

# Each runs in a process of its own, so that memory is that of the log alone, and a crash is a real one.
_write = f"""
import sys
from octopii.walrus import NoFsync, Walrus
folder, entries, ending = sys.argv[1], int(sys.argv[2]), sys.argv[3]
log = Walrus(folder, fsync_schedule=NoFsync())
batch = [b"x" * {_entry_bytes}] * {_batch_entries}
for number in range(entries // {_batch_entries}):
    log.batch_append_for_topic(f"topic-{{number % {TOPICS}}}", batch)
if ending == "synced":
    log.sync()
if ending == "closed":
    log.close()
print("ready", flush=True)
sys.stdin.read()
"""
_open = """
import os, signal, sys, time
from octopii.walrus import NoFsync, Walrus
def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024
before, start = resident(), time.perf_counter()
log = Walrus(sys.argv[1], fsync_schedule=NoFsync())
took = time.perf_counter() - start
print(took, resident() - before, len(log.topics()), flush=True)
if sys.argv[2] == "closed":
    log.close()
else:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def rows(effort: Effort) -> Iterator[Row]:
    """After `close()`, then after SIGKILL."""
    entries = effort.count(FULL_BYTES // _entry_bytes)
    size = f"{entries * _entry_bytes / (1 << 30):.2g} GiB in {TOPICS:,} topics"
    for ending, seconds, after in (
        ("closed", 0.5, "an orderly close"),
        ("synced", 1.5, "a crash"),
        ("unsynced", 1.5, "a crash, never synced"),
    ):
        with measure.scratch_folder() as folder:
            _fill(f"{folder}/log", entries, ending)
            saved = _tables(f"{folder}/log")
            measured = []
            for _ in range(effort.rounds + 1):
                measured.append(_open_once(f"{folder}/log", ending))
                if ending != "closed":
                    _restore(saved)
            del measured[0]
        yield Row(
            title=f"open, {size}, after {after}",
            unit="s",
            digits=3,
            figures={"walrus": [took for took, _ in measured]},
            promises=(Limit(ours="walrus", value=seconds),),
        )
        yield Row(
            title=f"memory of that open, after {after}",
            unit="MiB",
            digits=1,
            figures={"walrus": [memory / _mebibyte for _, memory in measured]},
            promises=(Limit(ours="walrus", value=64),),
        )


def _tables(folder: str) -> dict[Path, bytes]:
    """The beginning of each file: the superblock, and what segments say of their blocks."""
    saved = {}
    for path in Path(folder).iterdir():
        with path.open("rb") as file:
            saved[path] = file.read(_saved_bytes)
    return saved


def _restore(saved: dict[Path, bytes]) -> None:
    """Undo an opening: what it writes elsewhere lies in blocks that are free by these tables."""
    for path, beginning in saved.items():
        with path.open("r+b") as file:
            file.write(beginning)


def _fill(folder: str, entries: int, ending: str) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _write, folder, str(entries), ending],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_root,
    )
    assert writer.stdout is not None
    ready = writer.stdout.readline()
    writer.kill()
    writer.communicate()
    assert ready == b"ready\n", "the writer failed"


def _open_once(folder: str, ending: str) -> tuple[float, float]:
    answer = subprocess.run(
        [sys.executable, "-c", _open, folder, ending], cwd=_root, stdout=subprocess.PIPE, check=ending == "closed"
    )
    took, memory, topics = answer.stdout.split()
    assert int(topics) > 0, "the log that was opened is empty"
    return float(took), float(memory)
