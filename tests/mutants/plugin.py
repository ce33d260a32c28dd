"""A plugin for pytest that plants the mutant of the log that `PLANTED_MUTANT` names, for the whole run;
none where the name is empty."""

import os
from collections.abc import Iterator

import pytest

from tests.mutants.planting import planted
from tests.mutants.walrus import MUTANTS


@pytest.fixture(autouse=True, scope="session")
def bug() -> Iterator[None]:
    """The bug is there while tests run."""
    name = os.environ["PLANTED_MUTANT"]
    if not name:
        yield
        return
    (mutant,) = (one for one in MUTANTS if one.name == name)
    with planted(mutant):
        yield
