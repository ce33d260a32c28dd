"""`TypedStateMachine`: dispatches calls to methods, and keeps what annotations declare."""

import typing
from collections.abc import Iterator
from itertools import chain
from typing import Any, ClassVar, Final

import msgspec

from octopii.blocks import read_blocks, write_blocks
from octopii.errors import CommandError
from octopii.state_machine import StateMachine
from octopii.typed.declared_errors import DeclaredError, declared_errors
from octopii.typed.method import Method
from octopii.typed.parts import Block, blocks_of, take_block
from octopii.typed.state import Field, InitAnnotations, read_init, require_declared, state_fields

_KIND = "typed/1"

_decode_call = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw]).decode
_block_decoder = msgspec.msgpack.Decoder(Block)

_SETTINGS = frozenset({"errors", "snapshot_version", "command_version"})
"""Attributes by which a class says something of itself."""

_OWN_ATTRIBUTES = frozenset({"clock", "_made_with"})
"""What an instance has beside its state."""

_not_a_call: Final = (
    "not a typed call: this state machine is typed, and takes calls from programs, by client.call(Machine.method, ...)"
)


class TypedStateMachine(StateMachine):
    """Base class: declare state by annotated attributes, and methods with `@command` and `@query`.

    `errors` names the exceptions, subclasses of `CommandError`, that reach the caller as themselves. `command_version`
    is the highest `since` of the methods unless the class says a higher one.
    """

    errors: ClassVar[tuple[type[CommandError], ...]] = ()

    _methods: ClassVar[dict[str, Method[..., Any]]] = {}
    _declared_errors: ClassVar[dict[str, DeclaredError]] = {}
    _inits: ClassVar[dict[type, InitAnnotations]] = {}
    _fields: ClassVar[dict[str, Field] | None] = None
    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the declarations; raises `TypeError` for a name that is taken, or an unfit error."""
        super().__init_subclass__(**kwargs)
        cls._methods = _methods_of(cls)
        cls.command_version = _command_version(cls)
        cls._declared_errors = declared_errors(cls.__name__, cls.errors)
        init = read_init(cls)
        own = {} if init is None else {cls: init}
        inherited = {base: init for base in reversed(cls.__mro__[1:]) for init in _init_of(base)}
        cls._inits = inherited | own
        cls._fields = None  # found at the first instance: annotations may name types that are defined below the class

    def __new__(cls, *args: Any, **kwargs: Any) -> "typing.Self":
        """Give the instance its declared fields, so that an initialiser is optional; raises `TypeError` as they do."""
        machine = super().__new__(cls)
        machine._made_with = (args, kwargs)
        for name, field in _fields_of(cls).items():
            if field.starts:
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
            name, arguments = _decode_call(call)
        except msgspec.DecodeError as error:
            raise CommandError(_not_a_call) from error
        method = self._methods.get(name)
        if (
            method is None
            or method.is_query is not is_query
            or (method.since > 1 and method.since > self.active_version)  # the same answer as of one that is unknown
        ):
            raise CommandError(f"there is no {'query' if is_query else 'command'} {name[:64]!a}")
        try:
            return method.run(self, arguments)
        except CommandError as error:
            declared = self._declared_errors.get(type(error).__name__)
            if declared is not None and type(error) in self.errors:
                declared.declare(error)
            raise

    def snapshot(self) -> Iterator[bytes]:
        """Yield the declared fields, block by block; raises `TypeError` for an attribute that is not declared."""
        name, fields, values = type(self).__name__, _fields_of(type(self)), vars(self)
        undeclared = sorted(values.keys() - fields.keys() - _OWN_ATTRIBUTES)
        if undeclared:
            raise TypeError(
                f"{name} has state that it does not declare: {', '.join(undeclared)}. "
                "Annotate it in __init__ or in the class body, so that snapshots hold it"
            )
        missing = sorted(fields.keys() - values.keys())
        if missing:
            raise TypeError(f"{name} declares {', '.join(missing)}, and its __init__ gave no value")
        parts = [blocks_of(field, values[field], declared.shape) for field, declared in fields.items()]
        return write_blocks(_KIND, chain.from_iterable(parts))

    def restore(self, data: memoryview) -> None:
        """Replace all declared fields; raises `ValueError` and changes nothing when the snapshot does not fit them."""
        fields = _fields_of(type(self))
        restored: dict[str, Any] = {}
        for block in read_blocks(_KIND, data, _block_decoder):
            name = block.field
            field = fields.get(name)
            if field is None:
                raise ValueError(f"the snapshot has a field {name!r} that {type(self).__name__} does not declare")
            if field.shape is not None:
                if name not in restored:
                    restored[name] = field.empty()
                take_block(block, restored[name], field.shape)
                continue
            if name in restored or block.path:
                raise ValueError(f"the snapshot has field {name!r} twice")
            try:
                restored[name] = field.decoder.decode(block.payload)
            except msgspec.DecodeError as error:
                raise ValueError(f"the snapshot's field {name!r} does not fit its type: {error}") from None
        if restored.keys() != fields.keys():
            # Fields that were added since get what a new instance has.
            args, kwargs = self._made_with
            new = vars(type(self)(*args, **kwargs))
            restored = {name: restored[name] if name in restored else new[name] for name in fields}
        for name, value in restored.items():
            setattr(self, name, value)


def _contract() -> set[str]:
    """The names that mean something to the library."""
    return {name for base in TypedStateMachine.__mro__ for name in vars(base)}


def _init_of(base: type) -> Iterator[InitAnnotations]:
    if issubclass(base, TypedStateMachine) and base in base._inits:
        yield base._inits[base]


def _methods_of(cls: type[TypedStateMachine]) -> dict[str, Method[..., Any]]:
    """The methods of a class and its bases by their stable names; an override takes its base's place."""
    by_attribute: dict[str, Method[..., Any]] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            if isinstance(value, Method):
                by_attribute[attribute] = value
            else:
                by_attribute.pop(attribute, None)
    methods: dict[str, Method[..., Any]] = {}
    for attribute, method in by_attribute.items():
        for name in {attribute, method.name} & _contract():
            kind = "query" if method.is_query else "command"
            raise TypeError(
                f"{cls.__name__}.{attribute}: {name!r} is the state machine's own name, no {kind} can have it"
            )
        if methods.setdefault(method.name, method) is not method:
            raise TypeError(f"{cls.__name__} has two methods of the name {method.name!r}: it is what stands in the log")
    return methods


def _command_version(cls: type[TypedStateMachine]) -> int:
    """What the class says, or else the highest version that one of its commands needs."""
    needed = max((method.since for method in cls._methods.values()), default=1)
    if "command_version" not in vars(cls):
        return max(needed, cls.command_version)
    said = cls.command_version
    if type(said) is not int or said < needed:
        raise TypeError(f"{cls.__name__}.command_version is {said!r}, and a command has since={needed}")
    return said


def _fields_of(cls: type[TypedStateMachine]) -> dict[str, Field]:
    """The declared state; raises `TypeError` for what is not declared as it has to be."""
    if cls._fields is None:
        bases = [base for base in reversed(cls.__mro__) if issubclass(base, TypedStateMachine)]
        fields = state_fields(cls, bases[1:], cls._inits, settings=_SETTINGS)
        for name in fields.keys() & _contract():
            raise TypeError(
                f"{cls.__name__}.{name}: the name is the state machine's own, no part of the state can have it"
            )
        if cls.snapshot is TypedStateMachine.snapshot:
            require_declared(cls, fields, cls._inits)
        cls._fields = fields
    return cls._fields
