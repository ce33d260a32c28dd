"""Walrus under `SyncEach`: one thread against the bare loop, and what threads gain by sharing an fdatasync."""

import contextlib
from collections.abc import Iterator

from bench import measure, walrus_log
from bench.bare_log import BareLog
from bench.measure import Budget, Contestant, Effort, Row
from bench.wal_append import THREADS, contestant, peers

SHARING_THREADS = 16

_most, _least = 1000, 50
_seconds = 0.25  # of one contestant's turn: disks differ by a factor of a hundred


def rows(effort: Effort) -> Iterator[Row]:
    """One thread with the peers; ten threads with the peers; sixteen against one."""
    with measure.scratch_folder() as folder, contextlib.ExitStack() as stack:
        bare = BareLog(f"{folder}/bare")
        stack.callback(bare.close)
        full = _affordable(bare)
        count = effort.count(full)
        ours = walrus_log.WalrusLog(f"{folder}/ours", durable=True)
        stack.callback(ours.close)
        contestants: dict[str, Contestant] = {
            "walrus": contestant(ours, threads=1, count=count),
            f"walrus, {SHARING_THREADS} threads": contestant(ours, threads=SHARING_THREADS, count=8 * count),
            "bare loop": lambda: measure.rate(count, lambda: bare.append_synced(count)),
        }
        contestants |= peers(folder, stack, durable=True, threads=1, effort=effort, full=full)
        figures = measure.take_turns(contestants, rounds=effort.rounds)
    yield Row(
        title="append, 100 B, SyncEach, one thread",
        unit="entries/s",
        figures=figures,
        promises=(
            Budget(ours="walrus", reference="bare loop", factor=0.9),
            Budget(ours=f"walrus, {SHARING_THREADS} threads", reference="walrus", factor=5),
        ),
    )
    with measure.scratch_folder() as folder, contextlib.ExitStack() as stack:
        ours = walrus_log.WalrusLog(f"{folder}/ours", durable=True)
        stack.callback(ours.close)
        contestants = {"walrus": contestant(ours, threads=THREADS, count=5 * count)}
        contestants |= peers(folder, stack, durable=True, threads=THREADS, effort=effort, full=full)
        figures = measure.take_turns(contestants, rounds=effort.rounds)
    yield Row(title=f"append, 100 B, SyncEach, {THREADS} threads", unit="entries/s", figures=figures)


def _affordable(bare: BareLog) -> int:
    """So many syncs as the disk does in a short time, just now."""
    bare.append_synced(_least)
    return min(_most, max(_least, int(measure.rate(_least, lambda: bare.append_synced(_least)) * _seconds)))
