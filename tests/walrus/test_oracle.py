"""Two independent readers find in the files what the log shows: the format page is complete.

`closed_log_reader.py` reads a log that was closed; `oracle_reader.py` adds what a running or crashed one asks for.
"""

import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopii.walrus.memory_vfs import MemoryFileSystem
from tests.walrus.closed_log_reader import ClosedLog
from tests.walrus.crashing import CoreLog, folder, play, small_block_bytes, take
from tests.walrus.model import (
    Append,
    Batch,
    Commit,
    Model,
    Replace,
    Reset,
    Seen,
    Sizes,
    Step,
    Trim,
    Truncate,
    random_step,
)
from tests.walrus.oracle_reader import Oracle

sizes = Sizes(small=150, spanning=4 * small_block_bytes)

script: list[Step] = [
    *(Append("plain", f"entry {number}".encode()) for number in range(50)),
    Batch("batches", tuple(b"x" * number for number in range(0, 400, 7))),
    Append("large", bytes(range(256)) * 20),
    Batch("large", (b"", bytes(range(256)) * 10, b"small", bytes(2000))),
    *(Append("cut", b"c" * 100) for _ in range(30)),
    Truncate("cut", 28),
    Append("cut", b"again"),
    Truncate("cut", 3),
    Replace("cut", 2, (b"two", b"three" * 300, b"four")),
    *(Append("trimmed", b"t" * 120) for _ in range(30)),
    Trim("trimmed", 17),
    Append("moved", b"old"),
    Reset("moved", 1000),
    Append("moved", b"new"),
    Commit("plain", "a", 33),
    Commit("cut", "b", 4),
]


def _files(system: MemoryFileSystem) -> dict[str, bytes]:
    return {name: bytes(system.contents(f"{folder}/{name}")) for name in system.list_folder(folder)}


def _complete(reader: ClosedLog, shown: Mapping[str, Seen]) -> bool:
    """Whether a reader found the topics that the log shows, and their entries."""
    return {name: (first, tuple(items)) for name, (first, items) in reader.topics.items()} == {
        name: (seen.first, seen.items) for name, seen in shown.items()
    }


def _same(oracle: Oracle, shown: Mapping[str, Seen]) -> bool:
    """Whether the oracle found all that the log shows, with its cursors."""
    return _complete(oracle, shown) and all(
        oracle.cursors[name].get(cursor, seen.first) == position
        for name, seen in shown.items()
        for cursor, position in seen.cursors.items()
    )


def test_script_is_read_from_the_format_page_alone() -> None:
    """Spanning, batched, truncated, replaced, trimmed and moved entries, and cursors, running and after the close."""
    system = MemoryFileSystem()
    system.make_folder(folder)
    log = CoreLog(system)
    play(log, Model(), script)
    shown = log.look()
    assert shown["moved"].first == 1000
    assert shown["trimmed"].first == 17
    assert _same(Oracle(_files(system)), shown)
    log.close()
    assert _complete(ClosedLog(_files(system)), shown)
    assert _same(Oracle(_files(system)), shown)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_random_logs_are_read_from_the_format_page_alone(seed: int) -> None:
    """Whatever was done to a log, and however often it was closed and opened, the oracle reads the same."""
    rng = random.Random(seed)
    system = MemoryFileSystem()
    system.make_folder(folder)
    model = Model()
    for life in range(3):
        log = CoreLog(system)
        for number in range(rng.randrange(25)):
            take(log, model, random_step(rng, model, topics=("a", "b", "ü"), sizes=sizes, tag=f"{life}.{number}"))
        shown = log.look()
        assert _same(Oracle(_files(system)), shown)
        log.close()
        assert _complete(ClosedLog(_files(system)), shown)
        assert _same(Oracle(_files(system)), shown)


def test_readers_refuse_flipped_bytes() -> None:
    """A flipped byte that counts never gives other entries: the checks of the format page find it."""
    system = MemoryFileSystem()
    system.make_folder(folder)
    log = CoreLog(system)
    play(log, Model(), script)
    log.close()
    files = _files(system)
    counting = [(name, at) for name, start, stop in Oracle(files).extents for at in range(start, stop)]
    for name, at in random.Random(1).sample(counting, 400):
        data = bytearray(files[name])
        data[at] ^= 0x10
        for reader in (ClosedLog, Oracle):
            with pytest.raises(AssertionError):
                reader({**files, name: bytes(data)})
