"""The core's interface: messages and ticks in, numbered `Ready`s out; the package's text is the manual."""

from collections import deque

import msgspec

from octopii.errors import NotApplied
from octopii.raft.candidate import campaign, may_campaign, take_vote
from octopii.raft.leader import (
    begin_transfer,
    broadcast_append,
    force_snapshot,
    forget_match,
    lease_holds,
    maybe_commit,
    membership_changed,
    peer_unreachable,
    snapshot_reported,
    take_read,
    tick_leader,
)
from octopii.raft.membership import InvalidChange, apply_change, is_joint, leaves_joint
from octopii.raft.messages import (
    CANDIDATE,
    FOLLOWER,
    LEADER,
    MEMBERSHIP,
    NORMAL,
    READ_INDEX,
    ConfState,
    Entry,
    HardState,
    MembershipChange,
    Message,
    Role,
    Snapshot,
    SoftState,
    encode_membership_change,
)
from octopii.raft.progress import ProgressState
from octopii.raft.read_index import Read
from octopii.raft.state import RaftConfig, RaftState
from octopii.raft.step import conclude, step
from octopii.raft.storage import Storage


class ProposalDropped(NotApplied):
    """A proposal was not taken, and nothing of it will ever be in the log; subclasses say why."""


class NotLeader(ProposalDropped):
    """Only a leader takes proposals; `leader` is who leads, as far as known (0: nobody)."""

    def __init__(self, leader: int) -> None:
        super().__init__(f"node {leader} leads" if leader else "nobody is known to lead")
        self.leader = leader


class TransferInProgress(ProposalDropped):
    """Leadership is being handed over."""


class TooManyUncommitted(ProposalDropped):
    """The entries that wait to be committed have reached `max_uncommitted_bytes`."""


class ChangeInProgress(ProposalDropped):
    """Another membership change is not applied yet, or has left a joint membership that has to be left first."""


class ChangeRefused(ProposalDropped):
    """The change makes no sense for the present membership."""


class ReadState(msgspec.Struct, frozen=True, gc=False):
    """A confirmed read: answer it from state that has applied entries up to `index`."""

    index: int
    context: bytes


class PeerStatus(msgspec.Struct, frozen=True):
    """One member as its leader sees it."""

    match: int
    next: int
    state: ProgressState
    is_learner: bool
    recent_active: bool
    paused: bool
    inflight_messages: int
    inflight_bytes: int
    pending_snapshot: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A node's view of itself; `peers` is empty unless it leads."""

    id: int
    term: int
    vote: int
    leader: int
    role: Role
    committed: int
    applied: int
    last_index: int
    conf_state: ConfState
    transferee: int
    peers: dict[int, PeerStatus]


class Ready(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is to be done now; each Ready holds only what is new since the one before.

    Send `messages` at once. Write `snapshot`, then `entries` (they replace what stands at the first one's index and
    behind), then `hard_state`. When all of it is on disk, and all of the Readys before, call `on_persisted(number)` and
    send `messages_after_persist`. Apply `committed_entries` in order (they are on disk already) and call `on_applied`.
    """

    number: int
    soft_state: SoftState | None
    hard_state: HardState | None
    snapshot: Snapshot | None
    entries: list[Entry]
    messages: list[Message]
    messages_after_persist: list[Message]
    committed_entries: list[Entry]
    read_states: list[ReadState]


class RawNode:
    """One Raft node without I/O, clock or threads."""

    def __init__(self, config: RaftConfig, storage: Storage) -> None:
        self._state = RaftState(config, storage)
        self._number = 0
        self._own_votes: deque[tuple[int, int]] = deque()  # (number of the Ready, term), until on disk
        self._last_hard = HardState(term=self._state.term, vote=self._state.vote)
        self._last_soft = SoftState(leader=0, role=FOLLOWER, term=self._state.term)

    # --- facts --------------------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        """The current term."""
        return self._state.term

    @property
    def leader(self) -> int:
        """Who leads, 0 for nobody known."""
        return self._state.leader

    @property
    def role(self) -> Role:
        """What this node is."""
        return self._state.role

    @property
    def committed(self) -> int:
        """The commit index."""
        return self._state.log.committed

    @property
    def log_on_disk(self) -> tuple[int, int]:
        """Term and index of the last entry on disk, (0, 0) while a snapshot is on its way there."""
        log = self._state.log
        return (log.term(log.stable), log.stable) if log.snapshot is None else (0, 0)

    @property
    def has_lost_entries(self) -> bool:
        """Whether the log ends before what `hold_to` has said."""
        return self._state.has_lost_entries

    @property
    def conf_state(self) -> ConfState:
        """The membership in force."""
        return self._state.conf

    @property
    def is_voter(self) -> bool:
        """Whether this node votes."""
        return self._state.is_voter

    @property
    def silence(self) -> float:
        """Seconds, in whole ticks, since a leader was heard (or since the start)."""
        state = self._state
        return state.ticks_since_leader * state.config.tick_seconds

    def match_index(self, node_id: int) -> int:
        """How far a member's log is known to match; 0 unless this node leads and knows it."""
        progress = self._state.progress.get(node_id)
        return progress.match if progress is not None and self._state.role is LEADER else 0

    def peers(self) -> list[int]:
        """All members but this one."""
        return [node_id for node_id in self._state.progress if node_id != self._state.id]

    def status(self) -> Status:
        """Everything worth showing."""
        state = self._state
        peers = {}
        if state.role is LEADER:
            for node_id, progress in state.progress.items():
                peers[node_id] = PeerStatus(
                    match=progress.match,
                    next=progress.next,
                    state=progress.state,
                    is_learner=progress.is_learner,
                    recent_active=progress.recent_active,
                    paused=progress.is_paused,
                    inflight_messages=len(progress.inflights),
                    inflight_bytes=progress.inflights.bytes,
                    pending_snapshot=progress.pending_snapshot,
                )
        return Status(
            id=state.id,
            term=state.term,
            vote=state.vote,
            leader=state.leader,
            role=state.role,
            committed=state.log.committed,
            applied=state.log.applied,
            last_index=state.log.last_index(),
            conf_state=state.conf,
            transferee=state.transferee,
            peers=peers,
        )

    def lease_holds(self, now: float) -> bool:
        """Whether a leader may answer a read at `now` (the clock of `tick`) without asking anybody."""
        return lease_holds(self._state, now)

    # --- input --------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """One tick has passed; `now` is a monotonic clock in seconds that goes on while the machine sleeps."""
        state = self._state
        state.now = now
        state.ticks_since_leader += 1
        state.election_elapsed += 1
        if state.role is LEADER:
            tick_leader(state)
        elif state.election_elapsed >= state.randomized_timeout:
            state.election_elapsed = 0
            self.campaign()

    def step(self, message: Message) -> None:
        """Take a message from another node."""
        step(self._state, message)

    def campaign(self) -> None:
        """Stand for election, by pre-vote if configured.

        Nothing happens on a leader, a learner, a node that still has a membership change to apply, and, with leases, on
        one that has heard a leader (or was restarted) less than `election_ticks` ago.
        """
        state = self._state
        if may_campaign(state) and not state.has_promised:
            campaign(state, pre_vote=state.config.pre_vote)

    def propose(self, data: bytes) -> int:
        """Put an entry into the log; returns its index. Raises a `ProposalDropped`."""
        return self.propose_batch([data])

    def propose_batch(self, datas: list[bytes]) -> int:
        """Put entries into the log, all or none; returns the first index. Raises a `ProposalDropped`."""
        if not datas:
            raise ValueError("there is nothing to propose")
        size = sum(map(len, datas))
        state = self._admit(size)
        index = state.append_own([(NORMAL, data) for data in datas])
        state.uncommitted_bytes += size
        broadcast_append(state)
        return index

    def _admit(self, size: int) -> RaftState:
        state = self._state
        if state.role is not LEADER:
            raise NotLeader(state.leader)
        if state.transferee:
            raise TransferInProgress(f"leadership is being handed to node {state.transferee}")
        limit = state.config.max_uncommitted_bytes
        if size and state.uncommitted_bytes and state.uncommitted_bytes + size > limit:
            raise TooManyUncommitted(f"{state.uncommitted_bytes} bytes are not committed yet, {limit} may be")
        return state

    def propose_membership(self, change: MembershipChange) -> int:
        """Put a membership change into the log; returns its index. Raises a `ProposalDropped`.

        One change at a time: the one before must be applied, here, first (thesis, section 4.1).
        """
        state = self._admit(0)
        if state.pending_conf_index > state.log.applied:
            raise ChangeInProgress(
                f"entry {state.pending_conf_index} may hold a membership change and is not applied yet "
                f"(applied: {state.log.applied})"
            )
        if is_joint(state.conf) and not leaves_joint(change):
            raise ChangeInProgress("the membership is joint and has to be left first")
        try:
            apply_change(state.conf, change)
        except InvalidChange as error:
            raise ChangeRefused(str(error)) from error
        data = encode_membership_change(change)
        index = state.append_own([(MEMBERSHIP, data)])
        state.pending_conf_index = index
        broadcast_append(state)
        return index

    def apply_membership(self, change: MembershipChange) -> ConfState:
        """A committed change takes effect: call it for each membership entry, in order, before `on_applied`."""
        state = self._state
        state.set_conf(apply_change(state.conf, change))
        if state.role is LEADER:
            membership_changed(state)
        elif not state.promotable and state.role is not FOLLOWER:
            state.become_follower(state.term, 0)
        return state.conf

    def read_index(self, context: bytes) -> None:
        """Ask for a read; the answer comes as a `ReadState` with this context, or never (ask again)."""
        state = self._state
        if state.role is LEADER:
            take_read(state, Read(state.id, context))
        elif state.leader:
            state.send(Message(type=READ_INDEX, to=state.leader, context=context))

    def transfer_leader(self, transferee: int) -> None:
        """As leader: hand over to a voter; given up after an election timeout."""
        if self._state.role is LEADER:
            begin_transfer(self._state, transferee)

    def forget_leader(self) -> None:
        """As follower: behave as if the leader had not been heard of, so that another may be elected at once.

        Nothing happens with leases: the leader may rely on having been heard.
        """
        state = self._state
        if state.role is FOLLOWER and not state.has_promised:
            state.leader = 0

    def report_unreachable(self, node_id: int) -> None:
        """The last message to a member could not be sent."""
        if self._state.role is LEADER:
            peer_unreachable(self._state, node_id)

    def report_lost_entries(self, node_id: int) -> None:
        """A member's log ends before what it had acknowledged to this leader: it has to be sent that again."""
        if self._state.role is LEADER:
            forget_match(self._state, node_id)

    def hold_to(self, *, term: int, log_term: int, log_index: int) -> None:
        """Keep promises that this node's disk has lost: in `term` it had acknowledged a log that ends so.

        Entries that are committed may be among what was lost. Until the log reaches that end again, the node does not
        campaign, and it votes only for candidates whose log does. It may have voted in any term up to `term`, and in
        its own: there it gives its vote to nobody any more. Nothing happens where nothing was lost.
        """
        state = self._state
        state.held_to = max(state.held_to, (log_term, log_index))
        if not state.has_lost_entries:
            return
        if term > state.term or state.role is not FOLLOWER:
            state.become_follower(max(term, state.term), 0)
        if state.vote == 0:
            state.vote = state.id

    def report_snapshot(self, node_id: int, ok: bool) -> None:
        """A snapshot towards a member has arrived, or failed."""
        if self._state.role is LEADER:
            snapshot_reported(self._state, node_id, ok=ok)

    def send_snapshot(self, node_id: int) -> bool:
        """As leader: send a member the newest snapshot even if the log reaches it; False when it cannot be done now."""
        return self._state.role is LEADER and force_snapshot(self._state, node_id)

    # --- output -------------------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether `ready` has anything to say."""
        state, log = self._state, self._state.log
        hard, soft = self._last_hard, self._last_soft
        return bool(
            state.messages
            or state.messages_after_persist
            or log.has_untaken
            or log.has_committed
            or state.read_states
            or state.term != hard.term
            or state.vote != hard.vote
            or state.leader != soft.leader
            or state.role is not soft.role
        )

    def ready(self) -> Ready:
        """Take what is to be done now."""
        state, log = self._state, self._state.log
        self._number += 1
        number, snapshot = self._number, None
        entries: list[Entry] = []
        committed: list[Entry] = []
        if log.has_untaken:
            snapshot, entries = log.take_for_disk(number)
        if log.has_committed:
            committed = state.take_committed()
        if state.role is CANDIDATE and state.id not in state.votes:
            self._own_votes.append((number, state.term))
        reads = state.read_states
        ready = Ready(
            number=number,
            soft_state=self._new_soft_state(),
            hard_state=self._new_hard_state(),
            snapshot=snapshot,
            entries=entries,
            messages=state.messages,
            messages_after_persist=state.messages_after_persist,
            committed_entries=committed,
            read_states=[ReadState(read.index, read.context) for read in reads] if reads else [],
        )
        state.messages, state.messages_after_persist = [], []
        if reads:
            state.read_states = []
        return ready

    def _new_soft_state(self) -> SoftState | None:
        state, last = self._state, self._last_soft
        if state.leader == last.leader and state.role is last.role and state.term == last.term:
            return None
        self._last_soft = SoftState(leader=state.leader, role=state.role, term=state.term)
        return self._last_soft

    def _new_hard_state(self) -> HardState | None:
        state, last = self._state, self._last_hard
        if state.term == last.term and state.vote == last.vote:
            return None
        self._last_hard = HardState(term=state.term, vote=state.vote)
        return self._last_hard

    def on_persisted(self, number: int) -> None:
        """All that the Readys up to `number` had for the disk is on it.

        Entries that were replaced since count for nothing. An own vote counts from here on, in the term it was cast in.
        So does the membership of a snapshot: until now the caller may still have applied changes handed out before.
        """
        state = self._state
        installing = state.log.snapshot
        moved = state.log.stable_to(number)
        if installing is not None and state.log.snapshot is None:
            state.set_conf(installing.metadata.conf_state)
        while self._own_votes and self._own_votes[0][0] <= number:
            _, term = self._own_votes.popleft()
            if state.role is CANDIDATE and state.term == term:
                conclude(state, take_vote(state, state.id, True))
        if moved and state.role is LEADER:
            own = state.progress[state.id]
            if own.maybe_update(state.log.stable) and maybe_commit(state):
                broadcast_append(state)

    def on_applied(self, index: int) -> None:
        """The state machine has applied all entries up to `index`."""
        state = self._state
        log = state.log
        log.applied_to(index)
        leaving = state.conf.auto_leave and is_joint(state.conf) and state.role is LEADER
        if leaving and state.pending_conf_index <= log.applied:
            state.append_own([(MEMBERSHIP, b"")])
            state.pending_conf_index = log.last_index()
            broadcast_append(state)

    def advance(self, ready: Ready) -> None:
        """For callers that write and apply before going on: acknowledge a whole Ready."""
        self.on_persisted(ready.number)
        if ready.snapshot is not None:
            self.on_applied(ready.snapshot.metadata.index)
        if ready.committed_entries:
            self.on_applied(ready.committed_entries[-1].index)
