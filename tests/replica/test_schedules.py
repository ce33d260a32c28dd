"""Random schedules of whole clusters; `schedules` says what happens in them."""

from collections.abc import Iterable

import pytest

from tests.replica import schedules

many = 20_000
"""Schedules of the heavy version: `pytest -m heavy tests/replica/test_schedules.py`."""

block_size = 100


def run_all(seeds: Iterable[int], *, steps: int) -> None:
    """Run every schedule, also behind one that fails; print the seeds of those that did, and raise the first error."""
    first: Exception | None = None
    for seed in seeds:
        try:
            schedules.run(seed, steps=steps)
        except Exception as error:  # noqa: BLE001  (a broken promise may show as any error)
            print(f"schedule seed {seed}, {steps} steps: {type(error).__name__}: {error}")
            first = first or error
    if first is not None:
        raise first


@pytest.mark.parametrize("block", range(20))
def test_schedule(block: int) -> None:
    """Whatever goes wrong: acknowledged is applied once and everywhere, not applied is absent, unknown at most once."""
    run_all(range(block * 25, block * 25 + 25), steps=60)


@pytest.mark.heavy
@pytest.mark.timeout(0)
@pytest.mark.parametrize("block", range(many // block_size))
def test_many_schedules(block: int) -> None:
    """The same over forty times as many schedules."""
    first = 10_000 + block * block_size
    run_all(range(first, first + block_size), steps=80)


def test_a_schedule_that_fails_hides_none_of_those_behind_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are run, the seeds of all that failed are printed, and the first failure is raised."""
    ran: list[int] = []

    def run(seed: int, *, steps: int) -> None:
        ran.append(seed)
        assert seed not in (2, 4), f"{seed} of {steps} steps"

    monkeypatch.setattr(schedules, "run", run)
    with pytest.raises(AssertionError, match="2 of 7 steps"):
        run_all(range(6), steps=7)
    assert ran == [0, 1, 2, 3, 4, 5]
    printed = capsys.readouterr().out
    assert "schedule seed 2, 7 steps" in printed
    assert "schedule seed 4, 7 steps" in printed
