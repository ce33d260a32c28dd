"""The fixture `simulation` is there in anybody's tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

TEST = """
from tests.sim.specimens import Forgetful, Restocking, Stock, Transfers
from octopii.machines import CounterStateMachine

def test_right(simulation):
    reports = simulation(CounterStateMachine, workload=Transfers, profile="crashes", seeds=2)
    assert [report.seed for report in reports] == [0, 1]

def test_typed(simulation):
    assert len(simulation(Stock, workload=Restocking, seeds=2)) == 2

def test_wrong(simulation):
    simulation(Forgetful, workload=Transfers, profile="crashes")
"""


def test_a_user_s_test_gets_the_fixture(tmp_path: Path) -> None:
    """A right machine passes, a wrong one fails with its story; `--sim-seed` runs one seed."""
    (tmp_path / "test_mine.py").write_text(TEST)

    def run(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        return ran.stdout

    text = run()
    assert "1 failed, 2 passed" in text
    assert "to see it again: octopii sim --profile crashes --seed" in text
    assert "1 passed" in run("-k", "right", "--sim-seeds", "2")
    assert "[5] == [0, 1]" in run("-k", "right", "--sim-seed", "5")
