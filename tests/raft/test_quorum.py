"""Quorum arithmetic against brute-force definitions, 1 to 9 voters, plain and joint."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.raft.quorum import (
    VoteResult,
    committed_index,
    joint_committed_index,
    joint_vote_result,
    unlimited,
    vote_result,
)

ids = st.integers(1, 12)
voter_sets = st.sets(ids, min_size=1, max_size=9)
outgoing_sets = st.one_of(st.just(set[int]()), voter_sets)
matches = st.dictionaries(ids, st.integers(0, 8))
votes = st.dictionaries(ids, st.booleans(), max_size=9)


def is_majority(agreeing: set[int], voters: set[int]) -> bool:
    """More than half of the voters agree."""
    return 2 * len(agreeing & voters) > len(voters)


def brute_committed(voter_sets: list[set[int]], match: dict[int, int]) -> int:
    """The highest index that a majority of each set has, found by trying all."""
    return max(
        index
        for index in range(10)
        if all(is_majority({v for v in voters if match.get(v, 0) >= index}, voters) for voters in voter_sets)
    )


def brute_vote(voter_sets: list[set[int]], cast: dict[int, bool]) -> VoteResult:
    """Try all ways in which those who have not answered could still answer."""
    everybody = set().union(*voter_sets)
    silent = sorted(everybody - cast.keys())
    outcomes = set()
    for answers in product([False, True], repeat=len(silent)):
        yes = {voter for voter, granted in [*cast.items(), *zip(silent, answers)] if granted}
        outcomes.add(all(is_majority(yes, voters) for voters in voter_sets))
    if len(outcomes) == 2:
        return VoteResult.PENDING
    return VoteResult.WON if outcomes == {True} else VoteResult.LOST


@given(voter_sets, matches)
def test_committed_index_is_what_a_majority_has(voters: set[int], match: dict[int, int]) -> None:
    """The commit index of a set of voters is the highest that more than half of them have on disk (paper, 5.3)."""
    assert committed_index(sorted(voters), lambda voter: match.get(voter, 0)) == brute_committed([voters], match)


@given(voter_sets, outgoing_sets, matches)
def test_joint_committed_index_needs_both_majorities(
    incoming: set[int], outgoing: set[int], match: dict[int, int]
) -> None:
    """In a joint membership an index is committed when majorities of both sets have it (paper, section 6)."""
    sets = [incoming, outgoing] if outgoing else [incoming]
    found = joint_committed_index(sorted(incoming), sorted(outgoing), lambda voter: match.get(voter, 0))
    assert found == brute_committed(sets, match)


@given(voter_sets, votes)
def test_vote_result_is_decided_when_no_answer_can_change_it(voters: set[int], cast: dict[int, bool]) -> None:
    """An election is won or lost as soon as the missing answers cannot change it, and open before."""
    assert vote_result(sorted(voters), cast) is brute_vote([voters], cast)


@given(
    st.sets(ids, min_size=1, max_size=6), st.one_of(st.just(set[int]()), st.sets(ids, min_size=1, max_size=6)), votes
)
def test_joint_election_needs_both_majorities(incoming: set[int], outgoing: set[int], cast: dict[int, bool]) -> None:
    """In a joint membership an election is won by majorities of both sets, and lost when either cannot be had."""
    sets = [incoming, outgoing] if outgoing else [incoming]
    assert joint_vote_result(sorted(incoming), sorted(outgoing), cast) is brute_vote(sets, cast)


@given(voter_sets, matches, votes)
def test_who_does_not_vote_does_not_count(voters: set[int], match: dict[int, int], cast: dict[int, bool]) -> None:
    """What learners and strangers have or answer changes neither the commit index nor an election."""
    own_match = {voter: index for voter, index in match.items() if voter in voters}
    own_votes = {voter: granted for voter, granted in cast.items() if voter in voters}
    assert committed_index(voters, lambda v: match.get(v, 0)) == committed_index(voters, lambda v: own_match.get(v, 0))
    assert vote_result(voters, cast) is vote_result(voters, own_votes)


@pytest.mark.parametrize("outgoing", [[], [1], [1, 2, 3]])
def test_empty_set_of_voters_agrees_to_anything(outgoing: list[int]) -> None:
    """The empty half of a membership that is not joint takes no part in the arithmetic."""
    assert committed_index([], lambda _: 0) == unlimited
    assert vote_result([], {}) is VoteResult.WON
    assert joint_committed_index([], outgoing, lambda _: 7) == (7 if outgoing else unlimited)
