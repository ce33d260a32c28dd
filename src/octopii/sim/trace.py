"""What happened in a simulated world: a digest of every event, and the last events of each machine.

The digest is an XXH3-64 over (time, machine, kind, bytes) of all events in order. Two runs of one seed have the same
digest, whatever process they run in: a difference means that something which no seed decides has crept in.
"""

import struct
from collections import deque

import msgspec
import xxhash

events_kept = 16
"""Last events of each machine that a story can tell; a story is to be read by a person."""

_HEAD = struct.Struct("<dqI")


class Event(msgspec.Struct, frozen=True):
    """One event of a machine (0: the world itself); `detail` is text, or the bytes that went in or out."""

    time: float
    node: int
    kind: str
    detail: str | bytes


class Trace:
    """Everything that happened, as one number, and the end of it in detail."""

    def __init__(self) -> None:
        self.count = 0
        self._digest = xxhash.xxh3_64()
        self._last: dict[int, deque[tuple[float, int, str, str | bytes]]] = {}

    def note(self, time: float, node: int, kind: str, detail: str | bytes = b"", *, quiet: bool = False) -> None:
        """Something happened; what is `quiet` counts in the digest and is not told."""
        self.count += 1
        data = detail.encode() if isinstance(detail, str) else detail
        update = self._digest.update
        update(_HEAD.pack(time, node, len(data)))
        update(kind.encode())
        update(data)
        if not quiet:
            last = self._last.get(node)
            if last is None:
                last = self._last[node] = deque(maxlen=events_kept)
            last.append((time, node, kind, detail))

    @property
    def digest(self) -> str:
        """The digest of all events so far, in hexadecimal."""
        return self._digest.hexdigest()

    def last_events(self) -> dict[int, list[Event]]:
        """The last events of each machine, oldest first."""
        return {node: [Event(*event) for event in events] for node, events in sorted(self._last.items())}
