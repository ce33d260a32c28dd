"""Majorities, plain and joint (paper, section 6): what a set of voters has agreed on.

An empty set of voters agrees to anything: that is how the outgoing half of a membership that is not joint drops out of
the arithmetic.
"""

import enum
from collections.abc import Callable, Collection, Mapping

unlimited = (1 << 63) - 1
"""The index that an empty set of voters has agreed on."""


class VoteResult(enum.Enum):
    """Where an election stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


PENDING = VoteResult.PENDING
WON = VoteResult.WON
LOST = VoteResult.LOST


def committed_index(voters: Collection[int], match_of: Callable[[int], int]) -> int:
    """The highest index that a majority of `voters` has on disk; `match_of` gives each one's (0 for nothing known)."""
    if not voters:
        return unlimited
    matches = sorted(map(match_of, voters))
    return matches[(len(matches) - 1) // 2]


def joint_committed_index(incoming: Collection[int], outgoing: Collection[int], match_of: Callable[[int], int]) -> int:
    """The highest index that majorities of both sets have on disk."""
    index = committed_index(incoming, match_of)
    return min(index, committed_index(outgoing, match_of)) if outgoing else index


def vote_result(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """Where an election among `voters` stands, given the answers so far."""
    if not voters:
        return WON
    majority = len(voters) // 2 + 1
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    if granted >= majority:
        return WON
    missing = sum(1 for voter in voters if voter not in votes)
    return PENDING if granted + missing >= majority else LOST


def joint_vote_result(incoming: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """Where an election stands that both sets must win."""
    result = vote_result(incoming, votes)
    if result is LOST or not outgoing:
        return result
    other = vote_result(outgoing, votes)
    return result if other is WON else other
