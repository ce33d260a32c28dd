"""What the log says of elections: who leads, and why there was one."""

import logging

import pytest

from octopii.raft import Role, SoftState
from octopii.replica.elections import ElectionLog


def log_of(
    caplog: pytest.LogCaptureFixture, states: list[tuple[int, Role, int]], *, silent: float = 0.0, is_voter: bool = True
) -> list[str]:
    """The lines of node 1 that goes through these states of (leader, role, term)."""
    caplog.set_level(logging.INFO, "octopii.replica")
    log = ElectionLog(1)
    for leader, role, term in states:
        log.observe(SoftState(leader=leader, role=role, term=term), silent_seconds=silent, is_voter=is_voter)
    return [record.getMessage() for record in caplog.records]


def test_a_silent_leader_is_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """Who stands because its leader fell silent says so, with the time; an election that is repeated says it once."""
    states = [(2, Role.FOLLOWER, 3), (0, Role.PRE_CANDIDATE, 3), (0, Role.CANDIDATE, 4)]
    assert log_of(caplog, [*states, (0, Role.PRE_CANDIDATE, 4), (1, Role.LEADER, 5)], silent=1.25) == [
        "node 1 follows node 2, which leads in term 3",
        "node 1 stands for election: nothing was heard from a leader for 1.2 s; the last one was node 2",
        "node 1 leads in term 5",
    ]


def test_a_hand_over_is_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """Who was told to take over names the leader that told it."""
    assert log_of(caplog, [(2, Role.FOLLOWER, 3), (0, Role.CANDIDATE, 4), (1, Role.LEADER, 4)])[1:] == [
        "node 1 stands for election: node 2, which leads, hands over to it",
        "node 1 leads in term 4",
    ]


@pytest.mark.parametrize(
    ("term", "is_voter", "reason"),
    [
        (3, True, "it has not heard from a majority for an election timeout"),
        (3, False, "it is no voter any more"),
        (4, True, "there is an election in term 4"),
    ],
)
def test_a_leader_that_steps_down_says_why(
    caplog: pytest.LogCaptureFixture, term: int, is_voter: bool, reason: str
) -> None:
    """Without a majority, without a vote, or because of a newer term."""
    states = [(1, Role.LEADER, 3), (0, Role.FOLLOWER, term)]
    assert log_of(caplog, states, is_voter=is_voter)[1:] == [f"node 1 no longer leads: {reason}"]


def test_one_leader_in_one_term_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A follower that loses sight of its leader and finds it again in the same term says who leads again."""
    states = [(2, Role.FOLLOWER, 3), (2, Role.FOLLOWER, 3), (0, Role.FOLLOWER, 3), (2, Role.FOLLOWER, 3)]
    assert log_of(caplog, states) == ["node 1 follows node 2, which leads in term 3"] * 2
