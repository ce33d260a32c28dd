"""Scenario files: a transcript of commands and of what they led to, run again and compared line by line.

    # What the scenario shows, with its source.                    comments, kept

    > cluster 1 2 3                                                a command (see `harness_commands`)
    1: follower, term 0                                            what it led to, up to the next blank line
    2: follower, term 0

    > campaign 1
    ...

A `!` instead of `>` runs a command whose output is of no interest: nothing follows it.

`OCTOPII_REWRITE_SCENARIOS=1 pytest tests/raft/test_scenarios.py`, or `python -m tests.raft.harness_scenario FILE...`,
writes what happens now into the files. A transcript is right only once a person has read it against the paper: read
the diff.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.raft.harness import Cluster
from tests.raft.harness_commands import execute

SCENARIOS = Path(__file__).with_name("scenarios")


@dataclass(slots=True)
class Block:
    """Comment lines, or one command with the output that follows it."""

    lines: list[str] = field(default_factory=list)
    command: str | None = None
    quiet: bool = False

    def text(self) -> str:
        """The block as it stands in the file."""
        if self.command is None:
            return "\n".join(self.lines)
        return "\n".join([f"{'!' if self.quiet else '>'} {self.command}", *self.lines])


def parse(source: str) -> list[Block]:
    """Split a file into blocks; several quiet commands may share one paragraph."""
    blocks: list[Block] = []
    for paragraph in source.strip().split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        if lines[0].startswith(">"):
            blocks.append(Block(lines[1:], lines[0][1:].strip()))
        elif lines[0].startswith("!"):
            for line in lines:
                if not line.startswith("!"):
                    raise ValueError(f"output after a quiet command: {line!r}")
                blocks.append(Block([], line[1:].strip(), quiet=True))
        else:
            stray = [line for line in lines if not line.startswith("#")]
            if stray:
                raise ValueError(f"neither comment nor command: {stray[0]!r}")
            blocks.append(Block(lines))
    return blocks


def run(blocks: list[Block]) -> list[Block]:
    """Run the commands against a new cluster and return the blocks with the output of this run."""
    cluster = Cluster()
    done: list[Block] = []
    for block in blocks:
        if block.command is None:
            done.append(block)
            continue
        cluster.trace = []
        execute(cluster, block.command)
        output = [] if block.quiet else (cluster.trace or ["-"])
        done.append(Block(output, block.command, block.quiet))
    return done


def render(blocks: list[Block]) -> str:
    """The file that holds these blocks."""
    parts: list[str] = []
    for before, block in zip([None, *blocks], blocks):
        if before is not None:
            parts.append("\n" if before.quiet and block.quiet else "\n\n")
        parts.append(block.text())
    return "".join(parts) + "\n"


def replay(path: Path, *, rewrite: bool = False) -> str:
    """Run a scenario file; return the difference to what it says, empty if there is none."""
    expected = path.read_text(encoding="utf-8")
    actual = render(run(parse(expected)))
    if rewrite and actual != expected:
        path.write_text(actual, encoding="utf-8")
    difference = difflib.unified_diff(
        expected.splitlines(), actual.splitlines(), f"{path.name} (file)", f"{path.name} (this run)", lineterm=""
    )
    return "\n".join(difference)


def scenario_files() -> list[Path]:
    """All scenario files, by name."""
    return sorted(SCENARIOS.glob("*.txt"))


def main(arguments: list[str]) -> None:
    """Rewrite the named files, or all of them, and print what changed."""
    for path in [Path(argument) for argument in arguments] or scenario_files():
        print(replay(path, rewrite=True) or f"{path.name}: unchanged")


if __name__ == "__main__":
    main(sys.argv[1:])
