"""Large state within state: written and read in parts, whatever holds it."""

from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.blocks import TARGET_BLOCK_BYTES, read_blocks, write_blocks
from octopii.typed import TypedStateMachine
from octopii.typed.parts import Block

ITEMS = 30_000


class Deep(TypedStateMachine):
    by_name: dict[str, list[int]]
    by_place: dict[tuple[int, int], dict[str, set[int]]]
    rows: list[dict[str, str]]
    recent: deque[list[str]] = deque(maxlen=3)
    small: dict[str, list[int]]


def full() -> Deep:
    machine = Deep()
    machine.by_name = {"first": [1], "large": list(range(10**6, 10**6 + ITEMS)), "empty": [], "last": [2, 3]}
    machine.by_place = {
        (0, 0): {},
        (1, 2): {"a": {1}, "b": set(range(2**32, 2**32 + ITEMS)), "c": set()},
        (3, 4): {f"{n}": {n} for n in range(3 * ITEMS)},
    }
    machine.rows = [{}, {f"{n}": "x" * 20 for n in range(ITEMS)}, {"a": "b"}]
    machine.recent.extend([["a"], ["y" * 100_000 for _ in range(30)], ["z"]])
    machine.small = {f"{n}": [n] * 3 for n in range(ITEMS)}
    return machine


def state(machine: Deep) -> dict[str, Any]:
    return {name: value for name, value in vars(machine).items() if name not in ("_made_with", "clock")}


def test_a_large_container_within_another_is_written_in_parts() -> None:
    """No piece is far above a block's size, order is kept, and the state comes back equal."""
    machine = full()
    pieces = [bytes(piece) for piece in machine.snapshot()]
    assert max(map(len, pieces)) < 3 * TARGET_BLOCK_BYTES
    assert sum(map(len, pieces)) > 10 * TARGET_BLOCK_BYTES
    copy = Deep()
    copy.restore(memoryview(b"".join(pieces)))
    assert state(copy) == state(machine)
    assert list(copy.by_name) == list(machine.by_name)
    assert list(copy.by_place) == list(machine.by_place)
    assert copy.recent.maxlen == 3


def test_small_containers_share_blocks() -> None:
    """Many small containers do not become as many blocks."""
    machine = Deep()
    machine.small = full().small
    assert len(list(machine.snapshot())) < 100


nested = st.dictionaries(st.text(max_size=3), st.lists(st.integers(-(2**40), 2**40), max_size=20), max_size=20)


@given(nested, st.integers(1, 200))
def test_any_state_comes_back_at_any_block_size(values: dict[str, list[int]], target: int) -> None:
    """Wherever containers are taken apart, they are put together again."""
    machine, copy = Deep(), Deep()
    machine.by_name = machine.small = values
    machine.rows = [{key: str(each)} for key, each in values.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("octopii.typed.parts.TARGET_BLOCK_BYTES", target)
        data = b"".join(machine.snapshot())
    copy.restore(memoryview(data))
    assert state(copy) == state(machine)
    assert list(copy.by_name) == list(values)


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


@pytest.mark.parametrize(
    "block",
    [
        Block("by_name", raw([1]), [raw("missing")]),
        Block("by_name", raw([1]), [raw(7)]),
        Block("by_name", raw([1]), [raw("there"), raw(0)]),
        Block("by_name", raw(["x"]), [raw("there")]),
        Block("rows", raw({}), [raw(5)]),
        Block("rows", raw({}), [raw("a")]),
        Block("by_place", raw([1]), [raw([1, 2]), raw("a")]),
    ],
)
def test_parts_that_fit_nowhere_change_nothing(block: Block) -> None:
    """A path that leads nowhere, too deep, or to another type is a damaged snapshot."""
    machine = Deep()
    machine.small = {"kept": [1]}
    blocks = [Block("by_name", raw({"there": []})), block]
    data = b"".join(write_blocks("typed/1", blocks))
    assert len(list(read_blocks("typed/1", memoryview(data), msgspec.msgpack.Decoder(Block)))) == 2
    with pytest.raises(ValueError, match="the snapshot's field"):
        machine.restore(memoryview(data))
    assert machine.small == {"kept": [1]}


def test_blocks_without_a_path_are_as_they_were() -> None:
    """What an earlier program wrote, arrays of two, is read."""
    machine = Deep()
    data = b"".join(write_blocks("typed/1", [("by_name", raw({"a": [1]})), ("by_name", raw({"b": []}))]))
    machine.restore(memoryview(data))
    assert machine.by_name == {"a": [1], "b": []}
