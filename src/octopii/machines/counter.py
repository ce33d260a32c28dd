"""Replicated counters.

    INC <name> [<delta>]   -> the new value; delta is 1 unless given, and may be negative
    GET <name>             -> the value, 0 for a counter that was never counted    (as a command or as a query)

Words are separated by blanks. A value that would leave 64 signed bits is refused by `CommandError`, as is everything
else that does not fit; the counter then keeps its value.
"""

from collections.abc import Callable, Iterator

import msgspec

from octopii.blocks import frozen, read_blocks, spans, write_blocks
from octopii.errors import CommandError
from octopii.machines.parsing import text, unknown, whole_number
from octopii.state_machine import StateMachine

LEAST = -(1 << 63)
MOST = (1 << 63) - 1

_KIND = "counter/1"
_SHAPE = msgspec.msgpack.Decoder(tuple[list[bytes], list[int]])


class CounterStateMachine(StateMachine):
    """Counters by name (bytes without blanks)."""

    def __init__(self) -> None:
        self._counters: dict[bytes, int] = {}

    def apply(self, command: bytes) -> bytes:
        """Run one command; raises `CommandError` and changes nothing for one that does not fit."""
        parts = command.split()
        if not parts or parts[0] != b"INC":
            return self.query(command)
        if len(parts) not in (2, 3):
            raise CommandError("usage: INC <name> [<delta>]")
        delta = 1
        if len(parts) == 3:
            delta = whole_number(text(parts[2]), name="delta", least=LEAST, most=MOST)
        value = self._counters.get(parts[1], 0) + delta
        if not LEAST <= value <= MOST:
            raise CommandError(f"the counter would leave 64 bits: {value}")
        self._counters[parts[1]] = value
        return b"%d" % value

    def query(self, command: bytes) -> bytes:
        """Answer GET; raises `CommandError` for anything else."""
        parts = command.split()
        if not parts or parts[0] != b"GET":
            raise unknown(parts[0] if parts else b"")
        if len(parts) != 2:
            raise CommandError("usage: GET <name>")
        return b"%d" % self._counters.get(parts[1], 0)

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Return a frozen view."""
        names = frozen(self._counters)
        values = frozen(self._counters.values())

        def size_of(start: int, end: int) -> int:
            return sum(map(len, names[start:end])) + 10 * (end - start)

        def encode() -> Iterator[bytes]:
            cuts = spans(len(names), size_of)
            return write_blocks(_KIND, ((names[start:end], values[start:end]) for start, end in cuts))

        return encode

    def restore(self, data: memoryview) -> None:
        """Replace all counters; raises `ValueError` and changes nothing when the snapshot is not sound."""
        counters: dict[bytes, int] = {}
        count = 0
        for names, values in read_blocks(_KIND, data, _SHAPE):
            if len(names) != len(values):
                raise ValueError(f"{_KIND} snapshot has a block of {len(names)} names and {len(values)} values")
            if values and not (min(values) >= LEAST and max(values) <= MOST):
                raise ValueError(f"{_KIND} snapshot has a value beyond 64 bits")
            counters.update(zip(names, values))
            count += len(names)
        if len(counters) != count:
            raise ValueError(f"{_KIND} snapshot has names twice")
        self._counters = counters
