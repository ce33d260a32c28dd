"""The persistent map: a model, old versions that stay, an order that depends on nothing, and colliding keys."""

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.machines import PersistentMap, persistent_map

KEYS = st.sampled_from([b"k%d" % n for n in range(40)])
CHANGES = st.lists(st.tuples(KEYS, st.one_of(st.none(), st.integers(0, 9))), max_size=120)


def changed(steps: list[tuple[bytes, int | None]]) -> tuple[PersistentMap[bytes, int], dict[bytes, int]]:
    """Make a map and its model by the same changes, checking every version on the way."""
    versions: list[tuple[PersistentMap[bytes, int], dict[bytes, int]]] = [(PersistentMap(), {})]
    for key, value in steps:
        current, model = versions[-1]
        if value is not None:
            versions.append((current.set(key, value), {**model, key: value}))
        elif key in model:
            versions.append((current.delete(key), {each: n for each, n in model.items() if each != key}))
        else:
            with pytest.raises(KeyError):
                current.delete(key)
    for each, model in versions:
        assert dict(each) == model
        assert len(each) == len(model)
    return versions[-1]


@given(steps=CHANGES)
def test_a_map_behaves_like_a_dict_and_every_version_stays(steps: list[tuple[bytes, int | None]]) -> None:
    """After any changes each version holds what a copied dict holds, later changes notwithstanding."""
    changed(steps)


@given(steps=CHANGES)
def test_keys_that_share_a_hash_are_told_apart(steps: list[tuple[bytes, int | None]]) -> None:
    """With hashes of two bits nearly all keys collide, and the map is still a map."""
    with patch.object(persistent_map, "_digest", lambda key: sum(key) % 4):
        changed(steps)


@given(steps=CHANGES, hashes=st.sampled_from([2**64, 4]))
def test_equal_maps_have_the_same_order(steps: list[tuple[bytes, int | None]], hashes: int) -> None:
    """The order depends on the content alone, not on the way to it."""
    digest = persistent_map._digest
    with patch.object(persistent_map, "_digest", lambda key: digest(key) % hashes):
        reached, model = changed(steps)
        assert list(reached.items()) == list(PersistentMap(dict(sorted(model.items()))).items())


def test_text_keys_have_a_known_order() -> None:
    """The order is that of the XXH3 hashes of UTF-8: changing it would let replicas of two releases differ."""
    assert list(PersistentMap({"a": 1, "b": 2, "ü": 3, "": 4})) == KNOWN_ORDER
    with pytest.raises(KeyError):
        PersistentMap({"a": 1})["b"]


KNOWN_ORDER = ["", "ü", "b", "a"]


def branches(node: object) -> set[int]:
    if not isinstance(node, persistent_map._Branch):
        return set()
    return {id(node)}.union(*map(branches, node.children))


def test_deleted_keys_leave_no_branches_behind() -> None:
    """A map that has shrunk is the trie that it would have been without the deleted keys."""
    keys = [b"%d" % n for n in range(2_000)]
    shrunk = PersistentMap(dict.fromkeys(keys, 1))
    for key in keys[5:]:
        shrunk = shrunk.delete(key)
    assert len(branches(shrunk._root)) == len(branches(PersistentMap(dict.fromkeys(keys[:5], 1))._root))


def test_a_change_shares_all_but_the_path() -> None:
    """One more key in 10,000 copies a handful of nodes."""
    large = PersistentMap({b"%d" % n: n for n in range(10_000)})
    one_more = large.set(b"another", 1)
    assert len(branches(one_more._root) - branches(large._root)) <= 5
    assert len(branches(large._root)) > 300
