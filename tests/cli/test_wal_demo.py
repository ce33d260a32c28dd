"""The demo shows what it says, and would say so if it were otherwise."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from octopii.cli import wal_demo as demo
from octopii.walrus import Walrus

OCTOPII = Path(sys.executable).with_name("octopii")


def test_the_demo_ends_well(tmp_path: Path) -> None:
    """`octopii wal demo` kills a writer, finds everything again, says so in plain lines, and leaves nothing behind."""
    ran = subprocess.run(
        [OCTOPII, "wal", "demo", "--rounds", "2"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"TMPDIR": str(tmp_path), "PATH": ""},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("all there") == 2
    assert "No acknowledged entry was lost" in ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_lost_entry_fails_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An entry that was acknowledged and is not there is counted, printed and ends the demo with status 1."""

    def write_less(folder: str, _seconds: float, acknowledged: dict[str, int]) -> None:
        with Walrus(folder) as log:
            log.append_for_topic("orders", demo.entry_data("orders", 0))
        acknowledged["orders"] = 3

    monkeypatch.setattr(demo, "_run_writer", write_less)
    with pytest.raises(typer.Exit) as end:
        demo.demo(rounds=1)
    assert end.value.exit_code == demo.EXIT_LOST
    assert "2 LOST" in capsys.readouterr().out


def test_a_wrong_entry_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry with another content than was written there ends the demo at once."""

    def write_wrong(folder: str, _seconds: float, acknowledged: dict[str, int]) -> None:
        with Walrus(folder) as log:
            log.append_for_topic("orders", demo.entry_data("orders", 1))
        acknowledged["orders"] = 1

    monkeypatch.setattr(demo, "_run_writer", write_wrong)
    with pytest.raises(RuntimeError, match="offset 0 is not what was written"):
        demo.demo(rounds=1)
