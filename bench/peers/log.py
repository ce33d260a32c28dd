"""What the benchmarks ask of a log: append entries one commit at a time, and append a batch in one commit."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol


class PeerLog(Protocol):
    """A log of somebody else's (or ours), open in a folder of its own."""

    def append(self, worker: int, entry: bytes, count: int) -> None:
        """`count` commits of one entry each, to the topic of `worker`; may be called by many threads at once."""
        ...

    def append_batch(self, batch: Sequence[bytes]) -> None:
        """All entries in one commit."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class OpenLog(Protocol):
    """Opens a log in an empty folder; when `durable`, a commit returns once it is on disk."""

    def __call__(self, folder: str, *, durable: bool) -> PeerLog:
        """The open log."""
        ...


def threaded_rate(append: Callable[[int, int], None], *, threads: int, count: int) -> float:
    """Commits per second over all threads, each of which does `count // threads` of them: `append(worker, count)`.

    One thread is the caller itself. Errors of the workers are raised here.
    """
    each = count // threads
    if threads == 1:
        start = time.perf_counter()
        append(0, each)
        return each / (time.perf_counter() - start)
    barrier = threading.Barrier(threads + 1)
    errors: list[Exception] = []

    def run(worker: int) -> None:
        barrier.wait()
        try:
            append(worker, each)
        except Exception as error:  # noqa: BLE001 - handed to the caller below
            errors.append(error)

    workers = [threading.Thread(target=run, args=(worker,)) for worker in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    took = time.perf_counter() - start
    if errors:
        raise errors[0]
    return each * threads / took
