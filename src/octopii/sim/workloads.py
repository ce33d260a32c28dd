"""Workloads of the machines that come with the package, each with the model that judges its history."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from octopii.machines import CounterStateMachine, KvStateMachine, RegistryStateMachine
from octopii.sim.models import CounterModel, KvModel, RegistryModel
from octopii.sim.workload import Workload
from octopii.state_machine import StateMachine


class KvWorkload(Workload):
    """Writes, reads and deletes a few keys; each value is written once, so that a read tells which write it saw."""

    model = KvModel()

    def __init__(self, *, keys: int = 8) -> None:
        self._keys = [b"key-%d" % number for number in range(keys)]
        self._written = 0

    def command(self, rng: random.Random) -> bytes:
        """SET most often, now and then DELETE and GET."""
        key = rng.choice(self._keys)
        kind = rng.random()
        if kind < 0.1:
            return b"DELETE " + key
        if kind < 0.2:
            return b"GET " + key
        self._written += 1
        filler = b"." * rng.choice((0, 0, 10, 200, 2000))
        return b"SET %b value-%d%b" % (key, self._written, filler)

    def query(self, rng: random.Random) -> bytes:
        """GET one of the keys."""
        return b"GET " + rng.choice(self._keys)

    def final_queries(self) -> Sequence[bytes]:
        """GET all keys."""
        return [b"GET " + key for key in self._keys]


class CounterWorkload(Workload):
    """Counts a few counters up and down: a call that is lost, or applied twice, shows in every answer behind it."""

    model = CounterModel()
    _names = tuple(b"counter-%d" % number for number in range(4))

    def command(self, rng: random.Random) -> bytes:
        """INC by a small number."""
        return b"INC %b %d" % (rng.choice(self._names), rng.choice((-2, 1, 3)))

    def query(self, rng: random.Random) -> bytes:
        """GET one of them."""
        return b"GET " + rng.choice(self._names)

    def final_queries(self) -> Sequence[bytes]:
        """GET all of them."""
        return [b"GET " + name for name in self._names]


class RegistryWorkload(Workload):
    """Services that come, move and go."""

    model = RegistryModel()
    _names = tuple(b"service-%d" % number for number in range(5))

    def __init__(self) -> None:
        self._registered = 0

    def command(self, rng: random.Random) -> bytes:
        """REGISTER most often, DEREGISTER, HEARTBEAT."""
        name = rng.choice(self._names)
        kind = rng.random()
        if kind < 0.15:
            return b"DEREGISTER " + name
        if kind < 0.3:
            return b"HEARTBEAT " + name
        self._registered += 1
        return b"REGISTER %b 10.0.0.%d %d" % (name, self._registered % 250, 1024 + self._registered)

    def query(self, rng: random.Random) -> bytes:
        """LOOKUP one of them."""
        return b"LOOKUP " + rng.choice(self._names)

    def final_queries(self) -> Sequence[bytes]:
        """LOOKUP all of them."""
        return [b"LOOKUP " + name for name in self._names]


class NextKvStateMachine(KvStateMachine):
    """Version 2 of the key-value machine, for rolling upgrades: the same commands, another format of snapshots."""

    snapshot_version = 2
    _mark = b"next/"

    def snapshot(self) -> Callable[[], Any]:
        """The snapshot of version 1 behind a mark."""
        encode = super().snapshot()

        def marked() -> Any:
            yield self._mark
            yield from encode()

        return marked

    def restore(self, data: memoryview) -> None:
        """Replace everything by a snapshot of version 2."""
        if bytes(data[: len(self._mark)]) != self._mark:
            raise ValueError("not a snapshot of version 2")
        super().restore(data[len(self._mark) :])

    def migrate(self, version: int, data: memoryview) -> bytes:
        """Put the mark before a snapshot of version 1."""
        if version != 1:
            return super().migrate(version, data)  # type: ignore[return-value]
        return self._mark + bytes(data)


WORKLOADS: tuple[tuple[type[StateMachine], Callable[[], Workload]], ...] = (
    (KvStateMachine, KvWorkload),
    (CounterStateMachine, CounterWorkload),
    (RegistryStateMachine, RegistryWorkload),
)
"""Which machine is given what to do."""


def default_workload(machine: Callable[[], StateMachine]) -> Callable[[], Workload] | None:
    """The workload of a machine that comes with the package, or of one that derives from it, or None."""
    made = machine()
    return next((workload for kind, workload in WORKLOADS if isinstance(made, kind)), None)
