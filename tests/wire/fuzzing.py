"""Broken bytes for decoders: changed, cut, repeated, joined, and well-formed MessagePack with wrong values in it."""

import random
from typing import Any

import msgspec

_NUMBERS: tuple[Any, ...] = (None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, float("nan"))
_STRINGS: tuple[Any, ...] = ("", "x" * 5000, b"", b"y" * 17, b"z" * 5000)
_SHAPES: tuple[Any, ...] = ([], [[]], [0] * 100, {}, {"a": 1}, [1, 2, 3], msgspec.msgpack.Ext(5, b"ext"))
WRONG_VALUES = _NUMBERS + _STRINGS + _SHAPES

HOSTILE = (
    b"",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x81" * 100_000,
    b"\x9f" * 5_000,
    b"\x93\x01\x01\xdd\x0f\xff\xff\xff",
    b"\x92\x01" + b"\x91" * 100_000,
    b"\x92\x06\xa4\xff\xff\xff\xff",
)
"""Announced lengths without the bytes, deep nesting, broken UTF-8, the one byte that MessagePack never uses."""


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Return a broken version of `data`; `others` are samples to splice from."""
    broken = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(broken) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(broken):
            broken[at] = rng.randrange(256)
        elif kind == 1 and at < len(broken):
            broken[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del broken[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            broken[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            broken[at:at] = broken[at : at + rng.randrange(1, 30)]
        else:
            broken[at:] = rng.choice(others)[at:]
    return bytes(broken)


def rebuild(rng: random.Random, data: bytes) -> bytes:
    """Return well-formed MessagePack of nearly the same shape: one value replaced, dropped, doubled or added."""
    tree = msgspec.msgpack.decode(data)
    places: list[list[Any]] = []

    def collect(node: Any) -> None:
        if isinstance(node, list):
            if node:
                places.append(node)
            for child in node:
                collect(child)

    collect(tree)
    if places:
        place = rng.choice(places)
        at = rng.randrange(len(place))
        kind = rng.randrange(4)
        if kind == 0:
            place[at] = rng.choice(WRONG_VALUES)
        elif kind == 1:
            del place[at]
        elif kind == 2:
            place.insert(at, rng.choice(WRONG_VALUES))
        else:
            place[at] = rng.choice([-1, 1, 2**62, 2**63, 2**64 - 1])
    return msgspec.msgpack.encode(tree)
