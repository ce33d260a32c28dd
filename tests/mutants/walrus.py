"""Known bugs of write-ahead logs, put back into Walrus one at a time.

Each is named after what it breaks; the number is that of its class in the field's list of bugs. The tests of the log
use pytest's fixtures, so they are run by pytest, in a process of its own, with the bug planted by `plugin.py`.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from octopii.walrus.record import BEGIN, UNIT
from tests.mutants.planting import Mutant, locate

Function = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[2]

SECONDS = 300
"""A run of the tests takes less; one that takes longer hangs because of the bug, which is then noticed."""


# --- the bugs ---------------------------------------------------------------------------------------------------


def seed_without(position: int) -> Callable[[Function], Function]:
    """One of topic, segment, block and life is left out of the seed of a block's checksums."""

    def build(right: Function) -> Function:
        def wrong(*place: int) -> int:
            return int(right(*place[:position], 0, *place[position + 1 :]))

        return wrong

    return build


def seed_without_the_place(right: Function) -> Function:
    """Segment and block are both left out of it."""
    return lambda topic, _segment, _block, life: right(topic, 0, 0, life)


def take_a_hole_for_the_tail(right: Function) -> Function:
    """Nothing is known to have been on disk: wherever the log stops making sense, it ends."""

    def wrong(recovery: Any) -> tuple[list[int], bool, int]:
        order, vouched, _ = right(recovery)
        return order, vouched, 0

    return wrong


def trust_every_commit(right: Function) -> Function:
    """What a commit says of its unit is not compared with the unit."""
    return staticmethod(lambda _fragment, _unit: True)


def count_units_without_commit(right: Function) -> Function:
    """The parts of a batch count one by one."""

    def wrong(recovery: Any, ordinal: int, fragment: Any) -> bool:
        return bool(right(recovery, ordinal, msgspec.structs.replace(fragment, kind=fragment.kind & ~(UNIT | BEGIN))))

    return wrong


def reuse_at_once(right: Function) -> Function:
    """The blocks that a trim frees are given to others before the trim is on disk."""

    def wrong(writer: Any, topic: Any, before: int) -> None:
        right(writer, topic, before)
        dropped, writer.dropped = writer.dropped, []
        writer.store.release(dropped)

    return wrong


def leave_torn_bytes(right: Function) -> Function:
    """What a crash has torn stays where it is, for a later write to make whole."""
    return lambda _loaded: None


def never_vouch(right: Function) -> Function:
    """No mark says that the last records of a topic are on disk."""
    return lambda _writer, _topic: None


def write_once(right: Function) -> Function:
    """A write of which the system took a part counts as whole."""
    return lambda file, data, position: os.pwrite(file._open_descriptor(), data, position) and None


def write_parts_once(right: Function) -> Function:
    """The same for a write of several parts."""
    return lambda file, parts, position: os.pwritev(file._open_descriptor(), parts, position) and None


def read_once(right: Function) -> Function:
    """A read of which the system gave a part counts as whole."""
    return lambda file, size, position: os.pread(file._open_descriptor(), size, position)


def ignore_no_room(right: Function) -> Function:
    """That the disk has no room for a segment is ignored."""

    def wrong(file: Any, size: int) -> None:
        try:
            right(file, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    return wrong


def ignore_failed_sync(right: Function) -> Function:
    """An error of fdatasync is ignored."""

    def wrong(ticket: Any) -> None:
        right(ticket)
        ticket.error = None
        ticket.is_done = True

    return wrong


def sync_again(right: Function) -> Function:
    """After a failed fdatasync there is a second one, which says that all is well."""

    def wrong(ticket: Any) -> None:
        right(ticket)
        if ticket.error is not None:
            ticket.error = None
            right(ticket)

    return wrong


def forget_poison(right: Function) -> Function:
    """After a failed write or sync the log goes on with the next one."""

    def wrong(log: Any) -> None:
        log.poison = None
        right(log)

    return wrong


WALRUS = "octopii.walrus."
MUTANTS = [
    Mutant("hole taken for the tail", 17, WALRUS + "recovery:TopicRecovery._unvouched", take_a_hole_for_the_tail),
    Mutant("last records not vouched for", 17, WALRUS + "writer:Writer.mark", never_vouch),
    Mutant("torn bytes stay", 17, WALRUS + "opening:repair", leave_torn_bytes),
    Mutant("life left out of checksums", 17, WALRUS + "record:block_seed", seed_without(3)),
    Mutant("topic left out of checksums", 17, WALRUS + "record:block_seed", seed_without(0)),
    Mutant("place left out of checksums", 17, WALRUS + "record:block_seed", seed_without_the_place),
    Mutant("block reused before its trim is durable", 17, WALRUS + "writer:Writer.trim", reuse_at_once),
    Mutant("commit not compared with its batch", 17, WALRUS + "recovery:TopicRecovery._commits", trust_every_commit),
    Mutant("batch counts without its commit", 17, WALRUS + "recovery:TopicRecovery._take", count_units_without_commit),
    Mutant("short write taken for whole", 18, WALRUS + "vfs:RealFile.write_at", write_once),
    Mutant("short write of parts taken for whole", 18, WALRUS + "vfs:RealFile.write_parts_at", write_parts_once),
    Mutant("short read taken for whole", 18, WALRUS + "vfs:RealFile.read_at", read_once),
    Mutant("ENOSPC at allocation ignored", 18, WALRUS + "vfs:RealFile.allocate", ignore_no_room),
    Mutant("EIO of fdatasync ignored", 18, WALRUS + "ticket:SyncTicket.run", ignore_failed_sync),
    Mutant("fdatasync tried again", 18, WALRUS + "ticket:SyncTicket.run", sync_again),
    Mutant("log goes on after a failed write", 18, WALRUS + "life:LogLife._check_open", forget_poison),
]


# --- what may catch them ----------------------------------------------------------------------------------------

CATCHERS = {
    "hole taken for the tail": "damage.py::test_flipped_bytes",
    "last records not vouched for": "sense.py::test_closed_log_refuses_what_makes_no_sense",
    "torn bytes stay": "crash.py::test_crash_at_every_operation",
    "life left out of checksums": "recovery.py::test_what_a_cut_block_held_never_returns",
    "topic left out of checksums": "oracle.py",
    "place left out of checksums": "oracle.py",
    "block reused before its trim is durable": "crash.py::test_crash_with_many_segments",
    "commit not compared with its batch": "sense.py::test_crashed_log_ends_before_what_makes_no_sense",
    "batch counts without its commit": "sense.py::test_crashed_log_ends_before_what_makes_no_sense",
    "short write taken for whole": "vfs.py::test_short_writes_are_completed",
    "short write of parts taken for whole": "vfs.py::test_short_writes_are_completed",
    "short read taken for whole": "vfs.py::test_short_reads_are_completed",
    "ENOSPC at allocation ignored": "vfs.py::test_no_room_for_a_segment_is_said_when_it_is_made",
    "EIO of fdatasync ignored": "errors.py::test_failed_sync_poisons",
    "fdatasync tried again": "errors.py::test_a_sync_that_failed_once_is_never_tried_again",
    "log goes on after a failed write": "errors.py::test_failed_sync_poisons",
}
"""The tests of `tests/walrus/test_*` that are there to catch each."""


def first_failure(mutant: Mutant, *, harmless: bool = False) -> str | None:
    """Run the tests with the bug planted (or, `harmless`, without); return the name of the first that fails."""
    locate(mutant.target)  # a mutant of nothing would be an error in every test, and seem caught
    options = ["-x", "-q", "-n", "0", "--timeout", "0", "-p", "no:randomly", "-p", "tests.mutants.plugin"]
    command = [sys.executable, "-m", "pytest", *options, f"tests/walrus/test_{CATCHERS[mutant.name]}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PLANTED_MUTANT": "" if harmless else mutant.name}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no test ends within {SECONDS} s"
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) tests/walrus/\S+?::(\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        raise RuntimeError(f"pytest itself failed for {mutant.name}:\n{done.stdout}\n{done.stderr}")
    return "named: " + failed[1].partition("[")[0].removeprefix("test_")
