r"""A replicated, append-only event log for audit trails. Parts are separated by tabs (shown as \t).

    LOG\t<user>\t<action>\t<details>   -> the event's id; ids count from 1, details may hold tabs
    QUERY\t<start id>[\t<limit>]       -> JSON list of events with that id or a later one, oldest first
                                          (as a command or as a query)

An event's timestamp is replicated time in whole UTC seconds. Events are never changed or dropped. An answer has at most
`limit` events (100 unless given) and ends early at about a million characters: to read on, ask from the last id + 1.
"""

from collections.abc import Callable, Iterator

import msgspec

from octopii.blocks import read_blocks, spans, write_blocks
from octopii.errors import CommandError
from octopii.machines.parsing import text, unknown, whole_number
from octopii.state_machine import StateMachine

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
"""Most events that a query may ask for."""

MAX_ANSWER_CHARACTERS = 1 << 20
"""Characters of text after which an answer ends; the first event is always in."""

MAX_ID = (1 << 63) - 1

_KIND = "event-log/1"
_encoder = msgspec.json.Encoder()


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event; `timestamp` in UTC seconds."""

    id: int
    timestamp: int
    user: str
    action: str
    details: str

    @property
    def size(self) -> int:
        """Characters of text, as a measure of what the event weighs."""
        return len(self.user) + len(self.action) + len(self.details) + 32


_SHAPE = msgspec.msgpack.Decoder(list[Event])


class EventLogStateMachine(StateMachine):
    """Events with dense ids from 1: the event with id n is at position n - 1."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def apply(self, command: bytes) -> bytes:
        """Run one command; raises `CommandError` and changes nothing for one that does not fit."""
        parts = command.split(b"\t", 3)
        if parts[0] != b"LOG":
            return self.query(command)
        if len(parts) != 4:
            raise CommandError(r"usage: LOG\t<user>\t<action>\t<details>")
        user, action, details = map(text, parts[1:])
        event = Event(len(self._events) + 1, int(self.clock.now()), user, action, details)
        self._events.append(event)
        return b"%d" % event.id

    def query(self, command: bytes) -> bytes:
        """Answer QUERY; raises `CommandError` for anything else."""
        parts = command.split(b"\t")
        if parts[0] != b"QUERY":
            raise unknown(parts[0])
        if len(parts) not in (2, 3):
            raise CommandError(r"usage: QUERY\t<start id>[\t<limit>]")
        start = whole_number(text(parts[1]), name="start id", least=0, most=MAX_ID)
        limit = DEFAULT_LIMIT
        if len(parts) == 3:
            limit = whole_number(text(parts[2]), name="limit", least=0, most=MAX_LIMIT)
        low = max(start - 1, 0)
        page: list[dict[str, object]] = []
        room = MAX_ANSWER_CHARACTERS
        for event in self._events[low : low + limit]:
            room -= event.size
            if page and room < 0:
                break
            page.append(msgspec.structs.asdict(event))
        return _encoder.encode(page)

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Return a frozen view, at no cost: events and their order never change, only later ones are added."""
        events = self._events
        count = len(events)

        def size_of(start: int, end: int) -> int:
            return sum(event.size for event in events[start:end])

        def encode() -> Iterator[bytes]:
            return write_blocks(_KIND, (events[start:end] for start, end in spans(count, size_of)))

        return encode

    def restore(self, data: memoryview) -> None:
        """Replace all events; raises `ValueError` and changes nothing when the snapshot is not sound."""
        events: list[Event] = []
        for block in read_blocks(_KIND, data, _SHAPE):
            for expected, event in enumerate(block, start=len(events) + 1):
                if event.id != expected:
                    raise ValueError(f"{_KIND} snapshot has event {event.id} where {expected} belongs")
            events += block
        self._events = events
