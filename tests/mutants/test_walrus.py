"""Every known bug that is put back into the log is caught by the test that is there for it."""

import pytest

from tests.mutants.planting import Mutant, locate
from tests.mutants.walrus import CATCHERS, MUTANTS, first_failure


@pytest.mark.heavy
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_known_bug_is_caught(mutant: Mutant) -> None:
    """The named test fails with the bug in place."""
    assert first_failure(mutant) is not None, f"nothing noticed: {mutant.name}"


def test_a_log_without_a_bug_passes() -> None:
    """The same run of a test passes without the bug: so it is the bug that it catches."""
    (mutant,) = (one for one in MUTANTS if one.name == "short read taken for whole")
    assert first_failure(mutant, harmless=True) is None


def test_each_mutant_has_a_test_that_is_there_to_catch_it() -> None:
    """No mutant without one, and no name of a mutant that is gone; both classes of bugs are there."""
    assert {mutant.name for mutant in MUTANTS} == CATCHERS.keys()
    assert {mutant.number for mutant in MUTANTS} == {17, 18}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_target_of_each_mutant_exists(mutant: Mutant) -> None:
    """Each mutant names a function of the log as it is now."""
    assert locate(mutant.target)
