"""Random command sequences for typed machines, as a hypothesis strategy.

    @given(command_sequences(Inventory, values={"sku": st.sampled_from(["apple", "pear"])}))
    def test_inventory(commands: list[bytes]) -> None:
        check_determinism(Inventory, commands, other_processes=False)

Values are made from the parameters' types, mostly small ones, so that commands meet: two random texts are hardly ever
the same key. `values` narrows a parameter down, by its name or by "method.name".
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from octopii.testing.questions import methods_of
from octopii.typed import Method, TypedStateMachine

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

MAX_COMMANDS = 50
"""Most commands in a sequence unless told otherwise."""

MAX_ITEMS = 4
"""Most items in a random container."""

SMALL_NUMBER = 10
"""Most random whole numbers are no further from 0 than this, where the type allows it."""


def command_sequences(
    machine: type[TypedStateMachine],
    *,
    values: "Mapping[str, SearchStrategy[Any]] | None" = None,
    max_commands: int = MAX_COMMANDS,
) -> "SearchStrategy[list[bytes]]":
    """Return a strategy for lists of encoded commands of `machine`, as its `apply` takes them.

    Raises `ModuleNotFoundError` without hypothesis, `TypeError` for a machine without commands or a parameter whose
    type it cannot make values of, and `ValueError` for a name in `values` that no command has.
    """
    from hypothesis import strategies as st

    commands = methods_of(machine, queries=False)
    if not commands:
        raise TypeError(f"{machine.__name__} has no commands")
    values = dict(values or {})
    calls = [_calls(method, values) for method in commands]
    known = {name for method in commands for name in method.parameters}
    unknown = values.keys() - known - {f"{method.name}.{name}" for method in commands for name in method.parameters}
    if unknown:
        raise ValueError(f"no command of {machine.__name__} has a parameter {sorted(unknown)}")
    return st.lists(st.one_of(calls), max_size=max_commands)


def _calls(method: Method[..., Any], values: "Mapping[str, SearchStrategy[Any]]") -> "SearchStrategy[bytes]":
    from hypothesis import strategies as st

    arguments = {}
    for name, hint in method.parameters.items():
        given = values.get(f"{method.name}.{name}", values.get(name))
        try:
            arguments[name] = _values_of(msgspec.inspect.type_info(hint)) if given is None else given
        except TypeError as error:
            raise TypeError(f"{method.name}(): give values for {name}: {error}") from None
    return st.fixed_dictionaries(arguments).map(lambda chosen: method.encode(**chosen))


def _values_of(info: msgspec.inspect.Type) -> "SearchStrategy[Any]":
    """Return a strategy for one type, within its constraints; raises `TypeError` for one that is not known here."""
    from hypothesis import strategies as st

    kind = msgspec.inspect
    if isinstance(info, kind.IntType | kind.FloatType):
        return _numbers(info)
    if isinstance(info, kind.StrType):
        if info.pattern is not None:
            return st.from_regex(info.pattern)
        alphabet = st.sampled_from("abc") | st.characters(codec="utf-8")
        return st.text(alphabet, min_size=info.min_length or 0, max_size=_most(info.min_length, info.max_length))
    if isinstance(info, kind.BytesType):
        return st.binary(min_size=info.min_length or 0, max_size=_most(info.min_length, info.max_length))
    if isinstance(info, kind.ListType | kind.SetType | kind.VarTupleType | kind.FrozenSetType):
        item, least, most = _values_of(info.item_type), info.min_length or 0, _most(info.min_length, info.max_length)
        if isinstance(info, kind.SetType):
            return st.sets(item, min_size=least, max_size=most)
        if isinstance(info, kind.FrozenSetType):
            return st.frozensets(item, min_size=least, max_size=most)
        items = st.lists(item, min_size=least, max_size=most)
        return items.map(tuple) if isinstance(info, kind.VarTupleType) else items
    if isinstance(info, kind.DictType):
        least, most = info.min_length or 0, _most(info.min_length, info.max_length)
        return st.dictionaries(_values_of(info.key_type), _values_of(info.value_type), min_size=least, max_size=most)
    return _others(info)


def _others(info: msgspec.inspect.Type) -> "SearchStrategy[Any]":
    from hypothesis import strategies as st

    kind = msgspec.inspect
    plain: dict[type, SearchStrategy[Any]] = {
        kind.BoolType: st.booleans(),
        kind.NoneType: st.none(),
        kind.DateType: st.dates(),
        kind.TimeType: st.times(),
        kind.DateTimeType: st.datetimes(timezones=st.timezones()),
        kind.TimeDeltaType: st.timedeltas(),
        kind.UUIDType: st.uuids(),
        kind.DecimalType: st.decimals(allow_nan=False, allow_infinity=False),
    }
    if type(info) in plain:
        return plain[type(info)]
    if isinstance(info, kind.Metadata):
        return _values_of(info.type)
    if isinstance(info, kind.TupleType):
        return st.tuples(*map(_values_of, info.item_types))
    if isinstance(info, kind.UnionType):
        return st.one_of([_values_of(each) for each in info.types])
    if isinstance(info, kind.LiteralType):
        return st.sampled_from(list(info.values))
    if isinstance(info, kind.EnumType):
        return st.sampled_from(list(info.cls))
    if isinstance(info, kind.StructType | kind.DataclassType):
        fields = {field.name: _values_of(field.type) for field in info.fields}
        return st.fixed_dictionaries(fields).map(lambda chosen: info.cls(**chosen))
    raise TypeError(f"no values are known for {type(info).__name__}")


def _numbers(info: "msgspec.inspect.IntType | msgspec.inspect.FloatType") -> "SearchStrategy[Any]":
    from hypothesis import strategies as st

    whole = isinstance(info, msgspec.inspect.IntType)
    least = info.ge if info.ge is not None else None if info.gt is None else info.gt + 1 if whole else info.gt
    most = info.le if info.le is not None else None if info.lt is None else info.lt - 1 if whole else info.lt
    if not whole:
        return st.floats(
            least,
            most,
            allow_nan=False,
            allow_infinity=False,
            exclude_min=info.gt is not None and info.ge is None,
            exclude_max=info.lt is not None and info.le is None,
        )
    # What MessagePack can hold.
    low = -(2**63) if least is None else int(least)
    high = 2**64 - 1 if most is None else int(most)
    step = int(info.multiple_of or 1)
    low, high = -(-low // step), high // step
    near = min(max(0, low), high)
    small = st.integers(max(low, near - SMALL_NUMBER), min(high, near + SMALL_NUMBER))
    return (small | st.integers(low, high)).map(lambda number: number * step)


def _most(least: int | None, most: int | None) -> int:
    return max(least or 0, MAX_ITEMS) if most is None else min(most, max(least or 0, MAX_ITEMS))
