"""Walrus batch append, entries of 64 KiB, no fsync, against checksum and copy alone."""

import contextlib
from collections.abc import Iterator

from bench import measure, walrus_log
from bench.bare_log import LARGE_ENTRY, BareLog
from bench.measure import Budget, Effort, Row

BATCH_ENTRIES = 16  # 1 MiB

_full = 4800
_live_bytes = 1 << 26  # the bare loop goes round and round a file of 64 MiB; so does a log trimmed at that length


def rows(effort: Effort) -> Iterator[Row]:
    """One row."""
    count = effort.count(_full) // BATCH_ENTRIES * BATCH_ENTRIES or BATCH_ENTRIES
    with measure.scratch_folder() as folder, contextlib.ExitStack() as stack:
        bare = BareLog(f"{folder}/bare")
        stack.callback(bare.close)
        ours = walrus_log.WalrusLog(f"{folder}/ours", durable=False)
        stack.callback(ours.close)
        growing = walrus_log.WalrusLog(f"{folder}/growing", durable=False)
        stack.callback(growing.close)

        def trimmed() -> None:
            log, batch = ours.log, [LARGE_ENTRY] * BATCH_ENTRIES
            step = _live_bytes // len(LARGE_ENTRY)
            for number in range(count // BATCH_ENTRIES):
                offsets = log.batch_append_for_topic("large", batch)
                if number % 8 == 0 and offsets.stop > step:
                    log.trim("large", offsets.stop - step)

        def grow() -> None:
            log, batch = growing.log, [LARGE_ENTRY] * BATCH_ENTRIES
            for _ in range(count // BATCH_ENTRIES // 4 or 1):
                log.batch_append_for_topic("large", batch)

        def grow_rate() -> float:
            figure = measure.rate(count // BATCH_ENTRIES // 4 * BATCH_ENTRIES or BATCH_ENTRIES, grow) * gigabytes
            growing.recycle()
            return figure

        gigabytes = len(LARGE_ENTRY) / 1e9
        figures = measure.take_turns(
            {
                "walrus": lambda: measure.rate(count, trimmed) * gigabytes,
                "walrus, growing": grow_rate,
                "bare loop": lambda: measure.rate(count, lambda: bare.append_large(count)) * gigabytes,
            },
            rounds=effort.rounds,
        )
    yield Row(
        title="batch append, 64 KiB entries, no fsync",
        unit="GB/s",
        digits=2,
        figures=figures,
        promises=(Budget(ours="walrus", reference="bare loop", factor=0.7),),
        note="`walrus` keeps 64 MiB by trimming as it goes, the length of the bare loop's file.",
    )
