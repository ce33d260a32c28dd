"""The replica's side of the apply thread: what is handed to it, and what its results mean.

Committed entries go out in order. Membership changes take effect in the Raft core when they are handed out, and are
kept on disk as soon as they are known to be committed (`identity` says why). After a restart entries are handed out
again from the newest snapshot on; the core is not told again of changes that its membership already holds.
"""

import logging
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from octopii.errors import LogFull, OctopiiError, RemovedNode, ShuttingDown
from octopii.raft import (
    ChangeOperation,
    ConfState,
    Entry,
    EntryKind,
    MembershipChange,
    MembershipStep,
    apply_change,
    decode_membership_change,
)
from octopii.replica.identity import IdentityStore, Membership
from octopii.replica.jobs import (
    Applied,
    ApplyJob,
    Cause,
    Change,
    LocalFailure,
    Manifest,
    Queried,
    Restored,
    RestoreJob,
    Result,
    SnapshotFailed,
    SnapshotWritten,
)
from octopii.replica.machine_errors import MachineError
from octopii.replica.roster import Roster, members_of
from octopii.replica.snapshots import Payload
from octopii.wire.codec import Found, decode_entry, decode_members

if TYPE_CHECKING:
    from octopii.replica.replica import Replica

logger = logging.getLogger("octopii.replica")


max_again_bytes = 64 << 20
"""Most bytes of entries that are applied again behind a snapshot that replaces the state; they are all handed out."""


class Applying:
    """What the apply thread has and has done, for one replica."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica
        self._identity: IdentityStore = replica.identity
        self._payloads: deque[Payload] = deque()  # one per snapshot that is being restored
        self._conf_state = ConfState()  # as of what was handed out
        self._core_index = 0  # the newest membership entry that the Raft core has been told of
        self._unsaved: Membership | None = None
        self.roster = Roster()
        self.failure: LocalFailure | None = None
        self._refusal: OctopiiError | None = None
        self.handed_index = 0
        self.handed_bytes = 0
        self.applied_index = 0
        self.applied_time = 0
        self.sessions = 0

    def start(self, manifest: Manifest | None) -> ConfState:
        """Begin from the newest snapshot, if any; returns the membership that the Raft core starts with."""
        membership = self._identity.membership
        index = 0
        if manifest is not None:
            index = manifest.index
            self._conf_state = manifest.conf_state
            self.restore(manifest)
        self.handed_index = index
        if manifest is not None and (membership is None or membership.index < manifest.index):
            membership = Membership(manifest.index, manifest.conf_state, manifest.roster, manifest.index)
            self._save(membership)
        if membership is None:
            return ConfState()
        self._core_index = membership.index
        self.roster = membership.roster.copy()
        return membership.conf_state

    # --- membership ---------------------------------------------------------------------------------------------

    @property
    def has_membership_to_keep(self) -> bool:
        """Whether a change is known to be committed and not written down."""
        return bool(self._changes_to_keep())

    def _changes_to_keep(self) -> list[Entry]:
        kept, committed = self._identity.membership, self._replica.raft.committed
        known = kept.index if kept is not None else 0
        return [entry for entry in self._replica.store.memberships if known < entry.index <= committed]

    def keep_membership(self) -> None:
        """Write down the changes that are known to be committed; raises `LogFull`."""
        kept = self._identity.membership
        for entry in self._changes_to_keep():
            conf_state = kept.conf_state if kept is not None else ConfState()
            roster = self.roster.copy()
            change, found = _change_of(entry)
            conf_state = apply_change(conf_state, change)
            if found is not None:
                roster.found(found)
            else:
                roster.change(conf_state, members_of(decode_members(change.context)))
            kept = Membership(entry.index, conf_state, roster, kept.applied if kept is not None else 0)
            self._keep(kept)

    def _keep(self, membership: Membership) -> None:
        self._identity.save_membership(membership)
        self.roster = membership.roster.copy()

    def _follow_roster(self, result: Applied) -> None:
        """Membership, addresses or storage ids have changed in the applied state."""
        assert result.roster is not None
        kept = self._identity.membership
        if kept is None or result.index >= kept.index:
            kept = Membership(result.index, result.conf_state, result.roster, result.index)
        elif result.index > kept.applied:
            roster = kept.roster.copy()
            roster.take_addresses(result.roster)
            kept = Membership(kept.index, kept.conf_state, roster, result.index)
        else:
            return  # replayed: what is on disk is newer
        self._save(kept)
        replica = self._replica
        replica.roster_changed(result.index)
        if replica.config.node_id in self.roster.removed:
            text = f"node {replica.config.node_id} was removed from the cluster (by entry {result.index} at the latest)"
            replica.refuse(RemovedNode(text))

    def _save(self, membership: Membership) -> None:
        """Keep a membership; when there is no room, the older one on disk is a valid one, and it is tried again."""
        self._unsaved = None
        try:
            self._keep(membership)
        except LogFull:
            self._unsaved = membership
            self.roster = membership.roster.copy()

    def tick(self) -> None:
        """Try again what the disk had no room for."""
        if self._unsaved is not None:
            self._save(self._unsaved)

    # --- handing out --------------------------------------------------------------------------------------------

    def hand_out(self, entries: list[Entry]) -> None:
        """Give committed entries to the apply thread; membership changes take effect in the Raft core here."""
        changes: dict[int, Change] = {}
        for entry in entries:
            if entry.kind == EntryKind.MEMBERSHIP or entry.index == 1:
                changes[entry.index] = self._change_membership(entry)
            self.handed_bytes += len(entry.data)
        self.handed_index = entries[-1].index
        self._replica.outbox.job(ApplyJob(entries, changes))

    def _change_membership(self, entry: Entry) -> Change:
        change, _ = _change_of(entry)
        self._conf_state = apply_change(self._conf_state, change)
        if entry.index > self._core_index:
            self._core_index = entry.index
            self._replica.raft.apply_membership(change)
        return Change(self._conf_state, decode_members(change.context))

    def restore(self, manifest: Manifest) -> None:
        """Hand a snapshot to the apply thread."""
        payload = self._replica.snapshots.open(manifest)
        self._payloads.append(payload)
        self._replica.outbox.job(RestoreJob(manifest, payload.view()))

    @property
    def restoring(self) -> bool:
        """Whether the apply thread has a snapshot to restore."""
        return bool(self._payloads)

    def install(self, manifest: Manifest) -> None:
        """A received snapshot takes the place of log and state; its manifest is durable."""
        self._conf_state = manifest.conf_state
        self._core_index = manifest.index
        kept = self._identity.membership
        if kept is None or kept.index < manifest.index:
            self._save(Membership(manifest.index, manifest.conf_state, manifest.roster, manifest.index))
        self.handed_index = manifest.index
        self.restore(manifest)
        self._replica.roster_changed(manifest.index)

    # --- results ------------------------------------------------------------------------------------------------

    def job_done(self, result: Result) -> None:
        """Take what the apply thread brings back."""
        replica = self._replica
        if isinstance(result, Applied):
            self._applied(result)
        elif isinstance(result, Queried):
            self._log_errors(result.errors)
            if self.failure is not None:  # found meanwhile: what the state says is nobody's answer
                result = msgspec.structs.replace(result, failure=self.failure)
            replica.reads.answered(result, lease_holds=replica.lease_holds)
        elif isinstance(result, Restored):
            self._restored(result)
        elif isinstance(result, SnapshotWritten):
            self._snapshot_written(result.manifest)
        elif isinstance(result, SnapshotFailed):
            replica.upkeep.snapshot_failed(result.reason)

    def _applied(self, result: Applied) -> None:
        replica = self._replica
        for index, size, seconds in result.slow:
            logger.warning("applying a command of %d bytes in entry %d took %.0f ms", size, index, seconds * 1e3)
        self._log_errors(result.errors)
        self.handed_bytes = max(0, self.handed_bytes - result.entry_bytes)
        self.applied_index = max(self.applied_index, result.index)
        self.applied_time = max(self.applied_time, result.time)
        self.sessions = result.sessions
        replica.calls.applied(result)
        replica.versions.activated(result.active_version)
        replica.divergence.applied(result)
        if result.roster is not None:
            self._follow_roster(result)
        replica.raft.on_applied(result.index)
        if result.failure is not None:
            self.stop(result.failure)
        else:
            replica.upkeep.applied(result)

    def _log_errors(self, errors: list[MachineError]) -> None:
        """Say what the machine raised: callers have been told, and nobody else would ever know."""
        for each in errors:
            what = f"{each.method}() raised {each.text} (entry {each.index})"
            if each.trace:
                logger.error("node %d: %s\n%s", self._replica.config.node_id, what, each.trace)
            else:
                logger.error("node %d: %s, %s times by now", self._replica.config.node_id, what, f"{each.count:,}")

    def stop(self, failure: LocalFailure) -> None:
        """This replica alone is in trouble: it keeps its log and its vote, and answers no more."""
        if self.failure is not None:
            return
        replica = self._replica
        self.failure = failure
        text = f"node {replica.config.node_id} stopped applying at entry {failure.index}: {failure.reason}"
        replica.warnings["apply"] = f"{text}; {failure.remedy}"
        logger.error("%s", replica.warnings["apply"])
        self.refuse(ShuttingDown(text))
        replica.calls.lost_track(text)
        replica.upkeep.pulse()  # before it hands over, lest leadership comes back
        replica.upkeep.hand_over("it stopped applying")

    def refuse(self, error: OctopiiError) -> None:
        """Say to all calls why there is no answer, and by the kind of `error` whether another node may have one."""
        self._refusal = error
        self._replica.refuse_calls(error)

    def recovered(self) -> None:
        """What was wrong with the state is gone with it."""
        replica, refusal = self._replica, self._refusal
        self.failure = self._refusal = None
        replica.warnings.pop("apply", None)
        if replica.calls.refusal is refusal:
            replica.calls.refusal = None
        if replica.reads.refusal is refusal:
            replica.reads.refusal = None

    def can_go_back_to(self, manifest: Manifest) -> bool:
        """Whether the log has all that came after a snapshot, and that is not too much to be applied again."""
        store, after = self._replica.store, manifest.index + 1
        return store.first_index() <= after and store.bytes_from(after) <= max_again_bytes

    def go_back_to(self, manifest: Manifest) -> None:
        """Replace the state by a snapshot, and hand out again what came after it."""
        end, store = self.handed_index, self._replica.store
        self._conf_state = manifest.conf_state
        self.restore(manifest)
        self.handed_index = manifest.index
        while self.handed_index < end:
            self.hand_out(store.entries(self.handed_index + 1, end + 1, self._replica.config.max_append_bytes))

    def _restored(self, result: Restored) -> None:
        manifest = result.manifest
        self._payloads.popleft().close()
        if result.failure is not None:
            self.stop(result.failure)
            return
        self.applied_index = max(self.applied_index, manifest.index)
        self.applied_time = max(self.applied_time, manifest.time)
        self.sessions = manifest.sessions
        self._replica.versions.activated(manifest.active_version)
        self._replica.divergence.restored(manifest)
        self._replica.raft.on_applied(manifest.index)

    def _snapshot_written(self, manifest: Manifest) -> None:
        replica = self._replica
        newest = replica.snapshots.newest
        if self.failure is not None and self.failure.cause is Cause.DIVERGENCE:
            replica.snapshots.discard(manifest)
            replica.upkeep.snapshot_failed("its state has come apart from the others'")
        elif newest is not None and newest.index >= manifest.index:
            replica.snapshots.discard(manifest)  # one that was received meanwhile is newer
            replica.upkeep.snapshot_counts(newest)
        elif not replica.writes.record(manifest):
            replica.snapshots.discard(manifest)
            replica.upkeep.snapshot_failed("the disk is full")

    def close(self) -> None:
        """The node stops; its apply thread has."""
        while self._payloads:
            self._payloads.popleft().close()


def _change_of(entry: Entry) -> tuple[MembershipChange, Found | None]:
    """What an entry does to the membership: entry 1 makes the founder the only voter."""
    if entry.kind == EntryKind.MEMBERSHIP:
        return decode_membership_change(entry.data), None
    (found,) = decode_entry(entry.data).groups
    assert isinstance(found, Found), "entry 1 founds the cluster"
    return MembershipChange(steps=[MembershipStep(ChangeOperation.ADD_VOTER, found.members[0].node_id)]), found
