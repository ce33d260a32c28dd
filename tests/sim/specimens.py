"""State machines and workloads for the tests of the simulator: a right one, and some that are wrong in known ways."""

import random
from collections.abc import Sequence

import msgspec

from octopii.machines import CounterStateMachine
from octopii.sim import Workload
from octopii.state_machine import StateMachine


class Transfers(Workload):
    """Moves amounts between two counters, in two steps of one call, and looks at both."""

    def command(self, rng: random.Random) -> bytes:
        """Count one of three names up."""
        return b"INC name-%d" % rng.randrange(3)

    def query(self, rng: random.Random) -> bytes:
        """Look at one of them."""
        return b"GET name-%d" % rng.randrange(3)


class Forgetful(CounterStateMachine):
    """Its snapshot leaves a counter out."""

    def restore(self, data: memoryview) -> None:
        """Restore all counters but one."""
        super().restore(data)
        self._counters.pop(b"name-1", None)


class Fickle(StateMachine):
    """Its answers depend on how often this instance was asked, which a restart forgets."""

    def __init__(self) -> None:
        self.count = 0
        self.asked = 0

    def apply(self, command: bytes) -> bytes:
        """Count, and tell what no other replica can know."""
        self.count += 1
        self.asked += 1
        return b"%d" % self.asked

    def snapshot(self) -> bytes:
        """The count alone."""
        return msgspec.msgpack.encode(self.count)

    def restore(self, data: memoryview) -> None:
        """Take the count over."""
        self.count = msgspec.msgpack.decode(data, type=int)


class Counting(Workload):
    """Counts, and says in the quiet what it has seen."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def command(self, rng: random.Random) -> bytes:
        """Count."""
        return b"count"

    def check(self, states: Sequence[Fickle]) -> None:
        """All have counted alike."""
        counts = {state.count for state in states}
        assert len(counts) == 1, counts
        self.seen += counts


class NeverRight(Transfers):
    """A check that no state passes."""

    def check(self, states: Sequence[CounterStateMachine]) -> None:
        """Never satisfied."""
        raise AssertionError("the books do not balance")
