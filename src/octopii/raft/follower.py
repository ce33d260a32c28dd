"""What a follower does (paper, sections 5.2 and 5.3): take appends, heartbeats and snapshots, pass reads on."""

from octopii.raft.candidate import campaign, may_campaign
from octopii.raft.log import RaftLog
from octopii.raft.messages import (
    APPEND,
    APPEND_RESPONSE,
    HEARTBEAT,
    HEARTBEAT_RESPONSE,
    SNAPSHOT,
    TIMEOUT_NOW,
    Message,
    Snapshot,
)
from octopii.raft.state import RaftState
from octopii.raft.storage import Compacted, Unavailable


def step_follower(state: RaftState, message: Message) -> None:
    """Handle a message of the current term."""
    kind = message.type
    if kind is APPEND:
        follow(state, message.sender)
        handle_append(state, message)
    elif kind is HEARTBEAT:
        follow(state, message.sender)
        handle_heartbeat(state, message)
    elif kind is SNAPSHOT:
        follow(state, message.sender)
        handle_snapshot(state, message)
    elif kind is TIMEOUT_NOW and may_campaign(state):
        # The leader asks for it, so there is nothing to be gained by asking for pre-votes first.
        campaign(state, transfer=True)


def follow(state: RaftState, leader: int) -> None:
    """Note who leads this term, and that it was just heard."""
    state.election_elapsed = state.ticks_since_leader = 0
    state.leader = leader


def handle_append(state: RaftState, message: Message) -> None:
    """Append what the leader sends, or say where the logs may meet."""
    log = state.log
    if message.index < log.committed:
        # An old message: what it holds is committed here already.
        _acknowledge(state, message.sender, log.committed)
        return
    matched = log.maybe_append(message.index, message.log_term, message.commit, message.entries)
    if matched is not None:
        _acknowledge(state, message.sender, matched)
        return
    hint = log.find_conflict_by_term(message.index, message.log_term)
    state.send(
        Message(
            type=APPEND_RESPONSE,
            to=message.sender,
            index=message.index,
            reject=True,
            reject_hint=hint,
            log_term=term_or_zero(log, hint),
        )
    )


def handle_heartbeat(state: RaftState, message: Message) -> None:
    """Learn the commit index, as far as the leader knows that this log matches; answer the round."""
    state.log.commit_to(message.commit)
    state.send(Message(type=HEARTBEAT_RESPONSE, to=message.sender, index=message.index))


def handle_snapshot(state: RaftState, message: Message) -> None:
    """Install a snapshot, unless what it holds is here already (paper, section 7)."""
    assert message.snapshot is not None
    if restore(state, message.snapshot):
        _acknowledge(state, message.sender, state.log.last_index())
    else:
        _acknowledge(state, message.sender, state.log.committed)


def restore(state: RaftState, snapshot: Snapshot) -> bool:
    """Replace the log by a snapshot; False when it is old, or when the log holds its last entry.

    Its membership is taken over once it is on disk (`RawNode.on_persisted`). That may lack this node: the entry that
    adds it can stand behind the snapshot.
    """
    metadata, log = snapshot.metadata, state.log
    if metadata.index <= log.committed:
        return False
    if log.matches(metadata.index, metadata.term):
        log.commit_to(metadata.index)
        return False
    log.restore(snapshot)
    return True


def _acknowledge(state: RaftState, leader: int, index: int) -> None:
    state.send(Message(type=APPEND_RESPONSE, to=leader, index=index))


def term_or_zero(log: RaftLog, index: int) -> int:
    """The term of an entry, 0 where it cannot be read."""
    try:
        return log.term(index)
    except (Compacted, Unavailable):
        return 0
