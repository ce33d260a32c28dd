"""Random schedules of whole clusters; `schedules` says what happens in them."""

import pytest

from tests.replica import schedules


@pytest.mark.parametrize("block", range(20))
def test_schedule(block: int) -> None:
    """Whatever goes wrong: acknowledged is applied once and everywhere, not applied is absent, unknown at most once."""
    for seed in range(block * 25, block * 25 + 25):
        schedules.run(seed)


@pytest.mark.heavy
@pytest.mark.timeout(0)
@pytest.mark.parametrize("block", range(200))
def test_many_schedules(block: int) -> None:
    """The same over forty times as many schedules."""
    for seed in range(10_000 + block * 100, 10_000 + block * 100 + 100):
        schedules.run(seed, steps=80)
