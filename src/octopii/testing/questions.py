"""Queries for a check that was given none: a query that writes is found without anybody thinking of it.

A machine of bytes is asked the commands themselves, which most refuse: a `query` that passes them to `apply` is the
mistake that this finds. A typed machine is asked each of its queries, with the values that its commands used for
parameters of the same name.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from octopii.state_machine import StateMachine
from octopii.typed import Method, TypedStateMachine

MAX_QUERIES = 32
"""Most queries that are made up: each costs a snapshot before and one after it."""

MAX_VALUES = 2
"""Values that are tried for each parameter of a typed query."""

_decode_call = msgspec.msgpack.Decoder(tuple[str, list[Any]]).decode


def methods_of(machine: type[TypedStateMachine], *, queries: bool) -> list[Method[..., Any]]:
    """The commands, or the queries, of a typed machine, inherited ones first."""
    found: dict[str, Method[..., Any]] = {}
    for base in reversed(machine.__mro__):
        found |= {name: each for name, each in vars(base).items() if isinstance(each, Method)}
    return [method for method in found.values() if method.is_query is queries]


def made_up_queries(machine: StateMachine, commands: Sequence[bytes]) -> list[bytes]:
    """Return queries that fit `machine` as well as can be told from its commands."""
    if not isinstance(machine, TypedStateMachine):
        return list(dict.fromkeys(commands))[:MAX_QUERIES]
    seen = _values_by_parameter(type(machine), commands)
    made: dict[bytes, None] = {}
    for method in methods_of(type(machine), queries=True):
        defaults = inspect.signature(method.function).parameters
        for choice in range(MAX_VALUES):
            arguments = {}
            for name in method.parameters:
                values = seen.get(name, [])
                if values:
                    arguments[name] = values[min(choice, len(values) - 1)]
                elif defaults[name].default is not inspect.Parameter.empty:
                    arguments[name] = defaults[name].default
            try:
                made[method.encode(**arguments)] = None
            except TypeError:  # a parameter that no command has, or one of another type
                break
    return list(made)[:MAX_QUERIES]


def _values_by_parameter(machine: type[TypedStateMachine], commands: Sequence[bytes]) -> dict[str, list[Any]]:
    methods = {method.name: method for method in methods_of(machine, queries=False)}
    seen: dict[str, list[Any]] = {}
    for command in commands:
        try:
            name, arguments = _decode_call(command)
        except msgspec.DecodeError:
            continue
        if name in methods:
            for parameter, value in zip(methods[name].parameters, arguments):
                values = seen.setdefault(parameter, [])
                if value not in values and len(values) < MAX_VALUES:
                    values.append(value)
    return seen
