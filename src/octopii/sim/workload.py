"""What the clients of a simulated cluster do: a `Workload` says which calls, a `User` makes them and keeps the history.

A workload of your own derives from `Workload` and overrides what it needs; `command` is enough to begin with.
"""

import random
from collections.abc import Sequence
from typing import Any

from octopii.errors import NotApplied
from octopii.sim.client import Asked, SimulatedClient
from octopii.sim.history import Operation, Query
from octopii.sim.models import Model
from octopii.sim.world import World
from octopii.state_machine import as_bytes
from octopii.wire.call import unwrap
from octopii.wire.requests import Consistency

timeouts = (0.5, 2.0, 5.0)
"""Seconds that a call is given; the shortest run out whenever a leader is lost."""

max_open_calls = 8
"""Calls of one client that are not answered yet; at the limit it waits."""


class Workload:
    """What clients do, and what has to be true of the state machine when all is quiet.

    Everything random comes from the `rng` that is given, so that a seed decides it.
    """

    query_share = 0.3
    """Share of calls that are queries, where there are any."""

    model: Model | None = None
    """A model of the state machine, by which the history of all calls is judged at the end; None judges nothing."""

    def command(self, rng: random.Random) -> bytes:
        """The next command to propose; text is taken as UTF-8, as the cluster takes it."""
        raise NotImplementedError(f"{type(self).__name__} has no command(): it says what clients propose")

    def query(self, rng: random.Random) -> bytes | None:
        """The next query; None where the machine answers none."""
        return None

    def final_queries(self) -> Sequence[bytes]:
        """Queries that are asked at the end, when all is quiet; their answers belong to the history."""
        return ()

    def check(self, states: Sequence[Any]) -> None:
        """Look at the state machines of all members, in the quiet after each round of faults; raise if one is wrong.

        By then all of them have applied the same commands.
        """

    def judge(self, history: Sequence[Operation], states: Sequence[Any]) -> None:
        """Look at all calls and what came back, and at the last states, when all is over; raise if they do not fit."""


class User:
    """One client at work, from `begin` until `end`."""

    def __init__(
        self,
        world: World,
        number: int,
        client: SimulatedClient,
        *,
        workload: Workload,
        pause: float,
        rng: random.Random,
    ) -> None:
        self.number = number
        self.client = client
        self.history: list[Operation] = []
        self.calls = 0
        self._world = world
        self._workload = workload
        self._pause = pause
        self._rng = rng
        self._query_share = rng.choice((workload.query_share, workload.query_share, 0.95))  # some do little but ask
        self._open = 0
        self._round = 0

    def begin(self) -> None:
        """Make calls from now on."""
        self._round += 1
        self._next(self._round)

    def end(self) -> None:
        """Make no more; those under way go on."""
        self._round += 1

    @property
    def idle(self) -> bool:
        """Whether every call has ended."""
        return not self._open

    def _next(self, round_number: int) -> None:
        if self._round != round_number:
            return
        rng = self._rng
        if self._open < max_open_calls:
            self.call(timeout=rng.choice(timeouts))
        self._world.at(rng.expovariate(1 / self._pause), lambda: self._next(round_number))

    def call(self, *, timeout: float) -> None:
        """Make one call, chosen by the workload."""
        rng, workload = self._rng, self._workload
        if rng.random() < self._query_share:
            query = workload.query(rng)
            if query is not None:
                query = self._sent("query", query)
                consistency = Consistency.LEASE if rng.random() < 0.4 else Consistency.LINEARIZABLE
                self.ask(query, consistency, timeout=timeout)
                return
        self.propose(timeout=timeout)

    def propose(self, *, timeout: float) -> Asked:
        """Propose one command or a few."""
        count = self._rng.choice((1, 1, 1, 1, 3))
        commands = [self._sent("command", self._workload.command(self._rng)) for _ in range(count)]
        asked = self.client.propose(*commands, timeout=timeout)
        self._began(asked)
        return asked

    def ask(self, query: bytes, consistency: Consistency, *, timeout: float) -> None:
        """Make a query."""
        self._began(self.client.query(consistency, command=query, timeout=timeout))

    def _sent(self, method: str, given: object) -> bytes:
        """What the workload gave, as it is sent; raises `TypeError` that names the workload."""
        if not isinstance(given, bytes | bytearray | memoryview | str):
            name = type(self._workload).__name__
            raise TypeError(f"{name}.{method}() returned {given!r:.100}, which is no bytes (nor str, taken as UTF-8)")
        return as_bytes(given)

    # --- what became of it --------------------------------------------------------------------------------------

    def _began(self, asked: Asked) -> None:
        self.calls += 1
        self._open += 1
        if asked.done:
            self._ended(asked)
        else:
            asked.on_end = self._ended

    def _ended(self, asked: Asked) -> None:
        self._open -= 1
        is_query = asked.consistency is not None
        requests = [Query(command) if is_query else command for command in asked.commands]
        if asked.error is None:
            assert isinstance(asked.result, list)
            for request, answer in zip(requests, asked.result, strict=True):
                self._note(asked, request, unwrap(answer))
        elif not is_query and not isinstance(asked.error, NotApplied):
            for request in requests:
                self.history.append(_operation(self.number, asked, None, request, None))

    def _note(self, asked: Asked, request: bytes, answer: object) -> None:
        self.history.append(_operation(self.number, asked, asked.ended_at, request, answer))


def _operation(client: int, asked: Asked, returned: float | None, request: bytes, answer: object) -> Operation:
    return Operation(client=client, invoked=asked.asked_at, returned=returned, request=request, answer=answer)
