"""Walrus append, 100 B, no fsync: one thread against the bare loop and the peers, ten threads against the peers."""

import contextlib
from collections.abc import Iterator

from bench import measure, walrus_log
from bench.bare_log import ENTRY, BareLog
from bench.measure import Budget, Contestant, Effort, Row
from bench.peers import lmdb_log, rocksdb_log, sqlite_log, walrus_rust
from bench.peers.log import OpenLog, PeerLog, threaded_rate

PEERS: dict[str, OpenLog] = {
    sqlite_log.NAME: sqlite_log.SqliteLog,
    lmdb_log.NAME: lmdb_log.LmdbLog,
    rocksdb_log.NAME: rocksdb_log.RocksdbLog,
}
THREADS = 10

_full = 200_000
_full_sqlite = 50_000  # a slow peer gets fewer entries, not more time


def rows(effort: Effort) -> Iterator[Row]:
    """One thread, then ten."""
    yield _one_thread(effort)
    yield _many_threads(effort)


def _one_thread(effort: Effort) -> Row:
    count = effort.count(_full)
    with measure.scratch_folder() as folder, contextlib.ExitStack() as stack:
        bare = BareLog(f"{folder}/bare")
        stack.callback(bare.close)
        ours = walrus_log.WalrusLog(f"{folder}/ours", durable=False)
        stack.callback(ours.close)

        def fresh() -> float:
            with measure.scratch_folder() as empty:
                log = walrus_log.WalrusLog(empty, durable=False)
                figure = threaded_rate(lambda worker, number: log.append(worker, ENTRY, number), threads=1, count=count)
                log.close()
            return figure

        contestants: dict[str, Contestant] = {
            "walrus": walrus_log.recycled(ours, contestant(ours, threads=1, count=count)),
            "walrus, new folder": fresh,
            "bare loop": lambda: measure.rate(count, lambda: bare.append(count)),
        }
        contestants |= peers(folder, stack, durable=False, threads=1, effort=effort)
        figures = measure.take_turns(contestants, rounds=effort.rounds)
    return Row(
        title="append, 100 B, no fsync, one thread",
        unit="entries/s",
        figures=figures,
        promises=(
            Budget(ours="walrus", reference="bare loop", factor=0.25),
            Budget(ours="walrus", reference=sqlite_log.NAME, factor=5),
            Budget(ours="walrus", reference=lmdb_log.NAME, factor=1),
        ),
        note="`walrus` writes to blocks freed by a trim, as the bare loop does to its file; a new folder's are cold.",
    )


def _many_threads(effort: Effort) -> Row:
    count = effort.count(_full)
    with measure.scratch_folder() as folder, contextlib.ExitStack() as stack:
        ours = walrus_log.WalrusLog(f"{folder}/ours", durable=False)
        stack.callback(ours.close)
        contestants = {"walrus": walrus_log.recycled(ours, contestant(ours, threads=THREADS, count=count))}
        contestants |= peers(folder, stack, durable=False, threads=THREADS, effort=effort)
        figures = measure.take_turns(contestants, rounds=effort.rounds)
    return Row(title=f"append, 100 B, no fsync, {THREADS} threads", unit="entries/s", figures=figures)


def contestant(log: PeerLog, *, threads: int, count: int) -> Contestant:
    """Appends of one entry each, `count` over all threads."""
    return lambda: threaded_rate(lambda worker, number: log.append(worker, ENTRY, number), threads=threads, count=count)


def peers(
    folder: str, stack: contextlib.ExitStack, *, durable: bool, threads: int, effort: Effort, full: int = _full_sqlite
) -> dict[str, Contestant]:
    """The other logs, each open in a folder of its own until `stack` unwinds; the Rust crate where it can be built."""
    contestants: dict[str, Contestant] = {}
    count = effort.count(full)
    for name, make in PEERS.items():
        log = make(measure.subfolder(folder, name), durable=durable)
        stack.callback(log.close)
        contestants[name] = contestant(log, threads=threads, count=count)
    if walrus_rust.program() is not None:
        contestants[walrus_rust.NAME] = lambda: walrus_rust.append_rate(threads=threads, count=count, durable=durable)
    return contestants
