"""The two threads beside a node's event loop: one applies, the other waits for disks.

Both take work from a queue and bring results back to the loop in batches: one wake-up for all that was done meanwhile.
"""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from octopii.replica.applier import Applier
from octopii.replica.jobs import ApplyJob, Job, Result, SnapshotFailed, SnapshotView, SnapshotWritten
from octopii.replica.snapshots import SnapshotStore
from octopii.walrus import SyncTicket

logger = logging.getLogger("octopii.node")

Deliver = Callable[[Callable[[], None]], None]
"""Runs a function on the node's loop, from any thread."""


class ApplyThread:
    """Runs an applier's jobs, in order, on a thread of its own."""

    def __init__(
        self,
        applier: Applier,
        snapshots: SnapshotStore,
        *,
        name: str,
        deliver: Callable[[list[Result]], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self._applier = applier
        self._snapshots = snapshots
        self._deliver = deliver
        self._died = died
        self._queue: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._beside = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-snapshot")
        self._thread = threading.Thread(target=self._run, name=f"{name}-apply", daemon=True)
        self._thread.start()

    def submit(self, jobs: list[Job]) -> None:
        """Queue jobs; their results are delivered in the same order."""
        self._queue.put(jobs)

    def stop(self) -> None:
        """Finish what is queued, and end; blocks until then."""
        self._queue.put(None)
        self._thread.join()
        self._beside.shutdown()

    def _run(self) -> None:
        try:
            while (jobs := self._queue.get()) is not None:
                results: list[Result] = []
                for job in jobs:
                    result = self._applier.run(job)
                    if isinstance(result, SnapshotView):
                        self._write(result, results)
                    else:
                        results.append(result)
                    if isinstance(job, ApplyJob) and len(results) > 1:
                        self._deliver(results)
                        results = []
                if results:
                    self._deliver(results)
        except BaseException as error:
            logger.exception("the apply thread has died")
            self._died(error)
            raise

    def _write(self, view: SnapshotView, results: list[Result]) -> None:
        """Write a captured state: beside later commands when it is frozen, else here and now."""
        if not view.source.frozen:
            results.append(self._snapshots.write(view))
            return

        def write() -> None:
            result: SnapshotWritten | SnapshotFailed
            try:
                result = self._snapshots.write(view)
            except BaseException as error:  # noqa: BLE001  (the user's generator may raise anything)
                result = SnapshotFailed(f"{type(error).__name__}: {error}")
            self._deliver([result])

        self._beside.submit(write)


class SyncThreads:
    """Threads that wait for `fdatasync`; shared by the nodes of a runtime."""

    def __init__(self, count: int = 1, *, name: str = "octopii") -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-sync-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, ticket: SyncTicket, done: Callable[[SyncTicket, BaseException | None], None]) -> None:
        """Run a ticket; `done` is called on the thread, with what it raised."""

        def run() -> None:
            error: BaseException | None = None
            try:
                ticket.run()
            except BaseException as raised:  # noqa: BLE001  (the node decides what it means)
                error = raised
            done(ticket, error)

        self._queue.put(run)

    def _run(self) -> None:
        while (run := self._queue.get()) is not None:
            run()

    def close(self) -> None:
        """Finish what is queued, and end."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
