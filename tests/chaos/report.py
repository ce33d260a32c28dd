"""What a run under chaos has shown, as text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from octopii.sim import Verdict
from tests.chaos.nemesis import Fault


@dataclass
class Report:
    """One run of one cluster."""

    nodes: int
    network: str
    seed: int
    minutes: float
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    write_times: list[float] = field(default_factory=list)
    cpu_share: float = 0.0
    verdict: Verdict | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.problems and self.verdict is not None and self.verdict.is_linearizable

    def text(self) -> str:
        """The report in Markdown."""
        outcomes = ", ".join(f"{times:,} {name}" for name, times in self.outcomes.items())
        lines = [
            f"### {self.nodes} nodes, {self.network}, {self.minutes:.1f} minutes, seed {self.seed}",
            "",
            f"Calls: {sum(self.outcomes.values()):,} ({outcomes}).",
            f"Faults: {len(self.faults)}. Processor time of the nodes: {self.cpu_share:.2f} cores.",
            "",
            f"Verdict: {self.verdict if self.verdict is not None else 'none'}.",
            f"Applied exactly once, and nothing lost: {'yes' if not self.problems else 'NO'}.",
        ]
        lines += [f"- {problem}" for problem in self.problems]
        lines += ["", "| fault | times | without a write: median | maximum |", "|---|---|---|---|"]
        gaps: dict[str, list[float]] = {}
        for fault in self.faults:
            gaps.setdefault(fault.kind, []).append(longest_gap(self.write_times, fault))
        for kind, found in sorted(gaps.items()):
            lines.append(f"| {kind} | {len(found)} | {median(found):.2f} s | {max(found):.2f} s |")
        return "\n".join(lines)


def longest_gap(times: Sequence[float], fault: Fault) -> float:
    """Return the longest time without a successful write, from before the fault until the write that ended it."""
    before = max((one for one in times if one <= fault.began), default=fault.began)
    end = fault.recovered or fault.began
    after = min((one for one in times if one >= end), default=end)
    inside = [before, *(one for one in times if before < one < after), after]
    return max((later - earlier for earlier, later in pairwise(inside)), default=0.0)
