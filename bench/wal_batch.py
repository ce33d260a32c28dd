"""Walrus batch append, 1,000 entries of 100 B, no fsync, against the bare loop and the peers' transactions."""

import contextlib
from collections.abc import Callable, Iterator

from bench import measure, walrus_log
from bench.bare_log import BATCH_ENTRIES, ENTRY, BareLog
from bench.measure import Budget, Contestant, Effort, Row
from bench.peers import lmdb_log, walrus_rust
from bench.peers.log import PeerLog
from bench.wal_append import PEERS

_full = 200
_full_peer = 100


def rows(effort: Effort) -> Iterator[Row]:
    """One row."""
    batches = effort.count(_full)
    with measure.scratch_folder() as folder, contextlib.ExitStack() as stack:
        bare = BareLog(f"{folder}/bare")
        stack.callback(bare.close)
        ours = walrus_log.WalrusLog(f"{folder}/ours", durable=False)
        stack.callback(ours.close)
        contestants: dict[str, Contestant] = {
            "walrus": walrus_log.recycled(ours, contestant(ours, batches)),
            "bare loop": lambda: measure.rate(batches * BATCH_ENTRIES, lambda: bare.append_batches(batches)),
        }
        for name, make in PEERS.items():
            log = make(measure.subfolder(folder, name), durable=False)
            stack.callback(log.close)
            contestants[name] = contestant(log, effort.count(_full_peer))
        if walrus_rust.program() is not None:
            entries = effort.count(_full_peer) * BATCH_ENTRIES
            contestants[walrus_rust.NAME] = lambda: walrus_rust.append_rate(
                threads=1, count=entries, durable=False, batched=True
            )
        figures = measure.take_turns(contestants, rounds=effort.rounds)
    yield Row(
        title="batch append, 1,000 x 100 B, no fsync",
        unit="entries/s",
        figures=figures,
        promises=(
            Budget(ours="walrus", reference="bare loop", factor=0.4),
            Budget(ours="walrus", reference=lmdb_log.NAME, factor=1.5),
        ),
    )


def contestant(log: PeerLog, batches: int) -> Contestant:
    """So many batches, a commit for each."""
    batch = [ENTRY] * BATCH_ENTRIES

    def run() -> None:
        append: Callable[[list[bytes]], None] = log.append_batch
        for _ in range(batches):
            append(batch)

    return lambda: measure.rate(batches * BATCH_ENTRIES, run)
