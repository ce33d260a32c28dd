"""`octopii sim`: a summary when all is well, a story and status 1 when a seed fails."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the project's folder, so that the tests' own machines can be named."""
    return subprocess.run(
        [sys.executable, "-m", "octopii.cli", "sim", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_seeds_that_hold_end_with_a_summary() -> None:
    """Several seeds on two processes: status 0, what was run and what went wrong on purpose in two tables."""
    ran = run("--profile", "network", "--seeds", "4", "--first", "10", "--jobs", "2")
    assert ran.returncode == 0, ran.stderr + ran.stdout
    row = next(line for line in ran.stdout.splitlines() if "network" in line)
    assert row.split("│")[2].strip() == "4"
    assert "steps/s" in ran.stdout
    assert "message lost" in ran.stdout


def test_runs_can_be_cut_down() -> None:
    """`--seconds` and `--members` hold for every seed: short runs of small clusters take fewer steps."""
    steps = []
    for short in ((), ("--seconds", "1", "--members", "3")):
        ran = run("--profile", "network", "--seeds", "3", *short)
        assert ran.returncode == 0, ran.stderr + ran.stdout
        row = next(line for line in ran.stdout.splitlines() if "network" in line)
        steps.append(int(row.split("│")[5].strip().replace(",", "")))
    assert steps[1] < steps[0] / 3


def test_a_seed_that_fails_is_told_and_its_command_shows_it_again() -> None:
    """Status 1, the story, and a command that fails in the same way; shrunk, it has fewer faults."""
    names = ("--machine", "tests.sim.specimens:Forgetful", "--workload", "tests.sim.specimens:Transfers")
    ran = run("--profile", "crashes", "--seeds", "2", *names, "--shrink")
    assert ran.returncode == 1, ran.stderr + ran.stdout
    assert "seeds failed:" in ran.stdout
    command = next(line for line in ran.stdout.splitlines() if line.startswith("to see it again: "))
    words = command.removeprefix("to see it again: octopii sim ").split()
    assert "--faults" in words
    again = run(*words)
    assert again.returncode == 1
    assert again.stderr == ""
    assert "1 seed failed:" in again.stdout
    assert command in again.stdout.splitlines()


def test_what_is_wrong_with_the_command_line_is_one_line() -> None:
    """An unknown profile, a machine that does not exist, one without a workload: status 2."""
    for arguments, text in (
        (("--profile", "weather"), "choose from calm"),
        (("--machine", "nowhere:Nothing"), "cannot be imported"),
        (("--machine", "tests.sim.specimens:Fickle"), "say what the clients of Fickle do"),
        (("--seed", "3", "--faults", "many"), "--faults"),
        (("--seconds", "-1"), "0 seconds or more"),
        (("--workload", "tests.sim.specimens:Choosy"), "Choosy() raised TypeError"),
        (("--seeds", "3", "--faults", "1,2"), "--faults goes with --seed"),
    ):
        ran = run(*arguments)
        assert ran.returncode == 2, ran.stdout
        assert text in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
