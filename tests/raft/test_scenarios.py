"""Every scenario file is what the core does: commands, states, logs and messages, line by line."""

import os
from pathlib import Path

import pytest

from tests.raft import harness_scenario
from tests.raft.harness_scenario import parse, render, replay, scenario_files

REWRITE = os.environ.get("OCTOPII_REWRITE_SCENARIOS") == "1"


@pytest.mark.parametrize("path", scenario_files(), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    """The transcript in the file is what happens."""
    difference = replay(path, rewrite=REWRITE)
    assert REWRITE or not difference, f"\n{difference}"


def test_there_are_scenarios() -> None:
    """The folder is found: a run of no scenario would always pass."""
    assert len(scenario_files()) >= 40


def test_a_changed_transcript_fails(tmp_path: Path) -> None:
    """A line that is not what happens, or is missing, is reported."""
    source = scenario_files()[0].read_text(encoding="utf-8")
    lines = source.splitlines()
    place = next(number for number, line in enumerate(lines) if line and line[0] not in "#>!-")
    changed = tmp_path / "changed.txt"
    changed.write_text("\n".join([*lines[:place], lines[place] + "?", *lines[place + 1 :], ""]), encoding="utf-8")
    assert lines[place] + "?" in replay(changed)
    changed.write_text("\n".join([*lines[:place], *lines[place + 1 :], ""]), encoding="utf-8")
    assert "+" + lines[place] in replay(changed)


def test_rewriting_is_stable(tmp_path: Path) -> None:
    """Rewriting restores a changed transcript, and a second time changes nothing."""
    original = scenario_files()[0].read_text(encoding="utf-8")
    damaged = tmp_path / "scenario.txt"
    blocks = parse(original)
    for block in blocks:
        if block.command is not None:
            block.lines = []
    damaged.write_text(render(blocks), encoding="utf-8")
    assert harness_scenario.replay(damaged, rewrite=True)
    assert damaged.read_text(encoding="utf-8") == original
    assert not harness_scenario.replay(damaged, rewrite=True)
