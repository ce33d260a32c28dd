"""Elections (paper, section 5.2; pre-vote and disruptive servers: thesis, sections 9.6 and 4.2.3)."""

from octopii.raft.messages import (
    CANDIDATE,
    LEADER,
    PRE_CANDIDATE,
    PRE_VOTE_REQUEST,
    PRE_VOTE_RESPONSE,
    VOTE_REQUEST,
    VOTE_RESPONSE,
    Message,
)
from octopii.raft.quorum import WON, VoteResult
from octopii.raft.state import RaftState

transfer_context = b"transfer"
"""Context of a vote request that a leader asked for: voters grant it although they have just heard of that leader."""


def may_campaign(state: RaftState) -> bool:
    """Whether this node may stand at all: a voter that knows its membership to be the newest that is committed."""
    return state.role is not LEADER and state.promotable and not state.log.has_unapplied_membership()


def campaign(state: RaftState, *, pre_vote: bool = False, transfer: bool = False) -> None:
    """Begin an election, or the question whether one could be won."""
    if pre_vote:
        state.become_pre_candidate()
        # A pre-vote promises nothing, so one's own counts at once.
        if take_vote(state, state.id, True) is WON:
            campaign(state)
            return
        kind, term = PRE_VOTE_REQUEST, state.term + 1
    else:
        state.become_candidate()
        # One's own vote counts once it is on disk: see `RawNode.on_persisted`.
        kind, term = VOTE_REQUEST, state.term
    last = state.log.last_index()
    for voter in sorted({*state.conf.voters, *state.conf.voters_outgoing}):
        if voter != state.id:
            state.send(
                Message(
                    type=kind,
                    to=voter,
                    term=term,
                    index=last,
                    log_term=state.log.last_term(),
                    context=transfer_context if transfer else b"",
                )
            )


def take_vote(state: RaftState, voter: int, granted: bool) -> VoteResult:
    """Count an answer; the first one of each voter counts."""
    state.votes.setdefault(voter, granted)
    return state.quorum_of(state.votes)


def may_grant(state: RaftState, message: Message) -> bool:
    """Whether to vote for the sender (paper, figure 2, RequestVote; the term was looked at before)."""
    if state.has_promised and message.context != transfer_context:
        return False
    asks_only = message.type is PRE_VOTE_REQUEST
    can_vote = (
        state.vote == message.sender
        or (state.vote == 0 and state.leader == 0)
        or (asks_only and message.term > state.term)
    )
    holds_all = (message.log_term, message.index) >= state.held_to
    return can_vote and holds_all and state.log.is_up_to_date(message.index, message.log_term)


def handle_vote_request(state: RaftState, message: Message) -> None:
    """Answer a request for a vote or pre-vote.

    Learners answer too: one that was promoted may not have heard of it yet, and its vote may be the one that counts.
    """
    asks_only = message.type is PRE_VOTE_REQUEST
    kind = PRE_VOTE_RESPONSE if asks_only else VOTE_RESPONSE
    if may_grant(state, message):
        # A granted pre-vote speaks of the term that is asked for, a refusal of one's own.
        state.send(Message(type=kind, to=message.sender, term=message.term))
        if not asks_only:
            state.election_elapsed = 0
            state.vote = message.sender
    else:
        state.send(Message(type=kind, to=message.sender, term=state.term, reject=True))


def ignores_vote_request(state: RaftState, message: Message) -> bool:
    """Whether a live leader, or a lease that may still hold, forbids to take note of an election at all.

    Thesis, sections 4.2.3 and 6.4.1. A leader that hands over has given up its lease before anybody is asked.
    """
    if message.context == transfer_context or not state.config.check_quorum:
        return False
    if state.role is LEADER or state.has_promised:
        return True
    return state.leader != 0 and state.ticks_since_leader < state.config.election_ticks


def answers_this_election(state: RaftState, message: Message) -> bool:
    """Whether a vote response belongs to the election that this node stands in now, not to an earlier one."""
    if message.type is VOTE_RESPONSE:
        return state.role is CANDIDATE
    # A pre-vote is granted for the term that was asked about, and refused in the refuser's own.
    return state.role is PRE_CANDIDATE and (message.reject or message.term == state.term + 1)
