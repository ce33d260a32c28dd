"""The state that a typed machine declares, found from annotations.

Annotations in the class body are there at run time. Those of `self.name: T = ...` in `__init__` are not: Python drops
them, so they are read from the source text of `__init__` when the class is made. Where there is no source (a frozen
program, an interactive session of an older Python) an attribute that the class body does not declare is an error that
says so. Nothing is guessed from values: only a type says whether [1, 2] was a list, a tuple or a struct.
"""

import ast
import dis
import inspect
import textwrap
import typing
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, ClassVar

import msgspec

from octopii.typed.parts import Shape, shape_of
from octopii.typed.types import hints_of, require_plain


class Field(msgspec.Struct, frozen=True):
    """One declared attribute: its shape if it is a container, the decoder of any other value, its default if any."""

    shape: Shape | None
    decoder: Any
    default: Any

    @property
    def starts(self) -> bool:
        """Whether it has a value before `__init__` gives it one."""
        return self.default is not msgspec.UNSET or self.shape is not None

    def initial(self) -> Any:
        """Its value in a new instance."""
        return self.empty() if self.default is msgspec.UNSET else deepcopy(self.default)

    def empty(self) -> Any:
        """A container without items."""
        if isinstance(self.default, deque):
            return deque(maxlen=self.default.maxlen)
        assert self.shape is not None
        return self.shape.kind()


# --- what is declared -------------------------------------------------------------------------------------------


class InitAnnotations(msgspec.Struct, frozen=True):
    """What the `__init__` of one class says: attribute -> annotation as text, and all attributes that it sets.

    `readable` tells whether there was source text.
    """

    annotations: dict[str, str]
    stored: frozenset[str]
    readable: bool


def read_init(cls: type) -> InitAnnotations | None:
    """Read the `__init__` that `cls` itself defines, if it does."""
    function = inspect.unwrap(vars(cls).get("__init__", None))
    if not inspect.isfunction(function):
        return None
    stored = frozenset(_stored(function))
    definition = _parsed(function)
    if definition is None:
        return InitAnnotations({}, stored, readable=False)
    arguments = definition.args.posonlyargs + definition.args.args
    found = {
        node.target.attr: ast.unparse(node.annotation)
        for node in _statements(definition)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Attribute)
        and isinstance(node.target.value, ast.Name)
        and arguments
        and node.target.value.id == arguments[0].arg
    }
    return InitAnnotations(found, stored, readable=True)


def _parsed(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """The syntax tree of a function; None without source, or when the text is not that of this function any more."""
    try:
        module = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    definition = module.body[0] if module.body else None
    if not isinstance(definition, ast.FunctionDef) or definition.name != function.__name__:
        return None
    names = [argument.arg for argument in definition.args.posonlyargs + definition.args.args]
    code = function.__code__
    return definition if tuple(names) == code.co_varnames[: code.co_argcount] else None


def _statements(definition: ast.FunctionDef) -> Iterator[ast.AST]:
    """All nodes of a function but those of functions and classes inside it."""
    nodes: list[ast.AST] = list(definition.body)
    while nodes:
        node = nodes.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            nodes[:0] = ast.iter_child_nodes(node)


def _stored(function: Callable[..., Any]) -> Iterator[str]:
    """Attributes that a function sets on its first argument, by its byte code, which is always there."""
    code = function.__code__
    itself = code.co_varnames[0] if code.co_argcount else None
    before: Any = None
    for instruction in dis.get_instructions(function):
        if instruction.opname == "STORE_ATTR" and before is not None and before.opname.startswith("LOAD_FAST"):
            loaded = before.argval[-1] if isinstance(before.argval, tuple) else before.argval
            if loaded == itself:
                yield instruction.argval
        before = instruction


def state_fields(
    cls: type, bases: list[type], inits: dict[type, InitAnnotations], *, settings: frozenset[str]
) -> dict[str, Field]:
    """Annotated attributes of `bases` (base first); raises `TypeError` for an unfit one.

    ClassVars are none of them, nor are `settings`, attributes that mean something else when a class gives them a value.
    """
    hints = hints_of(cls, cls.__name__)
    fields: dict[str, Field] = {}
    for base in bases:
        for name in vars(base).get("__annotations__", {}):
            if not (_is_class_variable(hints[name]) or (name in settings and name in vars(base))):
                fields[name] = _field(cls, name, hints[name], in_body=True)
        if base in inits:
            for name, text in inits[base].annotations.items():
                if name not in fields:
                    fields[name] = _field(cls, name, _resolved(base, name, text), in_body=False)
    return fields


def require_declared(cls: type, fields: dict[str, Field], inits: dict[type, InitAnnotations]) -> None:
    """Raise `TypeError` when an `__init__` sets an attribute that nothing declares: snapshots would lose it."""
    for base, init in inits.items():
        for name in sorted(init.stored - fields.keys()):
            if hasattr(getattr(cls, name, None), "__set__"):
                continue  # a property or the like: what lies behind it is what counts
            where = (
                f"{base.__name__}.__init__ sets self.{name}, which no annotation declares, so snapshots would lose it. "
            )
            if init.readable:
                raise TypeError(f"{where}Write `self.{name}: <type> = ...`, or annotate it in the class body")
            raise TypeError(
                f"{where}The source of {base.__name__}.__init__ is not there, so annotations in it are not either: "
                f"annotate {name} in the class body"
            )


def _resolved(base: type, name: str, text: str) -> Any:
    names, known = inspect.unwrap(vars(base)["__init__"]).__globals__, dict(vars(base))
    try:
        hint = eval(text, names, known)
        return eval(hint, names, known) if isinstance(hint, str) else hint
    except NameError as error:
        raise TypeError(
            f"{base.__name__}.__init__: the annotation of self.{name} cannot be resolved: {error}. Define the type at "
            "the top of the module, or annotate it in the class body"
        ) from None


def _is_class_variable(hint: Any) -> bool:
    return hint is ClassVar or typing.get_origin(hint) is ClassVar


def _field(cls: type, name: str, hint: Any, *, in_body: bool) -> Field:
    shape = shape_of(hint)
    default = getattr(cls, name, msgspec.UNSET) if in_body else msgspec.UNSET
    if in_body and default is msgspec.UNSET and shape is None:
        raise TypeError(f"{cls.__name__}.{name} needs a default: only dicts, lists, sets and deques start empty")
    require_plain(hint if shape is None else shape.hint, f"{cls.__name__}.{name} cannot be part of a snapshot")
    return Field(shape, msgspec.msgpack.Decoder(hint) if shape is None else None, default)
