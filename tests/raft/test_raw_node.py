"""One node alone, fed with messages: the guards that whole clusters seldom reach."""

from __future__ import annotations

import random
from typing import Any

import pytest

from octopii.raft import (
    ChangeOperation,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MembershipChange,
    MembershipStep,
    MemoryStorage,
    Message,
    MessageType,
    RaftConfig,
    RawNode,
    Ready,
    Role,
    Snapshot,
    SnapshotMetadata,
    encode_membership_change,
)

T = 10
Kind = MessageType


def entry(index: int, term: int, *, change: MembershipChange | None = None) -> Entry:
    """One entry, a membership change if one is given."""
    if change is None:
        return Entry(term, index, EntryKind.NORMAL, b"x")
    return Entry(term, index, EntryKind.MEMBERSHIP, encode_membership_change(change))


def step_of(operation: ChangeOperation, node_id: int) -> MembershipChange:
    """A change of one step."""
    return MembershipChange(steps=[MembershipStep(operation, node_id)])


class Driven:
    """A node, its storage, and all it has sent; `settle` does what it asks."""

    def __init__(self, *voters: int, log: list[Entry] | None = None, term: int = 0, **settings: Any) -> None:
        self.storage = MemoryStorage(ConfState(voters=list(voters)))
        self.storage.append(log or [])
        if term:
            self.storage.set_hard_state(HardState(term=term))
        config: dict[str, Any] = {
            "id": 1,
            "election_ticks": T,
            "heartbeat_ticks": 1,
            "rng": random.Random(1),
            "pre_vote": False,
        }
        self.node = RawNode(RaftConfig(**config | settings), self.storage)
        self.sent: list[Message] = []
        self.reads: list[bytes] = []
        self.applies = True
        self.clock = 0.0

    def role(self) -> Role:
        """What the node is."""
        return self.node.role

    def write(self, ready: Ready) -> None:
        """Put a Ready on disk."""
        if ready.snapshot is not None:
            self.storage.apply_snapshot(ready.snapshot)
        self.storage.append(ready.entries)
        if ready.hard_state is not None:
            self.storage.set_hard_state(ready.hard_state)

    def settle(self) -> list[Message]:
        """Do all that the node asks; returns what it sent meanwhile."""
        sent: list[Message] = []
        while self.node.has_ready():
            ready = self.node.ready()
            self.write(ready)
            self.node.on_persisted(ready.number)
            self.reads += [read.context for read in ready.read_states]
            sent += ready.messages + ready.messages_after_persist
            if self.applies and ready.committed_entries:
                self.node.on_applied(ready.committed_entries[-1].index)
        self.sent += sent
        return sent

    def take_reads(self) -> list[bytes]:
        """The reads answered since the last call."""
        reads, self.reads = self.reads, []
        return reads

    def hear(self, kind: MessageType, sender: int, **fields: object) -> list[Message]:
        """Step one message, of this node's term unless told otherwise; returns what was sent upon it."""
        values = {"term": self.node.term, **fields}
        self.node.step(Message(type=kind, to=1, sender=sender, **values))  # type: ignore[arg-type]
        return self.settle()

    def tick(self, count: int = 1) -> list[Message]:
        """Let time pass; returns what was sent."""
        sent = []
        for _ in range(count):
            self.clock += 0.1
            self.node.tick(self.clock)
            sent += self.settle()
        return sent

    def lead(self) -> Driven:
        """Win an election by the votes of all others; nothing is committed by that."""
        self.node.campaign()
        self.settle()
        for voter in self.node.conf_state.voters:
            if voter != 1 and self.role() is Role.CANDIDATE:
                self.hear(Kind.VOTE_RESPONSE, voter)
        assert self.role() is Role.LEADER
        return self

    def acknowledge(self, *members: int) -> None:
        """Members acknowledge all there is."""
        for member in members:
            self.hear(Kind.APPEND_RESPONSE, member, index=self.node.status().last_index)

    def confirm(self, *members: int) -> None:
        """One round of heartbeats, answered by these members."""
        number = next(message.index for message in self.tick() if message.type is Kind.HEARTBEAT)
        for member in members:
            self.hear(Kind.HEARTBEAT_RESPONSE, member, index=number)


# --- elections


def test_a_follower_that_knows_its_terms_leader_votes_for_nobody_else() -> None:
    """Also one that gave no vote in the term refuses another candidate of it once it knows who leads."""
    driven = Driven(1, 2, 3, check_quorum=False)
    driven.hear(Kind.HEARTBEAT, 2, term=1)
    (answer,) = driven.hear(Kind.VOTE_REQUEST, 3, term=1, index=9, log_term=1)
    assert (answer.type, answer.reject) == (Kind.VOTE_RESPONSE, True)


def test_a_promise_outlives_the_term_it_was_given_in() -> None:
    """A voter that heard a leader refuses candidates of a newer term for an election timeout, however it got there."""
    driven = Driven(1, 2, 3)
    driven.hear(Kind.HEARTBEAT, 2, term=1)
    driven.hear(Kind.APPEND_RESPONSE, 3, term=5)
    assert (driven.node.term, driven.node.leader) == (5, 0)
    (refused,) = driven.hear(Kind.VOTE_REQUEST, 3, term=5, index=9, log_term=4)
    assert refused.reject
    (granted,) = driven.hear(Kind.VOTE_REQUEST, 3, term=5, index=9, log_term=4, context=b"transfer")
    assert not granted.reject


def test_granting_a_vote_puts_off_ones_own_election() -> None:
    """A voter gives the candidate it voted for a whole election timeout, in its own term too (paper, section 5.2)."""
    driven = Driven(1, 2, 3, term=1, check_quorum=False)
    driven.tick(T - 1)
    (granted,) = driven.hear(Kind.VOTE_REQUEST, 2, term=1)
    assert not granted.reject
    driven.tick(T - 1)
    assert (driven.role(), driven.node.term) == (Role.FOLLOWER, 1)


def test_a_pre_vote_request_of_an_old_term_is_answered() -> None:
    """Whoever is behind learns the term from the refusal, or it would ask for ever."""
    driven = Driven(1, 2, 3, term=5, log=[entry(1, 5)], pre_vote=True)
    (answer,) = driven.hear(Kind.PRE_VOTE_REQUEST, 2, term=3, index=9, log_term=2)
    assert (answer.type, answer.reject, answer.term) == (Kind.PRE_VOTE_RESPONSE, True, 5)


def test_an_own_vote_counts_in_its_term_only() -> None:
    """The vote of an earlier candidacy reaching the disk is no vote in the present one."""
    driven = Driven(1, 2, 3, check_quorum=False)
    node = driven.node
    node.campaign()
    first = node.ready()
    node.campaign()
    second = node.ready()
    node.on_persisted(first.number)
    driven.hear(Kind.VOTE_RESPONSE, 2)
    assert (node.term, node.role) == (2, Role.CANDIDATE)
    node.on_persisted(second.number)
    assert node.role is Role.LEADER


def test_a_node_with_a_membership_change_to_apply_does_not_campaign() -> None:
    """Neither by itself, nor when it is asked to, nor on its leader's word (its quorum may be the wrong one)."""
    add = step_of(ChangeOperation.ADD_VOTER, 4)
    driven = Driven(1, 2, 3, check_quorum=False)
    driven.applies = False
    driven.hear(Kind.APPEND, 2, term=1, entries=[entry(1, 1, change=add)], commit=1)
    driven.node.campaign()
    assert driven.tick(3 * T) == []
    assert driven.hear(Kind.TIMEOUT_NOW, 2) == []
    assert driven.role() is Role.FOLLOWER
    driven.node.apply_membership(add)
    driven.node.on_applied(1)
    driven.node.campaign()
    assert driven.role() is Role.CANDIDATE


def test_a_node_that_installs_a_snapshot_does_not_campaign() -> None:
    """While a snapshot is on its way to the disk the node has neither log nor membership to stand with."""
    driven = Driven(1, 2, 3, check_quorum=False)
    metadata = SnapshotMetadata(7, 1, ConfState(voters=[1, 2, 3]))
    driven.node.step(Message(type=Kind.SNAPSHOT, to=1, sender=2, term=1, snapshot=Snapshot(metadata)))
    ready = driven.node.ready()
    driven.node.campaign()
    assert driven.role() is Role.FOLLOWER
    driven.write(ready)
    driven.node.on_persisted(ready.number)
    driven.node.campaign()
    assert driven.role() is Role.CANDIDATE


def test_a_candidate_that_is_removed_gives_up() -> None:
    """A candidate that applies its own removal is none any more."""
    remove = step_of(ChangeOperation.REMOVE, 1)
    driven = Driven(1, 2, 3, check_quorum=False)
    driven.node.campaign()
    driven.settle()
    assert driven.role() is Role.CANDIDATE
    driven.node.apply_membership(remove)
    assert driven.role() is Role.FOLLOWER


@pytest.mark.parametrize(("voters", "campaigns"), [((1,), True), ((1, 2, 3), False)])
def test_a_restarted_voter_waits_unless_it_is_alone(voters: tuple[int, ...], campaigns: bool) -> None:
    """It may have promised a leader something before the restart; the only voter of a cluster has not."""
    driven = Driven(*voters, term=1, log=[entry(1, 1)])
    driven.node.campaign()
    assert (driven.role() is Role.CANDIDATE) is campaigns


def test_a_restarted_voter_is_not_alone_when_its_log_adds_another() -> None:
    """A change behind what was applied may be in force already."""
    driven = Driven(1, term=1, log=[entry(1, 1), entry(2, 1, change=step_of(ChangeOperation.ADD_VOTER, 2))])
    driven.node.campaign()
    assert driven.role() is Role.FOLLOWER


# --- leading


def test_an_acknowledgement_beyond_the_log_is_no_answer_to_anything() -> None:
    """A match index never goes beyond what the leader has."""
    driven = Driven(1, 2, 3).lead()
    driven.hear(Kind.APPEND_RESPONSE, 2, index=999)
    assert (driven.node.match_index(2), driven.node.committed) == (0, 0)


def test_a_snapshot_goes_only_to_who_is_there_to_take_it() -> None:
    """A member that is down gets no snapshot before it shows a sign of life: it is too dear to be lost."""
    driven = Driven(1, 2, 3).lead()
    driven.acknowledge(2, 3)
    for _ in range(4):
        driven.node.propose(b"x")
    driven.settle()
    driven.acknowledge(2)
    driven.storage.create_snapshot(5, ConfState(voters=[1, 2, 3]))
    driven.storage.compact(5)
    for _ in range(2 * T):
        driven.confirm(2)
    driven.node.report_unreachable(3)
    driven.node.propose(b"y")
    driven.settle()
    assert not any(message.type is Kind.SNAPSHOT for message in driven.sent)
    driven.confirm(3)
    assert [message.to for message in driven.sent if message.type is Kind.SNAPSHOT] == [3]


def test_a_snapshot_that_tells_nothing_new_is_not_sent() -> None:
    """`send_snapshot` refuses a member that has all of it already."""
    driven = Driven(1, 2, 3).lead()
    driven.acknowledge(2, 3)
    driven.storage.create_snapshot(1, ConfState(voters=[1, 2, 3]))
    assert not driven.node.send_snapshot(2)
    assert not driven.node.send_snapshot(1)
    assert not driven.node.send_snapshot(9)
    assert driven.node.status().peers[2].match < driven.node.status().peers[2].next


def test_a_new_member_is_given_time_to_answer() -> None:
    """A check for a quorum right after a change does not depose the leader because the new voter was not heard yet."""
    driven = Driven(1).lead()
    driven.tick(T - 1)
    add = step_of(ChangeOperation.ADD_VOTER, 2)
    driven.node.propose_membership(add)
    driven.settle()
    driven.node.apply_membership(add)
    driven.tick(1)
    assert driven.role() is Role.LEADER
    driven.tick(T)
    assert driven.role() is Role.FOLLOWER


def test_a_leader_that_becomes_a_learner_steps_down() -> None:
    """A learner counts in no quorum and leads nobody."""
    demote = step_of(ChangeOperation.ADD_LEARNER, 1)
    driven = Driven(1, 2, 3).lead()
    driven.acknowledge(2, 3)
    driven.node.propose_membership(demote)
    driven.settle()
    driven.acknowledge(2, 3)
    driven.node.apply_membership(demote)
    assert driven.role() is Role.FOLLOWER
    driven.tick(3 * T)
    assert driven.role() is Role.FOLLOWER


def test_nothing_cannot_be_proposed() -> None:
    """An empty batch is the caller's mistake."""
    with pytest.raises(ValueError, match="nothing"):
        Driven(1).lead().node.propose_batch([])


# --- handing over


def test_a_transfer_has_a_whole_election_timeout() -> None:
    """The time that a transfer may take is counted from its own beginning (thesis, section 3.10)."""
    driven = Driven(1, 2, 3, check_quorum=False).lead()
    driven.acknowledge(2, 3)
    driven.tick(T - 1)
    driven.node.transfer_leader(2)
    driven.tick(T - 1)
    assert driven.node.status().transferee == 2
    driven.tick(1)
    assert driven.node.status().transferee == 0


def test_a_transfer_ends_when_its_target_does_not_vote_any_more() -> None:
    """Who is made a learner meanwhile cannot take over."""
    demote = step_of(ChangeOperation.ADD_LEARNER, 2)
    driven = Driven(1, 2, 3).lead()
    driven.acknowledge(2, 3)
    driven.node.propose_membership(demote)
    driven.settle()
    driven.node.transfer_leader(2)
    assert driven.node.status().transferee == 2
    driven.node.apply_membership(demote)
    assert driven.node.status().transferee == 0


# --- reads


def test_the_lease_ends_one_tick_and_the_drift_before_the_promise() -> None:
    """From when the round was sent: an election timeout, less one tick, less the drift; not a moment longer."""
    driven = Driven(1, 2, 3, tick_seconds=0.1, lease_drift=0.2).lead()
    driven.acknowledge(2, 3)
    assert not driven.node.lease_holds(driven.clock)
    driven.confirm(2)
    end = driven.clock + (T - 1) * 0.1 * 0.8
    assert driven.node.lease_holds(driven.clock)
    assert driven.node.lease_holds(end - 0.001)
    assert not driven.node.lease_holds(end + 0.001)
    assert not driven.node.lease_holds(driven.clock - 0.001), "a clock that went back proves nothing"


def test_no_lease_before_the_terms_first_commit() -> None:
    """A confirmed leader that has committed nothing in its term may not know what is committed (paper, section 8)."""
    driven = Driven(1, 2, 3).lead()
    driven.confirm(2, 3)
    assert not driven.node.lease_holds(driven.clock)
    driven.acknowledge(2)
    assert driven.node.lease_holds(driven.clock)


@pytest.mark.parametrize("missing", ["check_quorum", "lease_reads"])
def test_no_lease_without_the_promises_it_stands_on(missing: str) -> None:
    """Without check-quorum or lease reads nobody promises anything."""
    driven = Driven(1, 2, 3, **dict[str, Any]({missing: False})).lead()
    driven.acknowledge(2, 3)
    driven.confirm(2, 3)
    assert not driven.node.lease_holds(driven.clock)


def test_pending_reads_are_bounded() -> None:
    """Beyond the limit reads are forgotten, held ones as well as others; answered ones make room again."""
    driven = Driven(1, 2, 3, max_pending_reads=2).lead()
    ask = driven.node.read_index

    def answers() -> list[bytes]:
        rounds = {message.index for message in driven.settle() if message.type is Kind.HEARTBEAT}
        for number in sorted(rounds):
            driven.hear(Kind.HEARTBEAT_RESPONSE, 2, index=number)
        return driven.take_reads()

    for context in (b"a", b"b", b"c"):
        ask(context)
    assert answers() == []
    driven.node.step(Message(type=Kind.APPEND_RESPONSE, to=1, sender=2, term=driven.node.term, index=1))
    assert answers() == [b"a"], "the first starts a round, the others gather for the next"
    driven.confirm(2)
    assert driven.take_reads() == [b"b"]
    for context in (b"d", b"e", b"f"):
        ask(context)
    assert answers() == [b"d"]
    driven.confirm(2)
    assert driven.take_reads() == [b"e"]


# --- configuration


@pytest.mark.parametrize(
    "settings",
    [
        {"id": 0},
        {"heartbeat_ticks": 0},
        {"election_ticks": 1},
        {"tick_seconds": 0.0},
        {"lease_drift": 1.0},
        {"max_inflight_messages": 0},
        {"max_inflight_bytes": 0},
        {"max_message_bytes": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    """Configuration validates on construction."""
    with pytest.raises(ValueError, match=r"has to be|have to be|never negative|positive number"):
        Driven(1, **settings)
