"""Containers in parts: what a typed machine's state becomes in a snapshot, no C call over more than a part of it.

A block is the MessagePack array [field, payload, path]. Where the path is empty the payload holds further items of the
field: a map for a dict, an array for a list, a set or a deque; any other value is in one block. An item
that is a large container itself stands empty in its place, and blocks with a path follow it: the keys (of dicts) and
indexes (of lists) that lead to it, and in the payload its items. Only containers within containers are taken apart,
as far as annotations say that they are (`dict[str, dict[str, list[int]]]`); a struct or a tuple is written whole.
"""

import heapq
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec

from octopii.blocks import MAX_BLOCK_ITEMS, TARGET_BLOCK_BYTES

FIRST_PART_ITEMS = 4
"""Items in the first part of a container; later parts follow the size of what was seen."""

GROWTH = 8
"""Times the items of one part that the next may have: the first says little of how large items are."""

SAMPLED_ITEMS = 8
"""Items by which the size of a container within another one is estimated."""

_encoder = msgspec.msgpack.Encoder()


class Block(msgspec.Struct, array_like=True):
    """One block of a snapshot."""

    field: str
    payload: msgspec.Raw
    path: list[msgspec.Raw] = []


class Shape(msgspec.Struct, frozen=True):
    """A container type: dict, list, set or deque, what decodes a part and a key of it, and the shape of its items."""

    kind: type
    hint: Any
    decoder: Any
    key_decoder: Any
    child: "Shape | None"

    def add(self, container: Any, part: Any) -> None:
        """Put the items of a decoded part into a container."""
        if self.kind in (dict, set):
            container.update(part)
        else:
            container.extend(part)


def shape_of(hint: Any, *, nested: bool = False) -> Shape | None:
    """The shape that an annotation names, None for anything but a container (nested: one without constraints)."""
    plain = hint
    if typing.get_origin(hint) is typing.Annotated and not nested:
        plain = typing.get_args(hint)[0]
    kind, arguments = typing.get_origin(plain) or plain, typing.get_args(plain)
    if kind not in (dict, list, set, deque):
        return None
    if kind is deque:
        hint = list[(arguments or (Any,))[0]]  # type: ignore[misc]
    child = shape_of(arguments[-1], nested=True) if arguments and kind is not set else None
    if child is not None and child.kind is deque:
        child = None  # MessagePack knows none: it is refused where the whole type is looked at
    key_decoder = msgspec.msgpack.Decoder(arguments[0]) if child is not None and kind is dict else _decode_index
    try:
        return Shape(kind, hint, msgspec.msgpack.Decoder(hint), key_decoder, child)
    except TypeError:
        return Shape(kind, hint, None, key_decoder, None)  # likewise


_decode_index = msgspec.msgpack.Decoder(int)


# --- writing ----------------------------------------------------------------------------------------------------


def blocks_of(field: str, value: Any, shape: Shape | None) -> Iterator[Block]:
    """Yield the blocks of one field."""
    if shape is None:
        yield Block(field, msgspec.Raw(_encoder.encode(value)))
    else:
        yield from _container(field, value, shape, [])


def _container(field: str, value: Any, shape: Shape, path: list[msgspec.Raw]) -> Iterator[Block]:
    if shape.child is None:
        for payload in _flat_parts(value):
            yield Block(field, msgspec.Raw(payload), path)
        return
    child, is_dict = shape.child, isinstance(value, dict)
    part: list[tuple[Any, Any]] = []
    size, most, scale, wrote = 0.0, FIRST_PART_ITEMS, 1.0, False

    def take() -> Block:
        nonlocal size, most, scale, wrote
        payload = _encoder.encode(dict(part) if is_dict else [item for _, item in part])
        scale = max(1.0, scale * len(payload) / size) if size else scale
        most, size, wrote = min(most * GROWTH, MAX_BLOCK_ITEMS), 0.0, True
        part.clear()
        return Block(field, msgspec.Raw(payload), path)

    for key, item in value.items() if is_dict else enumerate(value):
        weight = _weight(item, child, scale)
        if weight > TARGET_BLOCK_BYTES:
            part.append((key, child.kind()))
            yield take()
            yield from _container(field, item, child, [*path, msgspec.Raw(_encoder.encode(key))])
            continue
        part.append((key, item))
        size += weight
        if size > TARGET_BLOCK_BYTES or len(part) >= most:
            yield take()
    if part or not wrote:
        yield take()  # an empty one as well: an emptied container is not a missing one


def _weight(value: Any, shape: Shape, scale: float) -> float:
    """About how many bytes a container takes; beyond the size of a block it may be any larger number.

    Large ones are judged by a sample, small ones by `scale`: the bytes that an item took in the part before.
    """
    count = len(value)
    if shape.child is None:
        if count <= SAMPLED_ITEMS:
            return (1 + count) * scale
        if count > MAX_BLOCK_ITEMS:
            return TARGET_BLOCK_BYTES + 1
        sample = list(islice(value.items() if isinstance(value, dict) else value, SAMPLED_ITEMS))
        return len(_encoder.encode(sample)) * count / SAMPLED_ITEMS
    total = scale
    for item in value.values() if isinstance(value, dict) else value:
        total += scale + _weight(item, shape.child, scale)
        if total > TARGET_BLOCK_BYTES:
            break
    return total


def _flat_parts(value: Any) -> Iterator[bytes]:
    """Encode the items of a container in parts of about `TARGET_BLOCK_BYTES`."""
    if isinstance(value, dict):
        items: Iterator[Any] = iter(value.items())
        collect: Callable[[Iterable[Any]], Any] = dict
    else:
        items = _in_fixed_order(value) if isinstance(value, set) else iter(value)
        collect = list
    # The first part is written even when it is empty: an emptied container is not a missing one.
    step = FIRST_PART_ITEMS
    part = collect(islice(items, step))
    while True:
        payload = _encoder.encode(part)
        yield payload
        fitting = len(part) * TARGET_BLOCK_BYTES // len(payload)
        step = max(1, min(step * GROWTH, fitting, MAX_BLOCK_ITEMS))
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


# --- reading ----------------------------------------------------------------------------------------------------


def take_block(block: Block, root: Any, shape: Shape) -> None:
    """Put a block's items where they belong below `root`; raises `ValueError` when they do not fit there."""
    into, at = root, shape
    try:
        for raw in block.path:
            if at.child is None:
                raise ValueError(f"the snapshot's field {block.field!r} is nested deeper than its type")
            into, at = into[at.key_decoder.decode(raw)], at.child
        at.add(into, at.decoder.decode(block.payload))
    except msgspec.DecodeError as error:
        raise ValueError(f"the snapshot's field {block.field!r} does not fit its type: {error}") from None
    except (LookupError, TypeError):
        raise ValueError(f"the snapshot's field {block.field!r} continues an item that is not there") from None
