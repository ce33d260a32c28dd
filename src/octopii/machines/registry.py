"""A replicated service registry.

    REGISTER <name> <address> <port> [<key>=<value> ...]   -> REGISTERED; replaces an earlier entry of that name
    HEARTBEAT <name>                                       -> OK, or NOT_REGISTERED
    DEREGISTER <name>                                      -> OK, or NOT_REGISTERED
    LOOKUP <name>                                          -> <address>:<port>, or NOT_FOUND
    DESCRIBE <name>                                        -> JSON of the entry, or NOT_FOUND

Words are separated by blanks. LOOKUP and DESCRIBE also work as queries. Compaction drops services whose last heartbeat
(or registration) is more than an hour of replicated time ago; until then they are found.
"""

from collections.abc import Callable, Iterator

import msgspec

from octopii.blocks import frozen, read_blocks, spans, write_blocks
from octopii.errors import CommandError
from octopii.machines.parsing import text, unknown, whole_number, words
from octopii.state_machine import StateMachine

EXPIRY_SECONDS = 3600
"""How long a service lives without a heartbeat, unless the constructor says otherwise: an hour."""

MAX_METADATA = 64
"""Most key=value pairs of a service."""

_KIND = "registry/1"
_encoder = msgspec.json.Encoder()


class ServiceInfo(msgspec.Struct, frozen=True, array_like=True):
    """One service; `last_heartbeat` in whole UTC seconds."""

    name: str
    address: str
    port: int
    metadata: dict[str, str]
    last_heartbeat: int

    @property
    def size(self) -> int:
        """Characters of text, as a measure of what the entry weighs."""
        return len(self.name) + len(self.address) + sum(len(k) + len(v) for k, v in self.metadata.items()) + 32


_SHAPE = msgspec.msgpack.Decoder(list[ServiceInfo])


class RegistryStateMachine(StateMachine):
    """Services by name. `expiry_seconds` belongs to the replicated logic: the same on every node."""

    def __init__(self, *, expiry_seconds: float = EXPIRY_SECONDS) -> None:
        self._services: dict[str, ServiceInfo] = {}
        self._expiry_seconds = expiry_seconds

    def apply(self, command: bytes) -> bytes:
        """Run one command; raises `CommandError` and changes nothing for one that does not fit."""
        verb = command.split(None, 1)[:1]
        if verb == [b"REGISTER"]:
            return self._register(command)
        if verb == [b"HEARTBEAT"]:
            _, name = words(command, least=2, most=2, usage="HEARTBEAT <name>")
            service = self._services.get(name)
            if service is None:
                return b"NOT_REGISTERED"
            self._services[name] = msgspec.structs.replace(service, last_heartbeat=int(self.clock.now()))
            return b"OK"
        if verb == [b"DEREGISTER"]:
            _, name = words(command, least=2, most=2, usage="DEREGISTER <name>")
            return b"NOT_REGISTERED" if self._services.pop(name, None) is None else b"OK"
        return self.query(command)

    def _register(self, command: bytes) -> bytes:
        usage = "REGISTER <name> <address> <port> [<key>=<value> ...]"
        _, name, address, port, *pairs = words(command, least=4, most=4 + MAX_METADATA, usage=usage)
        metadata: dict[str, str] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not key or not equals or key in metadata:
                raise CommandError(f"metadata is <key>=<value>, each key once, not {pair[:64]!a}")
            metadata[key] = value
        number = whole_number(port, name="port", least=0, most=65_535)
        self._services[name] = ServiceInfo(name, address, number, metadata, int(self.clock.now()))
        return b"REGISTERED"

    def query(self, command: bytes) -> bytes:
        """Answer LOOKUP and DESCRIBE; raises `CommandError` for anything else."""
        parts = command.split()
        if not parts or parts[0] not in (b"LOOKUP", b"DESCRIBE"):
            raise unknown(parts[0] if parts else b"")
        if len(parts) != 2:
            raise CommandError(f"usage: {text(parts[0])} <name>")
        service = self._services.get(text(parts[1]))
        if service is None:
            return b"NOT_FOUND"
        if parts[0] == b"LOOKUP":
            return f"{service.address}:{service.port}".encode()
        return _encoder.encode(msgspec.structs.asdict(service))

    def compact(self) -> None:
        """Drop services whose last heartbeat is too old."""
        cutoff = self.clock.now() - self._expiry_seconds
        self._services = {name: info for name, info in self._services.items() if info.last_heartbeat >= cutoff}

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Return a frozen view: entries are replaced, never changed."""
        services = frozen(self._services.values())

        def size_of(start: int, end: int) -> int:
            return sum(service.size for service in services[start:end])

        def encode() -> Iterator[bytes]:
            return write_blocks(_KIND, (services[start:end] for start, end in spans(len(services), size_of)))

        return encode

    def restore(self, data: memoryview) -> None:
        """Replace all services; raises `ValueError` and changes nothing when the snapshot is not sound."""
        services: dict[str, ServiceInfo] = {}
        count = 0
        for block in read_blocks(_KIND, data, _SHAPE):
            services.update((service.name, service) for service in block)
            count += len(block)
        if len(services) != count:
            raise ValueError(f"{_KIND} snapshot has services twice")
        self._services = services
