"""A map whose every version stays as it is: a change makes a new map, which shares nearly all of the old one.

    small = PersistentMap[str, int]().set("a", 1)
    large = small.set("b", 2)           # `small` still has one key

A hash array mapped trie (Bagwell, "Ideal Hash Trees", 2001) with 32 branches a node: looking up costs O(log32 n), and a
change copies one node of at most 32 slots for each level, whatever the size. Holding a version, as a snapshot does,
costs nothing.

Keys are all `str` or all `bytes`. Their order is that of their XXH3 hashes: the same in every process, and the same for
equal maps, however they came to be. (Python's own hashes of text differ between processes.)
"""

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

import xxhash

K = TypeVar("K", str, bytes)
V = TypeVar("V")

BITS = 5
HASH_BITS = 64
_MASK = (1 << BITS) - 1


class _Leaf:
    """One key. Two keys whose 64-bit hashes are equal share a leaf chain, sorted by key."""

    __slots__ = ("digest", "pairs")

    def __init__(self, digest: int, pairs: tuple[tuple[Any, Any], ...]) -> None:
        self.digest = digest
        self.pairs = pairs


class _Branch:
    """Up to 32 children; bit n of `bitmap` says whether there is one for the hash digit n. Never changed."""

    __slots__ = ("bitmap", "children")

    def __init__(self, bitmap: int, children: "tuple[_Branch | _Leaf, ...]") -> None:
        self.bitmap = bitmap
        self.children = children


_EMPTY = _Branch(0, ())


class PersistentMap(Mapping[K, V], Generic[K, V]):
    """An immutable mapping; `set` and `delete` return the changed one."""

    __slots__ = ("_count", "_root")

    def __init__(self, items: Mapping[K, V] | None = None) -> None:
        self._root = _EMPTY
        self._count = 0
        for key, value in (items or {}).items():
            changed = self.set(key, value)
            self._root, self._count = changed._root, changed._count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[K]:
        return (key for key, _ in _pairs(self._root))

    def __getitem__(self, key: K) -> V:
        digest = rest = _digest(key)
        node: _Branch | _Leaf = self._root
        while isinstance(node, _Branch):
            bit = 1 << (rest & _MASK)
            if not node.bitmap & bit:
                raise KeyError(key)
            node = node.children[(node.bitmap & (bit - 1)).bit_count()]
            rest >>= BITS
        if node.digest == digest:
            for found, value in node.pairs:
                if found == key:
                    return cast(V, value)
        raise KeyError(key)

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self)!r})"

    def set(self, key: K, value: V) -> "PersistentMap[K, V]":
        """Return this map with `key` set to `value`."""
        root = _with(self._root, 0, _Leaf(_digest(key), ((key, value),)))
        assert isinstance(root, _Branch)
        return self._changed(root, self._count + (key not in self))

    def delete(self, key: K) -> "PersistentMap[K, V]":
        """Return this map without `key`; raises `KeyError` when there is none."""
        if key not in self:
            raise KeyError(key)
        root = _without(self._root, _digest(key), _digest(key), key)
        if not isinstance(root, _Branch):
            root = _EMPTY if root is None else _Branch(1 << (root.digest & _MASK), (root,))
        return self._changed(root, self._count - 1)

    def _changed(self, root: _Branch, count: int) -> "PersistentMap[K, V]":
        changed: PersistentMap[K, V] = PersistentMap.__new__(PersistentMap)
        changed._root, changed._count = root, count
        return changed


def _digest(key: str | bytes) -> int:
    return xxhash.xxh3_64_intdigest(key.encode() if isinstance(key, str) else key)


def _pairs(node: _Branch | _Leaf) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, _Leaf):
        yield from node.pairs
        return
    for child in node.children:
        yield from _pairs(child)


def _with(node: _Branch | _Leaf, shift: int, leaf: _Leaf) -> _Branch | _Leaf:
    """Return `node`, which stands `shift` bits deep, with one more leaf, or with a leaf replaced."""
    if isinstance(node, _Leaf):
        if node.digest == leaf.digest:
            others = [pair for pair in node.pairs if pair[0] != leaf.pairs[0][0]]
            return _Leaf(leaf.digest, tuple(sorted([*others, *leaf.pairs], key=lambda pair: pair[0])))
        alone = _Branch(1 << (node.digest >> shift & _MASK), (node,))
        return _with(alone, shift, leaf)
    bit = 1 << (leaf.digest >> shift & _MASK)
    at = (node.bitmap & (bit - 1)).bit_count()
    if not node.bitmap & bit:
        return _Branch(node.bitmap | bit, (*node.children[:at], leaf, *node.children[at:]))
    child = _with(node.children[at], shift + BITS, leaf)
    return _Branch(node.bitmap, (*node.children[:at], child, *node.children[at + 1 :]))


def _without(node: _Branch | _Leaf, digest: int, rest: int, key: str | bytes) -> _Branch | _Leaf | None:
    """Return `node` without a key that it holds: None when nothing is left, a lone leaf by itself."""
    if isinstance(node, _Leaf):
        pairs = tuple(pair for pair in node.pairs if pair[0] != key)
        return _Leaf(digest, pairs) if pairs else None
    bit = 1 << (rest & _MASK)
    at = (node.bitmap & (bit - 1)).bit_count()
    child = _without(node.children[at], digest, rest >> BITS, key)
    if child is None:
        bitmap, children = node.bitmap ^ bit, (*node.children[:at], *node.children[at + 1 :])
    else:
        bitmap, children = node.bitmap, (*node.children[:at], child, *node.children[at + 1 :])
    if not children:
        return None
    # A branch with nothing but a leaf is written as the leaf: equal maps are equal tries.
    if len(children) == 1 and isinstance(children[0], _Leaf):
        return children[0]
    return _Branch(bitmap, children)
