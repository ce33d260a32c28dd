"""A member whose disk has lost what it acknowledged: what it may still do, and what its leader makes of it."""

import pytest

from octopii.raft import MessageType as Kind
from octopii.raft import Role
from tests.raft.test_raw_node import Driven, T, entry

LOG = [entry(1, 1), entry(2, 1)]


def held_back(*, term: int = 4, log_term: int = 3, log_index: int = 5) -> Driven:
    """A voter in term 2 with two entries of term 1, which has acknowledged more than that."""
    driven = Driven(1, 2, 3, log=LOG, term=2)
    driven.node.hold_to(term=term, log_term=log_term, log_index=log_index)
    driven.settle()
    return driven


def test_it_does_not_campaign_until_its_log_is_whole_again() -> None:
    """Neither by itself, nor when it is asked to, nor when the leader tells it to take over; afterwards it does."""
    driven = held_back()
    assert driven.node.has_lost_entries
    driven.tick(5 * T)
    driven.node.campaign()
    driven.hear(Kind.TIMEOUT_NOW, 2)
    assert driven.role() is Role.FOLLOWER
    assert driven.node.term == 4
    driven.hear(Kind.APPEND, 2, term=5, index=2, log_term=1, entries=[entry(3, 3), entry(4, 3)])
    assert driven.node.has_lost_entries
    driven.hear(Kind.APPEND, 2, term=5, index=4, log_term=3, entries=[entry(5, 3)])
    assert not driven.node.has_lost_entries
    driven.tick(3 * T)
    assert driven.role() is Role.CANDIDATE


@pytest.mark.parametrize(
    ("log_term", "index", "granted"), [(1, 9, False), (3, 4, False), (3, 5, True), (3, 6, True), (5, 3, True)]
)
def test_it_votes_only_for_who_has_what_it_acknowledged(log_term: int, index: int, granted: bool) -> None:
    """Its own short log is no measure: what it acknowledged is. The same for pre-votes."""
    driven = held_back()
    driven.tick(T)  # what it may have promised to a leader before it was restarted
    for kind, answer in (
        (Kind.PRE_VOTE_REQUEST, Kind.PRE_VOTE_RESPONSE),
        (Kind.VOTE_REQUEST, Kind.VOTE_RESPONSE),
    ):
        (vote,) = driven.hear(kind, 2, term=6, log_term=log_term, index=index)
        assert vote.type is answer
        assert vote.reject is not granted


def test_it_votes_in_no_term_in_which_it_may_have_voted() -> None:
    """The vote may be lost with the entries: the newest term it is known to have been in is over for it."""
    driven = held_back(term=4)
    driven.tick(T)
    (vote,) = driven.hear(Kind.VOTE_REQUEST, 2, term=4, log_term=9, index=9)
    assert vote.reject
    assert driven.storage.initial_state()[0].term == 4, "that it has nothing to give in that term is on disk"
    (vote,) = driven.hear(Kind.VOTE_REQUEST, 2, term=5, log_term=9, index=9)
    assert not vote.reject


def test_a_candidate_that_learns_of_its_loss_gives_up() -> None:
    """Votes that are still on their way no longer make it a leader."""
    driven = Driven(1, 2, 3, log=LOG, term=2)
    driven.tick(3 * T)
    assert driven.role() is Role.CANDIDATE
    term = driven.node.term
    driven.node.hold_to(term=2, log_term=1, log_index=3)
    driven.hear(Kind.VOTE_RESPONSE, 2, term=term)
    driven.hear(Kind.VOTE_RESPONSE, 3, term=term)
    assert driven.role() is Role.FOLLOWER


def test_nothing_happens_where_nothing_was_lost() -> None:
    """What it acknowledged is there: it votes and campaigns as ever."""
    driven = held_back(term=9, log_term=1, log_index=2)
    assert not driven.node.has_lost_entries
    assert driven.node.term == 2
    driven.tick(3 * T)
    assert driven.role() is Role.CANDIDATE


def test_a_leader_takes_back_what_a_member_has_lost_and_sends_it_again() -> None:
    """Without that, its rejections would be taken for old ones, and it would be sent nothing it can use, for ever."""
    driven = Driven(1, 2, 3, log=LOG, term=2, lease_reads=False).lead()
    for _ in range(3):
        driven.node.propose(b"x")
    driven.settle()
    driven.acknowledge(2)
    assert driven.node.match_index(2) == 6
    driven.node.report_unreachable(2)
    driven.node.report_lost_entries(2)
    assert driven.node.match_index(2) == 0
    committed = driven.node.committed
    assert committed == 6, "what is committed stays so"
    sent = driven.hear(Kind.HEARTBEAT_RESPONSE, 2)
    for _ in range(5):
        appends = [message for message in sent if message.type is Kind.APPEND and message.to == 2]
        assert appends
        if appends[-1].index <= 1:
            break
        sent = driven.hear(Kind.APPEND_RESPONSE, 2, reject=True, index=appends[-1].index, reject_hint=1, log_term=1)
    driven.acknowledge(2)
    assert driven.node.match_index(2) == 6
    driven.node.propose(b"y")
    driven.settle()
    driven.acknowledge(2)
    assert driven.node.committed == 7
