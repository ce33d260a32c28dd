"""A state machine that remembers everything, and the record of what all replicas applied, which have to agree.

Each command is a name. The machine keeps all names in order, and mixes the replicated clock and random numbers into a
digest, so that any difference between two replicas shows at the first command that differs.
"""

import hashlib
from collections.abc import Callable, Iterator

import msgspec

from octopii.errors import CommandError
from octopii.state_machine import StateMachine


class Ledger:
    """What was applied anywhere, by place in the log: every replica, and every replay, has to apply the same there."""

    def __init__(self) -> None:
        self.applied: dict[tuple[int, int], tuple[bytes, str]] = {}
        self.compacted: dict[int, float] = {}

    def note(self, place: tuple[int, int], command: bytes, digest: str) -> None:
        """A machine has applied a command; raises `AssertionError` when another one applied something else there."""
        known = self.applied.setdefault(place, (command, digest))
        assert known == (command, digest), f"at {place} one replica applied {known}, another {(command, digest)}"

    def note_compaction(self, index: int, time: float) -> None:
        """A machine has compacted."""
        known = self.compacted.setdefault(index, time)
        assert known == time, f"entry {index} was compacted at {known} on one replica and at {time} on another"


class JournalState(msgspec.Struct):
    """The whole state."""

    names: list[bytes]
    digest: str
    compactions: int
    filler: bytes


class Journal(StateMachine):
    """Appends each command to a list; the answer is its position. `refuse...` is refused, `raise...` raises."""

    def __init__(self, ledger: Ledger, *, filler: int = 0, frozen: bool = True) -> None:
        self.state = JournalState([], "", 0, bytes(filler))
        self._ledger = ledger
        self._frozen = frozen
        self.trouble: Callable[[bytes], None] | None = None
        self.snapshot_trouble: Callable[[], None] | None = None
        self.last_time = 0.0

    def apply(self, command: bytes) -> bytes:
        """Append; the answer is the position."""
        if self.trouble is not None:
            self.trouble(command)
        now = self.clock.now()
        assert now >= self.last_time, f"replicated time went back from {self.last_time} to {now}"
        self.last_time = now
        if command.startswith(b"refuse"):
            raise CommandError("refused, as asked")
        if command.startswith(b"raise"):
            raise KeyError(command.decode())
        state = self.state
        place = self.clock.place
        mixed = f"{state.digest}|{command!r}|{now!r}|{self.rng.random()!r}"
        state.digest = hashlib.blake2b(mixed.encode(), digest_size=8).hexdigest()
        state.names.append(command)
        self._ledger.note((place.index, place.position), command, state.digest)
        return b"%d" % len(state.names)

    def query(self, command: bytes) -> bytes:
        """How many commands were applied."""
        return b"%d" % len(self.state.names)

    def compact(self) -> None:
        """Count compactions."""
        self.state.compactions += 1
        self._ledger.note_compaction(self.clock.index, self.clock.now())

    def snapshot(self) -> bytes | Iterator[bytes]:
        """The whole state, in one piece or in small ones."""
        if self.snapshot_trouble is not None:
            self.snapshot_trouble()
        data = msgspec.msgpack.encode(self.state)
        if self._frozen:
            return data
        return (data[start : start + 4096] for start in range(0, len(data), 4096))

    def restore(self, data: memoryview) -> None:
        """Take the state over."""
        self.state = msgspec.msgpack.decode(data, type=JournalState)
        self.last_time = 0.0
