"""Several state machines behind one log.

    machine = CompositeStateMachine({"kv": KvStateMachine, "hits": CounterStateMachine})

    kv:SET color blue      -> goes to the machine named "kv" as SET color blue
    hits:INC home          -> goes to "hits" as INC home

The name is everything before the first colon. Commands of all parts share one order, so a program can rely on what it
saw in one part when it writes to another. A part that is added later starts empty; one that is taken away makes earlier
snapshots unreadable, on purpose.
"""

from collections.abc import Callable, Mapping

from octopii.errors import CommandError
from octopii.machines.nested import NestedSnapshot, digest_of, nested_snapshot, read_nested, restore_into
from octopii.state_machine import Buffer, Clock, StateMachine


class CompositeStateMachine(StateMachine):
    """Routes commands and queries by name. It takes factories (classes, say), so that `restore` can start afresh."""

    def __init__(self, factories: Mapping[str, Callable[[], StateMachine]]) -> None:
        """Make the parts; raises `ValueError` for a name that is empty, not ASCII, or holds a colon."""
        for name in factories:
            if not name or not name.isascii() or ":" in name:
                raise ValueError(f"a part's name is ASCII without a colon, not {name!r}")
        self._factories = dict(factories)
        self._parts = self._new_parts()
        self.command_version = max((part.command_version for part in self._parts.values()), default=1)

    def __getitem__(self, name: str) -> StateMachine:
        """Return the part of that name, for looking at; another object after each `restore`."""
        return self._parts[name]

    def _new_parts(self) -> dict[str, StateMachine]:
        parts = {name: factory() for name, factory in self._factories.items()}
        for part in parts.values():
            part.use_clock(self.clock)
        return parts

    def _route(self, command: bytes) -> tuple[StateMachine, bytes]:
        name, colon, rest = command.partition(b":")
        part = self._parts.get(name.decode("ascii", "replace")) if colon else None
        if part is None:
            raise CommandError(f"no part is named {name[:32].decode('ascii', 'backslashreplace')!a}")
        return part, rest

    def digest(self) -> Buffer | None:
        """The digests of all parts that have one."""
        return digest_of(self._parts.values())

    def use_clock(self, clock: Clock) -> None:
        """Follow `clock`, parts included."""
        super().use_clock(clock)
        for part in self._parts.values():
            part.use_clock(clock)

    def apply(self, command: bytes) -> bytes:
        """Pass the command on; raises `CommandError` for an unknown part, and what the part raises."""
        part, rest = self._route(command)
        return part.apply(rest)

    def query(self, command: bytes) -> bytes:
        """Pass the query on; raises as `apply` does."""
        part, rest = self._route(command)
        return part.query(rest)

    def compact(self) -> None:
        """Compact every part."""
        for part in self._parts.values():
            part.compact()

    def snapshot(self) -> NestedSnapshot:
        """Take the snapshots of all parts at one index."""
        return nested_snapshot(self._parts)

    def restore(self, data: memoryview) -> None:
        """Replace all parts or, raising what one of them raises, none."""
        parts = self._new_parts()
        restore_into(parts, read_nested(data))
        self._parts = parts
