"""A log that is written, read and trimmed for long: its disk use stays near what is live, its memory stays flat."""

import gc
import os
import random
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from octopii.walrus import NoFsync, Walrus

topics = ("orders", "events", "audit")


class Usage(NamedTuple):
    """Sizes in bytes at one moment."""

    written: int
    disk: int
    memory: int


def disk_bytes(path: str) -> int:
    """What the folder occupies."""
    return sum(os.stat(os.path.join(path, name)).st_blocks * 512 for name in os.listdir(path))


def memory_bytes() -> int:
    """The process's own memory: resident without the pages of mapped files."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def churn(log: Walrus, path: str, *, total: int, live: int, entry: int, samples: int) -> list[Usage]:
    """Write `total` bytes in entries around `entry` bytes, read them, and keep about `live` bytes by trimming."""
    rng = random.Random(1)
    block = rng.randbytes(2 * entry)
    sizes: dict[str, list[int]] = {topic: [] for topic in topics}  # of the live entries
    held = dict.fromkeys(topics, 0)
    usages: list[Usage] = []
    written = 0
    while written < total:
        topic = rng.choice(topics)
        batch = [block[: rng.randrange(entry // 2, entry * 3 // 2)] for _ in range(16)]
        offsets = log.batch_append_for_topic(topic, batch)
        sizes[topic] += map(len, batch)
        held[topic] += sum(map(len, batch))
        written += sum(map(len, batch))
        read = log.batch_read_for_topic(topic, 64 * entry, True)
        assert read[-1].offset == offsets[-1]
        assert bytes(read[-1].data) == batch[-1]
        drop = 0
        while held[topic] > live // len(topics):
            held[topic] -= sizes[topic][drop]
            drop += 1
        if drop:
            del sizes[topic][:drop]
            log.trim(topic, offsets[-1] + 1 - len(sizes[topic]))
        if written * samples // total > len(usages):
            log.sync()
            usages.append(Usage(written, disk_bytes(path), memory_bytes()))
    return usages


def test_disk_use_is_bounded(tmp_path: Path) -> None:
    """200 MiB through a log that keeps 4 MiB: never more disk than the live blocks and two segments beside them."""
    path = str(tmp_path / "log")
    block_bytes, segment_blocks = 16 * 1024, 64
    live = 4 << 20
    with Walrus(path, fsync_schedule=NoFsync(), block_bytes=block_bytes, segment_blocks=segment_blocks) as log:
        usages = churn(log, path, total=200 << 20, live=live, entry=4096, samples=40)
    peak = max(usage.disk for usage in usages)
    # live entries with their share of block ends and headers, an active block for each topic and for the catalog
    live_blocks = live * 1.25 + (2 * len(topics) + 8) * block_bytes
    assert peak <= live_blocks + 3 * segment_blocks * block_bytes
    gc.collect()
    assert usages[-1].memory - usages[len(usages) // 4].memory < 8 << 20


def test_trimmed_log_gives_its_disk_back(tmp_path: Path) -> None:
    """A log that was large and is emptied shrinks to two segments or so, while it runs."""
    path = str(tmp_path / "log")
    with Walrus(path, fsync_schedule=NoFsync(), block_bytes=4096, segment_blocks=64) as log:
        for _ in range(40):
            log.batch_append_for_topic("t", [bytes(1000)] * 500)
        log.sync()
        large = disk_bytes(path)
        assert large > 20_000_000
        log.trim("t", log.stats("t").next_offset)
        log.sync()
        log.append_for_topic("t", b"x")
        log.sync()
        assert disk_bytes(path) <= 4 * 64 * 4096


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_twenty_gib_through_a_hundred_mib(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20 GiB written, read and trimmed, 100 MiB live: disk within the bound, memory flat; both are printed."""
    path = str(tmp_path / "log")
    live = 100 << 20
    start = time.monotonic()
    with Walrus(path, fsync_schedule=NoFsync()) as log:
        usages = churn(log, path, total=20 << 30, live=live, entry=16 * 1024, samples=20)
    with capsys.disabled():
        print(f"\n20 GiB in {time.monotonic() - start:.0f} s")
        for usage in usages:
            print(
                f"written {usage.written / 2**30:5.1f} GiB   disk {usage.disk / 2**20:7.1f} MiB"
                f"   memory {usage.memory / 2**20:6.1f} MiB"
            )
    # 16 KiB entries of varying size fill 64 KiB blocks as fragments: headers and the active blocks are all that is lost
    assert max(usage.disk for usage in usages) <= live * 1.1 + 2 * (64 << 20) + (4 << 20)
    assert usages[-1].memory - usages[4].memory < 16 << 20
