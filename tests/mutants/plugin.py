"""A plugin for pytest that plants the mutant of the log that `PLANTED_MUTANT` names, for the whole run."""

import os
from collections.abc import Iterator

import pytest

from tests.mutants.planting import planted
from tests.mutants.walrus import MUTANTS


@pytest.fixture(autouse=True, scope="session")
def bug() -> Iterator[None]:
    """The bug is there while tests run."""
    (mutant,) = (one for one in MUTANTS if one.name == os.environ["PLANTED_MUTANT"])
    with planted(mutant):
        yield
