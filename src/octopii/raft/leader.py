"""What a leader does: replicate, commit, confirm reads, hand over (paper, sections 5.3, 5.4 and 8; thesis 3.10)."""

from octopii.raft.membership import members_of
from octopii.raft.messages import (
    APPEND,
    HEARTBEAT,
    LEADER,
    NORMAL,
    READ_INDEX_RESPONSE,
    SNAPSHOT,
    TIMEOUT_NOW,
    Entry,
    Message,
)
from octopii.raft.progress import PROBE, REPLICATE, SNAPSHOTTING, Progress
from octopii.raft.quorum import WON
from octopii.raft.read_index import Read
from octopii.raft.state import RaftState
from octopii.raft.storage import Compacted, SnapshotTemporarilyUnavailable

kept_rounds = 64
"""Heartbeat rounds whose send time is remembered for the lease."""


# --- taking up office -------------------------------------------------------------------------------------------


def take_office(state: RaftState) -> None:
    """Become leader, and append the empty entry that lets earlier terms' entries be committed (section 5.4.2)."""
    state.become_leader()
    state.append_own([(NORMAL, b"")])
    broadcast_append(state)


# --- replication ------------------------------------------------------------------------------------------------


def broadcast_append(state: RaftState) -> None:
    """Send every member what it lacks."""
    for node_id in state.progress:
        if node_id != state.id:
            maybe_send_append(state, node_id, send_if_empty=True)


def maybe_send_append(state: RaftState, to: int, *, send_if_empty: bool) -> bool:
    """Send a member the next entries, or a snapshot where the log no longer reaches it; False when nothing went out."""
    progress = state.progress[to]
    if progress.is_paused:
        return False
    log = state.log
    previous = progress.next - 1
    if not send_if_empty and previous >= log.last_index():
        return False
    try:
        previous_term = log.term(previous)
        entries: list[Entry] = []
        # With a full window only empty appends go out: should all that is under way be lost, their answers show it.
        if previous < log.last_index() and not (progress.state is REPLICATE and progress.inflights.full):
            entries = log.entries(progress.next, state.config.max_message_bytes)
    except Compacted:
        return _maybe_send_snapshot(state, to, progress)
    if not entries and not send_if_empty:
        return False
    state.send(
        Message(
            type=APPEND,
            to=to,
            index=previous,
            log_term=previous_term,
            entries=entries,
            commit=log.committed,
        )
    )
    progress.sent(len(entries), sum([len(entry.data) for entry in entries]) if entries else 0)
    progress.sent_commit = log.committed
    return True


def _maybe_send_snapshot(state: RaftState, to: int, progress: Progress) -> bool:
    """Start a snapshot towards a member that is there to take it, and has not all of it."""
    if not progress.recent_active:
        return False
    try:
        snapshot = state.log.storage.snapshot()
    except SnapshotTemporarilyUnavailable:
        return False
    if snapshot.metadata.index <= progress.match:
        return False
    progress.become_snapshot(snapshot.metadata.index)
    state.send(Message(type=SNAPSHOT, to=to, snapshot=snapshot))
    return True


def force_snapshot(state: RaftState, to: int) -> bool:
    """Send a member a snapshot although the log might reach it."""
    progress = state.progress.get(to)
    if progress is None or progress.state is SNAPSHOTTING or to == state.id:
        return False
    progress.recent_active = True
    return _maybe_send_snapshot(state, to, progress)


def tick_leader(state: RaftState) -> None:
    """One tick of a leader: heartbeats, and whether a quorum still answers (thesis, section 6.2)."""
    state.heartbeat_elapsed += 1
    if state.election_elapsed >= state.config.election_ticks:
        state.election_elapsed = 0
        if state.config.check_quorum and not has_active_quorum(state):
            state.become_follower(state.term, 0)
            return
        state.transferee = 0  # it did not happen within an election timeout
    if state.heartbeat_elapsed >= state.config.heartbeat_ticks:
        state.heartbeat_elapsed = 0
        broadcast_heartbeat(state)


def maybe_commit(state: RaftState) -> bool:
    """Raise the commit index to what a quorum has, if that is of this term (section 5.4.2, figure 8)."""
    index = state.quorum_index()
    if index <= state.log.committed or not state.log.matches(index, state.term):
        return False
    first_of_term = not committed_in_term(state)
    state.log.commit_to(index)
    if first_of_term:
        _release_held_reads(state)
    return True


def committed_in_term(state: RaftState) -> bool:
    """Whether an entry of this term is committed, so that the commit index is certainly the newest."""
    return state.log.matches(state.log.committed, state.term)


def handle_append_response(state: RaftState, message: Message) -> None:
    """Learn how far a member's log matches, and go on sending."""
    progress = state.progress.get(message.sender)
    if progress is None:
        return
    progress.recent_active = True
    if message.reject:
        _handle_reject(state, message, progress)
        return
    if message.index > state.log.last_index():
        return  # no answer to anything this leader sent
    if not _match_moved(progress, message.index):
        return
    _leave_state(state, progress, message.index)
    if maybe_commit(state):
        broadcast_append(state)
    elif progress.sent_commit < min(state.log.committed, progress.next - 1):
        maybe_send_append(state, message.sender, send_if_empty=True)
    while maybe_send_append(state, message.sender, send_if_empty=False):
        pass
    if message.sender == state.transferee and progress.match == state.log.last_index():
        send_timeout_now(state, message.sender)


def _match_moved(progress: Progress, index: int) -> bool:
    """Take the acknowledgement; also when it only confirms, in a probe, what was known."""
    if progress.maybe_update(index):
        return True
    return progress.match == index and progress.state is PROBE


def _leave_state(state: RaftState, progress: Progress, index: int) -> None:
    """Go on to streaming where the answer shows that the logs meet."""
    if progress.state is PROBE:
        progress.become_replicate()
    elif progress.state is SNAPSHOTTING:
        if progress.match + 1 >= state.log.first_index():  # whether by the snapshot or by other means
            progress.become_probe()
            progress.become_replicate()
    else:
        progress.inflights.free_to(index)


def _handle_reject(state: RaftState, message: Message, progress: Progress) -> None:
    """Find where the logs may meet: skip all terms that the member cannot have (thesis, section 3.3)."""
    hint = message.reject_hint
    if message.log_term > 0:
        hint = state.log.find_conflict_by_term(message.reject_hint, message.log_term)
    if progress.maybe_decrease(message.index, hint):
        if progress.state is REPLICATE:
            progress.become_probe()
        maybe_send_append(state, message.sender, send_if_empty=True)


# --- heartbeats, reads, lease -----------------------------------------------------------------------------------


def broadcast_heartbeat(state: RaftState) -> None:
    """Start a round: keep followers quiet, tell them the commit index, gather confirmations."""
    number = state.reads.begin_round()
    state.round_sent[number] = state.now
    if len(state.round_sent) > kept_rounds:
        del state.round_sent[next(iter(state.round_sent))]
    for node_id, progress in state.progress.items():
        if node_id != state.id:
            commit = min(progress.match, state.log.committed)
            state.send(Message(type=HEARTBEAT, to=node_id, index=number, commit=commit))
    _confirm_rounds(state)


def handle_heartbeat_response(state: RaftState, message: Message) -> None:
    """A member is there: go on with it, and count its confirmation."""
    progress = state.progress.get(message.sender)
    if progress is None:
        return
    progress.recent_active = True
    progress.paused = False
    if progress.match < state.log.last_index() or progress.state is PROBE:
        maybe_send_append(state, message.sender, send_if_empty=True)
    acked = state.reads.acked
    acked[message.sender] = max(acked.get(message.sender, 0), message.index)
    _confirm_rounds(state)


def _confirm_rounds(state: RaftState) -> None:
    """Find the newest round that a quorum has answered; that is the leader's proof of office at its send time."""
    reads = state.reads
    acked = reads.acked
    candidates = sorted({number for number in acked.values() if number > reads.confirmed_round}, reverse=True)
    if not candidates and len(state.progress) > 1 and state.quorum_of({state.id: True}) is not WON:
        return
    for number in candidates or [reads.round]:
        votes = {node_id: True for node_id, newest in acked.items() if newest >= number}
        votes[state.id] = True
        if state.quorum_of(votes) is WON:
            if number in state.round_sent:
                state.lease_start = state.round_sent[number]
            for read in reads.confirm(number):
                answer_read(state, read)
            if reads.gathered:
                broadcast_heartbeat(state)
            return


def lease_holds(state: RaftState, now: float) -> bool:
    """Whether no other leader can have been elected up to `now`, if clocks drift no more than configured.

    A follower counts its election timeout in whole ticks from the moment the heartbeat reached it, so that one tick
    less than the timeout is certain.
    """
    if state.role is not LEADER or state.transferee or state.lease_given_up or state.lease_start is None:
        return False
    config = state.config
    if not (config.check_quorum and config.lease_reads and committed_in_term(state)):
        return False
    length = (config.election_ticks - 1) * config.tick_seconds * (1 - config.lease_drift)
    return state.lease_start <= now < state.lease_start + length


def take_read(state: RaftState, read: Read) -> None:
    """Serve a read as leader; beyond the limit it is forgotten, and whoever asked asks again."""
    if not committed_in_term(state):
        state.reads.hold(read)
        return
    read = Read(read.node_id, read.context, state.log.committed)
    if state.quorum_of({state.id: True}) is WON:
        answer_read(state, read)
    elif state.reads.add(read):
        broadcast_heartbeat(state)


def _release_held_reads(state: RaftState) -> None:
    for read in state.reads.release():
        take_read(state, read)


def answer_read(state: RaftState, read: Read) -> None:
    """Tell whoever asked which index to wait for."""
    if read.node_id == state.id:
        state.read_states.append(read)
    else:
        state.send(Message(type=READ_INDEX_RESPONSE, to=read.node_id, index=read.index, context=read.context))


# --- handing over -----------------------------------------------------------------------------------------------


def begin_transfer(state: RaftState, transferee: int) -> None:
    """Bring a voter up to date and tell it to campaign (thesis, section 3.10); the lease is given up at once."""
    progress = state.progress.get(transferee)
    if progress is None or progress.is_learner or transferee in (state.id, state.transferee):
        return
    state.transferee = transferee
    state.election_elapsed = 0
    if progress.match == state.log.last_index():
        send_timeout_now(state, transferee)
    else:
        maybe_send_append(state, transferee, send_if_empty=True)


def send_timeout_now(state: RaftState, to: int) -> None:
    """Tell a voter to campaign at once.

    It may do so at any later time, and the others will vote for it whatever they promised: no lease in this term any
    more, also when the transfer is given up.
    """
    state.lease_given_up = True
    state.send(Message(type=TIMEOUT_NOW, to=to))


def has_active_quorum(state: RaftState) -> bool:
    """Whether a quorum was heard since the last look (thesis, section 6.2); forgets what was heard."""
    votes = {}
    for node_id, progress in state.progress.items():
        if not progress.is_learner:
            votes[node_id] = progress.recent_active or node_id == state.id
        progress.recent_active = False
    return state.quorum_of(votes) is WON


def membership_changed(state: RaftState) -> None:
    """A new membership is in force: it may commit more, and new members want to be sent the log."""
    if state.id not in members_of(state.conf) or state.progress[state.id].is_learner:
        # Removed or made a learner: the change is committed, so the others can do without (thesis, section 4.2.2).
        state.become_follower(state.term, 0)
        return
    if maybe_commit(state):
        broadcast_append(state)
    else:
        for node_id in state.progress:
            if node_id != state.id:
                maybe_send_append(state, node_id, send_if_empty=False)
    if state.transferee not in state.conf.voters and state.transferee not in state.conf.voters_outgoing:
        state.transferee = 0


def snapshot_reported(state: RaftState, node_id: int, *, ok: bool) -> None:
    """A snapshot on its way has arrived or failed: probe, and wait for a sign of life before sending."""
    progress = state.progress.get(node_id)
    if progress is None or progress.state is not SNAPSHOTTING:
        return
    if not ok:
        progress.pending_snapshot = 0
    progress.become_probe()
    progress.paused = True


def forget_match(state: RaftState, node_id: int) -> None:
    """A member's log has become shorter: what it acknowledged counts no more, and its log is probed from the end on."""
    progress = state.progress.get(node_id)
    if progress is not None:
        progress.match = progress.sent_commit = 0
        progress.become_probe()
        progress.next = state.log.last_index() + 1


def peer_unreachable(state: RaftState, node_id: int) -> None:
    """Sending failed: what is under way is probably lost."""
    progress = state.progress.get(node_id)
    if progress is not None and progress.state is REPLICATE:
        progress.become_probe()
