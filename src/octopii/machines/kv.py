"""A replicated key-value store: the machine that a server runs when it is given no other.

    SET <key> <value>   -> OK
    GET <key>           -> the value, or NOT_FOUND      (as a command or, cheaper, as a query)
    DELETE <key>        -> OK, or NOT_FOUND when there was none

One space separates the parts. A key is one or more bytes other than the space. A value is everything behind the second
space, byte for byte: it may hold spaces, line breaks and zero bytes, and may be empty. (So the answer to GET of a key
whose value is the text NOT_FOUND is not to be told from a missing key.) Verbs are upper case. Anything else is refused
by `CommandError`.
"""

from collections.abc import Callable, Iterator

import msgspec

from octopii.blocks import frozen, read_blocks, spans, write_blocks
from octopii.errors import CommandError
from octopii.state_machine import StateMachine

_KIND = "kv/1"
_OK = b"OK"
_NOT_FOUND = b"NOT_FOUND"
_SHAPE = msgspec.msgpack.Decoder(tuple[list[bytes], list[bytes]])


class KvStateMachine(StateMachine):
    """Keys and values of bytes; memory is that of the live keys and values.

    A snapshot lists the pairs in the order of first insertion, so replicas in the same state write the same bytes.
    """

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        """Count the keys."""
        return len(self._values)

    def apply(self, command: bytes) -> bytes:
        """Run one command; raises `CommandError` for one that is not as the module says, changing nothing."""
        parts = command.split(b" ", 2)
        verb = parts[0]
        if verb == b"SET":
            if len(parts) == 3 and parts[1]:
                self._values[parts[1]] = parts[2]
                return _OK
            raise CommandError("SET takes a key and a value: SET <key> <value>")
        if verb == b"DELETE":
            if self._values.pop(_only_key(parts), None) is None:
                return _NOT_FOUND
            return _OK
        return self._get(parts)

    def query(self, command: bytes) -> bytes:
        """Answer GET; raises `CommandError` for anything else."""
        return self._get(command.split(b" ", 2))

    def _get(self, parts: list[bytes]) -> bytes:
        if parts[0] != b"GET":
            raise CommandError(f"unknown command {parts[0][:32].decode('ascii', 'backslashreplace')!r}")
        return self._values.get(_only_key(parts), _NOT_FOUND)

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Freeze references to keys and values (about 20 ns a pair) and return the function that encodes them."""
        keys = frozen(self._values)
        values = frozen(self._values.values())

        def size_of(start: int, end: int) -> int:
            return sum(map(len, keys[start:end])) + sum(map(len, values[start:end]))

        def encode() -> Iterator[bytes]:
            cuts = spans(len(keys), size_of)
            return write_blocks(_KIND, ((keys[start:end], values[start:end]) for start, end in cuts))

        return encode

    def restore(self, data: memoryview) -> None:
        """Replace all pairs; raises `ValueError`, changing nothing, when the snapshot is damaged or of another kind."""
        values: dict[bytes, bytes] = {}
        count = 0
        for block_keys, block_values in read_blocks(_KIND, data, _SHAPE):
            if len(block_keys) != len(block_values):
                raise ValueError(f"{_KIND} snapshot has a block of {len(block_keys)} keys, {len(block_values)} values")
            values.update(zip(block_keys, block_values))
            count += len(block_keys)
        if len(values) != count:
            raise ValueError(f"{_KIND} snapshot has keys twice")
        self._values = values


def _only_key(parts: list[bytes]) -> bytes:
    if len(parts) != 2 or not parts[1]:
        verb = parts[0].decode("ascii")
        raise CommandError(f"{verb} takes one key without spaces: {verb} <key>")
    return parts[1]
