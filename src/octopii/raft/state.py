"""The state of one Raft node, and the transitions between roles.

`RaftState` holds the data and what all roles need: sending, terms, resetting timers. What a follower, a candidate or a
leader does with a message stands in the file of that role, as functions that take the state.
"""

import random

import msgspec

from octopii.raft.log import RaftLog
from octopii.raft.membership import is_joint, learners_of, members_of
from octopii.raft.messages import (
    APPEND_RESPONSE,
    CANDIDATE,
    FOLLOWER,
    LEADER,
    PRE_CANDIDATE,
    PRE_VOTE_RESPONSE,
    VOTE_REQUEST,
    VOTE_RESPONSE,
    ConfState,
    Entry,
    EntryKind,
    Message,
)
from octopii.raft.progress import Inflights, Progress
from octopii.raft.quorum import VoteResult, joint_committed_index, joint_vote_result
from octopii.raft.read_index import Read, Reads
from octopii.raft.storage import Storage

no_limit = (1 << 63) - 1


class RaftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a node. Ticks are calls of `RawNode.tick`, sizes are bytes of entries' data.

    `pre_vote`, `check_quorum` and `lease_reads` have to be the same on all members. Raises `ValueError` where a setting
    makes no sense.
    """

    id: int
    """This node; a positive number, and the same for ever."""
    election_ticks: int
    """Ticks without a leader after which an election begins; a random number of up to as many more comes on top."""
    heartbeat_ticks: int
    """Ticks between two rounds of heartbeats."""
    rng: random.Random
    """The node's own source of randomness, for election timeouts."""
    applied: int = 0
    """The index that the state machine has at start; what is behind it will be handed out."""
    pre_vote: bool = True
    """Ask whether an election could be won before entering a new term (thesis, section 9.6)."""
    check_quorum: bool = True
    """A leader that has not heard from a quorum for `election_ticks` steps down; voters that hear a leader vote for
    nobody else (thesis, sections 4.2.3 and 6.2)."""
    lease_reads: bool = True
    """Voters promise each leader they hear not to help elect another for `election_ticks`; needs `check_quorum`."""
    tick_seconds: float = 0.1
    """How long a tick is at least."""
    lease_drift: float = 0.1
    """By which fraction two nodes' clocks may run apart."""
    max_message_bytes: int = 1 << 20
    """Of one append; a single larger entry goes alone."""
    max_inflight_messages: int = 256
    """Appends to one member that are not answered yet."""
    max_inflight_bytes: int = no_limit
    """The same in bytes; the message that reaches the limit still goes."""
    max_uncommitted_bytes: int = no_limit
    """Beyond it proposals are refused; a single larger one is taken when nothing else waits."""
    max_committed_bytes_per_ready: int = 16 << 20
    """Of entries to apply in one Ready; a single larger one goes alone."""
    max_applying_bytes: int = 64 << 20
    """When so much was handed out and is not applied yet, no more is."""
    max_pending_reads: int = 65536
    """Reads that wait for confirmation on a leader; beyond it they are forgotten, and asked for again."""

    def __post_init__(self) -> None:
        if self.id <= 0:
            raise ValueError(f"a node id is a positive number, not {self.id}")
        if self.heartbeat_ticks < 1 or self.election_ticks <= self.heartbeat_ticks:
            raise ValueError("election_ticks has to be greater than heartbeat_ticks, and that at least 1")
        if self.tick_seconds <= 0 or not 0 <= self.lease_drift < 1:
            raise ValueError("tick_seconds has to be positive, lease_drift at least 0 and less than 1")
        if min(self.max_inflight_messages, self.max_inflight_bytes, self.max_applying_bytes) < 1:
            raise ValueError("max_inflight_messages, max_inflight_bytes and max_applying_bytes have to be at least 1")
        if min(self.applied, self.max_message_bytes, self.max_uncommitted_bytes, self.max_pending_reads) < 0:
            raise ValueError("an index or a limit is never negative")


AFTER_PERSIST = frozenset({APPEND_RESPONSE, VOTE_REQUEST, VOTE_RESPONSE, PRE_VOTE_RESPONSE})
"""Messages that promise something which has to be on disk first."""


class RaftState:
    """Everything one node knows."""

    def __init__(self, config: RaftConfig, storage: Storage) -> None:
        hard_state, conf_state = storage.initial_state()
        self.config = config
        self.id = config.id
        self.log = RaftLog(storage, applied=config.applied, max_applying_bytes=config.max_applying_bytes)
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.held_to = (0, 0)  # term and index of the end of a log that was acknowledged and lost: see `hold_to`
        self.leader = 0
        self.role = FOLLOWER
        self.conf = ConfState()
        self.progress: dict[int, Progress] = {}
        self.votes: dict[int, bool] = {}
        self.reads = Reads(max_pending=config.max_pending_reads)
        self.transferee = 0
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        # A voter that was restarted may have heard a leader that it does not remember, unless it is the only voter.
        was_restarted = hard_state.term > 0 or self.log.last_index() > 0
        is_alone = conf_state.voters == [self.id] and not conf_state.voters_outgoing and not self.log.newest_change
        self.ticks_since_leader = 0 if was_restarted and not is_alone else config.election_ticks
        self.randomized_timeout = 0
        self.now = 0.0
        self.lease_start: float | None = None
        self.lease_given_up = False
        self.round_sent: dict[int, float] = {}
        self.read_states: list[Read] = []
        self.messages: list[Message] = []
        self.messages_after_persist: list[Message] = []
        self.set_conf(conf_state)
        self.reset_timeout()

    # --- membership ---------------------------------------------------------------------------------------------

    def set_conf(self, conf: ConfState) -> None:
        """Take over a membership; new members are probed from the end of the log on."""
        self.conf = conf
        members, learners = members_of(conf), learners_of(conf)
        self.progress = {node_id: self.progress.get(node_id) or self._new_progress() for node_id in sorted(members)}
        for node_id, progress in self.progress.items():
            progress.is_learner = node_id in learners

    def _new_progress(self) -> Progress:
        config = self.config
        inflights = Inflights(max_messages=config.max_inflight_messages, max_bytes=config.max_inflight_bytes)
        progress = Progress(match=0, next_index=self.log.last_index() + 1, is_learner=False, inflights=inflights)
        progress.recent_active = True  # or a check right after the change would depose the leader
        return progress

    @property
    def is_voter(self) -> bool:
        """Whether this node votes in its own membership, either half."""
        return self.id in self.conf.voters or self.id in self.conf.voters_outgoing

    @property
    def promotable(self) -> bool:
        """Whether this node may campaign."""
        return self.is_voter and self.log.snapshot is None and not self.has_lost_entries

    @property
    def has_lost_entries(self) -> bool:
        """Whether the log ends before what this node is known to have acknowledged."""
        return (self.log.last_term(), self.log.last_index()) < self.held_to

    @property
    def has_promised(self) -> bool:
        """Whether a leader was heard so lately that it may rely on this node not to help elect another.

        Whatever term this node has entered since: a lease that it has helped to give still counts on it.
        """
        config = self.config
        return config.check_quorum and config.lease_reads and self.ticks_since_leader < config.election_ticks

    def quorum_index(self) -> int:
        """The highest index that a quorum has on disk."""
        progress = self.progress
        return joint_committed_index(self.conf.voters, self.conf.voters_outgoing, lambda voter: progress[voter].match)

    def quorum_of(self, votes: dict[int, bool]) -> VoteResult:
        """What a quorum says."""
        return joint_vote_result(self.conf.voters, self.conf.voters_outgoing, votes)

    @property
    def in_joint(self) -> bool:
        """Whether the membership is a joint one."""
        return is_joint(self.conf)

    def take_committed(self) -> list[Entry]:
        """Committed entries to be handed out now; they no longer count as uncommitted."""
        entries = self.log.take_committed(self.config.max_committed_bytes_per_ready)
        if self.uncommitted_bytes:
            self.uncommitted_bytes = max(0, self.uncommitted_bytes - sum([len(entry.data) for entry in entries]))
        return entries

    # --- terms and timers ---------------------------------------------------------------------------------------

    def reset_timeout(self) -> None:
        """Draw a new election timeout, between one and two times `election_ticks` (paper, section 9.3)."""
        ticks = self.config.election_ticks
        self.randomized_timeout = ticks + self.config.rng.randrange(ticks)

    def reset(self, term: int) -> None:
        """Begin a role: forget what belonged to the one before."""
        if term != self.term:
            self.term = term
            self.vote = 0
        self.leader = 0
        self.election_elapsed = self.heartbeat_elapsed = 0
        self.reset_timeout()
        self.transferee = 0
        self.votes = {}
        self.lease_start = None
        self.lease_given_up = False
        self.round_sent = {}
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        self.reads.reset()
        last = self.log.last_index()
        for node_id in self.progress:
            progress = self._new_progress()
            progress.recent_active = False
            progress.is_learner = self.progress[node_id].is_learner
            if node_id == self.id:
                progress.match = self.log.stable
                progress.next = last + 1
            self.progress[node_id] = progress

    def become_follower(self, term: int, leader: int) -> None:
        """Follow a leader (0 while nobody is known)."""
        self.reset(term)
        self.role = FOLLOWER
        self.leader = leader

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won, without disturbing anybody's term (thesis, section 9.6)."""
        assert self.role is not LEADER
        self.role = PRE_CANDIDATE
        self.votes = {}
        self.leader = 0
        self.election_elapsed = 0
        self.reset_timeout()

    def become_candidate(self) -> None:
        """Stand for election in a new term, voting for oneself (paper, section 5.2)."""
        assert self.role is not LEADER
        self.reset(self.term + 1)
        self.role = CANDIDATE
        self.vote = self.id

    def become_leader(self) -> None:
        """Lead; the caller appends the entry that opens the term."""
        assert self.role is not FOLLOWER
        self.reset(self.term)
        self.role = LEADER
        self.leader = self.id
        own = self.progress[self.id]
        own.become_replicate()
        own.recent_active = True
        # A change of membership may be in the part of the log that is not applied yet: wait for it before another.
        self.pending_conf_index = self.log.last_index()

    # --- sending ------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message, with this node's term unless it has one; what needs the disk first is kept apart."""
        message.sender = self.id
        if message.term == 0:
            message.term = self.term
        if message.type in AFTER_PERSIST:
            self.messages_after_persist.append(message)
        else:
            self.messages.append(message)

    def append_own(self, kinds_and_data: list[tuple[EntryKind, bytes]]) -> int:
        """As leader: add entries to the log; returns the first one's index."""
        index, term = self.log.last_index() + 1, self.term
        self.log.append([Entry(term, index + n, kind, data) for n, (kind, data) in enumerate(kinds_and_data)])
        return index
