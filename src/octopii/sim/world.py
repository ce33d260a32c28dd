"""The clock of a simulated world, the events to come, and everybody there is.

Everything happens as an event at a time. Events of the same time happen in the order in which they were made, and every
random number comes from the world's one generator, so a seed decides all of it.
"""

import heapq
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from octopii.replica.jobs import Job, Result
from octopii.replica.work import PeerOutput
from octopii.sim.network import Network, Weather
from octopii.sim.trace import Trace
from octopii.state_machine import StateMachine

if TYPE_CHECKING:
    from octopii.sim.node import Node

START_TIME = 100.0
"""Monotonic seconds at which a world begins."""


class Observer:
    """Looks on: a world calls these as things happen. Each does nothing unless overridden; none may change a thing."""

    def booted(self, node: "Node") -> None:
        """A machine has opened its disk and runs."""

    def on_apply(self, node: "Node", machine: StateMachine) -> Callable[[bytes], bytes]:
        """A machine is about to boot with this state machine: what it is to call for each command that is applied."""
        return machine.apply

    def went_down(self, node: "Node") -> None:
        """A machine has crashed or was stopped."""

    def stepped(self, node: "Node") -> None:
        """A machine's replica has taken something in and given its work out."""

    def says(self, node: "Node", peer: int, outputs: list[PeerOutput]) -> None:
        """A machine sends to another one, which may never hear it."""

    def job_done(self, node: "Node", job: Job, result: Result) -> None:
        """A machine's apply thread has done a job; its replica does not know yet."""


class World:
    """The clock, the events to come, and everybody there is."""

    def __init__(self, seed: int, *, observer: Observer | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = START_TIME
        self.weather = Weather()
        self.network = Network(self)
        self.observer = observer or Observer()
        self.trace = Trace()
        self.nodes: dict[int, Node] = {}
        self.steps = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the world began."""
        return self.now - START_TIME

    def at(self, delay: float, event: Callable[[], None]) -> None:
        """Have something happen after a delay."""
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))

    def between(self, span: tuple[float, float]) -> float:
        """A random time of a span."""
        low, high = span
        return low + (high - low) * self.rng.random()

    def step(self) -> None:
        """Let the next event happen."""
        time, _, event = heapq.heappop(self._events)
        if time > self.now:
            self.now = time
        self.steps += 1
        event()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.step()
        self.now = end

    def run_until(self, condition: Callable[[], bool], *, limit: float = 60.0, what: str = "") -> None:
        """Let time pass until something is true; raises `AssertionError` when it takes too long."""
        end = self.now + limit
        while not condition():
            assert self._events, "nothing happens any more"
            assert self._events[0][0] <= end, f"seed {self.seed}: {what or condition} is not so after {limit} s"
            self.step()
