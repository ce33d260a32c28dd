"""`@command` and `@query`: methods whose calls and answers travel as bytes."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

import msgspec

from octopii.errors import CommandError
from octopii.typed.arguments import Arguments
from octopii.typed.types import hints_of, require_plain

if TYPE_CHECKING:
    from octopii.typed.machine import TypedStateMachine

P = ParamSpec("P")
R = TypeVar("R", covariant=True)  # `print(await node.call(...))`: an int where any object will do
M = TypeVar("M", bound="TypedStateMachine")

ConsistencyName = Literal["linearizable", "lease", "stale"]
"""How fresh a query's state has to be."""

MAX_NAME_CHARACTERS = 200
"""Longest stable name: it stands in every log entry, and in errors."""

_encoder = msgspec.msgpack.Encoder()
# Sets and dicts in an answer come out sorted: the order of a set differs between processes.
_encode_answer = msgspec.msgpack.Encoder(order="deterministic").encode


class Method(Generic[P, R]):
    """One `@command` or `@query`: callable on an instance, and the codec of its calls when taken from the class.

    `name` is what stands in the log, `since` the `command_version` from which on it may be called. `consistency` and
    `timeout` (seconds; None: the caller's default) are those of `options`.
    """

    def __init__(self, function: Callable[..., R], *, is_query: bool, name: str | None = None, since: int = 1) -> None:
        """Take the function; raises `TypeError` for a signature that cannot travel, or an unfit name or version."""
        self.function = function
        self.name = function.__name__ if name is None else name
        self.since = since
        self.is_query = is_query
        self.owner: type[TypedStateMachine] | None = None
        self.consistency: ConsistencyName = "linearizable"
        self.timeout: float | None = None
        self.__doc__ = function.__doc__
        label = function.__name__
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MAX_NAME_CHARACTERS:
            raise TypeError(f"{label}(): a name is a text of 1 to {MAX_NAME_CHARACTERS} characters, not {name!r}")
        if type(since) is not int or since < 1:
            raise TypeError(f"{label}(): since is a whole number from 1 on, not {since!r}")
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{label}(): a state machine's methods cannot be async")
        self._arguments = Arguments(function, name=function.__qualname__.rpartition("<locals>.")[2])
        if inspect.signature(function).return_annotation is inspect.Signature.empty:
            raise TypeError(f"{label}(): needs a return annotation (None for no answer)")
        self._decode_answer: Callable[[bytes], R] | None = None
        self._run: Callable[[TypedStateMachine, msgspec.Raw], bytes] | None = None

    def __repr__(self) -> str:
        return f"<{'query' if self.is_query else 'command'} {self.name}{self._arguments.signature}>"

    def __set_name__(self, owner: type, name: str) -> None:
        if self.owner is None:
            self.owner = owner

    @overload
    def __get__(self, instance: None, owner: type) -> "Method[P, R]": ...
    @overload
    def __get__(self, instance: "TypedStateMachine", owner: type) -> Callable[P, R]: ...
    def __get__(self, instance: "TypedStateMachine | None", owner: type) -> "Method[P, R] | Callable[P, R]":
        if instance is not None:
            bound: Callable[P, R] = self.function.__get__(instance, owner)
            return bound
        if owner is self.owner:
            return self
        inherited = copy.copy(self)  # it may raise what the subclass declares
        inherited.owner = owner
        return inherited

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters' types by name, in order."""
        return self._arguments.types

    def options(self, *, consistency: ConsistencyName = "linearizable", timeout: float | None = None) -> "Method[P, R]":
        """The same method for `call`, with a timeout of its own (seconds) or another consistency of a query.

        They stand here because every argument of `call` is the method's.
        """
        if consistency != "linearizable" and not self.is_query:
            raise ValueError(f"{self.name} is a command: consistency is for queries")
        chosen = copy.copy(self)
        chosen.consistency, chosen.timeout = consistency, timeout
        return chosen

    def encode(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """Return the bytes of a call for `propose` or `query`; raises `TypeError` for arguments that do not fit."""
        try:
            arguments = self._arguments.encode(args, kwargs)
        except TypeError as error:
            raise TypeError(f"{error}{self._way_to_options(kwargs)}") from None
        return _encoder.encode((self.name, msgspec.Raw(arguments)))

    def _way_to_options(self, kwargs: Mapping[str, object]) -> str:
        """What to write for arguments that are not the method's, but which `options` takes."""
        names = [name for name in self._options if name in kwargs and name not in self._arguments.signature.parameters]
        if not names:
            return ""
        owner = self.owner.__name__ if self.owner is not None else "..."
        chosen = ", ".join(f"{name}={kwargs[name]!r}" for name in names)
        return f"; all arguments are the method's own, say {owner}.{self.function.__name__}.options({chosen}) instead"

    @property
    def _options(self) -> tuple[str, ...]:
        """The names that `options` takes for this method."""
        return ("timeout", "consistency") if self.is_query else ("timeout",)

    def decode(self, answer: bytes) -> R:
        """Return the typed answer; raises `msgspec.DecodeError` for bytes that are none."""
        return (self._decode_answer or self._prepare())(answer)

    def error(self, error: CommandError) -> CommandError:
        """What the machine raised: an error that its class declares, or `error` itself where it is none of those."""
        declared = self.owner._declared_errors if self.owner is not None else {}
        if error.declared is None or error.declared[0] not in declared:
            return error
        return declared[error.declared[0]].decode(error)

    def run(self, machine: "TypedStateMachine", arguments: msgspec.Raw) -> bytes:
        """Call the method on `machine` with encoded arguments and return its encoded answer.

        Raises `CommandError` for arguments that do not fit, and what the method raises.
        """
        return (self._run or self._runner())(machine, arguments)

    def _runner(self) -> "Callable[[TypedStateMachine, msgspec.Raw], bytes]":
        """`run` as one function: what is looked up for each command costs more than many a command."""
        decode, has_keywords = self._arguments.decoder, self._arguments.has_keywords
        function, encode, with_keywords = self.function, _encode_answer, self._arguments.with_keywords
        astuple = msgspec.structs.astuple
        # The text is part of the history, so it holds nothing that differs between versions of a library.
        refusal = f"{self.name}: the arguments do not fit its parameters"

        def run(machine: "TypedStateMachine", arguments: msgspec.Raw) -> bytes:
            try:
                values = astuple(decode(arguments))
            except msgspec.DecodeError as error:
                raise CommandError(refusal) from error
            if has_keywords:
                args, kwargs = with_keywords(values)
                return encode(function(machine, *args, **kwargs))
            return encode(function(machine, *values))

        self._run = run
        return run

    def _prepare(self) -> Callable[[bytes], R]:
        label = self.function.__name__
        hint = hints_of(self.function, f"{label}()")["return"]
        require_plain(hint, f"{label}(): return cannot travel")
        self._decode_answer = decode = msgspec.msgpack.Decoder(hint).decode
        return decode


@overload
def command(function: Callable[Concatenate[M, P], R], /) -> Method[P, R]: ...
@overload
def command(*, name: str | None = None, since: int = 1) -> Callable[[Callable[Concatenate[M, P], R]], Method[P, R]]: ...
def command(function: Callable[..., Any] | None = None, /, *, name: str | None = None, since: int = 1) -> Any:
    """Make a method a replicated command. Its parameters and its answer need type annotations that msgspec knows.

    `name` is what stands in the log, the method's own name unless given: name it when you rename the method. `since` is
    the `command_version` of the machine that brought the command: it is refused until every member has that version.
    """
    if function is not None:
        return Method(function, is_query=False)
    return lambda function: Method(function, is_query=False, name=name, since=since)


@overload
def query(function: Callable[Concatenate[M, P], R], /) -> Method[P, R]: ...
@overload
def query(*, name: str | None = None) -> Callable[[Callable[Concatenate[M, P], R]], Method[P, R]]: ...
def query(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Make a method a query, which must not change the state. Its annotations and `name` are as a command's."""
    if function is not None:
        return Method(function, is_query=True)
    return lambda function: Method(function, is_query=True, name=name)
