"""Every known bug that is put back into the Raft core is caught by the suite."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from octopii.raft import quorum, state
from tests.mutants.planting import MissingTarget, Mutant, catchers, fails, locate, planted, table
from tests.mutants.raft import MUTANTS, families

SUITE = families(8)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_known_bug_is_caught(mutant: Mutant, record_property: Callable[[str, object], None]) -> None:
    """A claim of the paper or a scenario fails with the bug in place; which ones is printed."""
    caught = catchers(mutant, SUITE)
    record_property("mutant", f"{mutant.number} {mutant.name}: {caught}")
    print(table([(mutant, caught)]))
    assert caught["claim"] or caught["scenario"], f"nothing noticed: {mutant.name}"


def test_without_a_bug_nothing_fails() -> None:
    """The checks that catch mutants pass on the core as it is: so it is the bug that they catch."""
    failing = [name for family in SUITE.values() for name, check in family.items() if fails(check)]
    assert failing == []


def test_each_class_of_bug_has_a_mutant() -> None:
    """The classes that lie in the core are all there."""
    assert {mutant.number for mutant in MUTANTS} >= {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}


def test_a_mutant_of_a_function_that_is_gone_fails_loudly() -> None:
    """A renamed function is an error in its mutant, not a mutant that does nothing."""
    gone = Mutant("gone", 0, "octopii.raft.quorum:no_such_function", lambda right: right)
    with pytest.raises(MissingTarget, match="no_such_function"), planted(gone):
        pass


def test_a_mutant_is_planted_wherever_the_function_is_bound_and_taken_out_again() -> None:
    """Modules that imported the function by name get the wrong one as well, and the right one back."""
    right = quorum.joint_vote_result
    mutant = Mutant("marker", 0, "octopii.raft.quorum:joint_vote_result", lambda _: lambda *_: SimpleNamespace())
    with planted(mutant):
        assert quorum.joint_vote_result is not right
        assert state.joint_vote_result is quorum.joint_vote_result  # type: ignore[attr-defined]
    assert quorum.joint_vote_result is right
    assert state.joint_vote_result is right  # type: ignore[attr-defined]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_target_of_each_mutant_exists(mutant: Mutant) -> None:
    """Each mutant names a function of the core as it is now."""
    assert locate(mutant.target)
