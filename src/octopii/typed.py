"""State machines written as plain typed methods, with commands, answers and snapshots encoded for them.

    class Inventory(TypedStateMachine):
        stock: dict[str, int]                      # declared state: saved in snapshots

        @command
        def add(self, item: str, count: int = 1) -> int:
            self.stock[item] = self.stock.get(item, 0) + count
            return self.stock[item]

        @query
        def count(self, item: str) -> int:
            return self.stock.get(item, 0)

    answer = Inventory.add.decode(await node.propose(Inventory.add.encode("apple", count=3)))

State is what the class declares by annotation; dicts, lists, sets and deques start empty, other fields need a default.
An undeclared attribute would be lost with a snapshot, so `snapshot` refuses to go on when it finds one.

A command travels as the MessagePack array [method name, [argument, ...]], with every default filled in by the caller:
what lies in the log does not change its meaning when a later program has other defaults. Parameters may be added at the
end, with defaults; renaming a method or changing a type breaks the commands that are still in the log. Values are
checked against the annotations on arrival; what does not fit is refused by `CommandError`.

The snapshot holds each field in blocks of its own. A field that was added since gets its default; for anything else
raise `snapshot_version` and override `migrate`.
"""

import heapq
import inspect
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from itertools import islice
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, overload

import msgspec

from octopii.blocks import MAX_BLOCK_ITEMS, TARGET_BLOCK_BYTES, read_blocks, write_blocks
from octopii.errors import CommandError
from octopii.state_machine import StateMachine

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="TypedStateMachine")

_KIND = "typed/1"
FIRST_PART_ITEMS = 64
"""Items in the first part of a container's snapshot; later parts follow the size of what was seen."""

# Sets and dicts in an answer come out sorted: the order of a set differs between processes.
_answer_encoder = msgspec.msgpack.Encoder(order="deterministic")
_encoder = msgspec.msgpack.Encoder()
_call_decoder = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_block_decoder = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


class Method(Generic[P, R]):
    """One `@command` or `@query`: callable on an instance, and the codec of its calls when taken from the class."""

    def __init__(self, function: Callable[..., R], *, is_query: bool) -> None:
        """Take the function; raises `TypeError` for a signature that cannot travel."""
        self.function = function
        self.name = function.__name__
        self.is_query = is_query
        self.__doc__ = function.__doc__
        parameters = list(inspect.signature(function).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"{self.name}(): *{parameter.name} cannot be a parameter of a command or a query")
            if parameter.annotation is parameter.empty:
                raise TypeError(f"{self.name}(): parameter {parameter.name} needs a type annotation")
        if inspect.signature(function).return_annotation is inspect.Signature.empty:
            raise TypeError(f"{self.name}(): needs a return annotation (None for no answer)")
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{self.name}(): a state machine's methods cannot be async")
        self._signature = inspect.Signature(parameters)
        self._keyword_only = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        self._codecs: tuple[msgspec.msgpack.Decoder[Any], msgspec.msgpack.Decoder[R]] | None = None

    def __repr__(self) -> str:
        return f"<{'query' if self.is_query else 'command'} {self.name}{self._signature}>"

    @overload
    def __get__(self, instance: None, owner: type) -> "Method[P, R]": ...
    @overload
    def __get__(self, instance: "TypedStateMachine", owner: type) -> Callable[P, R]: ...
    def __get__(self, instance: "TypedStateMachine | None", owner: type) -> "Method[P, R] | Callable[P, R]":
        return self if instance is None else self.function.__get__(instance, owner)

    def encode(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """Return the bytes of a call for `propose` or `query`; raises `TypeError` for arguments that do not fit."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        decoder, _ = self._decoders()
        payload = _encoder.encode(tuple(bound.arguments.values()))
        try:
            decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise TypeError(f"{self.name}(): {error}") from None
        return _encoder.encode((self.name, msgspec.Raw(payload)))

    def decode(self, answer: bytes) -> R:
        """Return the typed answer; raises `msgspec.DecodeError` for bytes that are none."""
        return self._decoders()[1].decode(answer)

    def run(self, machine: "TypedStateMachine", arguments: msgspec.Raw) -> bytes:
        """Call the method on `machine` with encoded arguments and return its encoded answer.

        Raises `CommandError` for arguments that do not fit, and what the method raises.
        """
        try:
            values = self._decoders()[0].decode(arguments)
        except msgspec.DecodeError as error:
            # The text is part of the history, so it holds nothing that differs between versions of a library.
            raise CommandError(f"{self.name}: the arguments do not fit its parameters") from error
        arguments_by_name = msgspec.structs.asdict(values)
        by_keyword = {name: arguments_by_name.pop(name) for name in self._keyword_only}
        return _answer_encoder.encode(self.function(machine, *arguments_by_name.values(), **by_keyword))

    def _decoders(self) -> tuple[msgspec.msgpack.Decoder[Any], msgspec.msgpack.Decoder[R]]:
        # Built at first use: annotations may name types that are defined below the class.
        if self._codecs is None:
            hints = typing.get_type_hints(self.function, include_extras=True)
            for name in (*self._signature.parameters, "return"):
                _require_plain(hints[name], f"{self.name}(): {name} cannot travel")
            fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
            for name, parameter in self._signature.parameters.items():
                if parameter.default is parameter.empty:
                    fields.append((name, hints[name]))
                else:
                    fields.append((name, hints[name], _default(parameter.default)))
            arguments = msgspec.defstruct(f"{self.name}_arguments", fields, array_like=True)
            self._codecs = (msgspec.msgpack.Decoder(arguments), msgspec.msgpack.Decoder(hints["return"]))
        return self._codecs


def command(function: Callable[Concatenate[M, P], R]) -> Method[P, R]:
    """Make a method a replicated command. Its parameters and its answer need type annotations that msgspec knows."""
    return Method(function, is_query=False)


def query(function: Callable[Concatenate[M, P], R]) -> Method[P, R]:
    """Make a method a query, which must not change the state. Its annotations are as a command's."""
    return Method(function, is_query=True)


class TypedStateMachine(StateMachine):
    """Base class: declare state by annotated attributes, and methods with `@command` and `@query`."""

    _methods: ClassVar[dict[str, Method[..., Any]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Inherited ones first, so that an override takes its base's place.
        cls._methods = {
            name: value
            for base in reversed(cls.__mro__)
            for name, value in vars(base).items()
            if isinstance(value, Method)
        }

    def __new__(cls, *args: Any, **kwargs: Any) -> "typing.Self":
        """Give the instance its declared fields, so that an initialiser is optional; raises `TypeError` as they do."""
        machine = super().__new__(cls)
        for name, field in _state_fields(cls).items():
            setattr(machine, name, field.initial())
        return machine

    def apply(self, command: bytes) -> bytes:
        """Run a `@command`; raises `CommandError` for an unknown one or for arguments that do not fit."""
        return self._run(command, is_query=False)

    def query(self, command: bytes) -> bytes:
        """Run a `@query`; raises `CommandError` for an unknown one or for arguments that do not fit."""
        return self._run(command, is_query=True)

    def _run(self, call: bytes, *, is_query: bool) -> bytes:
        try:
            name, arguments = _call_decoder.decode(call)
        except msgspec.DecodeError as error:
            raise CommandError("not a typed call") from error
        method = self._methods.get(name)
        if method is None or method.is_query is not is_query:
            raise CommandError(f"{type(self).__name__} has no {'query' if is_query else 'command'} {name[:64]!a}")
        return method.run(self, arguments)

    def snapshot(self) -> Iterator[bytes]:
        """Yield the declared fields, block by block; raises `TypeError` for an attribute that is not declared."""
        fields = _state_fields(type(self))
        undeclared = sorted(set(vars(self)) - set(fields) - {"clock"})
        if undeclared:
            raise TypeError(
                f"{type(self).__name__} has state that it does not declare: {', '.join(undeclared)}. "
                "Annotate it in the class body, so that snapshots hold it"
            )
        return write_blocks(_KIND, _field_blocks({name: getattr(self, name) for name in fields}))

    def restore(self, data: memoryview) -> None:
        """Replace all declared fields; raises `ValueError` and changes nothing when the snapshot does not fit them."""
        fields = _state_fields(type(self))
        restored: dict[str, Any] = {}
        for name, payload in read_blocks(_KIND, data, _block_decoder):
            field = fields.get(name)
            if field is None:
                raise ValueError(f"the snapshot has a field {name!r} that {type(self).__name__} does not declare")
            try:
                value = field.decoder.decode(payload)
            except msgspec.DecodeError as error:
                raise ValueError(f"the snapshot's field {name!r} does not fit its type: {error}") from None
            if field.container is None:
                if name in restored:
                    raise ValueError(f"the snapshot has field {name!r} twice")
                restored[name] = value
                continue
            into = restored.setdefault(name, field.empty())
            if isinstance(into, dict | set):
                into.update(value)
            else:
                into.extend(value)
        for name, field in fields.items():
            setattr(self, name, restored[name] if name in restored else field.initial())


# --- declared state ---------------------------------------------------------------------------------------------


class _Field(msgspec.Struct, frozen=True):
    """One declared attribute: container type (None for any other value), decoder of its blocks, default."""

    container: type | None
    decoder: Any
    default: Any

    def initial(self) -> Any:
        return self.empty() if self.default is msgspec.UNSET else deepcopy(self.default)

    def empty(self) -> Any:
        if isinstance(self.default, deque):
            return deque(maxlen=self.default.maxlen)
        assert self.container is not None
        return self.container()


_fields_of: dict[type, dict[str, _Field]] = {}


def _state_fields(cls: type) -> dict[str, _Field]:
    """Annotated attributes of the class and its bases, but for ClassVars; raises `TypeError` for an unfit one."""
    fields = _fields_of.get(cls)
    if fields is None:
        bases = [base for base in reversed(cls.__mro__) if issubclass(base, TypedStateMachine)]
        hints = typing.get_type_hints(cls, include_extras=True)
        names = [name for base in bases for name in vars(base).get("__annotations__", {})]
        fields = {name: _field(cls, name, hints[name]) for name in names if not _is_class_variable(hints[name])}
        _fields_of[cls] = fields
    return fields


def _is_class_variable(hint: Any) -> bool:
    return hint is ClassVar or typing.get_origin(hint) is ClassVar


def _field(cls: type, name: str, hint: Any) -> _Field:
    plain = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    container = typing.get_origin(plain) or plain
    if container not in (dict, list, set, deque):
        container = None
    if container is deque:
        hint = list[(typing.get_args(plain) or (Any,))[0]]  # type: ignore[misc]
    default = getattr(cls, name, msgspec.UNSET)
    if default is msgspec.UNSET and container is None:
        raise TypeError(f"{cls.__name__}.{name} needs a default: only dicts, lists, sets and deques start empty")
    _require_plain(hint, f"{cls.__name__}.{name} cannot be part of a snapshot")
    return _Field(container, msgspec.msgpack.Decoder(hint), default)


def _require_plain(hint: Any, complaint: str) -> None:
    """Raise `TypeError` unless MessagePack can hold values of the type without help."""
    try:
        nodes: list[Any] = [msgspec.inspect.type_info(hint)]
    except TypeError as error:
        raise TypeError(f"{complaint}: {error}") from None
    seen: set[int] = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, msgspec.inspect.CustomType):
            raise TypeError(f"{complaint}: {node.cls.__name__} is not a type that MessagePack knows")
        if isinstance(node, list | tuple):
            nodes.extend(node)
        elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            nodes.extend(getattr(node, name) for name in node.__struct_fields__)


def _field_blocks(fields: dict[str, Any]) -> Iterator[tuple[str, msgspec.Raw]]:
    """Yield every field as (name, encoded part), containers in parts of about `TARGET_BLOCK_BYTES`."""
    for name, value in fields.items():
        if isinstance(value, dict):
            items: Iterator[Any] = iter(value.items())
            collect: Callable[[Iterable[Any]], Any] = dict
        elif isinstance(value, list | deque | set):
            items = _in_fixed_order(value) if isinstance(value, set) else iter(value)
            collect = list
        else:
            yield name, msgspec.Raw(_encoder.encode(value))
            continue
        # The first part is written even when it is empty: an emptied container is not a missing one.
        step = FIRST_PART_ITEMS
        part = collect(islice(items, step))
        while True:
            payload = _encoder.encode(part)
            yield name, msgspec.Raw(payload)
            fitting = len(part) * TARGET_BLOCK_BYTES // len(payload)
            step = max(1, min(step * 2, fitting, MAX_BLOCK_ITEMS))
            part = collect(islice(items, step))
            if not part:
                break


def _in_fixed_order(values: set[Any]) -> Iterator[Any]:
    """Iterate a set in an order that is the same in every process, without one long call that sorts it all."""
    iterator = iter(values)
    runs = []
    while run := sorted(islice(iterator, MAX_BLOCK_ITEMS), key=_encoder.encode):
        runs.append(run)
    return heapq.merge(*runs, key=_encoder.encode)


def _default(value: Any) -> Any:
    if isinstance(value, list | dict | set):
        return msgspec.field(default_factory=lambda: deepcopy(value))
    return value
