"""What happens to a message before the role looks at it: terms (paper, section 5.1), and what is the same for all."""

from octopii.raft.candidate import (
    answers_this_election,
    campaign,
    handle_vote_request,
    ignores_vote_request,
    take_vote,
)
from octopii.raft.follower import step_follower
from octopii.raft.leader import (
    handle_append_response,
    handle_heartbeat_response,
    take_office,
    take_read,
)
from octopii.raft.messages import (
    APPEND,
    APPEND_RESPONSE,
    FOLLOWER,
    HEARTBEAT,
    HEARTBEAT_RESPONSE,
    LEADER,
    PRE_CANDIDATE,
    PRE_VOTE_REQUEST,
    PRE_VOTE_RESPONSE,
    READ_INDEX,
    READ_INDEX_RESPONSE,
    SNAPSHOT,
    VOTE_REQUEST,
    VOTE_RESPONSE,
    Message,
)
from octopii.raft.quorum import LOST, WON, VoteResult
from octopii.raft.read_index import Read
from octopii.raft.state import RaftState

_FROM_LEADER = frozenset({APPEND, HEARTBEAT, SNAPSHOT})
_VOTE_REQUESTS = frozenset({VOTE_REQUEST, PRE_VOTE_REQUEST})
_VOTE_RESPONSES = frozenset({VOTE_RESPONSE, PRE_VOTE_RESPONSE})


def step(state: RaftState, message: Message) -> None:
    """Take one message from another node."""
    if message.term > state.term:
        if not _enter_term(state, message):
            return
    elif message.term < state.term:
        _answer_old_term(state, message)
        return
    kind, role = message.type, state.role
    if kind in _VOTE_REQUESTS:
        handle_vote_request(state, message)
    elif kind is READ_INDEX:
        if role is LEADER:
            take_read(state, Read(message.sender, message.context))
    elif kind is READ_INDEX_RESPONSE:
        if role is FOLLOWER:
            state.read_states.append(Read(state.id, message.context, message.index))
    elif role is LEADER:
        step_leader(state, message)
    elif role is FOLLOWER:
        step_follower(state, message)
    else:
        step_candidate(state, message)


def _enter_term(state: RaftState, message: Message) -> bool:
    """Follow a newer term; False when the message is to be ignored, or does not speak of a term in force."""
    kind = message.type
    if kind in _VOTE_REQUESTS and ignores_vote_request(state, message):
        return False
    if kind is PRE_VOTE_REQUEST:
        return True  # asks about a term that nobody has entered
    if kind is PRE_VOTE_RESPONSE and not message.reject:
        return True  # answers about the term that was asked about
    state.become_follower(message.term, message.sender if kind in _FROM_LEADER else 0)
    return True


def _answer_old_term(state: RaftState, message: Message) -> None:
    """Let a node that is behind learn the newer term; all else of an old term counts for nothing."""
    kind = message.type
    if kind in _FROM_LEADER and (state.config.check_quorum or state.config.pre_vote):
        # A leader that was cut off cannot be deposed by this node's vote requests, which are ignored: say it so.
        state.send(Message(type=APPEND_RESPONSE, to=message.sender, index=0, reject=False))
    elif kind is PRE_VOTE_REQUEST:
        state.send(Message(type=PRE_VOTE_RESPONSE, to=message.sender, reject=True))


def step_candidate(state: RaftState, message: Message) -> None:
    """Count votes; give way to a leader of the same term."""
    kind = message.type
    if kind in _FROM_LEADER:
        state.become_follower(message.term, message.sender)
        step_follower(state, message)
    elif kind in _VOTE_RESPONSES and answers_this_election(state, message):
        conclude(state, take_vote(state, message.sender, not message.reject))


def conclude(state: RaftState, result: VoteResult) -> None:
    """Act on where the election stands."""
    if result is WON:
        if state.role is PRE_CANDIDATE:
            campaign(state)
        else:
            take_office(state)
    elif result is LOST:
        # Not a newer term: a pre-candidate has not even entered its own.
        state.become_follower(state.term, 0)


def step_leader(state: RaftState, message: Message) -> None:
    """Handle what members answer."""
    if message.type is APPEND_RESPONSE:
        handle_append_response(state, message)
    elif message.type is HEARTBEAT_RESPONSE:
        handle_heartbeat_response(state, message)
