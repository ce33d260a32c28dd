"""State machines and workloads for the tests of the simulator: a right one, and some that are wrong in known ways."""

import random
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from octopii import CommandError, TypedStateMachine, command, query
from octopii.machines import CounterStateMachine
from octopii.sim import MachineModel, Model, Workload
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


class SoldOut(CommandError):
    """Nobody can take more than there is."""

    def __init__(self, item: str, left: int) -> None:
        super().__init__(f"{left} of {item} are left")
        self.item = item
        self.left = left


class Stock(TypedStateMachine):
    """A typed machine: commands that call one another, a query, an error that it declares, a field by `__init__`."""

    errors = (SoldOut,)
    counts: dict[str, int]

    def __init__(self) -> None:
        self.last_change: float = 0.0

    @command
    def add(self, item: str, count: int = 1) -> int:
        """More of an item."""
        self.counts[item] = self.counts.get(item, 0) + count
        self.last_change = self.clock.now()
        return self.counts[item]

    @command
    def take(self, item: str, count: int = 1) -> int:
        """Less of an item; raises `SoldOut`."""
        if self.counts.get(item, 0) < count:
            raise SoldOut(item, self.counts.get(item, 0))
        return self.add(item, -count)

    @query
    def count(self, item: str) -> int:
        """How many there are."""
        return self.counts.get(item, 0)


class NextStock(Stock):
    """Its next version has one more command and one more field."""

    returned: dict[str, int]

    @command(since=2)
    def give_back(self, item: str) -> int:
        """One was returned."""
        self.returned[item] = self.returned.get(item, 0) + 1
        return self.add(item)


class Restocking(Workload):
    """Adds, takes more than there may be, and counts."""

    model: Model | None = MachineModel(Stock)

    def command(self, rng: random.Random) -> bytes:
        """Add or take a few."""
        method = Stock.add if rng.random() < 0.5 else Stock.take
        return method.encode(rng.choice("abc"), count=rng.randrange(1, 4))

    def query(self, rng: random.Random) -> bytes:
        """Count one item."""
        return Stock.count.encode(rng.choice("abc"))


class Returning(Restocking):
    """Calls the command of the next version, too, whether it is there yet or not; `returned` is what was seen at last.

    It is of the class, because each run makes a workload of its own.
    """

    model = None
    returned: ClassVar[list[int]] = []

    def command(self, rng: random.Random) -> bytes:
        """Now and then something is given back."""
        return NextStock.give_back.encode("a") if rng.random() < 0.5 else super().command(rng)

    def check(self, states: Sequence[Stock]) -> None:
        """Note how much was given back."""
        self.returned[:] = [sum(state.returned.values()) for state in states if isinstance(state, NextStock)]


class Choosy(Workload):
    """Cannot be made without being told what to say."""

    def __init__(self, words: list[bytes]) -> None:
        self.words = words


class Slotted(StateMachine):
    """Takes no attribute but its own."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __setattr__(self, name: str, value: object) -> None:
        if name != "count":
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        super().__setattr__(name, value)

    def apply(self, command: bytes) -> bytes:
        """Count."""
        self.count += 1
        return b"%d" % self.count

    def snapshot(self) -> bytes:
        """The count."""
        return msgspec.msgpack.encode(self.count)

    def restore(self, data: memoryview) -> None:
        """Take the count over."""
        self.count = msgspec.msgpack.decode(data, type=int)
