"""The apply thread of a simulated machine: one job at a time, in order, each taking what the weather decides."""

from collections import deque
from typing import TYPE_CHECKING

from octopii.replica.jobs import Job, Result, SnapshotView
from octopii.walrus.faults import PowerLoss

if TYPE_CHECKING:
    from octopii.sim.node import Node

view_time = (0.001, 0.02)
"""Seconds that a frozen snapshot is written beside later commands."""


class ApplyThread:
    """The jobs of one machine, from boot to crash."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._jobs: deque[Job] = deque()
        self._busy = False

    def submit(self, jobs: list[Job]) -> None:
        """Queue jobs."""
        self._jobs += jobs
        self._next()

    def _next(self) -> None:
        node = self._node
        if self._busy or not self._jobs or not node.up or node.stopping:
            return
        self._busy = True
        job = self._jobs.popleft()
        seconds = node.world.between(node.world.weather.job_time) + node.slow_apply
        node.later(seconds, lambda: self._run(job))

    def _run(self, job: Job) -> None:
        node = self._node
        if node.paused:
            node.postpone(lambda: self._run(job))
            return
        result: Result = node.applier.run(job)
        node.world.observer.job_done(node, job, result)
        if isinstance(result, SnapshotView) and result.source.frozen:
            view = result
            node.later(node.world.between(view_time), lambda: self._write(view))
            self._busy = False
        elif isinstance(result, SnapshotView):
            self._write(result)
            self._busy = False
        else:
            self._busy = False
            node.enter(lambda: node.replica.job_done(result))
        self._next()

    def _write(self, view: SnapshotView) -> None:
        node = self._node
        try:
            result = node.replica.snapshots.write(view)
        except PowerLoss:
            node.crash()
            return
        node.enter(lambda: node.replica.job_done(result))
