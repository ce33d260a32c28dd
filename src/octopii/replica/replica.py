"""One node without threads, sockets or clocks: Raft, the log, snapshots, sessions and the user's machine put together.

A driver owns a `Replica` and an `Applier` and moves things between them and the world:

    replica.tick(now, wall)                 every `Config.tick_interval`
    replica.advance_clock(now, wall)        before anything else that happens between two ticks
    replica.peer_connected(facts)           a handshake succeeded; `peer_disconnected(peer)` when the connection broke,
                                            `peer_refused(peer, error, address)` when the handshake ended so
    replica.receive(peer, message)          what another node said, in order, while it is connected
    replica.request(origin, request)        what a client, or this process itself, asks
    work = replica.poll()                   after any of these, and after each completion below
        send work.messages and work.replies; queue work.jobs for the apply thread; start work.sync; poll again at
        once while work.more
        poll again at replica.wake_at, if that is not None and nothing else leads to it before
    replica.sync_done(ticket)               the ticket's `run` returned
    replica.job_done(result)                a job's result; a `SnapshotView` is written first, with `snapshots.write`,
                                            and what that returns is the result

What orders what:

- `poll` writes the entries, term and vote of a Raft `Ready` into the log, which is memory until the sync. Messages that
  speak of them (votes, acknowledgements) are held until the sync that covers them is done. A leader's appends are not:
  they even go out before it writes, so `poll` then returns twice, with the messages and with the sync.
- One sync is under way at a time. What arrives meanwhile becomes the next batch: one entry, one sync, one message.
- Committed entries go to the apply thread in order; membership takes effect in the Raft core when they are handed out.
- A snapshot counts when its manifest is synced; the log is trimmed after that.

What is raised by `poll`, `sync_done` and `tick` is fatal to this node (`LogPoisoned` after a failed sync, damage found
in the log): stop it, and say why.
"""

import logging
import random

from octopii.config import Config
from octopii.errors import CorruptLogError, OctopiiError, RefusedError, ShuttingDown
from octopii.raft import (
    ConfState,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    RaftConfig,
    RawNode,
    Ready,
    SoftState,
)
from octopii.replica.admin import Admin
from octopii.replica.applying import Applying
from octopii.replica.calls import Calls, Leadership
from octopii.replica.commit_news import CommitNews
from octopii.replica.divergence import Divergence
from octopii.replica.elections import ElectionLog
from octopii.replica.founding import Joining, PeerFacts
from octopii.replica.health import DiskRoom, Vitals
from octopii.replica.identity import Founding, IdentityStore
from octopii.replica.inbox import Inbox
from octopii.replica.jobs import Manifest, Result
from octopii.replica.log_store import LogStore
from octopii.replica.quarantine import Quarantine
from octopii.replica.reads import Reads
from octopii.replica.snapshots import SnapshotStore
from octopii.replica.transfers import Receiver, Senders
from octopii.replica.upkeep import Upkeep
from octopii.replica.versions import Versions
from octopii.replica.work import Origin, Outbox, PeerOutput, Work
from octopii.replica.writes import Writes
from octopii.walrus import Log, StrictlyAtOnce, SyncTicket
from octopii.walrus.vfs import FileSystem
from octopii.wire import requests
from octopii.wire.handshake import Hello, Role, Standing

logger = logging.getLogger("octopii.replica")

GROUP = 1
"""The Raft group of a node; there is one today, topics and wire allow for more."""

log_block_bytes = 64 << 10
log_segment_blocks = 1024
"""Geometry of a node's log: 64 KiB, and segments of up to 64 MiB."""

log_max_entry_bytes = 513 << 20
"""Bytes of one entry of the Raft log. What a leader took by its own `max_batch_bytes`, 256 MiB at most, followers have
to take as well; the encoding adds a few bytes for each command."""

max_unapplied_bytes = 64 << 20
"""Bytes of entries handed to the apply thread and not yet applied; beyond it the leader packs no more."""


class Replica:
    """See the module's text. All times are seconds of a monotonic clock, `wall` is UTC in nanoseconds."""

    def __init__(
        self,
        config: Config,
        *,
        vfs: FileSystem,
        rng: random.Random,
        now: float,
        wall: int,
        random_id: bytes,
        command_version: int = 1,
        machine: str = "",
        block_bytes: int = log_block_bytes,
        segment_blocks: int = log_segment_blocks,
    ) -> None:
        """Open the node's folder; `random_id` is 16 bytes that become the storage id of a new folder.

        `command_version` is that of the machine whose applier does the jobs, `machine` the name of its class.
        `block_bytes` and `segment_blocks` are the log's geometry and count only in a new folder.

        Raises `ConfigError` for another node's folder, `CorruptLogError` for a damaged one, `LogInUse`, `OSError`.
        """
        self.config = config
        self.rng = rng
        self.now = now
        self.wall = wall
        folder, prefix = str(config.wal_path), f"group-{GROUP}"
        log = self._log = Log(
            folder,
            vfs=vfs,
            consistency=StrictlyAtOnce(),
            fsync_schedule=config.fsync_schedule,
            max_entry_bytes=log_max_entry_bytes,
            block_bytes=block_bytes,
            segment_blocks=segment_blocks,
        )
        try:
            self.outbox = Outbox()
            self.leadership = Leadership(node_id=config.node_id)
            self.disk = DiskRoom(config, vfs=vfs, folder=folder)
            self.vitals = Vitals(config)
            self.identity = IdentityStore(log, prefix=prefix, node_id=config.node_id, new_storage_id=random_id)
            self.snapshots = SnapshotStore(
                log, prefix=prefix, vfs=vfs, folder=folder, sync_bytes=config.snapshot_sync_bytes
            )
            self.store = LogStore(
                log, prefix=prefix, cache_bytes=config.entry_cache_bytes, newest_snapshot=self.snapshots.raft_snapshot
            )
            self.writes = Writes(self, log)
            self.applying = Applying(self)
            self.news = CommitNews(self.outbox)
            self.calls = Calls(config, self.outbox, self.leadership)
            self.reads = Reads(config, self.outbox, self.leadership, self._start_read_round)
            self.senders = Senders(config, self.outbox, self.snapshots, self._transfer_finished)
            self.receiver = Receiver(
                config.node_id,
                self.outbox,
                self.snapshots,
                is_needed=lambda index: index > self.raft.committed or self.divergence.takes(index),
                record=self.writes.record,
                step=self._step,
            )
            self.inbox = Inbox(self)
            self.quarantine = Quarantine(self)
            self.admin = Admin(self)
            self.upkeep = Upkeep(self, now)
            self._elections = ElectionLog(config.node_id)
            self.versions = Versions(self, command_version)
            self.divergence = Divergence(self)
            self.refused: OctopiiError | None = None
            self.warnings: dict[str, str] = {}
            self.connected: set[int] = set()
            self._stamp = 0
            self._entry: bytes | None = None  # packed, and not yet taken by the Raft core
            self._open(machine)
        except BaseException:
            log.close()
            raise

    # --- opening ------------------------------------------------------------------------------------------------

    def _open(self, machine: str) -> None:
        """Bring log, newest snapshot and membership together, and start the Raft core from them."""
        if changed := self.identity.run_by(machine):
            self.warn("machine", changed)
        if self.identity.empty:
            self._forget()
        manifest = self.snapshots.newest
        if manifest is not None:
            self.snapshots.verify(manifest)
            self._fit_log_to(manifest)
        self.store.conf_state = self.applying.start(manifest)
        self.writes.sync_now()
        self._start_raft()
        founding = None
        if self.identity.empty and self.config.is_initial_leader:
            founding = Founding(self.config, storage_id=self.identity.identity.storage_id)
        self.joining = Joining(self, founding)

    def _forget(self) -> None:
        """The node belongs to no cluster, so it has promised nothing: what a crash left of a beginning is dropped."""
        if self.store.last_index() > 0:
            self.store.reset(0, 0)
        self.identity.forget_membership()
        self.snapshots.forget()

    def _fit_log_to(self, manifest: Manifest) -> None:
        """A crash may have come between a snapshot's manifest and the reset of the log that it is to replace."""
        store = self.store
        if manifest.index > store.last_index() or manifest.index + 1 < store.first_index():
            if manifest.index + 1 < store.first_index():
                raise CorruptLogError(
                    f"the log of node {self.config.node_id} begins at entry {store.first_index()}, but its newest "
                    f"snapshot ends at entry {manifest.index}: entries between them are missing",
                    path=str(self.config.wal_path),
                )
            store.reset(manifest.index, manifest.term)
        store.know_term(manifest.index, manifest.term)
        if store.term(manifest.index) != manifest.term:
            store.reset(manifest.index, manifest.term)
        if store.hard_state.term < manifest.term:
            store.save_hard_state(HardState(term=manifest.term, vote=0))

    def _start_raft(self) -> None:
        config = self.config
        self.raft = RawNode(
            RaftConfig(
                id=config.node_id,
                election_ticks=config.election_ticks,
                heartbeat_ticks=config.heartbeat_ticks,
                tick_seconds=config.tick_interval,
                rng=self.rng,
                applied=self.applying.handed_index,
                pre_vote=True,
                check_quorum=True,
                max_message_bytes=config.max_append_bytes,
                max_inflight_messages=config.max_inflight_appends,
                max_inflight_bytes=config.max_inflight_bytes,
                max_uncommitted_bytes=config.max_uncommitted_bytes,
                lease_drift=config.lease_drift_max,
            ),
            self.store,
        )
        self.quarantine.begin()

    def founded(self) -> None:
        """Entry 1 is on disk and this node its cluster's only voter: begin anew from there, and lead."""
        self.writes.restart()
        self.store.conf_state = self.applying.start(None)
        self._start_raft()
        self.raft.campaign()

    # --- who is there -------------------------------------------------------------------------------------------

    def hello(self, role: Role = Role.NODE, *, target: int = 0, python_minor: int = 0) -> Hello:
        """What this node says of itself in a handshake."""
        identity, last = self.identity.identity, self.store.last_index()
        return Hello(
            role=role,
            node_id=self.config.node_id,
            cluster_id=identity.cluster_id,
            storage_id=identity.storage_id,
            target=target,
            address=self.config.advertised_addr,
            python_minor=python_minor,
            last_index=last,
            last_term=self.store.term(last),
            max_frame_bytes=self.config.max_frame_bytes,
        )

    def standing(self, *, secure: bool = False) -> Standing:
        """What this node judges others by in a handshake."""
        identity, roster = self.identity.identity, self.applying.roster
        return Standing(
            node_id=self.config.node_id,
            cluster_id=identity.cluster_id,
            storage_id=identity.storage_id,
            storage_of={node_id: member.storage_id for node_id, member in roster.members.items()},
            removed=frozenset(roster.removed),
            secure=secure,
        )

    @property
    def peer_addresses(self) -> dict[int, str]:
        """Whom to have a connection with, id -> "host:port": the members, and before there are any the configured."""
        members = self.applying.roster.members
        if not members:
            return dict(self.config.peers)
        return {node_id: member.address for node_id, member in members.items() if node_id != self.config.node_id}

    def peer_connected(self, facts: PeerFacts) -> None:
        """A handshake with a node succeeded; `receive` may follow."""
        self.connected.add(facts.node_id)
        self.warnings.pop(f"refused-by-{facts.node_id}", None)
        self.quarantine.met(facts)
        self.joining.met(facts)
        self.senders.connected(facts.node_id)
        if not facts.cluster_id:
            self.inbox.empty_peer_is_there(facts.node_id)

    def peer_disconnected(self, peer: int) -> None:
        """The connection to a node broke: what was under way on it may be lost."""
        self.connected.discard(peer)
        self.versions.lost(peer)
        self.raft.report_unreachable(peer)
        if peer == self.leadership.leader:
            self.calls.lost_forwards()
            self.admin.lost_relays()

    def peer_refused(self, peer: int, error: RefusedError, address: str) -> None:
        """A node refused this one in the handshake, or was refused; `address` was dialled for `peer`."""
        self.joining.refused_by(peer, error, address)

    # --- what comes in ------------------------------------------------------------------------------------------

    def advance_clock(self, now: float, wall: int) -> None:
        """Say what time it is between two ticks."""
        self.now, self.wall = now, wall

    def tick(self, now: float, wall: int) -> None:
        """Let time pass: elections, heartbeats, retries, schedules."""
        self.advance_clock(now, wall)
        if self.refused is None:
            self.raft.tick(now)
            self.joining.tick()
        if self.writes.blocked:
            self.writes.write()
        self.applying.tick()
        self.calls.tick(now)
        self.reads.tick(now)
        self.senders.tick(now)
        self.admin.tick(now)
        self.versions.tick(now)
        self.divergence.tick(now)
        self.upkeep.tick(now)

    def receive(self, peer: int, message: PeerOutput) -> None:
        """Take what another node said; the handshake has made sure who it is."""
        self.inbox.receive(peer, message)

    def request(self, origin: Origin, request: requests.Request) -> None:
        """Take a request of a client, of this process, or one that another node relays."""
        now = self.now
        if isinstance(request, requests.Propose):
            self.calls.propose(origin, request, now)
        elif isinstance(request, requests.ProposeSince):
            group = requests.Propose(request.request_id, request.group)
            self.versions.propose(origin, group, since=request.since, now=now)
        elif isinstance(request, requests.Query):
            lease_index = self.raft.committed if self.lease_holds else None
            self.reads.query(origin, request, now=now, lease_index=lease_index)
        elif isinstance(request, requests.SessionRequest):
            self.calls.open_session(origin, request, now)
        elif isinstance(request, requests.SessionEnd):
            self.calls.end_session(origin, request, now)
        elif isinstance(request, requests.ReadIndex):
            self.reads.read_index(origin, request, now=now)
        else:
            self.admin.request(origin, request)

    def sync_done(self, ticket: SyncTicket) -> None:
        """A sync has returned: all that was written before it began is on disk. Raises what the sync raised."""
        self.writes.sync_done(ticket)

    def job_done(self, result: Result) -> None:
        """Take what the apply thread brings back."""
        self.applying.job_done(result)

    # --- what goes out ------------------------------------------------------------------------------------------

    def poll(self) -> Work:
        """Do all that can be done now, and hand out what has to be done outside."""
        self._pack()
        self.reads.start(self.now)
        self._drain()
        if self.writes.due:
            if self.outbox.has_messages:
                return self.outbox.take(None, more=True)  # a leader's followers write while it does (thesis, 10.2.1)
            self.writes.write()
        before, ticket = self.writes.counted, self.writes.begin_sync()
        while self.writes.counted != before and self.raft.has_ready():  # what needed no sync counts at once
            before = self.writes.counted
            self._drain()
            if self.writes.due:
                self.writes.write()
            if ticket is None:
                ticket = self.writes.begin_sync()
        self.reads.reached(self.applying.handed_index)
        self.news.tell_due(self.now)
        return self.outbox.take(ticket)

    @property
    def wake_at(self) -> float | None:
        """When `poll` has something to do even if nothing happens, in monotonic seconds; None for never."""
        return self.news.wake_at

    def _drain(self) -> None:
        while self.raft.has_ready():
            self._handle(self.raft.ready())

    def _pack(self) -> None:
        """Put what has gathered into the log (as leader) or on its way to it (as follower)."""
        if not self.leadership.is_leader:
            if self.leadership.leader and self.calls.has_queued:
                self.calls.forward()
            return
        if self.writes.syncing or not (self._entry or self.calls.has_queued) or not self._may_propose():
            return
        while True:
            if self._entry is None:
                self._stamp = max(self.wall, self._stamp)
                self._entry = self.calls.take_entry(self._stamp)
                if self._entry is None:
                    return
            try:
                self.raft.propose(self._entry)
            except ProposalDropped:
                return  # it stays packed: the core has room again once entries are committed
            self._entry = None

    def _may_propose(self) -> bool:
        """Whether calls may go into the log: not before the cluster is founded, nor by a clock that is not trusted."""
        if self.applying.handed_bytes > max_unapplied_bytes or self.writes.blocked or not self.joining.complete:
            return False
        skew = self.clock_skew
        return skew is not None and abs(skew) <= self.config.clock_skew_max

    def _handle(self, ready: Ready) -> None:
        """Write what a Ready has for the disk, and pass on the rest."""
        if ready.soft_state is not None:
            self._leadership_changed(ready.soft_state)
        self.writes.take(ready)
        if ready.snapshot is not None:
            self.writes.write()
            self._install(ready.snapshot.metadata.index)
        for message in ready.messages:
            self.send(message)
        if ready.committed_entries:
            self.applying.hand_out(ready.committed_entries)
        for read in ready.read_states:
            self.reads.confirmed(read.context, read.index)

    def send(self, message: Message) -> None:
        """Send a message of the Raft core; a snapshot is sent by way of an offer."""
        if message.type is MessageType.APPEND:
            self.news.take(message, self.now)
        elif message.type is MessageType.SNAPSHOT and self.divergence.own:
            self.raft.report_snapshot(message.to, False)  # nobody else is to have this state
        elif message.type is MessageType.SNAPSHOT:
            self.senders.begin(message.to, term=message.term, now=self.now)
        else:
            self.outbox.send(message.to, message)

    def _step(self, message: Message) -> None:
        self.raft.step(message)

    def _start_read_round(self, context: bytes) -> None:
        self.raft.read_index(context)

    # --- snapshots ----------------------------------------------------------------------------------------------

    def _install(self, index: int) -> None:
        """A received snapshot takes the place of log and state."""
        manifest = self.receiver.take(index)
        self.calls.lost_track("a snapshot took the place of the entries while the call was under way")
        self.applying.install(manifest)
        logger.info("node %d installs a snapshot of %d bytes at entry %d", self.config.node_id, manifest.size, index)

    def snapshot_counts(self, manifest: Manifest, offset: int) -> None:
        """A manifest is durable: the log it stands for may go, and the snapshot before it."""
        keep = min(manifest.index, self.applying.applied_index) - self.config.log_keep_entries
        sending = self.senders.lowest_index
        self.store.compact(min(keep, sending if sending is not None else keep) + 1)
        self.snapshots.prune(manifest, offset, self.senders.files_in_use)
        received = self.receiver.durable(manifest)
        if received is not None:
            self.divergence.received(received)
        self.upkeep.snapshot_counts(manifest)

    def _transfer_finished(self, peer: int, ok: bool) -> None:
        self.raft.report_snapshot(peer, ok)

    # --- leadership ---------------------------------------------------------------------------------------------

    def _leadership_changed(self, state: SoftState) -> None:
        self._elections.observe(state, silent_seconds=self.raft.silence, is_voter=self.raft.is_voter)
        leadership, leader = self.leadership, state.leader
        was_leader, old = leadership.is_leader, leadership.leader
        term = self.raft.term
        if leader == old and term == leadership.term:
            return
        leadership.leader, leadership.term = leader, term
        leadership.leader_address = self._address_of(leader)
        if was_leader or old:
            self.calls.lost_track(f"leadership changed while the call was under way (term {term})")
        if was_leader and not leadership.is_leader:
            self._entry = None
            self.senders.stop_all()
        self.news.forget()
        self.reads.leadership_changed()
        self.admin.leadership_changed()
        self.upkeep.leadership_changed()
        self.versions.leadership_changed()
        self.divergence.leadership_changed()
        self.joining.leadership_changed()

    def _address_of(self, node_id: int) -> str:
        if node_id == self.config.node_id:
            return self.config.advertised_addr
        member = self.applying.roster.members.get(node_id)
        return member.address if member is not None else self.config.peers.get(node_id, "")

    def roster_changed(self, index: int) -> None:
        """Members or addresses as of `index` are in force here."""
        self.leadership.leader_address = self._address_of(self.leadership.leader)
        self.admin.roster_changed(index)
        self.quarantine.roster_changed()

    @property
    def conf_state(self) -> ConfState:
        """The membership in force."""
        return self.raft.conf_state

    @property
    def other_voters(self) -> list[int]:
        """The voters of the current membership, both halves of a joint one, without this node."""
        conf = self.raft.conf_state
        return sorted({*conf.voters, *conf.voters_outgoing} - {self.config.node_id})

    @property
    def clock_skew(self) -> float | None:
        """Seconds by which this node's wall clock is ahead of the voters' median; None while no majority was heard."""
        return self.vitals.skew(self.other_voters, now=self.now, wall=self.wall)

    @property
    def lease_holds(self) -> bool:
        """Whether a read may be answered at once on this node."""
        return self.leadership.is_leader and not self.applying.restoring and self.raft.lease_holds(self.now)

    # --- trouble and the end ------------------------------------------------------------------------------------

    def refuse(self, error: OctopiiError) -> None:
        """This node may not take part: it neither votes nor campaigns from now on, and says why."""
        if self.refused is None:
            self.refused = error
            self.warn("refused", str(error))
            self.refuse_calls(error)

    def refuse_calls(self, error: OctopiiError) -> None:
        """Take no more calls nor queries here; what is queued was in nobody's log."""
        self.calls.refusal = self.reads.refusal = error
        self.calls.give_up_queued(error)
        self.versions.give_up(error)

    def warn(self, key: str, text: str) -> None:
        """Keep a warning for `status`, and log it when it is new."""
        if self.warnings.get(key) != text:
            self.warnings[key] = text
            logger.warning("%s", text)

    def close(self) -> None:
        """Stop: refuse what is queued, sync, and give the folder back. The driver has finished its jobs and sync."""
        self.calls.close()
        self.versions.give_up(ShuttingDown(f"node {self.config.node_id} is shutting down"))
        self.reads.close(ShuttingDown(f"node {self.config.node_id} is shutting down"))
        self.senders.stop_all()
        self.receiver.close()
        self.admin.downloads.close()
        self.applying.close()
        self._log.close()
