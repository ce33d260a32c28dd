"""The independent reader of `oracle_reader.py` finds in the files what the log shows: the format page is complete."""

import random
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from octopii.walrus.memory_vfs import MemoryFileSystem
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
from tests.walrus.oracle_reader import Contents, Oracle

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


def _same(found: Mapping[str, Contents], shown: Mapping[str, Seen]) -> bool:
    if found.keys() != shown.keys():
        return False
    for name, (first, items, cursors) in found.items():
        seen = shown[name]
        positions = {cursor: cursors.get(cursor, first) for cursor in seen.cursors}
        if (first, tuple(items), positions) != (seen.first, seen.items, seen.cursors):
            return False
    return True


def test_script_is_read_from_the_format_page_alone() -> None:
    """Spanning, batched, truncated, replaced, trimmed and moved entries, and cursors, running and after the close."""
    system = MemoryFileSystem()
    system.make_folder(folder)
    log = CoreLog(system)
    play(log, Model(), script)
    shown = log.look()
    assert shown["moved"].first == 1000
    assert shown["trimmed"].first == 17
    assert _same(Oracle(_files(system)).topics, shown)
    log.close()
    assert _same(Oracle(_files(system)).topics, shown)


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
        assert _same(Oracle(_files(system)).topics, shown)
        log.close()
        assert _same(Oracle(_files(system)).topics, shown)
