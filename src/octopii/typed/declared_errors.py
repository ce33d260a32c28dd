"""Exceptions of the user's own that travel from `apply` or `query` to the caller as themselves.

    class OutOfStock(CommandError):
        def __init__(self, sku: str, left: int) -> None:
            super().__init__(f"only {left} of {sku} are left")
            self.sku, self.left = sku, left

    class Inventory(TypedStateMachine):
        errors = (OutOfStock,)

What travels is the class's name, the text, and the arguments that the exception was made with, as MessagePack checked
against the annotations of `__init__`. The caller makes the exception anew from them. Where that is not possible (the
caller's program does not declare it, or its `__init__` has changed) the caller gets a `CommandError` with the text.
"""

from typing import Any

import msgspec

from octopii.errors import CommandError
from octopii.typed.arguments import Arguments

MAX_ARGUMENTS_BYTES = 64 << 10
"""Most bytes of an exception's arguments: it is kept in a session like any answer. With more, only its text travels."""

MAX_NAME_CHARACTERS = 200
"""Longest name of a declared error."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decode_list = msgspec.msgpack.Decoder(list[Any]).decode


class DeclaredError:
    """The codec of one exception class."""

    def __init__(self, kind: type[CommandError]) -> None:
        """Raises `TypeError` for a class that is no `CommandError`, or whose `__init__` takes what cannot travel."""
        if not isinstance(kind, type) or not issubclass(kind, CommandError) or kind is CommandError:
            raise TypeError(f"a declared error is a subclass of CommandError, not {kind!r}")
        if len(kind.__name__) > MAX_NAME_CHARACTERS:
            raise TypeError(f"the name {kind.__name__[:20]}... has more than {MAX_NAME_CHARACTERS} characters")
        self._kind = kind
        # Without an `__init__` of its own it takes anything, as exceptions do.
        plain = kind.__init__ is CommandError.__init__
        self._arguments = None if plain else Arguments(kind.__init__, name=kind.__name__, annotated=False)

    def declare(self, error: CommandError) -> None:
        """Note on an exception what travels of it; one whose arguments cannot travel stays a plain `CommandError`."""
        args, kwargs = error.made_with
        try:
            payload = self._arguments.encode(args, kwargs) if self._arguments is not None else _encoder.encode(args)
        except TypeError:
            return
        if len(payload) <= MAX_ARGUMENTS_BYTES:
            error.declared = (self._kind.__name__, payload)

    def decode(self, error: CommandError) -> CommandError:
        """Make the exception anew; returns `error` itself where that is not possible."""
        assert error.declared is not None
        payload = error.declared[1]
        try:
            if self._arguments is None:
                return self._kind(*_decode_list(payload))
            args, kwargs = self._arguments.decode(msgspec.Raw(payload))
            return self._kind(*args, **kwargs)
        except Exception:  # noqa: BLE001  (an `__init__` that does not take what it once took: the text has to do)
            return error


def declared_errors(owner: str, kinds: object) -> dict[str, DeclaredError]:
    """The codecs of a class's `errors` by name; raises `TypeError`, which begins with `owner`, for unfit ones."""
    if not isinstance(kinds, tuple):
        raise TypeError(f"{owner}.errors is a tuple of exception classes, not {kinds!r}")
    codecs: dict[str, DeclaredError] = {}
    for kind in kinds:
        try:
            codec = DeclaredError(kind)
        except TypeError as error:
            raise TypeError(f"{owner}.errors: {error}") from None
        if kind.__name__ in codecs:
            raise TypeError(f"{owner}.errors has two classes named {kind.__name__}: the name is what travels")
        codecs[kind.__name__] = codec
    return codecs
