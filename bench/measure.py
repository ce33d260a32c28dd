"""How the benchmarks measure: contestants take turns, and every figure is a median with a reference beside it.

Machines that run benchmarks are small and noisy, and their disks are shared. So nothing is compared with a figure from
another day: all contestants of a row run one after the other, several times over, and the ratio of two of them is the
median of the ratios of their rounds. What slows one round slows both sides of its ratio.
"""

import contextlib
import gc
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

WORK = Path(__file__).resolve().parent / ".work"

Contestant = Callable[[], float]
"""Does the work once and returns a rate (per second) or a time (seconds); `Budget.smaller_is_better` says which."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much to do: `share` scales every count, for a quick look; budgets are about the whole."""

    rounds: int = 5
    share: float = 1.0

    def count(self, full: int) -> int:
        """`full` scaled, and at least 1."""
        return max(1, int(full * self.share))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One promise: `ours` is at least (or, for times, at most) `factor` times `reference`."""

    ours: str
    reference: str
    factor: float
    smaller_is_better: bool = False


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One promise in absolute terms: `ours` is at most `value`, in the row's unit."""

    ours: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one budget row measured: figures by contestant in `unit`, and the promises about them."""

    title: str
    unit: str
    figures: Mapping[str, list[float]]
    promises: tuple[Budget | Limit, ...] = ()
    note: str = ""
    digits: int = 0

    def median(self, contestant: str) -> float:
        """The median over the rounds."""
        return statistics.median(self.figures[contestant])

    def ratio(self, budget: Budget) -> float | None:
        """The median of the rounds' ratios; None where the reference is not there."""
        if budget.reference not in self.figures or budget.ours not in self.figures:
            return None
        pairs = zip(self.figures[budget.ours], self.figures[budget.reference], strict=True)
        return statistics.median(ours / reference for ours, reference in pairs)


def take_turns(contestants: Mapping[str, Contestant], *, rounds: int = 5) -> dict[str, list[float]]:
    """Run every contestant once unmeasured and then `rounds` times, in turns; returns the figures of each."""
    for contestant in contestants.values():
        contestant()
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            gc.collect()
            figures[name].append(contestant())
    return figures


def rate(count: int, work: Callable[[], object]) -> float:
    """How many of `count` things `work` does in a second."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """An empty folder on the disk that the project lies on (never a memory file system), removed afterwards."""
    WORK.mkdir(exist_ok=True)
    folder = tempfile.mkdtemp(dir=WORK)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def subfolder(folder: str, name: str) -> str:
    """A new folder inside `folder`, with a name that any file system takes."""
    path = Path(folder) / re.sub(r"[^a-z0-9]+", "-", name.lower())
    path.mkdir()
    return str(path)
