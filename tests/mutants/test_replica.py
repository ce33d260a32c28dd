"""Every known bug that is put back into the replica is caught by the suite."""

from collections.abc import Callable

import pytest

from tests.mutants.planting import Mutant, catchers, locate, table
from tests.mutants.replica import MUTANTS, families


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_known_bug_is_caught(mutant: Mutant, record_property: Callable[[str, object], None]) -> None:
    """A named test fails with the bug in place; which one is printed."""
    caught = catchers(mutant, families(0, number=mutant.number))
    record_property("mutant", f"{mutant.number} {mutant.name}: {caught}")
    print(table([(mutant, caught)]))
    assert caught["named"], f"nothing noticed: {mutant.name}"


def test_each_class_of_bug_has_a_mutant() -> None:
    """The classes that lie in the replica are all there."""
    assert {mutant.number for mutant in MUTANTS} >= {3, 12, 13, 14, 15, 16, 18, 19, 20}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_target_of_each_mutant_exists(mutant: Mutant) -> None:
    """Each mutant names a function of the replica as it is now."""
    assert locate(mutant.target)
