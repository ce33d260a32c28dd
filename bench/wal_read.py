"""Walrus batch read, 100 B and 64 KiB, against unpacking, checksumming and copying alone."""

import contextlib
from collections.abc import Iterator

from bench import measure, walrus_log
from bench.bare_log import BATCH_ENTRIES, ENTRY, LARGE_ENTRY, BareLog
from bench.measure import Budget, Effort, Row

READ_BYTES = 1 << 20  # of one batch_read_for_topic

_full_small = 200_000
_full_large = 800
_bare_entries_a_round = 962  # entries of 100 B that one round of the bare loop reads


def rows(effort: Effort) -> Iterator[Row]:
    """Small entries, then large ones."""
    yield _row(effort, title="batch read, 100 B", unit="entries/s", entry=ENTRY, full=_full_small)
    yield _row(effort, title="batch read, 64 KiB", unit="GB/s", entry=LARGE_ENTRY, full=_full_large)


def _row(effort: Effort, *, title: str, unit: str, entry: bytes, full: int) -> Row:
    large = entry is LARGE_ENTRY
    count = effort.count(full)
    with measure.scratch_folder() as folder, contextlib.ExitStack() as stack:
        bare = BareLog(f"{folder}/bare")
        stack.callback(bare.close)
        ours = walrus_log.WalrusLog(f"{folder}/ours", durable=False)
        stack.callback(ours.close)
        step = 16 if large else BATCH_ENTRIES
        for start in range(0, count, step):
            ours.log.batch_append_for_topic("topic", [entry] * min(step, count - start))
        ours.log.sync()
        passes = iter(range(1 << 30))

        def read() -> None:
            read_batch, cursor, seen = ours.log.batch_read_for_topic, f"pass-{next(passes)}", 0
            while batch := read_batch("topic", READ_BYTES, True, cursor=cursor):
                seen += len(batch)
            assert seen == count, f"read {seen} of {count} entries"

        def bare_read() -> float:
            if large:
                return measure.rate(count, lambda: bare.read_large(count))
            rounds = count // _bare_entries_a_round or 1
            return measure.rate(rounds * _bare_entries_a_round, lambda: bare.read(rounds))

        scale = len(entry) / 1e9 if large else 1.0
        figures = measure.take_turns(
            {"walrus": lambda: measure.rate(count, read) * scale, "bare loop": lambda: bare_read() * scale},
            rounds=effort.rounds,
        )
    promises = (Budget(ours="walrus", reference="bare loop", factor=0.4),)
    return Row(title=title, unit=unit, digits=2 if large else 0, figures=figures, promises=promises)
