"""The codec of a signature: arguments to a MessagePack array and back, checked against the annotations."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec

from octopii.typed.types import hints_of, require_plain

# Sets and dicts come out sorted: their order differs between processes, and what is encoded may be compared.
_encoder = msgspec.msgpack.Encoder(order="deterministic")


class Arguments:
    """How the arguments of one function travel; `name` stands in the errors.

    A parameter may be added at the end, with a default: arrays that end before it are filled in with the default.
    """

    def __init__(self, function: Callable[..., Any], *, name: str, annotated: bool = True) -> None:
        """Look at the signature, without its first parameter; raises `TypeError` for one that cannot travel.

        With `annotated`, each parameter has to have an annotation; without, those that have none take anything.
        """
        self._function = function
        self._name = name
        parameters = list(inspect.signature(function).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"{name}(): *{parameter.name} cannot be a parameter: it has no fixed place")
            if annotated and parameter.annotation is parameter.empty:
                raise TypeError(f"{name}(): parameter {parameter.name} needs a type annotation")
        self.signature = inspect.Signature(parameters)
        self._keyword_only = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        self._decode: Callable[[bytes | msgspec.Raw], Any] | None = None

    @property
    def types(self) -> dict[str, Any]:
        """The parameters' types by name, in order; raises `TypeError` for one that MessagePack does not know."""
        hints = hints_of(self._function, self._name)
        types = {name: hints.get(name, Any) for name in self.signature.parameters}
        for name, hint in types.items():
            require_plain(hint, f"{self._name}(): {name} cannot travel")
        return types

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the array with every default filled in; raises `TypeError` for arguments that do not fit."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error}") from None
        bound.apply_defaults()
        decode = self.decoder
        payload = _encoder.encode(tuple(bound.arguments.values()))
        try:
            decode(payload)
        except msgspec.DecodeError as error:
            raise TypeError(f"{self._name}(): {error}") from None
        return payload

    def decode(self, payload: msgspec.Raw) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments; raises `msgspec.DecodeError` for an array that does not fit."""
        return self.with_keywords(msgspec.structs.astuple(self.decoder(payload)))

    @property
    def has_keywords(self) -> bool:
        """Whether some parameters are keyword-only."""
        return bool(self._keyword_only)

    def with_keywords(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Part the values of all parameters into positional and keyword arguments."""
        at = len(values) - len(self._keyword_only)
        return values[:at], dict(zip(self._keyword_only, values[at:], strict=True))

    @property
    def decoder(self) -> Callable[[bytes | msgspec.Raw], Any]:
        """Decodes an array to a struct of the parameters; raises `msgspec.DecodeError`."""
        return self._decode or self._prepare()

    def _prepare(self) -> Callable[[bytes | msgspec.Raw], Any]:
        # At first use: annotations may name types that are defined below the class.
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for name, hint in self.types.items():
            default = self.signature.parameters[name].default
            if default is inspect.Parameter.empty:
                fields.append((name, hint))
            else:
                fields.append((name, hint, _default(default)))
        struct = msgspec.defstruct(f"{self._name.replace('.', '_')}_arguments", fields, array_like=True, gc=False)
        self._decode = decode = msgspec.msgpack.Decoder(struct).decode
        return decode


def _default(value: Any) -> Any:
    if isinstance(value, list | dict | set):
        return msgspec.field(default_factory=lambda: deepcopy(value))
    return value
