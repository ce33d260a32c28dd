"""What a replica does by the clock: founding, handing over, compaction, snapshots, telling the others how it is."""

import logging
from typing import TYPE_CHECKING

from octopii.replica.health import best_successor
from octopii.replica.jobs import Applied, Manifest, SnapshotJob
from octopii.replica.standstill import Standstill
from octopii.wire.codec import Compact

if TYPE_CHECKING:
    from octopii.replica.replica import Replica

logger = logging.getLogger("octopii.replica")

pulses_per_election = 4
"""How often in one election timeout a member tells the others its wall clock and whether its disk has room."""

first_retry_seconds = 1.0
"""Wait after a snapshot that failed; doubles up to `last_retry_seconds`."""

last_retry_seconds = 60.0


class Upkeep:
    """The schedules of one replica."""

    def __init__(self, replica: "Replica", now: float) -> None:
        self._replica = replica
        self._config = replica.config
        self.standstill = Standstill(replica)
        self._next_pulse = now
        self._next_hand_over = now
        self._last_compaction = now
        self._wants_compaction = False
        self._snapshotting = False
        self._snapshot_began = now
        self._snapshot_forced = ""
        self._snapshot_bytes = 0
        self._snapshot_failures = 0
        self._snapshot_not_before = now
        self._disk_was_low = False
        self._now = now
        self.committed_at_last_tick = 0
        self._committed_now = 0

    def tick(self, now: float) -> None:
        """Look at everything that is due."""
        self._now = now
        self.committed_at_last_tick, self._committed_now = self._committed_now, self._replica.raft.committed
        if now >= self._next_pulse:
            self.pulse()
        self._watch_disk()
        if self._replica.leadership.is_leader:
            self._watch_leader()
            self._maybe_compact()
            self._maybe_send_snapshots()
        self._maybe_snapshot()
        self.standstill.tick()

    def pulse(self) -> None:
        """Tell the others how this node is."""
        replica = self._replica
        self._next_pulse = replica.now + self._config.election_timeout / pulses_per_election
        pulse = replica.quarantine.pulse(disk_low=replica.disk.low)
        for peer in sorted(replica.connected):
            replica.outbox.send(peer, pulse)

    # --- leadership ---------------------------------------------------------------------------------------------

    def leadership_changed(self) -> None:
        """A new leader looks at itself at the next tick, and gives compaction its full interval."""
        self._next_hand_over = self._now
        self._last_compaction = self._now
        self._replica.calls.refuse_for_disk(False)

    def _watch_leader(self) -> None:
        replica, config = self._replica, self._config
        skew = replica.clock_skew
        if replica.applying.failure is not None:
            self.hand_over("it stopped applying")
        elif replica.writes.sync_seconds > config.election_timeout:
            self.hand_over(f"a sync has been under way for {replica.writes.sync_seconds:.1f} s")
        elif skew is not None and abs(skew) > config.clock_skew_max:
            replica.warn("clock", f"the wall clock of node {config.node_id} is {skew:+.1f} s off the members' median")
            self.hand_over(f"its wall clock is {skew:+.1f} s off the members' median")
        elif replica.disk.low and not self.hand_over("its disk is nearly full"):
            replica.calls.refuse_for_disk(True)

    def hand_over(self, why: str) -> bool:
        """Give leadership to the fittest member; False when there is none. Tried once per election timeout."""
        replica = self._replica
        if not replica.leadership.is_leader:
            return True
        voters, now = replica.other_voters, self._now
        candidates = {peer: replica.raft.match_index(peer) for peer in voters if peer in replica.connected}
        successor = best_successor(
            candidates,
            lambda peer: (
                not replica.vitals.stopped_at(peer)
                and (replica.vitals.has_room(peer) or replica.applying.failure is not None)
                and peer not in replica.divergence.differing
                and replica.vitals.clock_is_good(peer, voters, now=now, wall=replica.wall)
            ),
        )
        if successor is None:
            return False
        if now >= self._next_hand_over:
            self._next_hand_over = now + self._config.election_timeout
            logger.warning("node %d hands leadership to node %d: %s", self._config.node_id, successor, why)
            replica.raft.transfer_leader(successor)
        return True

    # --- disk ---------------------------------------------------------------------------------------------------

    def _watch_disk(self) -> None:
        replica = self._replica
        disk = replica.disk
        disk.check()
        if not disk.low:
            if self._disk_was_low:
                text = f"node {self._config.node_id} has room on its disk again: {disk.free:,} bytes are free"
                logger.warning("%s", text)
                replica.warnings.pop("disk", None)
                replica.calls.refuse_for_disk(False)
        else:
            if not self._disk_was_low:
                config = self._config
                limit = f"less than disk_low_water_bytes = {config.disk_low_water_bytes:,}"
                text = (
                    f"the volume of node {config.node_id} has only {disk.free:,} bytes free, {limit}: free some space"
                )
                replica.warn("disk", text)
                self.force_snapshot("the disk is nearly full")  # so that the log behind it can go
            if disk.critical:
                disk.release()
        self._disk_was_low = disk.low

    # --- compaction ---------------------------------------------------------------------------------------------

    def _maybe_compact(self) -> None:
        wanted = self._wants_compaction or self._replica.calls.room.crowded  # (it ends sessions that have expired)
        if (
            wanted
            and self._replica.applying.failure is None
            and self._now - self._last_compaction >= self._config.compact_interval
        ):
            self._last_compaction = self._now
            self._replica.calls.system(Compact(), self._now)

    # --- snapshots ----------------------------------------------------------------------------------------------

    def applied(self, result: Applied) -> None:
        """Count towards the next snapshot."""
        self._wants_compaction = result.wants_compaction
        self._snapshot_bytes += result.entry_bytes
        if result.compacted:
            self._last_compaction = self._now
        self._maybe_snapshot()

    def force_snapshot(self, why: str) -> None:
        """Take a snapshot as soon as possible, whatever the counters say."""
        self._snapshot_forced = why
        self._maybe_snapshot()

    def _maybe_snapshot(self) -> None:
        replica, config = self._replica, self._config
        applying = replica.applying
        if self._snapshotting or applying.restoring or applying.failure is not None or replica.refused is not None:
            return
        newest = replica.snapshots.newest.index if replica.snapshots.newest is not None else 0
        entries = applying.applied_index - newest
        why = self._snapshot_forced
        if not why and self._now >= self._snapshot_not_before:
            if entries >= config.snapshot_every_entries:
                why = f"{entries} entries since the last one"
            elif self._snapshot_bytes >= config.snapshot_every_bytes:
                why = f"{self._snapshot_bytes} bytes of entries since the last one"
        if not why:
            return
        self._snapshot_forced = ""
        if entries <= 0:
            replica.admin.snapshot_taken(newest)
            return
        self._snapshotting = True
        self._snapshot_began = replica.now
        self._snapshot_bytes = 0
        replica.outbox.job(SnapshotJob(why))

    def snapshot_failed(self, why: str) -> None:
        """Keep the log, and try again later."""
        self._snapshotting = False
        self._snapshot_failures += 1
        wait = min(first_retry_seconds * 2 ** (self._snapshot_failures - 1), last_retry_seconds)
        self._snapshot_not_before = self._now + wait
        text = f"node {self._config.node_id} could not take a snapshot: {why}; the log is kept"
        self._replica.warn("snapshot", text)
        self._replica.admin.snapshot_not_taken(text)

    def snapshot_counts(self, manifest: Manifest) -> None:
        """A snapshot is durable, own or received."""
        replica, node_id = self._replica, self._config.node_id
        if self._snapshotting:
            took = replica.now - self._snapshot_began
            text = "node %d took a snapshot of %d bytes at entry %d in %.1f s"
            logger.info(text, node_id, manifest.size, manifest.index, took)
        self._snapshotting = False
        self._snapshot_failures = 0
        replica.warnings.pop("snapshot", None)
        self._replica.admin.snapshot_taken(manifest.index)

    def _maybe_send_snapshots(self) -> None:
        """Send a snapshot to a peer that lags far behind, where that is less to send than the entries."""
        replica, newest = self._replica, self._replica.snapshots.newest
        if newest is None:
            return
        for peer in replica.raft.peers():
            match = replica.raft.match_index(peer)
            lag = replica.store.last_index() - match
            if (
                lag > self._config.snapshot_lag_threshold
                and match < newest.index
                and peer in replica.connected
                and peer not in replica.senders.peers
                and newest.size < replica.store.bytes_from(max(match + 1, replica.store.first_index()))
            ):
                logger.info("node %d lags %d entries: it is sent a snapshot", peer, lag)
                replica.raft.send_snapshot(peer)
