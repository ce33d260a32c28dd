"""Fragments whose checksums are right and which make no sense where they are: each is refused, and never a crash.

After a crash the log ends before such a fragment, as nothing vouches for it. In a closed log it is damage, found by
whoever reads it and by `verify`.
"""

from collections.abc import Callable

import pytest

from octopii.durability import NoFsync
from octopii.errors import CorruptLogError
from octopii.walrus import Log
from octopii.walrus.memory_vfs import MemoryFileSystem, survive_all
from octopii.walrus.record import BEGIN, COMMIT, COMMIT_BODY, LAST, MANY, MIDDLE, ONE, REPLACE, kind_mask
from tests.walrus.crashing import CoreLog, folder, small_block_bytes
from tests.walrus.forging import Found, forge, fragments

Forgery = Callable[[MemoryFileSystem, list[Found]], None]

before = [b"zero", b"one"]
batch = [b"two", b"three" * 500, b"four"]  # FIRST, MIDDLE and LAST pieces, and a commit
after = [b"five", b"six"]


def _written() -> tuple[MemoryFileSystem, Log, list[Found]]:
    system = MemoryFileSystem()
    system.make_folder(folder)
    log = Log(folder, vfs=system, fsync_schedule=NoFsync(), block_bytes=small_block_bytes, segment_blocks=16)
    for entry in before:
        log.append_for_topic("t", entry)
    log.batch_append_for_topic("t", batch)
    log.batch_append_for_topic("t", after)
    return system, log, fragments(log, system, "t")


def _of(found: list[Found], kind: int) -> Found:
    return next(each for each in found if each.fragment.kind & kind_mask == kind)


def _commit_with(place: int, other: int | bytes) -> Forgery:
    def change(system: MemoryFileSystem, found: list[Found]) -> None:
        commit = _of(found, COMMIT)
        fields = list(COMMIT_BODY.unpack(commit.payload))
        assert fields[place] != other
        fields[place] = other
        forge(system, commit, payload=COMMIT_BODY.pack(*fields))

    return change


def _change(of: int, number: int = 0, **fields: int) -> Forgery:
    def change(system: MemoryFileSystem, found: list[Found]) -> None:
        fragment = [each for each in found if each.fragment.kind & kind_mask == of][number]
        shifted = {name: getattr(fragment.fragment, name) + by for name, by in fields.items()}
        forge(system, fragment, **shifted)

    return change


def _many(payload: bytes) -> Forgery:
    def change(system: MemoryFileSystem, found: list[Found]) -> None:
        many = found[-1]
        assert many.fragment.kind & kind_mask == MANY
        forge(system, many, payload=payload)

    return change


def _replace_too_far(system: MemoryFileSystem, found: list[Found]) -> None:
    forge(system, found[-1], kind=found[-1].fragment.kind | REPLACE, offset=1)  # lies in an earlier block


torn: dict[str, tuple[Forgery, list[bytes]]] = {
    "commit of another count": (_commit_with(0, 4), before),
    "commit of another size": (_commit_with(1, 7), before),
    "commit of another checksum": (_commit_with(2, bytes(8)), before),
    "unit without a beginning": (_change(ONE, 2, kind=-BEGIN), before),
    "offset that does not follow": (_change(ONE, 1, offset=1), before[:1]),
    "offset that goes back": (_change(ONE, 1, offset=-1), before[:1]),
    "offset of a piece": (_change(MIDDLE, offset=1), before),
    "offset of a last piece": (_change(LAST, offset=-1), before),
    "seq that does not follow": (_change(ONE, 1, seq=1), before[:1]),
    "seq that repeats": (_change(ONE, 1, seq=-1), before[:1]),
}


@pytest.mark.parametrize("name", torn)
def test_crashed_log_ends_before_what_makes_no_sense(name: str) -> None:
    """After a crash all before it is there, and nothing of it or behind it, not even a part of its batch."""
    forgery, left = torn[name]
    system, _, found = _written()
    forgery(system, found)
    log = CoreLog(system.after_crash(survive_all))
    assert log.look()["t"].items == tuple(left)
    assert not log.log.verify()


damaged: dict[str, Forgery] = {
    "offset that does not follow": _change(ONE, 1, offset=1),
    "offset of a piece": _change(MIDDLE, offset=1),
    "seq that does not follow": _change(ONE, 1, seq=1),
    "seq that repeats": _change(ONE, 1, seq=-1),
    "more lengths than bytes": _many((1 << 31).to_bytes(4, "little") + bytes(8)),
    "lengths that are too short": _many(b"\2\0\0\0" + b"\1\0\0\0" * 2 + b"xxx"),
    "lengths that are too long": _many(b"\2\0\0\0" + b"\1\0\0\0" * 2 + b"x"),
    "a cut into an earlier block": _replace_too_far,
}


@pytest.mark.parametrize("name", damaged)
def test_closed_log_refuses_what_makes_no_sense(name: str) -> None:
    """In a closed log reading what makes no sense is `CorruptLogError` with the place and the topic."""
    system, log, found = _written()
    log.close()
    damaged[name](system, found)
    log = Log(folder, vfs=system)
    with pytest.raises(CorruptLogError) as caught:
        log.read_from("t", 0, 1 << 20)
    assert (caught.value.path, caught.value.topic) == (found[0].path, "t")
    assert caught.value.position is not None


found_by_verify: dict[str, Forgery] = {
    **{name: forgery for name, (forgery, _) in torn.items() if name.startswith("commit")},
    "offset that does not follow": _change(ONE, 1, offset=1),
    "seq that does not follow": _change(ONE, 1, seq=1),
    "seq that repeats": _change(ONE, 1, seq=-1),
}


@pytest.mark.parametrize("name", found_by_verify)
def test_verify_finds_what_makes_no_sense(name: str) -> None:
    """`verify` names the place, once, and goes on with what is behind it."""
    system, log, found = _written()
    log.close()
    found_by_verify[name](system, found)
    log = Log(folder, vfs=system)
    (damage,) = log.verify()
    assert damage.topic == "t"
    assert damage.path == found[0].path
