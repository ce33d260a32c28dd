"""What happens to a message before the role looks at it: terms (paper, section 5.1), and what is the same for all."""

from octopii.raft.candidate import (
    campaign,
    handle_vote_request,
    ignores_vote_request,
    role_of_response,
    take_vote,
)
from octopii.raft.follower import step_follower
from octopii.raft.leader import (
    handle_append_response,
    handle_heartbeat_response,
    take_office,
    take_read,
)
from octopii.raft.messages import Message, MessageType, Role
from octopii.raft.quorum import VoteResult
from octopii.raft.read_index import Read
from octopii.raft.state import RaftState

_FROM_LEADER = frozenset({MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT})
_VOTE_REQUESTS = frozenset({MessageType.VOTE_REQUEST, MessageType.PRE_VOTE_REQUEST})
_VOTE_RESPONSES = frozenset({MessageType.VOTE_RESPONSE, MessageType.PRE_VOTE_RESPONSE})


def step(state: RaftState, message: Message) -> None:
    """Take one message from another node."""
    if message.term > state.term:
        if not _enter_term(state, message):
            return
    elif message.term < state.term:
        _answer_old_term(state, message)
        return
    if message.type in _VOTE_REQUESTS:
        if not (message.type is MessageType.PRE_VOTE_REQUEST and ignores_vote_request(state, message)):
            handle_vote_request(state, message)
    elif message.type is MessageType.READ_INDEX:
        _step_read_index(state, message)
    elif message.type is MessageType.READ_INDEX_RESPONSE:
        if state.role is Role.FOLLOWER:
            state.read_states.append(Read(state.id, message.context, message.index))
    elif state.role is Role.LEADER:
        step_leader(state, message)
    elif state.role is Role.FOLLOWER:
        step_follower(state, message)
    else:
        step_candidate(state, message)


def _enter_term(state: RaftState, message: Message) -> bool:
    """Follow a newer term; False when the message is to be ignored, or does not speak of a term in force."""
    kind = message.type
    if kind in _VOTE_REQUESTS and ignores_vote_request(state, message):
        return False
    if kind is MessageType.PRE_VOTE_REQUEST:
        return True  # asks about a term that nobody has entered
    if kind is MessageType.PRE_VOTE_RESPONSE and not message.reject:
        return True  # answers about the term that was asked about
    state.become_follower(message.term, message.sender if kind in _FROM_LEADER else 0)
    return True


def _answer_old_term(state: RaftState, message: Message) -> None:
    """Let a node that is behind learn the newer term; all else of an old term counts for nothing."""
    kind = message.type
    if kind in _FROM_LEADER and (state.config.check_quorum or state.config.pre_vote):
        # A leader that was cut off cannot be deposed by this node's vote requests, which are ignored: say it so.
        state.send(Message(type=MessageType.APPEND_RESPONSE, to=message.sender, index=0, reject=False))
    elif kind is MessageType.PRE_VOTE_REQUEST:
        state.send(Message(type=MessageType.PRE_VOTE_RESPONSE, to=message.sender, reject=True))


def step_candidate(state: RaftState, message: Message) -> None:
    """Count votes; give way to a leader of the same term."""
    kind = message.type
    if kind in _FROM_LEADER:
        state.become_follower(message.term, message.sender)
        step_follower(state, message)
    elif kind in _VOTE_RESPONSES and role_of_response(kind) is state.role:
        conclude(state, take_vote(state, message.sender, not message.reject))


def conclude(state: RaftState, result: VoteResult) -> None:
    """Act on where the election stands."""
    if result is VoteResult.WON:
        if state.role is Role.PRE_CANDIDATE:
            campaign(state)
        else:
            take_office(state)
    elif result is VoteResult.LOST:
        # Not a newer term: a pre-candidate has not even entered its own.
        state.become_follower(state.term, 0)


def step_leader(state: RaftState, message: Message) -> None:
    """Handle what members answer."""
    if message.type is MessageType.APPEND_RESPONSE:
        handle_append_response(state, message)
    elif message.type is MessageType.HEARTBEAT_RESPONSE:
        handle_heartbeat_response(state, message)


def _step_read_index(state: RaftState, message: Message) -> None:
    """A follower asks on behalf of a read of its own; one that does not lead passes it on once."""
    if state.role is Role.LEADER:
        take_read(state, Read(message.sender, message.context))
