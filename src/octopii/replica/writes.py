"""What a replica has for the disk: the writes of Raft's Readys in order, one sync at a time, and what waits for it.

Writing puts bytes into the log's memory; they count once a sync that began afterwards has returned. One sync is under
way at a time, and what is written meanwhile is covered by the next: so a burst of entries costs one sync, not many.
Messages that promise something (votes, acknowledgements) wait here for the sync that covers their Ready.

When the volume is full, the reserve is given back first. If that is not enough the Ready, and all behind it, waits:
nothing of it is acknowledged, and it is tried again at every tick, because freeing space is all it takes.

The other schedules than `SyncEach` count a write as done at once; term, vote, identity and snapshots are synced all the
same.
"""

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from octopii.durability import Milliseconds, SyncEach
from octopii.errors import LogFull
from octopii.raft import Message, Ready
from octopii.replica.jobs import Manifest
from octopii.walrus import Log, SyncTicket

if TYPE_CHECKING:
    from octopii.replica.replica import Replica


max_held = 4096
"""Readys whose messages wait for the disk; what comes when there are as many is dropped, as a network may do."""


class Unwritten(msgspec.Struct):
    """A Ready that waits for room, and the number of the last one that has nothing to write and waits behind it."""

    ready: Ready
    number: int


class Recorded(msgspec.Struct, frozen=True):
    """A manifest that was written to the log, and its record's offset."""

    manifest: Manifest
    offset: int


class Sync(msgspec.Struct, frozen=True):
    """A sync under way: what it covers, and when (monotonic seconds) it began."""

    ticket: SyncTicket
    number: int
    recorded: Recorded | None
    began: float


class Writes:
    """The disk side of one replica; see the module's text."""

    def __init__(self, replica: "Replica", log: Log) -> None:
        self._replica = replica
        self._log = log
        self._schedule = replica.config.fsync_schedule
        self._unwritten: deque[Unwritten] = deque()
        self._is_full = False
        self._held: deque[tuple[int, list[Message]]] = deque()
        self._newest = 0  # number of the newest Ready that is written
        self._persisted = 0
        self.counted = 0
        """How often something has come to count as being on disk: each time the Raft core may have more to say."""
        self._sync: Sync | None = None
        self._must_sync = False
        self._next_lazy_sync = replica.now
        self._recorded: Recorded | None = None

    @property
    def syncing(self) -> bool:
        """Whether a sync is under way."""
        return self._sync is not None

    @property
    def blocked(self) -> bool:
        """Whether something waits for room on the disk."""
        return self._is_full

    @property
    def due(self) -> bool:
        """Whether something is to be written now."""
        return bool(self._unwritten) and not self._is_full

    @property
    def sync_seconds(self) -> float:
        """How long the present sync has been under way, 0 if there is none."""
        return self._replica.now - self._sync.began if self._sync is not None else 0.0

    def restart(self) -> None:
        """The Raft core was made anew and counts its Readys from 1; everything written is on disk."""
        self._newest = self._persisted = 0
        self._unwritten.clear()
        self._is_full = False
        self._held.clear()

    def must_sync(self) -> None:
        """What was just written counts only when synced, whatever the schedule."""
        self._must_sync = True

    # --- writing ------------------------------------------------------------------------------------------------

    def take(self, ready: Ready) -> None:
        """Keep what a Ready has for the disk until `write`, and the messages that wait for it until the sync."""
        if ready.messages_after_persist and len(self._held) < max_held:
            self._held.append((ready.number, ready.messages_after_persist))
        writes = ready.snapshot is not None or ready.entries or ready.hard_state is not None
        if writes or (not self._unwritten and self._replica.applying.has_membership_to_keep):
            self._unwritten.append(Unwritten(ready, ready.number))
        elif self._unwritten:
            self._unwritten[-1].number = ready.number  # it has nothing for the disk, and counts with what it waits for
        else:
            self._newest = ready.number

    def write(self) -> None:
        """Write what waits, as far as there is room."""
        while self._unwritten:
            try:
                self._write(self._unwritten[0].ready)
            except LogFull as error:
                if self._replica.disk.release():
                    continue
                self._replica.warn("disk", f"node {self._replica.config.node_id} cannot write its log: {error}")
                self._is_full = True
                return
            self._newest = self._unwritten.popleft().number
        self._is_full = False

    def _write(self, ready: Ready) -> None:
        """Write one Ready; doing so again after a failure half-way through is harmless."""
        replica = self._replica
        if ready.snapshot is not None:
            metadata = ready.snapshot.metadata
            replica.store.reset(metadata.index, metadata.term)
            self._must_sync = True
        if ready.entries:
            replica.store.append(ready.entries)
        if ready.hard_state is not None:
            replica.store.save_hard_state(ready.hard_state)
            self._must_sync = True
        replica.applying.keep_membership()

    def record(self, manifest: Manifest) -> bool:
        """Write a snapshot's manifest; False when there is no room for it. `Replica.snapshot_counts` follows."""
        try:
            offset = self._replica.snapshots.record(manifest)
        except LogFull as error:
            self._replica.disk.release()
            self._replica.warn("disk", f"no room for the manifest of a snapshot: {error}")
            return False
        self._recorded = Recorded(manifest, offset)
        self._must_sync = True
        return True

    # --- syncing ------------------------------------------------------------------------------------------------

    def begin_sync(self) -> SyncTicket | None:
        """Start a sync if one is due and none is under way; without one, what needs no disk is done already."""
        if self._sync is not None:
            return None
        now = self._replica.now
        if not isinstance(self._schedule, SyncEach) and not self._must_sync:
            self._count(self._newest)
            if not isinstance(self._schedule, Milliseconds) or now < self._next_lazy_sync:
                return None
            self._next_lazy_sync = now + self._schedule.interval / 1000
        ticket = self._log.begin_sync()
        self._must_sync = False
        recorded, self._recorded = self._recorded, None
        if ticket is None:
            self._synced(self._newest, recorded)
            return None
        self._sync = Sync(ticket, self._newest, recorded, now)
        return ticket

    def sync_done(self, ticket: SyncTicket) -> None:
        """A sync has returned: all that was written before it began is on disk. Raises what the sync raised."""
        sync = self._sync
        assert sync is not None
        assert sync.ticket is ticket
        self._sync = None
        self._log.finish_sync(ticket)
        self._synced(sync.number, sync.recorded)

    def sync_now(self) -> None:
        """Sync here and wait for it: for the few moments of a node's life at which nothing may go on before."""
        assert self._sync is None
        ticket = self._log.begin_sync()
        if ticket is not None:
            ticket.run()
            self._log.finish_sync(ticket)
        self._must_sync = False

    def _synced(self, number: int, recorded: Recorded | None) -> None:
        self._count(number)
        if recorded is not None:
            self.counted += 1
            self._replica.snapshot_counts(recorded.manifest, recorded.offset)

    def _count(self, number: int) -> None:
        """The Readys up to `number` are on disk: tell the core, and send what waited for that."""
        if number <= self._persisted:
            return
        self._persisted = number
        self.counted += 1
        self._replica.raft.on_persisted(number)
        while self._held and self._held[0][0] <= number:
            for message in self._held.popleft()[1]:
                self._replica.send(message)
