"""What catches one mutant: the tests that are there for it, and the simulator."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import msgspec

from octopii.sim import Simulation
from octopii.sim.profiles import PROFILES
from tests.mutants import raft, replica, walrus
from tests.mutants.planting import Mutant, catchers, planted

CLASSES = {
    1: "term or vote forgotten on restart",
    2: "an entry of an old term committed by counting replicas",
    3: "acknowledged before fsync",
    4: "a stale acknowledgement or reject moves what a leader knows",
    5: "a suffix truncated that matches",
    6: "a conflict at or below the commit index accepted",
    7: "a quorum of the wrong set; learners that count, campaign or refuse",
    8: "a removed leader; two membership changes at once",
    9: "stale TimeoutNow or pre-votes; a rejoining node deposes the leader",
    10: "a read answered too early, or confirmed by an older round",
    11: "a lease that outlives its time",
    12: "a snapshot over newer state, or without what belongs to it",
    13: "an index persisted ahead of what it speaks of",
    14: "applied twice; an answer lost too early",
    15: "`apply` fails on one replica only, and it goes on",
    16: "a wiped node votes again",
    17: "torn, stale or misplaced bytes of the log taken for data, or damage for its end",
    18: "a short write, ENOSPC or EIO taken for success; fsync tried again",
    19: "the clock goes back; compaction at different places",
    20: "two clusters that merge",
}
"""The classes of known bugs, in plain words."""

NAMED_SECONDS, SEED_SECONDS = 300, 60
"""What takes longer than this hangs because of the bug, which counts as noticed."""

PROFILE_OF = {7: "membership", 8: "membership", 11: "clocks", 16: "membership", 17: "crashes", 18: "disk", 19: "clocks"}
"""The profile of the simulator that goes where a class of bug is; `chaos` for all others."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What caught one mutant: a test (None: none), the seeds that the simulator needed (0: none noticed), seconds."""

    number: int
    name: str
    test: str | None
    profile: str
    seeds: int
    test_seconds: float
    seed_seconds: float


class TookTooLong(Exception):
    """A check did not end."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise `TookTooLong` in what runs inside for longer; only in a main thread."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TookTooLong(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def raft_test(mutant: Mutant) -> str | None:
    """The claim, scenario or schedule of the Raft core that notices it."""
    return _first(catchers(mutant, raft.families(20)))


def replica_test(mutant: Mutant) -> str | None:
    """The test of whole clusters that notices it."""
    return _first(catchers(mutant, replica.families(0, number=mutant.number)))


def _first(caught: dict[str, str | None]) -> str | None:
    return next((f"{family}: {name}" for family, name in caught.items() if name is not None), None)


SUITES: dict[str, tuple[list[Mutant], Callable[[Mutant], str | None]]] = {
    "raft": (raft.MUTANTS, raft_test),
    "replica": (replica.MUTANTS, replica_test),
    "walrus": (walrus.MUTANTS, walrus.first_failure),
}


def judge(suite: str, name: str, seeds: int) -> Row:
    """Everything about one mutant."""
    mutants, test_of = SUITES[suite]
    (mutant,) = (one for one in mutants if one.name == name)
    began = time.perf_counter()
    try:
        with at_most(NAMED_SECONDS):
            test = test_of(mutant)
    except TookTooLong as error:
        test = str(error)
    tested = time.perf_counter()
    profile = PROFILE_OF.get(mutant.number, "chaos")
    needed = seeds_needed(mutant, profile, seeds)
    ended = time.perf_counter()
    return Row(
        number=mutant.number,
        name=mutant.name,
        test=test,
        profile=profile,
        seeds=needed,
        test_seconds=tested - began,
        seed_seconds=ended - tested,
    )


def seeds_needed(mutant: Mutant, profile: str, seeds: int) -> int:
    """Run the simulator with the bug in place; return how many seeds it took to notice, 0 if it did not."""
    assert profile in PROFILES
    with planted(mutant):
        for number in range(1, seeds + 1):
            try:
                with at_most(SEED_SECONDS):
                    Simulation(seed=number, profile=profile).run()
            except Exception:  # noqa: BLE001 - a bug may show as any error
                return number
    return 0
