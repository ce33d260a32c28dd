"""Which annotations MessagePack can hold, and what an annotation that cannot be resolved is told."""

import typing
from collections.abc import Callable
from typing import Any

import msgspec


def hints_of(thing: type | Callable[..., Any], name: str) -> dict[str, Any]:
    """`typing.get_type_hints`, with a `TypeError` that says what to do about a name that is not known."""
    try:
        return typing.get_type_hints(thing, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{name}: an annotation cannot be resolved: {error}; define the type at the top of a module"
        ) from None


def require_plain(hint: Any, complaint: str) -> None:
    """Raise `TypeError`, which begins with `complaint`, unless MessagePack can hold values of the type without help."""
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
