"""Walrus batch append, entries of 64 KiB, no fsync, against checksum and copy alone."""

import contextlib
import os
from collections.abc import Iterator

from bench import measure, walrus_log
from bench.bare_log import LARGE_ENTRY, BareLog
from bench.measure import Budget, Effort, Row

BATCH_ENTRIES = 16  # 1 MiB

_full = 1008  # 63 MiB: once through the bare loop's file


def rows(effort: Effort) -> Iterator[Row]:
    """One row."""
    batches = effort.count(_full // BATCH_ENTRIES)
    count = batches * BATCH_ENTRIES
    gigabytes = len(LARGE_ENTRY) / 1e9
    with measure.scratch_folder() as folder, contextlib.ExitStack() as stack:
        bare, synced = (BareLog(f"{folder}/{name}") for name in ("bare", "synced"))
        ours = walrus_log.WalrusLog(f"{folder}/ours", durable=False)
        for each in (bare, synced, ours):
            stack.callback(each.close)

        def append() -> float:
            return _append_rate(ours, batches) * gigabytes

        def append_in_new_folder() -> float:
            with measure.scratch_folder() as empty:
                log = walrus_log.WalrusLog(empty, durable=False)
                figure = _append_rate(log, batches) * gigabytes
                log.close()
            return figure

        def bare_after_sync() -> float:
            os.fsync(synced.descriptor)
            return measure.rate(count, lambda: synced.append_large(count)) * gigabytes

        figures = measure.take_turns(
            {
                "walrus": walrus_log.recycled(ours, append),
                "walrus, new folder": append_in_new_folder,
                "bare loop": lambda: measure.rate(count, lambda: bare.append_large(count)) * gigabytes,
                "bare loop, synced file": bare_after_sync,
            },
            rounds=effort.rounds,
        )
    yield Row(
        title="batch append, 64 KiB entries, no fsync",
        unit="GB/s",
        digits=2,
        figures=figures,
        promises=(Budget(ours="walrus", reference="bare loop", factor=0.7),),
        note="Blocks that a trim gave back were synced; storing into synced pages costs a fault for each, bare or not.",
    )


def _append_rate(log: walrus_log.WalrusLog, batches: int) -> float:
    batch = [LARGE_ENTRY] * BATCH_ENTRIES

    def run() -> None:
        for _ in range(batches):
            log.append_batch(batch)

    return measure.rate(batches * BATCH_ENTRIES, run)
