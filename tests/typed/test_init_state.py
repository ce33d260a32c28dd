"""State that `__init__` declares by annotations, which Python itself forgets."""

from collections import deque
from typing import Any

import msgspec
import pytest

from octopii.state_machine import SnapshotSource
from octopii.typed import TypedStateMachine, command, query


class Inventory(TypedStateMachine):
    def __init__(self) -> None:
        self.stock: dict[str, int] = {}

    @command
    def reserve(self, sku: str, n: int) -> int:
        self.stock[sku] = self.stock.get(sku, 0) - n
        return self.stock[sku]

    @query
    def available(self, sku: str) -> int:
        return self.stock.get(sku, 0)


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int


class Base(TypedStateMachine):
    tags: set[str]

    def __init__(this, limit: int = 3) -> None:  # noqa: N805  (the first parameter may have any name)
        this.limit: int = limit
        other: list[int] = []

        def inner() -> None:
            this.hidden: int = 1

        if other is not None:
            this.points: "list[Later]" = []  # noqa: UP037
        with memoryview(b""):
            this.last: deque[tuple[int, str]] = deque()


class Wide(Base):
    def __init__(self) -> None:
        super().__init__(7)
        self.pairs: dict[tuple[int, int], Point] = {}
        self.count = 0
        self.note: str | None = None

    count: int = 5


class Later(msgspec.Struct):
    n: int


def written(machine: TypedStateMachine) -> bytes:
    return b"".join(SnapshotSource(machine.snapshot()))


def test_annotated_attributes_are_the_state() -> None:
    """The plain way to write a class is enough: what `__init__` annotates is saved and comes back."""
    machine = Inventory()
    machine.apply(Inventory.reserve.encode("apple", 3))
    copy = Inventory()
    copy.restore(memoryview(written(machine)))
    assert copy.stock == {"apple": -3}


def test_types_come_back_as_they_were() -> None:
    """Structs, tuples and deques, of a base's initialiser, in blocks, and under forward references."""
    machine = Wide()
    machine.points.append(Later(1))
    machine.last.append((1, "a"))
    machine.pairs[1, 2] = Point(3, 4)
    machine.tags.add("t")
    machine.count, machine.note = 9, "n"
    copy = Wide()
    copy.restore(memoryview(written(machine)))
    own = {name: value for name, value in vars(copy).items() if name != "_made_with"}
    assert own == {
        "tags": {"t"},
        "limit": 7,
        "points": [Later(1)],
        "last": deque([(1, "a")]),
        "pairs": {(1, 2): Point(3, 4)},
        "count": 9,
        "note": "n",
    }


def test_a_field_that_was_added_gets_what_a_new_instance_has() -> None:
    """A later program reads the snapshot of an earlier one, also when the instance has long been at work."""
    machine = Base(4)
    machine.points.append(Later(1))
    later = Wide()
    later.pairs[1, 2] = Point(3, 4)
    later.note, later.count = "old", 77
    later.restore(memoryview(written(machine)))
    assert (later.limit, later.points) == (4, [Later(1)])
    assert later.pairs == {}
    assert later.note is None
    assert later.count == 0


SOURCE = """
class Machine(TypedStateMachine):
    {body}
    def __init__(self) -> None:
        self.stock: dict[str, int] = {{}}
"""


def test_without_source_the_class_body_is_the_place() -> None:
    """In a program without its source text nothing is guessed: the error names the attribute and the way out."""
    names: dict[str, Any] = {"TypedStateMachine": TypedStateMachine}
    exec(SOURCE.format(body=""), names)
    with pytest.raises(
        TypeError, match=r"sets self\.stock.*The source .* is not there.*annotate stock in the class body"
    ):
        names["Machine"]()
    exec(SOURCE.format(body="stock: dict[str, int]"), names)
    machine = names["Machine"]()
    machine.stock["a"] = 1
    copy = names["Machine"]()
    copy.restore(memoryview(written(machine)))
    assert copy.stock == {"a": 1}


def test_source_that_is_not_the_functions_is_not_believed() -> None:
    """A file that was changed since the program began says nothing of what runs."""
    code = compile("\n" * 29 + "def __init__(self, what):\n    self.stock = {}\n", __file__, "exec")
    names: dict[str, Any] = {}
    exec(code, names)
    machine = type("Machine", (TypedStateMachine,), {"__init__": names["__init__"]})
    with pytest.raises(TypeError, match=r"The source of Machine\.__init__ is not there"):
        machine(1)


def test_an_attribute_that_nothing_declares_is_found_at_once() -> None:
    """The first instance is refused, not the first snapshot."""

    class Forgetful(TypedStateMachine):
        def __init__(self) -> None:
            self.kept: list[int] = []
            self.cache = {}  # type: ignore[var-annotated]

    with pytest.raises(TypeError, match=r"Forgetful.__init__ sets self\.cache, which no annotation declares"):
        Forgetful()


def test_attributes_that_are_no_state_are_left_alone() -> None:
    """What lies behind a property is what counts, and who writes snapshots by hand may keep anything."""

    class Behind(TypedStateMachine):
        real: int = 0

        def _set(self, value: int) -> None:
            self.real = value

        shown = property(lambda self: self.real, _set)

        def __init__(self) -> None:
            self.shown = 4

    class ByHand(TypedStateMachine):
        def __init__(self) -> None:
            self.anything = object()

        def snapshot(self) -> Any:
            return b"mine"

        def restore(self, data: memoryview) -> None:
            assert bytes(data) == b"mine"

    machine = Behind()
    copy = Behind()
    copy.real = 0
    copy.restore(memoryview(written(machine)))
    assert copy.real == 4
    ByHand().restore(memoryview(written(ByHand())))


def test_a_field_without_a_value_stops_the_snapshot() -> None:
    """An annotation alone gives no value, and a snapshot without the field would lose it."""

    class Half(TypedStateMachine):
        def __init__(self, full: bool) -> None:
            if full:
                self.total: int = 1

    written(Half(True))
    with pytest.raises(TypeError, match="declares total, and its __init__ gave no value"):
        Half(False).snapshot()


def test_annotations_that_mean_nothing_are_named() -> None:
    """A type that is not at the top of the module, one that cannot be stored, and a name that is taken."""

    class Local(msgspec.Struct):
        n: int

    class Hidden(TypedStateMachine):
        def __init__(self) -> None:
            self.it: list[Local] = []

    with pytest.raises(TypeError, match=r"annotation of self\.it cannot be resolved.*Local.*the top of the module"):
        Hidden()

    class Unfit(TypedStateMachine):
        def __init__(self) -> None:
            self.it: complex = 1j

    with pytest.raises(TypeError, match=r"Unfit\.it cannot be part of a snapshot"):
        Unfit()

    class Taken(TypedStateMachine):
        compact: dict[str, int]  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r"Taken\.compact: the name is the state machine's own"):
        Taken()


def test_settings_of_a_class_may_be_annotated() -> None:
    """A version with an annotation is a version, and no part of the state."""

    class Second(Inventory):
        snapshot_version: int = 2

    machine = Second()
    assert b"snapshot_version" not in written(machine)
