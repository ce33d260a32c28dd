"""Snapshots as a base and the commands since: cheap while the state is large and little of it changes.

Wraps any machine. Most snapshots repeat the last base byte for byte and add the commands that came since, with the
place in the log and the time that each had; restoring replays them. When the commands outgrow their limits, the next
snapshot takes a new base.

What it costs: the base and the commands since are kept in memory, so memory doubles, and a restore takes the time of
the replay. It suits a machine whose own snapshot is slow to make and whose commands are small.
"""

from collections.abc import Callable, Iterator

import msgspec

from octopii.blocks import read_blocks, spans, write_blocks
from octopii.machines.nested import read_nested, write_nested
from octopii.state_machine import Buffer, Clock, ClockDriver, Place, SnapshotSource, StateMachine, restore_snapshot

MAX_DELTAS = 10_000
"""Commands after which a new base is taken, unless the constructor says otherwise."""

MAX_DELTA_BYTES = 16 << 20
"""Bytes of commands after which a new base is taken, unless the constructor says otherwise."""

_KIND = "deltas/1"


class Delta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One command since the base, or a compaction where `command` is None."""

    command: bytes | None
    place: Place


_SHAPE = msgspec.msgpack.Decoder(list[Delta])


class IncrementalStateMachine(StateMachine):
    """Wraps the machine that `factory` makes. Answers are the inner machine's; only snapshots differ.

    When a base is taken is each replica's own affair, so equal states may have different snapshots.
    """

    def __init__(
        self,
        factory: Callable[[], StateMachine],
        *,
        max_deltas: int = MAX_DELTAS,
        max_delta_bytes: int = MAX_DELTA_BYTES,
    ) -> None:
        self._factory = factory
        self._max_deltas = max_deltas
        self._max_delta_bytes = max_delta_bytes
        self._inner = factory()
        self._inner.use_clock(self.clock)
        self.command_version = self._inner.command_version
        self._base: list[bytes] | None = None
        self._deltas: list[Delta] = []
        self._delta_bytes = 0

    @property
    def inner(self) -> StateMachine:
        """The wrapped machine, for looking at; another object after each `restore`."""
        return self._inner

    def digest(self) -> Buffer | None:
        """That of the machine inside."""
        return self._inner.digest()

    def use_clock(self, clock: Clock) -> None:
        """Follow `clock`, the inner machine included."""
        super().use_clock(clock)
        self._inner.use_clock(clock)

    def apply(self, command: bytes) -> bytes:
        """Pass the command on. One that raises is remembered as well: it may have changed something first."""
        self._remember(command)
        return self._inner.apply(command)

    def query(self, command: bytes) -> bytes:
        """Pass the query on."""
        return self._inner.query(command)

    def compact(self) -> None:
        """Compact the inner machine."""
        self._remember(None)
        self._inner.compact()

    def _remember(self, command: bytes | None) -> None:
        if self._base is None:
            return
        self._delta_bytes += len(command or b"")
        if len(self._deltas) >= self._max_deltas or self._delta_bytes > self._max_delta_bytes:
            self._forget_base()
        else:
            self._deltas.append(Delta(command, self.clock.place))

    def _forget_base(self) -> None:
        self._base, self._deltas, self._delta_bytes = None, [], 0

    def snapshot(self) -> Callable[[], Iterator[memoryview | bytes]]:
        """Return base and commands since as a frozen view; takes a new base first when there is none."""
        if self._base is None:
            self._base = [bytes(chunk) for chunk in SnapshotSource(self._inner.snapshot())]
        base, version = self._base, self._inner.snapshot_version
        deltas, count = self._deltas, len(self._deltas)

        def size_of(start: int, end: int) -> int:
            return sum(64 + len(delta.command or b"") for delta in deltas[start:end])

        def encode() -> Iterator[memoryview | bytes]:
            blocks = write_blocks(_KIND, (deltas[start:end] for start, end in spans(count, size_of)))
            return write_nested([("base", version, base), ("deltas", 1, blocks)])

        return encode

    def restore(self, data: memoryview) -> None:
        """Restore the base and replay the commands; raises `ValueError` or what the inner machine raises."""
        parts = read_nested(data)
        if parts.keys() != {"base", "deltas"}:
            raise ValueError(f"not a snapshot with a base and what came since, but one of {sorted(parts)!a}")
        version, base = parts["base"]
        inner = self._factory()
        restore_snapshot(inner, version=version, data=base)
        driver = ClockDriver(inner)
        for block in read_blocks(_KIND, parts["deltas"][1], _SHAPE):
            for delta in block:
                driver.go(delta.place)
                _replay(inner, delta.command)
        inner.use_clock(self.clock)
        self._inner = inner
        self._forget_base()


def _replay(machine: StateMachine, command: bytes | None) -> None:
    if command is None:
        machine.compact()
        return
    try:
        machine.apply(command)
    except (OSError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - it raised the first time as well, and was answered then
        return
