"""The log after a power loss: at every write and sync, with any part of what was not synced, and again in recovery.

The invariants, all of them in `model.Model.check` and `crashing.Judge`: acknowledged entries are there, in order; a
batch is whole or absent; what was cut, truncated or trimmed never returns, not even after further crashes; no cursor
goes back beyond its mode's promise; the log accepts appends, verifies, and shows them after the next crash.
"""

import contextlib
import errno
import os
import random

import pytest

from octopii.errors import LogFull, LogPoisoned
from octopii.walrus.memory_vfs import (
    MemoryFileSystem,
    Operation,
    PowerLoss,
    Unsynced,
    survive_all,
    survive_none,
    survive_randomly,
)
from octopii.walrus.vfs import sector_bytes
from tests.walrus.crashing import (
    CoreLog,
    crash_everywhere,
    folder,
    play,
    small_block_bytes,
    take,
)
from tests.walrus.model import (
    Append,
    Batch,
    Commit,
    Delete,
    Model,
    Read,
    Replace,
    Reset,
    Sizes,
    Step,
    Sync,
    Trim,
    Truncate,
    random_step,
)


def _entry(size: int, name: object) -> bytes:
    return f"{name}|".encode().ljust(size, b".")


def _entries(count: int, size: int, name: object) -> tuple[bytes, ...]:
    return tuple(_entry(size, f"{name}{number}") for number in range(count))


def _fill(topic: str, count: int, size: int = 60) -> list[Step]:
    return [Append(topic, entry) for entry in _entries(count, size, topic)]


_block = small_block_bytes

scripts: dict[str, tuple[list[Step], list[Step]]] = {
    "single": ([], _fill("t", 4)),
    "single to a used topic": (_fill("t", 5), [Append("t", b""), Append("t", b"x"), Append("t", _entry(400, "y"))]),
    "batch": (_fill("t", 1), [Batch("t", _entries(8, 50, "a")), Batch("t", _entries(3, 0, "")), Append("t", b"z")]),
    "spanning": (_fill("t", 1), [Append("t", _entry(3 * _block, "big")), Append("t", _entry(40, "after"))]),
    "spanning batch": (
        _fill("t", 1),
        [Batch("t", (_entry(9, "a"), _entry(2 * _block, "b"), *_entries(9, 130, "c"))), Append("t", b"z")],
    ),
    "block is filled": (_fill("t", 5, 150), _fill("t", 6, 150)),
    "segment rolls": (_fill("t", 12, 250), _fill("t", 8, 500)),
    "topics are created": ([], [Append("a", b"1"), Append("é" * 20, b"2"), Batch("c", (b"3", b"4"))]),
    "trim": (
        _fill("t", 12, 250),
        [Trim("t", 3), Trim("t", 9), Append("t", b"x"), Trim("t", 13), Append("t", b"y")],
    ),
    "truncate": (
        _fill("t", 8, 60),
        [Truncate("t", 6), Append("t", _entry(60, "t6")), Truncate("t", 2), Truncate("t", 0), Append("t", b"new")],
    ),
    "truncate over blocks": (
        _fill("t", 12, 250),
        [Truncate("t", 10), Append("t", _entry(250, "new")), Truncate("t", 2), *_fill("t", 3, 250)],
    ),
    "replace": (
        _fill("t", 8, 60),
        [Replace("t", 6, _entries(3, 60, "r")), Replace("t", 8, _entries(2, 700, "s")), Replace("t", 0, (b"only",))],
    ),
    "replace over blocks": (
        _fill("t", 12, 250),
        [Replace("t", 3, _entries(9, 250, "r")), Replace("t", 11, (_entry(2 * _block, "s"), b"")), Append("t", b"z")],
    ),
    "reset": (
        _fill("t", 8, 200),
        [Reset("t", 100), Append("t", b"100"), Append("t", b"101"), Reset("t", 50), Append("t", b"50")],
    ),
    "cursors": (
        [*_fill("t", 8, 60), Commit("t", "b", 5)],
        [
            Read("t", "a"),
            Read("t", "b"),
            Read("t", "a", 200),
            Commit("t", "b", 1),
            Read("t", "a"),
            Read("t", "b", 9999),
        ],
    ),
    "cursors and cuts": (
        [*_fill("t", 8, 60), Commit("t", "a", 7), Commit("t", "b", 2)],
        [Truncate("t", 4), *_fill("t", 5), Trim("t", 3), Replace("t", 3, _entries(7, 30, "r")), Read("t", "a")],
    ),
    "delete": (
        [*_fill("t", 6, 250), *_fill("u", 2), Commit("t", "a", 5)],
        [Delete("t"), Append("t", b"again"), Read("t", "a"), Delete("u"), Delete("t")],
    ),
    "blocks are recycled": (
        _fill("t", 14, 250),
        [Trim("t", 13), *_fill("u", 4, 500), Trim("t", 14), *_fill("t", 4, 500), Trim("u", 4), *_fill("v", 4, 500)],
    ),
}

grouped: dict[str, tuple[list[Step], list[Step]]] = {
    "topics in one sync": (
        [*_fill("a", 2), *_fill("b", 2)],
        [Append("a", b"1"), Append("b", b"2"), Batch("c", (b"3", b"4")), Append("a", b"5"), Sync(), Append("b", b"6")],
    ),
    "blocks in one sync": (
        _fill("a", 2),
        [*_fill("a", 3, 500), *_fill("b", 3, 500), Sync(), Append("a", _entry(2 * _block, "x")), Append("b", b"6")],
    ),
    "cuts in one sync": (
        _fill("a", 6, 200),
        [
            Truncate("a", 4),
            Append("a", b"4"),
            Replace("a", 3, (b"3", b"4")),
            Append("a", b"5"),
            Sync(),
            Append("a", b"6"),
        ],
    ),
    "trims in one sync": (
        _fill("a", 12, 250),
        [
            Trim("a", 9),
            *_fill("b", 3, 500),
            Sync(),
            *_fill("b", 3, 500),
            Trim("b", 5),
            Trim("a", 12),
            Append("a", b"z"),
        ],
    ),
    "cuts under cursors in one sync": (
        [*_fill("a", 8, 300), Commit("a", "a", 7)],
        [Truncate("a", 5), *_fill("a", 5, 500), Commit("a", "b", 8), Replace("a", 6, _entries(4, 300, "r")), Sync()],
    ),
    "cursors in one sync": (
        [*_fill("a", 6), Commit("a", "b", 3)],
        [Read("a", "a"), Commit("a", "b", 1), Append("a", b"x"), Sync(), Read("a", "a", 100), Truncate("a", 2)],
    ),
    "delete and create in one sync": (
        [*_fill("a", 6, 250), Commit("a", "a", 3)],
        [Delete("a"), Append("a", b"again"), Read("a", "a"), Sync(), Append("a", b"more"), Delete("a")],
    ),
}


@pytest.mark.parametrize("name", scripts)
def test_crash_at_every_operation(name: str) -> None:
    """Whatever a crash keeps, at every operation of a script whose steps are durable one by one."""
    setup, script = scripts[name]
    assert crash_everywhere(setup, script).judged > 10


@pytest.mark.parametrize("name", grouped)
def test_crash_within_a_group(name: str) -> None:
    """Whatever a crash keeps of several writes to several topics that share one sync."""
    setup, script = grouped[name]
    assert crash_everywhere(setup, script, eager=False).judged > 10


def test_crash_with_many_segments() -> None:
    """A superblock of several sectors is never lost, with segments made and removed all the time."""
    setup = _fill("t", 34, 900)
    script = [*_fill("t", 3, 900), Trim("t", 30), Append("t", _entry(900, "more"))]
    assert crash_everywhere(setup, script, segment_blocks=1, limit=16, share_again=0).judged > 10


@pytest.mark.parametrize("name", ["cursors", "cursors and cuts"])
def test_at_least_once_reads_few_again(name: str) -> None:
    """`AtLeastOnce(3)` goes back by three entries at most, batch reads and cuts included."""
    setup, script = scripts[name]
    assert crash_everywhere(setup, script, lag=3).judged > 10


topics = ("a", "b", "ü")
lives_each = 250
sizes = Sizes(small=120, spanning=3 * small_block_bytes)


class Lives:
    """A log that lives, crashes and lives again, by random steps of one seed, and its model."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.eager = self.rng.random() < 0.5
        self.model = Model(lag=self.rng.choice((0, 0, 3)))
        self.system = MemoryFileSystem()
        self.system.make_folder(folder)
        self.tag = 0
        self.faulty = self.rng.random() < 0.3

    def live(self, steps: int) -> None:
        """Open, compare, take random steps; the power goes at a random operation, and often in recovery."""
        countdown = self.rng.randrange(1, 12 * steps)

        fault = self.rng.randrange(countdown) if self.faulty and self.rng.random() < 0.3 else 0

        def hook(operation: Operation) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                raise PowerLoss
            if countdown == fault and operation.kind != "store":  # those can't fail: the space is there
                raise OSError(errno.EIO, os.strerror(errno.EIO), operation.path)
            if self.rng.random() < 0.05:
                self.system.write_back(survive_randomly(self.rng))

        self.system.faults.before = hook
        try:
            log = CoreLog(self.system, eager=self.eager, lag=self.model.lag)
        except (PowerLoss, OSError, LogPoisoned):
            self._lose_power()
            return
        try:
            shown = log.look()
            self.model.check(shown)
            self.model.adopt(shown)
            for _ in range(steps):
                self._step(log)
            assert_newest(self.model, log)
            if self.rng.random() < 0.3:
                log.close()
                self.model.settle()
        except (PowerLoss, LogPoisoned):
            pass
        self._lose_power()

    def _lose_power(self) -> None:
        self.system.faults.before = None
        self.system.faults.capacity = None
        self.system.crash(survive_randomly(self.rng))

    def _step(self, log: CoreLog) -> None:
        """One random step; on a full disk it may be refused, and then it leaves no trace."""
        self.tag += 1
        step = random_step(self.rng, self.model, topics=topics, sizes=sizes, tag=f"{self.tag}")
        if self.faulty and self.rng.random() < 0.2:
            room = self.rng.choice((0, 0, 2000, 10_000))
            self.system.faults.capacity = self.rng.choice((None, self.system.used_bytes() + room))
        before = self.model.copy()
        try:
            take(log, self.model, step)
        except LogFull:
            assert self.system.faults.capacity is not None
            self.model = before
            assert_newest(self.model, log)


def assert_newest(model: Model, log: CoreLog) -> None:
    """The running log shows all that was done, durable or not."""
    shown = log.look()
    for name, topic in model.topics.items():
        entries = topic.entries.newest
        if entries.end:
            assert shown[name].first == topic.first
            assert shown[name].items == entries.items[topic.first - entries.base :]
            for cursor in topic.cursors:
                assert shown[name].cursors[cursor] == topic.cursor(cursor)
    assert {name for name, seen in shown.items() if seen.end} <= set(model.topics)


@pytest.mark.parametrize("share", range(4))
def test_random_lives(share: int) -> None:
    """Logs under random steps, crashing at random operations of work and of recovery, six lives long each."""
    for seed in range(share * lives_each, (share + 1) * lives_each):
        _live_six_times(seed)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_many_random_lives() -> None:
    """The same with twenty thousand logs."""
    for seed in range(100_000, 120_000):
        _live_six_times(seed)


def _live_six_times(seed: int) -> None:
    lives = Lives(seed)
    try:
        for _ in range(6):
            lives.live(lives.rng.randrange(1, 25))
        log = CoreLog(lives.system, lag=lives.model.lag)
        lives.model.check(log.look())
        damages = log.log.verify()
        assert not damages, damages
    except Exception as error:
        error.add_note(f"the log's seed is {seed}")
        raise


def test_unsynced_is_lost_without_sync() -> None:
    """The file system under these tests does lose what the log did not sync: without that they would hold nothing."""
    system = MemoryFileSystem()
    system.make_folder(folder)
    log = CoreLog(system, eager=False)
    log.take(Append("t", b"lost"))
    assert CoreLog(system.after_crash(survive_none)).look() == {}
    assert CoreLog(system.after_crash(survive_all)).look()["t"].items == (b"lost",)


def test_a_cut_moves_cursors_for_good_on_a_full_disk() -> None:
    """A cursor that follows a cut which outlived a crash stays there, though the catalog can't be written anew."""
    system = MemoryFileSystem()
    system.make_folder(folder)
    log = CoreLog(system)
    play(log, Model(), [*_fill("t", 5), Append("u", b""), Commit("t", "a", 5)])
    system.faults.capacity = system.used_bytes()
    with contextlib.suppress(LogFull):
        while True:  # all that is free, the reserve too
            log.log.append_for_topic("filler", bytes(600), urgent=True)
    log.sync()
    log.log.truncate_from("t", 2)
    log.log.append_for_topic("t", b"new")
    stored = log.log._topics["t"]
    assert stored.segment is not None
    path, first = stored.segment.path, stored.base

    def only_the_cut(change: Unsynced) -> bool:
        return change.path == path and first <= change.index * sector_bytes < first + small_block_bytes

    system.crash(only_the_cut)
    for _ in range(2):
        log = CoreLog(system)
        assert log.look()["t"].cursors["a"] == 2
        play(log, Model(), [Append("t", b"more"), Append("u", b"other"), Append("t", b"more")])
        system.crash(survive_all)
    assert CoreLog(system).look()["t"].cursors["a"] == 2


@pytest.mark.parametrize("seed", [101_074, 113_509, 300_545, 300_995])
def test_lives_that_went_wrong_once(seed: int) -> None:
    """Seeds that found a cursor not following a cut, and a failed write of a mark that went by its own name."""
    _live_six_times(seed)
