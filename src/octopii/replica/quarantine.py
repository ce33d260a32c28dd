"""Members whose log ends before what they acknowledged: their disks have lost what was synced.

The end of a member's log, (term, index), never goes back: a suffix is only ever replaced by entries of a newer term.
So every member remembers how far the logs of the others were on disk (they say so in each `Pulse`, and a leader knows
it from their acknowledgements), and compares when one comes back:

    it has lost entries   it is told so (`Acknowledged`), and named in `status` and in the log, by everybody who knows
    itself                keeps what it is told on its own disk. It does not campaign, and votes only for who has what
                          it acknowledged, never in a term in which it may have voted already (`RawNode.hold_to`)
    its leader            forgets its acknowledgements and sends it what is missing
    its log is whole      the quarantine is over; otherwise remove it, and add it anew with an empty folder and id

A node that syncs less than `SyncEach` has promised nothing that a crash could break: it says so by not saying how far
its log is. A leader sends it again what it has lost.
"""

import logging
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from octopii.durability import SyncEach
from octopii.errors import LogFull
from octopii.raft import Compacted, Unavailable
from octopii.replica.identity import Held
from octopii.wire.requests import Acknowledged, Pulse

if TYPE_CHECKING:
    from octopii.replica.founding import PeerFacts
    from octopii.replica.replica import Replica

logger = logging.getLogger("octopii.replica")

LogEnd: TypeAlias = tuple[int, int]
"""Term and index of a log's last entry."""


class Promised(msgspec.Struct):
    """What a member is known to have had on disk: the end of its log, and the newest term it was in."""

    term: int
    end: LogEnd


class Quarantine:
    """The memory of one replica; see the module's text."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica
        self._speaks = isinstance(replica.config.fsync_schedule, SyncEach)
        self._own: LogEnd = (0, 0)  # the furthest end of this life: a snapshot may set the term back for a moment
        self._promised: dict[int, Promised] = {}
        self.members: dict[int, str] = {}
        """Members in quarantine, and what to say of each."""

    # --- itself -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The Raft core was made anew: hold it to what this node was told in an earlier life."""
        held = self._replica.identity.identity.held
        if held is not None:
            self._replica.raft.hold_to(term=held.term, log_term=held.log_term, log_index=held.log_index)
            self._look_at_itself()

    def told(self, peer: int, message: Acknowledged) -> None:
        """A member remembers more of this node's log than there is."""
        replica = self._replica
        raft, identity = replica.raft, replica.identity
        raft.hold_to(term=message.term, log_term=message.log_term, log_index=message.log_index)
        if not raft.has_lost_entries:
            return
        held = Held(message.term, message.log_term, message.log_index)
        try:
            identity.hold(held)
        except LogFull:
            logger.warning("node %d has no room to note what it has lost", replica.config.node_id)
        replica.writes.must_sync()
        logger.error("node %d says that this one has acknowledged entry %d", peer, message.log_index)
        self._look_at_itself()

    def _look_at_itself(self) -> None:
        replica = self._replica
        own, held = replica.config.node_id, replica.identity.identity.held
        if replica.raft.has_lost_entries and held is not None:
            self._name(own, held.log_index, replica.store.last_index())
        elif own in self.members:
            self._release(own)

    def pulse(self, *, disk_low: bool) -> Pulse:
        """What this node says of itself."""
        replica = self._replica
        identity = replica.identity.identity
        end, held = self._own, identity.held
        digest_index, digest = replica.divergence.newest
        failure = replica.applying.failure
        if self._speaks and identity.cluster_id:
            end = self._own = max(end, replica.raft.log_on_disk)
        self._look_at_itself()
        return Pulse(
            replica.wall,
            disk_low,
            identity.cluster_id,
            term=replica.raft.term,
            log_term=end[0],
            log_index=end[1],
            held_term=held.log_term if held is not None else 0,
            held_index=held.log_index if held is not None else 0,
            command_version=replica.versions.own,
            digest_index=digest_index,
            digest=digest,
            stopped_at=failure.index if failure is not None else 0,
        )

    # --- the others ---------------------------------------------------------------------------------------------

    def met(self, facts: "PeerFacts") -> None:
        """A member has come (back), with a log that ends where it says."""
        replica, peer = self._replica, facts.node_id
        end = (facts.last_term, facts.last_index)
        promised = self._promised.get(peer)
        if replica.leadership.is_leader:
            acknowledged = self._acknowledged_here(peer)
            if end < acknowledged:
                replica.raft.report_lost_entries(peer)
                if promised is not None:
                    promised.end = max(promised.end, acknowledged)
        if promised is None:
            return
        if end >= promised.end:
            self._release(peer)
            return
        term, (log_term, log_index) = promised.term, promised.end
        replica.outbox.send(peer, Acknowledged(term=term, log_term=log_term, log_index=log_index))
        self._name(peer, log_index, facts.last_index)

    def _acknowledged_here(self, peer: int) -> LogEnd:
        """The end of a member's log as far as this leader has seen it acknowledged."""
        match = self._replica.raft.match_index(peer)
        try:
            return self._replica.store.term(match), match
        except (Compacted, Unavailable):
            return 0, match

    def heard(self, peer: int, pulse: Pulse) -> None:
        """A member says how far its log is on disk, and how far it was."""
        end, held = (pulse.log_term, pulse.log_index), (pulse.held_term, pulse.held_index)
        newest = max(end, held)
        if newest == (0, 0) or peer not in self._replica.applying.roster.members:
            return
        promised = self._promised.setdefault(peer, Promised(pulse.term, newest))
        promised.term = max(promised.term, pulse.term)
        promised.end = max(promised.end, newest)
        if end >= promised.end:
            self._release(peer)
        elif held > end:
            self._name(peer, held[1], pulse.log_index)

    def roster_changed(self) -> None:
        """Who is a member no more owes nothing."""
        members = self._replica.applying.roster.members
        for peer in [peer for peer in self._promised if peer not in members]:
            del self._promised[peer]
            self._release(peer)

    # --- naming -------------------------------------------------------------------------------------------------

    def _name(self, node_id: int, acknowledged: int, last: int) -> None:
        text = (
            f"node {node_id} has acknowledged entry {acknowledged}, but its log ends at {last}: its disk lost durable "
            "data. Until it has caught up it does not campaign and votes only for who has those entries; should it "
            "stay so, remove it from the cluster and add it anew with an empty folder and a new id"
        )
        self.members[node_id] = text
        key = f"quarantine-{node_id}"
        if key not in self._replica.warnings:
            self._replica.warn(key, text)
        self._replica.warnings[key] = text

    def _release(self, node_id: int) -> None:
        if self.members.pop(node_id, None) is not None:
            self._replica.warnings.pop(f"quarantine-{node_id}", None)
            logger.warning("node %d has caught up with what it had lost", node_id)
