"""A cluster of real `RawNode`s in one thread, with disks that lag, links that lose, and processes that crash.

A `Peer` is one node beside its disk (`MemoryStorage`, written only when a Ready is persisted) and its state machine (a
running checksum over what it applied). Work is done in the order that the core's contract asks for: a Ready is taken
and its messages are sent; some time later it is written, acknowledged, and what waited for the disk is sent; some time
later its committed entries are applied. A crash loses all that was not written. `Cluster` connects peers by links,
one queue per direction, whose messages may be delivered in any order, lost or doubled. After each step `Checker`
compares the touched node with all that the run has shown so far.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Iterable

from octopii.raft import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MemoryStorage,
    Message,
    ProposalDropped,
    RaftConfig,
    RawNode,
    Ready,
    Role,
    Snapshot,
    SnapshotMetadata,
    decode_membership_change,
)
from tests.raft import harness_text as text
from tests.raft.harness_checks import Checker, Violation

SECONDS_PER_TICK = 0.1
ELECTION_TICKS = 10
MAX_LINK_MESSAGES = 64
MAX_ROUNDS = 300
# One entry a message and one message under way is two rounds an entry: enough for the longest log of a schedule.
MAX_QUIET_ROUNDS = 3000
NO_LIMIT = 1 << 40
STAGES = ("ready", "persist", "apply")


class Peer:
    """One node, its disk and its state machine. `node` is None while it is down."""

    def __init__(self, cluster: Cluster, node_id: int, *, storage: MemoryStorage) -> None:
        self.cluster = cluster
        self.id = node_id
        self.storage = storage
        self.incarnation = 0
        self.ticks = 0
        self.held: set[str] = set()
        self.writing: deque[Ready] = deque()
        self.applying: deque[list[Entry]] = deque()
        self.applied = 0
        self.digest = 0
        self.applied_conf = ConfState()
        self.durable_votes: dict[int, set[int]] = {}
        self.node: RawNode | None = None
        self.start()

    # --- life and death

    def start(self) -> None:
        """Begin a new life from what the disk holds: the newest snapshot, the log behind it, term and vote."""
        self.incarnation += 1
        hard_state, conf = self.storage.initial_state()
        self._note_vote(hard_state)
        snapshot = self.storage.snapshot()
        self.applied = snapshot.metadata.index
        self.digest = int.from_bytes(snapshot.data, "big")
        self.applied_conf = conf
        config = RaftConfig(
            id=self.id,
            election_ticks=ELECTION_TICKS,
            heartbeat_ticks=1,
            tick_seconds=SECONDS_PER_TICK,
            rng=random.Random(f"{self.cluster.seed}/{self.id}/{self.incarnation}"),
            applied=self.applied,
            **self.cluster.settings,  # type: ignore[arg-type]
        )
        self.node = RawNode(config, self.storage)

    def crash(self, written: int = 0, torn: str = "") -> None:
        """Lose memory. The first `written` Readys in flight had reached the disk, though nobody was told.

        Of the next one, `torn` names what had: "entries" or "state", as these two need not be written together.
        """
        for _ in range(min(written, len(self.writing))):
            self._write(self.writing.popleft())
        if torn and self.writing and self.writing[0].snapshot is None:
            ready = self.writing[0]
            if torn == "entries" and ready.entries:
                self.storage.append(ready.entries)
                self._raise_term(ready.entries[-1].term)
            elif torn == "state" and ready.hard_state is not None:
                self._write_hard_state(ready.hard_state)
        self.writing.clear()
        self.applying.clear()
        self.node = None

    def _raise_term(self, term: int) -> None:
        """What a replica does on opening a log that ends in a newer term than its hard state: it never voted there."""
        if term > self.durable_term():
            self.storage.set_hard_state(HardState(term=term))

    # --- one Ready's way

    def take_ready(self) -> bool:
        """Take the next Ready, send what may be sent at once, and queue the rest for the disk and the machine."""
        node = self.node
        if node is None or not node.has_ready():
            return False
        ready = node.ready()
        self.writing.append(ready)
        if ready.committed_entries:
            self.applying.append(ready.committed_entries)
        self.cluster.send(ready.messages)
        for read in ready.read_states:
            self.cluster.checker.answered_read(self, read.context, read.index)
            self.cluster.answered.append((self.id, read.context, read.index))
            self.cluster.note(f"{self.id} may read {text.data(read.context)} at {read.index}")
        if "persist" in self.held and (ready.entries or ready.hard_state or ready.snapshot):
            self.cluster.note(f"{self.id} writes Ready {ready.number}: {text.ready(ready)}")
        return True

    def persist(self) -> bool:
        """Write the oldest Ready in flight, acknowledge it, and send what waited for it."""
        if self.node is None or not self.writing:
            return False
        ready = self.writing.popleft()
        self._write(ready)
        if "persist" in self.held and (ready.entries or ready.hard_state or ready.snapshot):
            self.cluster.note(f"{self.id} has written Ready {ready.number}")
        if ready.snapshot is not None:
            self._install(ready.snapshot)
        else:
            self.cluster.checker.unchanged(self)
        self.node.on_persisted(ready.number)
        if ready.snapshot is not None:
            self.node.on_applied(self.applied)
        self.cluster.send(ready.messages_after_persist)
        return True

    def apply(self) -> bool:
        """Apply the oldest batch of committed entries and say so."""
        if self.node is None or not self.applying:
            return False
        batch = self.applying.popleft()
        for entry in batch:
            self._apply_entry(entry)
        self.node.on_applied(batch[-1].index)
        return True

    def work(self) -> bool:
        """Do all that is not held back, until nothing is left to do."""
        held, busy = self.held, False
        while (
            ("ready" not in held and self.take_ready())
            or (("persist" not in held or self._nothing_to_write()) and self.persist())
            or ("apply" not in held and self.apply())
        ):
            busy = True
            self.cluster.checker.after(self)
        return busy

    def _nothing_to_write(self) -> bool:
        """Whether the oldest Ready in flight holds nothing for the disk, so that it need not be waited for."""
        ready = self.writing[0] if self.writing else None
        return ready is not None and not (ready.entries or ready.hard_state or ready.snapshot)

    def _write(self, ready: Ready) -> None:
        if ready.snapshot is not None:
            self.storage.apply_snapshot(ready.snapshot)
        if ready.entries:
            self.storage.append(ready.entries)
        if ready.hard_state is not None:
            self._write_hard_state(ready.hard_state)

    def _write_hard_state(self, hard_state: HardState) -> None:
        self.storage.set_hard_state(hard_state)
        self._note_vote(hard_state)

    def _note_vote(self, hard_state: HardState) -> None:
        if not hard_state.vote:
            return
        votes = self.durable_votes.setdefault(hard_state.term, set())
        votes.add(hard_state.vote)
        if len(votes) > 1:
            raise Violation("one vote a term", f"node {self.id} voted for {sorted(votes)} in term {hard_state.term}")

    def _install(self, snapshot: Snapshot) -> None:
        assert self.node is not None
        index = snapshot.metadata.index
        self.applying.clear()
        if index < self.applied:
            raise Violation("snapshot over newer state", f"node {self.id} at {self.applied} installs one of {index}")
        self.applied, self.digest = index, int.from_bytes(snapshot.data, "big")
        self.applied_conf = snapshot.metadata.conf_state
        self.cluster.checker.reached_state(self, index, self.digest)
        self.cluster.checker.reached_membership(self, index, text.conf(self.applied_conf))
        self.cluster.note(f"{self.id} installs the snapshot at {index}")
        self.cluster.installed += 1

    def _apply_entry(self, entry: Entry) -> None:
        if entry.index != self.applied + 1:
            raise Violation("apply order", f"node {self.id} at {self.applied} was given entry {entry.index}")
        self.applied = entry.index
        self.digest = zlib.crc32(b"%d %d %s" % (entry.index, entry.term, entry.data), self.digest)
        self.cluster.checker.applied_entry(self, entry, self.digest)
        self.cluster.note(f"{self.id} applies {text.entry(entry)}")
        if entry.kind == EntryKind.MEMBERSHIP:
            assert self.node is not None
            self.applied_conf = self.node.apply_membership(decode_membership_change(entry.data))
            self.cluster.checker.reached_membership(self, entry.index, text.conf(self.applied_conf))
            self.cluster.note(f"{self.id} has members {text.conf(self.applied_conf)}")

    # --- more that may happen to it

    def turn(self) -> None:
        """Do everything there is to do, held back or not."""
        held, self.held = self.held, set()
        self.work()
        self.held = held

    def tick(self) -> None:
        """Let one tick pass; in lockstep only if real time has come that far, and a sleeper counts one."""
        if self.cluster.lockstep:
            if self.ticks >= self.cluster.clock_ticks:
                return
            self.ticks = self.cluster.clock_ticks
        else:
            self.ticks += 1
        self.raw.tick(self.ticks * SECONDS_PER_TICK)

    def lease_read(self) -> int | None:
        """Read by lease, at the real time: the index to read at, or None while the lease does not hold."""
        if not self.raw.lease_holds(self.cluster.clock_ticks * SECONDS_PER_TICK):
            self.cluster.note(f"{self.id} has no lease")
            return None
        self.cluster.checker.leased_read(self, self.commit)
        self.cluster.note(f"{self.id} may read by lease at {self.commit}")
        return self.commit

    def compact(self, keep: int) -> None:
        """Take a snapshot of what was applied, and drop the log but for `keep` entries behind it."""
        storage = self.storage
        if self.applied > storage.snapshot().metadata.index:
            storage.create_snapshot(self.applied, self.applied_conf, self.digest.to_bytes(4, "big"))
        last = storage.snapshot().metadata.index - keep
        if last >= storage.first_index():
            storage.compact(last)

    def preload(self, terms: list[int], hard_state: HardState) -> None:
        """Put a log and a hard state on the disk, as an earlier life may have left them, and start again."""
        self.crash()
        first = self.storage.last_index() + 1
        self.storage.append([text.own_entry(first + place, term) for place, term in enumerate(terms)])
        self.storage.set_hard_state(hard_state)
        self.start()

    # --- what others look at

    @property
    def raw(self) -> RawNode:
        """The node, which has to be up."""
        assert self.node is not None, f"node {self.id} is down"
        return self.node

    @property
    def has_ready(self) -> bool:
        """Whether there is a Ready to take."""
        return self.raw.has_ready()

    @property
    def busy(self) -> bool:
        """Whether there is anything to take, to write or to apply."""
        return bool(self.writing or self.applying or self.raw.has_ready())

    @property
    def role(self) -> Role:
        """What the node is."""
        return self.raw.role

    @property
    def term(self) -> int:
        """Its current term."""
        return self.raw.term

    @property
    def leader(self) -> int:
        """Whom it follows."""
        return self.raw.leader

    @property
    def commit(self) -> int:
        """Its commit index."""
        return self.raw.committed

    @property
    def first_index(self) -> int:
        """The first index of its log."""
        return self.raw._state.log.first_index()

    @property
    def last_index(self) -> int:
        """The last index of its log, in memory."""
        return self.raw._state.log.last_index()

    @property
    def last_term(self) -> int:
        """The term of its last entry."""
        return self.raw._state.log.last_term()

    @property
    def members(self) -> ConfState:
        """The membership that the core uses now."""
        return self.raw._state.conf

    def log(self) -> tuple[int, list[Entry]]:
        """Its log as it is in memory: the first index, and the entries."""
        log = self.raw._state.log
        first = log.first_index()
        return first, log.entries(first, NO_LIMIT) if log.last_index() >= first else []

    def terms(self) -> list[int]:
        """The terms of its log, as the paper draws logs."""
        return [entry.term for entry in self.log()[1]]

    def term_before(self, first: int) -> int:
        """The term of the entry before the log's first, -1 if it is not known any more."""
        log = self.raw._state.log
        return log.term(first - 1) if first - 1 >= log.storage.first_index() - 1 or log.snapshot else -1

    def match(self) -> dict[int, int]:
        """As leader: the match index of each member."""
        return {node_id: progress.match for node_id, progress in self.raw._state.progress.items()}

    def voters(self) -> set[int]:
        """All voters of the membership in use, of both halves of a joint one."""
        return {*self.members.voters, *self.members.voters_outgoing}

    def is_quorum(self, holders: set[int]) -> bool:
        """Whether these are a majority of each half of the membership in use: counted here, not by the core."""
        halves = (self.members.voters, self.members.voters_outgoing)
        return all(2 * len(holders & set(half)) > len(half) for half in halves if half)

    def durable_term(self) -> int:
        """The term on this node's disk."""
        return self.storage.initial_state()[0].term

    def durably_holds(self, index: int, term: int) -> bool:
        """Whether the disk has the entry, or a snapshot that covers it."""
        storage = self.storage
        if index < storage.first_index():
            return True
        return index <= storage.last_index() and storage.term(index) == term


class Cluster:
    """Peers, the links between them, one clock, and the checker that watches."""

    def __init__(self) -> None:
        self.seed = 0
        self.settings: dict[str, int] = {}
        self.lockstep = False
        self.clock_ticks = 0
        self.peers: dict[int, Peer] = {}
        self.links: dict[tuple[int, int], deque[Message]] = {}
        self.cut: set[tuple[int, int]] = set()
        self.checker = Checker(self)
        self.trace: list[str] | None = None
        self.answered: list[tuple[int, bytes, int]] = []
        self.installed = 0

    def note(self, line: str) -> None:
        """Add a line to the transcript, if one is kept."""
        if self.trace is not None:
            self.trace.append(line)

    def outline(self, peer: Peer) -> str:
        """Role, term, log and commit of a live node, on one line; empty when no transcript is kept."""
        if self.trace is None or peer.node is None:
            return ""
        return text.outline(peer)

    def after(self, peer: Peer, before: str | None) -> None:
        """Check a node after its step, let it do what is not held back, and note what changed."""
        self.checker.after(peer)
        if len(peer.held) < len(STAGES):
            peer.work()
        if self.trace is not None and peer.node is not None:
            now = text.outline(peer)
            if now != before:
                self.note(f"{peer.id}: {now}")

    def live(self) -> list[Peer]:
        """The peers that are up."""
        return [peer for peer in self.peers.values() if peer.node is not None]

    def advance_clock(self, ticks: int = 1) -> None:
        """Let real time pass; in lockstep, nodes may tick only as far as it has come."""
        self.clock_ticks += ticks

    def do(self, *lines: str) -> None:
        """Run commands (see `harness_commands`)."""
        from tests.raft.harness_commands import execute

        for line in lines:
            execute(self, line)

    # --- the network

    def send(self, messages: Iterable[Message]) -> None:
        """Put messages on their links; a cut link loses them, a full one its oldest."""
        for message in messages:
            way = (message.sender, message.to)
            if way in self.cut or message.to not in self.peers:
                continue
            link = self.links.get(way)
            if link is None:
                link = self.links[way] = deque(maxlen=MAX_LINK_MESSAGES)
            link.append(message)

    def deliver(self, way: tuple[int, int], position: int = 0, *, keep: bool = False) -> None:
        """Hand one message in flight to its receiver; `keep` leaves a copy on the link."""
        link = self.links.get(way)
        if not link or position >= len(link):
            return
        message = link[position]
        if not keep:
            del link[position]
        peer = self.peers[way[1]]
        if peer.node is None or way in self.cut:
            return
        before = self.outline(peer)
        self.note(f"{way[0]}>{way[1]} {text.message(message)}")
        peer.node.step(message)
        self.after(peer, before)

    def deliver_round(self, ways: list[tuple[int, int]] | None = None, *, only: set[str] | None = None) -> bool:
        """Deliver what is in flight now, and nothing that it causes; return whether there was anything."""
        batch = [
            (way, message)
            for way in (sorted(self.links) if ways is None else ways)
            for message in self.links.get(way, ())
            if only is None or text.kind(message) in only
        ]
        for way, wanted in batch:
            # What was in flight may have been pushed out of a full link since.
            position = next((at for at, message in enumerate(self.links[way]) if message is wanted), None)
            if position is not None:
                self.deliver(way, position)
        return bool(batch)

    def kinds(self, word: str) -> list[str]:
        """The types of the messages in flight on a link written as `1>2`."""
        return [text.kind(message) for message in self.flight(word)]

    def flight(self, word: str) -> list[Message]:
        """The messages in flight on a link written as `1>2`."""
        sender, receiver = map(int, word.split(">"))
        return list(self.links.get((sender, receiver), ()))

    def stabilize(self, ways: list[tuple[int, int]] | None = None, *, until: str | None = None) -> None:
        """Deliver until nothing is in flight, or until a message of type `until` is."""
        for _ in range(MAX_QUIET_ROUNDS):
            if until is not None and any(text.kind(m) == until for link in self.links.values() for m in link):
                return
            for peer in self.live():
                self.after(peer, self.outline(peer))
            if not self.deliver_round(ways):
                return
        raise Violation("quiet", f"messages still flow after {MAX_QUIET_ROUNDS} rounds")

    def cut_links(self, one: int, other: int) -> None:
        """Cut both directions between two nodes; what was in flight is lost."""
        for way in ((one, other), (other, one)):
            self.cut.add(way)
            self.links.pop(way, None)

    def recover(self) -> None:
        """Heal and restart everything, and drive the cluster until all members agree on a newly committed entry.

        Raises `Violation("recovery")` if they do not within `MAX_ROUNDS` ticks: some node is wedged.
        """
        self.cut.clear()
        for peer in self.peers.values():
            peer.held.clear()
            if peer.node is None:
                peer.start()
        proposed: tuple[int, int] | None = None
        for _ in range(MAX_ROUNDS):
            self.stabilize()
            leader = max((peer for peer in self.live() if peer.role is Role.LEADER), key=lambda p: p.term, default=None)
            if leader is not None:
                if proposed is not None and proposed[0] == leader.term and self.agree(leader, proposed[1]):
                    return
                if proposed is None or proposed[0] != leader.term:
                    proposed = self.propose_last(leader)
                self.report_lost_snapshots(leader)
            self.advance_clock()
            for peer in self.live():
                before = self.outline(peer)
                peer.tick()
                self.after(peer, before)
        state = "; ".join(f"{peer.id}: {text.outline(peer)}" for peer in self.live())
        raise Violation("recovery", f"no agreement {MAX_ROUNDS} ticks after everything healed: {state}")

    def report_lost_snapshots(self, leader: Peer) -> None:
        """Tell a leader of the snapshots that did not arrive, as whoever sends them has to."""
        for follower, status in leader.raw.status().peers.items():
            if status.pending_snapshot:
                leader.raw.report_snapshot(follower, ok=False)
                self.after(leader, self.outline(leader))

    def propose_last(self, leader: Peer) -> tuple[int, int] | None:
        """Propose one entry on a leader; return (term, index), or None if it is refused for now."""
        try:
            leader.raw.propose(b"last")
        except ProposalDropped:
            return None
        self.after(leader, self.outline(leader))
        return leader.term, leader.last_index

    def agree(self, leader: Peer, index: int) -> bool:
        """Return whether every member has applied the entry and is in the leader's state."""
        members = [self.peers[node_id] for node_id in leader.match()]
        return leader.applied >= index and all(
            (peer.applied, peer.digest) == (leader.applied, leader.digest) for peer in members
        )


def found_cluster(cluster: Cluster, words: list[str]) -> None:
    """Start the nodes that a `cluster` command names.

    Without `founded` a blank node knows the founding membership, without being in it: it will be given the log from
    its first entry. With `founded=N` the members start from a snapshot at N, and a blank node knows nothing.
    """
    voters = [int(word) for word in words if word.isdigit()]
    options = dict(word.split("=") for word in words if "=" in word)

    def numbers(name: str) -> list[int]:
        return [int(part) for part in options.pop(name, "").split(",") if part]

    learners, blank = numbers("learners"), numbers("blank")
    founded = int(options.pop("founded", 0))
    held = [stage for stage in options.pop("hold", "").split(",") if stage]
    cluster.seed = int(options.pop("seed", 0))
    cluster.lockstep = bool(int(options.pop("lockstep", 0)))
    cluster.settings = {name: int(value) for name, value in options.items()}
    for flag in ("pre_vote", "check_quorum"):
        if flag in cluster.settings:
            cluster.settings[flag] = bool(cluster.settings[flag])
    founders = ConfState(voters=voters, learners=learners)
    cluster.checker.believe(founded)
    for node_id in sorted([*voters, *learners, *blank]):
        storage = MemoryStorage(ConfState() if founded and node_id in blank else founders)
        if founded and node_id not in blank:
            storage.apply_snapshot(Snapshot(SnapshotMetadata(founded, 1, founders)))
            storage.set_hard_state(HardState(term=1))
        peer = cluster.peers[node_id] = Peer(cluster, node_id, storage=storage)
        peer.held.update(held)
        cluster.checker.after(peer)
