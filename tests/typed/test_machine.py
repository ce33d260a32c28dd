"""Typed state machines: calls, answers and snapshots from annotations."""

from collections import deque
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.blocks import MAX_BLOCK_ITEMS, TARGET_BLOCK_BYTES
from octopii.errors import CommandError
from octopii.state_machine import SnapshotSource
from octopii.testing import check_determinism
from octopii.typed import TypedStateMachine, command, query


class Item(msgspec.Struct):
    name: str
    count: int = 0


class Inventory(TypedStateMachine):
    """A machine without an initialiser; its state is declared."""

    limit: ClassVar[int] = 1_000

    stock: dict[str, int]
    items: list[Item]
    tags: set[str]
    recent: deque[str] = deque(maxlen=3)
    total: int = 0
    greeting: list[str] = ["hello"]

    @command
    def add(self, item: str, count: int = 1) -> int:
        """Add to the stock."""
        if count > self.limit:
            raise CommandError("too many")
        self.stock[item] = self.stock.get(item, 0) + count
        self.total += count
        self.recent.append(item)
        self.tags.add(item[:1])
        return self.stock[item]

    @command
    def keep(self, item: Item, *, note: str | None = None) -> None:
        self.items.append(item)
        self.greeting.clear()

    @query
    def count(self, item: str) -> int:
        return self.stock.get(item, 0)

    @query
    def all_tags(self) -> set[str]:
        return self.tags


def written(machine: TypedStateMachine) -> bytes:
    return b"".join(SnapshotSource(machine.snapshot()))


def test_calls_travel_as_bytes_and_answers_come_back_typed() -> None:
    """A command is encoded by its class attribute, run by `apply`, and its answer decoded to the annotated type."""
    machine = Inventory()
    assert Inventory.add.decode(machine.apply(Inventory.add.encode("apple", count=3))) == 3
    assert Inventory.add.decode(machine.apply(Inventory.add.encode("apple"))) == 4
    answer = machine.apply(Inventory.keep.encode(Item("x", 2), note="n"))
    Inventory.keep.decode(answer)
    assert machine.items == [Item("x", 2)]
    assert Inventory.count.decode(machine.query(Inventory.count.encode("apple"))) == 4
    assert Inventory.all_tags.decode(machine.query(Inventory.all_tags.encode())) == {"a"}
    assert machine.count("apple") == machine.add("apple", 0) == 4


def test_defaults_are_filled_in_by_the_caller() -> None:
    """The bytes hold every argument, so a later program with another default replays the log alike."""
    assert msgspec.msgpack.decode(Inventory.add.encode("apple")) == ["add", ["apple", 1]]


def test_a_parameter_added_at_the_end_takes_its_default() -> None:
    """Commands written before the parameter was there still run."""
    machine = Inventory()
    machine.apply(msgspec.msgpack.encode(["add", ["apple"]]))
    assert machine.stock == {"apple": 1}


@pytest.mark.parametrize(
    "call",
    [
        b"",
        b"add",
        msgspec.msgpack.encode(["add", []]),
        msgspec.msgpack.encode(["add", [3]]),
        msgspec.msgpack.encode(["add", ["apple", "three"]]),
        msgspec.msgpack.encode(["add", {"item": "apple"}]),
        msgspec.msgpack.encode(["remove", ["apple"]]),
        msgspec.msgpack.encode(["count", ["apple"]]),
        msgspec.msgpack.encode(["__init__", []]),
        msgspec.msgpack.encode(["snapshot", []]),
        msgspec.msgpack.encode(["add", ["apple", 5_000]]),
    ],
)
def test_calls_that_do_not_fit_are_refused(call: bytes) -> None:
    """Foreign bytes, unknown or private names, queries sent as commands and wrong types raise CommandError."""
    machine = Inventory()
    with pytest.raises(CommandError):
        machine.apply(call)
    assert machine.stock == {}


@given(st.binary())
def test_random_calls_raise_nothing_but_command_error(call: bytes) -> None:
    """No bytes make `apply` or `query` raise anything else."""
    machine = Inventory()
    for run in (machine.apply, machine.query):
        try:
            run(call)
        except CommandError:
            pass


def test_wrong_arguments_are_found_by_the_caller() -> None:
    """A call that would be refused raises TypeError where it is encoded."""
    untyped: Any = Inventory.add
    for arguments in [(), (1,), ("apple", "x"), ("apple", 1, 2)]:
        with pytest.raises(TypeError):
            untyped.encode(*arguments)


def test_instances_do_not_share_state() -> None:
    """Each instance has containers of its own, defaults included."""
    one, other = Inventory(), Inventory()
    one.add("apple", 1)
    one.keep(Item("x"))
    assert (other.stock, other.items, other.tags, other.recent, other.greeting) == ({}, [], set(), deque(), ["hello"])


def test_snapshots_hold_all_declared_fields() -> None:
    """A restored machine has equal state, emptied containers and bounded deques included, and nothing of its own."""
    machine = Inventory()
    for n in range(5):
        machine.add(f"{n}", n)
    machine.keep(Item("x", 1))
    copy = Inventory()
    copy.add("old", 9)
    copy.restore(memoryview(written(machine)))
    for name in ("stock", "items", "tags", "recent", "total", "greeting"):
        assert getattr(copy, name) == getattr(machine, name), name
    assert (copy.recent.maxlen, copy.greeting, list(copy.stock)) == (3, [], list(machine.stock))
    copy.restore(memoryview(written(Inventory())))
    assert (copy.stock, copy.greeting, copy.total) == ({}, ["hello"], 0)


def test_large_fields_are_written_in_small_blocks() -> None:
    """No block is far above its target, whether items are small or large, and all parts come back."""
    machine = Inventory()
    for n in range(3 * MAX_BLOCK_ITEMS):
        machine.add(f"item {n}", 1)
    machine.tags |= {f"tag {n}" for n in range(2 * MAX_BLOCK_ITEMS)}
    machine.items = [Item("y" * 10_000) for _ in range(200)]
    assert max(map(len, machine.snapshot())) < 3 * TARGET_BLOCK_BYTES
    copy = Inventory()
    copy.restore(memoryview(written(machine)))
    assert (copy.stock, copy.tags, copy.items) == (machine.stock, machine.tags, machine.items)


def test_undeclared_state_is_an_error() -> None:
    """An attribute that snapshots would lose stops the snapshot with its name."""
    machine = Inventory()
    machine.clock.now()
    written(machine)
    machine.cache = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="does not declare: cache"):
        machine.snapshot()


class Reduced(TypedStateMachine):
    stock: dict[str, int]
    total: str = "none"


def test_snapshots_that_do_not_fit_change_nothing() -> None:
    """Cut, foreign and wrongly typed snapshots raise ValueError and leave the state."""
    machine = Inventory()
    machine.add("apple", 1)
    whole = written(machine)
    copy = Inventory()
    copy.add("kept", 7)
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match="snapshot"):
            copy.restore(memoryview(whole)[:cut])
    assert (copy.stock, copy.total) == ({"kept": 7}, 7)
    with pytest.raises(ValueError, match="does not declare"):
        Reduced().restore(memoryview(whole))


class Wider(Inventory):
    """A later program: one field and one command more."""

    extra: dict[str, str]

    @command
    def label(self, item: str, text: str) -> None:
        self.extra[item] = text


def test_a_later_program_reads_the_earlier_snapshot() -> None:
    """A field that was added since gets its default; inherited commands and fields are there."""
    machine = Inventory()
    machine.add("apple", 2)
    later = Wider()
    later.label("a", "b")
    later.restore(memoryview(written(machine)))
    assert (later.stock, later.extra) == ({"apple": 2}, {})
    later.apply(Wider.label.encode("x", "y"))
    later.apply(Wider.add.encode("apple"))
    assert (later.stock, later.extra) == ({"apple": 3}, {"x": "y"})


def test_mistakes_in_a_declaration_are_found_early() -> None:
    """Missing annotations and defaults, variable arguments and unfit types are errors with a name in them."""
    with pytest.raises(TypeError, match="parameter item needs a type"):
        command(lambda self, item: None)

    class NoDefault(TypedStateMachine):
        total: int

    with pytest.raises(TypeError, match=r"NoDefault\.total needs a default"):
        NoDefault()

    class Unfit(TypedStateMachine):
        state: complex = 1j

    with pytest.raises(TypeError, match=r"Unfit\.state cannot be part of a snapshot"):
        Unfit()

    @command
    def unfit(self: Inventory, item: complex) -> None:
        return None

    with pytest.raises(TypeError, match=r"unfit\(\): item cannot travel"):
        unfit.encode(1j)

    with pytest.raises(TypeError, match="return annotation"):

        @command
        def no_answer(self: Inventory, item: str):  # type: ignore[no-untyped-def]
            return None

    with pytest.raises(TypeError, match=r"\*rest cannot be a parameter"):

        @command
        def many(self: Inventory, *rest: int) -> None:
            return None


def test_a_typed_machine_is_deterministic() -> None:
    """Sets included, answers and snapshots are the same in every process."""
    commands = [Inventory.add.encode(f"{n * 7 % 30} item", n) for n in range(60)]
    commands += [Inventory.keep.encode(Item("x")), b"wrong"]
    check_determinism(Inventory, commands, queries=[Inventory.all_tags.encode(), Inventory.count.encode("7 item")])
