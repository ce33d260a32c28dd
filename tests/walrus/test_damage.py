"""Bytes that change behind the log's back: every live one and a sample of the rest, blocks, and whole files.

After an orderly close any change of a live byte is an error: at open, at a read, or of `verify`. After a crash the
last group of writes, which nothing later vouches for, may be cut instead. Never is a wrong entry shown, and never a
shorter log without an error.
"""

import random
from collections.abc import Callable

import pytest

from octopii.errors import WalrusError
from octopii.walrus.memory_vfs import MemoryFileSystem, survive_all
from tests.walrus.crashing import CoreLog, folder, play, small_block_bytes
from tests.walrus.model import Append, Batch, Commit, Delete, Model, Replace, Seen, Step, Trim, Truncate, absent
from tests.walrus.oracle_reader import Oracle

first_half: list[Step] = [
    *(Append("a", f"a{number}|".encode() * (number % 5 + 1)) for number in range(12)),
    *(Append("b", f"b{number}|".encode() * 20) for number in range(14)),
    Batch("ü", (b"one", b"", b"three" * 150, b"four")),
    Append("gone", b"short life"),
    Truncate("a", 10),
]
second_half: list[Step] = [
    Append("a", b"new ten"),
    Replace("b", 12, (b"new twelve", b"new thirteen", b"fourteen")),
    Trim("b", 11),
    Append("a", b"span" * 400),
    Commit("b", "a", 12),
    Delete("gone"),
    Append("ü", b"five"),
    Append("b", b"fifteen" * 30),
    Append("b", b"sixteen"),
]
last: Step = Append("b", b"the last one")
shares = 8
free_sample = 40
slot_bytes = 128


class Subject:
    """A folder to damage, with what it held and what it may show."""

    def __init__(self, *, closed: bool) -> None:
        self.closed = closed
        system = MemoryFileSystem()
        system.make_folder(folder)
        log = CoreLog(system)
        self.model = Model()
        play(log, self.model, first_half)
        self.earlier = system.clone()
        play(log, self.model, second_half)
        log.take(last)
        self.model.begin(last)  # the last group: nothing later vouches for it
        self.intact = log.look()
        if closed:
            log.close()
            self.model.settle()
        self.system = system.after_crash(survive_all)
        self.paths = [f"{folder}/{name}" for name in self.system.list_folder(folder) if name != "lock"]
        oracle = Oracle({path.rsplit("/", 1)[1]: bytes(self.system.contents(path)) for path in self.paths})
        self.live = {
            (f"{folder}/{name}", position) for name, start, stop in oracle.extents for position in range(start, stop)
        }
        self.blocks = [(f"{folder}/{name}", slice(start, start + small_block_bytes)) for name, start in oracle.places]

    def judge(self, damaged: MemoryFileSystem, *, live: bool) -> str | None:
        """None if all is as it must be: live bytes of a closed log are missed, and nothing wrong is shown."""
        complaint = ""
        shown: dict[str, Seen] = {}
        try:
            log = CoreLog(damaged)
            shown = log.look()
            complaint = "".join(map(str, log.log.verify()[:1]))
        except WalrusError as error:
            complaint = repr(error)
        if not complaint:
            if self.closed and live:
                return "goes unnoticed"
            if self.closed and shown != self.intact:
                return f"changes what is shown: {shown}"
            try:
                self.model.check(shown)
            except AssertionError as error:
                return f"loses what was vouched for: {error}"
        for topic, seen in shown.items():
            whole = self.intact.get(topic, absent)
            entries = dict(enumerate(whole.items, whole.first))
            if any(entries.get(offset) != data for offset, data in enumerate(seen.items, seen.first)):
                return f"shows a wrong entry: {seen}"
        return None


@pytest.fixture(scope="module", params=[True, False], ids=["closed", "crashed"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """A small log with several topics, closed in good order or not."""
    return Subject(closed=request.param)


def _report(problems: list[str]) -> None:
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:10])


def _report_blocks(subject: Subject, problems: list[str]) -> None:
    """After a crash a tail block may take with it all that only it vouched for."""
    _report(problems if subject.closed else [problem for problem in problems if "loses" not in problem])


@pytest.mark.parametrize("share", range(shares))
def test_flipped_bytes(subject: Subject, share: int) -> None:
    """One bit of one byte: each live byte, each byte of the headers, and one in forty of the others."""
    rng = random.Random(7)
    problems = []
    number = 0
    for path in subject.paths:
        for position in range(len(subject.system.contents(path))):
            live = (path, position) in subject.live
            bit = 1 << rng.randrange(8)
            if live or rng.randrange(free_sample) == 0:
                number += 1
                if number % shares == share:
                    damaged = subject.system.clone()
                    damaged.contents(path)[position] ^= bit
                    problem = subject.judge(damaged, live=live)
                    if problem:
                        problems.append(f"{path} byte {position} bit {bit}: {problem}")
    assert number > 1000
    _report(problems)


def test_swapped_blocks(subject: Subject) -> None:
    """Two blocks that hold each other's bytes are noticed, whatever they are."""
    problems = []
    for index, (path, place) in enumerate(subject.blocks):
        for other_path, other in subject.blocks[:index]:
            damaged = subject.system.clone()
            one, two = damaged.contents(path), damaged.contents(other_path)
            if bytes(one[place]) == bytes(two[other]):
                continue
            one[place], two[other] = bytes(two[other]), bytes(one[place])
            live = (path, place.start) in subject.live or (other_path, other.start) in subject.live
            problem = subject.judge(damaged, live=live)
            if problem:
                problems.append(f"{path} {place.start} and {other_path} {other.start}: {problem}")
    _report_blocks(subject, problems)


def _changed(subject: Subject, change: Callable[[bytearray, str, slice], None]) -> list[str]:
    """Change each block in turn; judge the live ones of a closed log strictly."""
    problems = []
    for path, place in subject.blocks:
        damaged = subject.system.clone()
        before = bytes(damaged.contents(path)[place])
        change(damaged.contents(path), path, place)
        after = bytes(damaged.contents(path)[place])
        if after == before:
            continue
        live = any(
            (path, place.start + at) in subject.live
            for at, (old, new) in enumerate(zip(before, after, strict=True))
            if old != new
        )
        problem = subject.judge(damaged, live=live)
        if problem:
            problems.append(f"{path} block at {place.start}: {problem}")
    return problems


def test_zeroed_blocks(subject: Subject) -> None:
    """A block that reads as zeros is noticed."""

    def zero(data: bytearray, _path: str, place: slice) -> None:
        data[place] = bytes(small_block_bytes)

    _report_blocks(subject, _changed(subject, zero))


def test_stale_blocks(subject: Subject) -> None:
    """A block that has gone back to what it was earlier is noticed after an orderly close."""

    def restore(data: bytearray, path: str, place: slice) -> None:
        if subject.earlier.exists(path):
            data[place] = subject.earlier.contents(path)[place]

    _report_blocks(subject, _changed(subject, restore))


def test_stale_slots(subject: Subject) -> None:
    """A line of a table that has gone back to what it was earlier is noticed, unless the last group alone wrote it."""
    problems = []
    for path in subject.paths:
        if not path.endswith(".wal") or not subject.earlier.exists(path):
            continue
        first_block = min(place.start for block_path, place in subject.blocks if block_path == path)
        for start in range(0, first_block, slot_bytes):
            damaged = subject.system.clone()
            slot = slice(start, start + slot_bytes)
            live = (path, start) in subject.live
            if not live or damaged.contents(path)[slot] == subject.earlier.contents(path)[slot]:
                continue
            damaged.contents(path)[slot] = subject.earlier.contents(path)[slot]
            problem = subject.judge(damaged, live=live)
            if problem:
                problems.append(f"{path} slot at {start}: {problem}")
    _report(problems)


def test_missing_files(subject: Subject) -> None:
    """Without any one of its files the log does not open, or does not read."""
    problems = []
    for path in subject.paths:
        damaged = subject.system.clone()
        damaged.remove(path)
        if not _refusal(damaged):
            problems.append(f"{path} is gone and goes unnoticed")
    _report(problems)


def test_truncated_files(subject: Subject) -> None:
    """A file that has become shorter is noticed; after a crash one whole copy of the superblock is enough."""
    problems = []
    for path in subject.paths:
        size = len(subject.system.contents(path))
        for keep in sorted({0, 1, 100, size // 2, size - small_block_bytes, size - 1}):
            damaged = subject.system.clone()
            del damaged.contents(path)[keep:]
            spared = not subject.closed and path.endswith("superblock") and keep >= size // 2
            if not spared and not _refusal(damaged):
                problems.append(f"{path} cut to {keep} goes unnoticed")
            elif spared and (problem := subject.judge(damaged, live=False)):
                problems.append(f"{path} cut to {keep}: {problem}")
    _report(problems)


def _refusal(damaged: MemoryFileSystem) -> str:
    try:
        log = CoreLog(damaged)
        log.look()
        return "".join(map(str, log.log.verify()[:1]))
    except WalrusError as error:
        return repr(error)
