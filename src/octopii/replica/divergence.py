"""Replicas whose state machines have come apart: found, named, stopped, and, if so chosen, set right.

Equal commands in equal order give equal answers, unless a machine is not deterministic, a disk or a memory lies, or a
program differs. So every replica keeps a running digest of all answers it has given, and now and then the leader
writes an entry (`CompareDigests`) at which each notes that digest, and that of the state if the machine has one. All
members tell each other with their pulses, and each judges for itself:

    a majority of the voters agrees        who differs from it, voter or learner, is named in every member's status
    no majority can agree any more         everybody says so; nobody can tell who is right, so nobody stops or resyncs
    this node differs from a majority      it stops serving, and hands leadership over if it has it. It keeps its log,
                                           its vote, and its word: those are not what has gone wrong

With `on_divergence="resync"` it then asks the leader for a snapshot that is no older than the comparison, replaces its
state by it, and applies from its own log what came after. The digest in the snapshot goes on, so the node is compared
like any other from then on. Without, it stays stopped; at a restart it replays, and is compared again.
"""

import logging
from collections import Counter
from typing import TYPE_CHECKING

from octopii.replica.jobs import Applied, Cause, LocalFailure, Manifest
from octopii.wire.codec import CompareDigests
from octopii.wire.requests import SnapshotWanted

if TYPE_CHECKING:
    from octopii.replica.replica import Replica

logger = logging.getLogger("octopii.replica")

max_compared = 16
"""Comparisons that are remembered: a member may be that many behind, and is still compared."""

answers_bytes = 8
"""Of a digest, the bytes over the answers; those over the state follow."""


class Divergence:
    """The comparing part of one replica; see the module's text."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica
        self._config = replica.config
        self._digests: dict[int, dict[int, bytes]] = {}  # by index, then by member
        self._judged: dict[int, int] = {}  # member -> newest index at which it was compared with a majority
        self.differing: dict[int, str] = {}  # member -> what is wrong with it
        self.agreed_index = 0  # newest index at which a majority agreed
        self.newest: tuple[int, bytes] = (0, b"")  # of this node
        self._uncompared = True  # whether commands were applied since the last comparison
        self._next_compare = replica.now
        self._next_ask = replica.now
        self._wanted = 0  # least index of the snapshot that replaces a state gone wrong; 0: none is wanted
        self._received: Manifest | None = None

    # --- comparing ----------------------------------------------------------------------------------------------

    def applied(self, result: Applied) -> None:
        """Entries were applied here."""
        if result.answers:
            self._uncompared = True
        for index, digest in result.digests:
            self._uncompared = False
            self.newest = (index, digest)
            self._note(self._config.node_id, index, digest)

    def heard(self, peer: int, index: int, digest: bytes) -> None:
        """A peer tells its newest digests."""
        if index and peer in self._replica.applying.roster.members:
            self._note(peer, index, digest)

    def _note(self, member: int, index: int, digest: bytes) -> None:
        if index not in self._digests:
            if len(self._digests) >= max_compared:
                oldest = min(self._digests)
                if index < oldest:
                    return
                del self._digests[oldest]
            self._digests[index] = {}
        if self._digests[index].get(member) != digest:
            self._digests[index][member] = digest
            self._judge(index)

    def _judge(self, index: int) -> None:
        """Compare all that is known of one index."""
        conf, digests = self._replica.conf_state, self._digests[index]
        right: bytes | None = None
        for voters in (conf.voters, conf.voters_outgoing):  # in a joint membership both majorities have to agree
            if not voters:
                continue
            told = Counter(digests[voter] for voter in voters if voter in digests)
            if not told:
                return
            digest, count = told.most_common(1)[0]
            silent = len(voters) - told.total()
            if 2 * (count + silent) <= len(voters):
                self._no_majority(index, voters)
                return
            if 2 * count <= len(voters) or right not in (None, digest):
                return
            right = digest
        if right is not None:
            self.agreed_index = max(self.agreed_index, index)
            self._compare_with(right, index)

    def _no_majority(self, index: int, voters: list[int]) -> None:
        digests = self._digests[index]
        told = ", ".join(f"node {voter}: {digests[voter].hex()}" for voter in voters if voter in digests)
        self._replica.warn(
            "divergence", f"the state machines have come apart, and no majority agrees as of entry {index}: {told}"
        )

    def _compare_with(self, right: bytes, index: int) -> None:
        digests = self._digests[index]
        agreeing = sorted(member for member, digest in digests.items() if digest == right)
        self._replica.warnings.pop("divergence", None)
        for member, digest in digests.items():
            if self._judged.get(member, 0) > index:
                continue
            self._judged[member] = index
            if digest == right:
                if self.differing.pop(member, None) is not None:
                    self._replica.warnings.pop(f"divergence-{member}", None)
                continue
            what = "answers" if digest[:answers_bytes] != right[:answers_bytes] else "state"
            self._differs(member, index, f"its {what} differ from those of nodes {', '.join(map(str, agreeing))}")

    def _differs(self, member: int, index: int, what: str) -> None:
        replica, own = self._replica, self._config.node_id
        text = f"the state machine of node {member} has come apart from the others as of entry {index}: {what}"
        self.differing[member] = text
        replica.warn(f"divergence-{member}", text)
        if member == own and replica.applying.failure is None:
            replica.applying.stop(LocalFailure(index, text, Cause.DIVERGENCE))
            if self._config.on_divergence == "resync":
                # Beyond whatever snapshot of the wrong state there is here, or is being written.
                self._wanted = max(index, replica.applying.handed_index + 1)
                self._next_ask = replica.now

    # --- by the clock -------------------------------------------------------------------------------------------

    def leadership_changed(self) -> None:
        """A new leader compares when the interval is over, whatever the last one did."""
        self._next_compare = self._replica.now + self._config.digest_interval
        self._uncompared = True

    def tick(self, now: float) -> None:
        """As leader have digests compared; as one that has come apart ask for a snapshot, and use it."""
        replica = self._replica
        applies = replica.applying.failure is None
        if replica.leadership.is_leader and applies and self._uncompared and now >= self._next_compare:
            self._next_compare = now + self._config.digest_interval
            replica.calls.system(CompareDigests(), now)
        if self._received is not None:
            self._use(self._received)
        elif self._wanted and not replica.applying.restoring and now >= self._next_ask:
            self._ask(now)

    # --- resync, on the node that has come apart ----------------------------------------------------------------

    @property
    def own(self) -> bool:
        """Whether it is this node that has come apart."""
        return self._config.node_id in self.differing

    @property
    def resyncing(self) -> bool:
        """Whether a snapshot is wanted in place of the state."""
        return self._wanted > 0

    def takes(self, index: int) -> bool:
        """Whether a snapshot at an index replaces the state although the log reaches beyond it."""
        return 0 < self._wanted <= index

    def _ask(self, now: float) -> None:
        """Ask the leader, if it is known to be right itself; again and again, until a snapshot is there."""
        replica = self._replica
        leader = replica.leadership.leader
        self._next_ask = now + self._config.election_timeout
        if leader in replica.connected and leader not in self.differing and leader in self._judged:
            replica.outbox.send(leader, SnapshotWanted(self._wanted))

    def received(self, manifest: Manifest) -> None:
        """A snapshot from the leader is durable here."""
        if self.takes(manifest.index):
            self._received = manifest

    def _use(self, manifest: Manifest) -> None:
        """Replace the state, once the log up to the snapshot was handed out; one beyond the log the core installs."""
        applying = self._replica.applying
        if applying.restoring or manifest.index > applying.handed_index:
            return
        self._received = None
        if applying.can_go_back_to(manifest):
            logger.warning("node %d replaces its state by a snapshot at entry %d", self._config.node_id, manifest.index)
            applying.go_back_to(manifest)
        else:
            self._wanted = applying.handed_index + 1  # too much has been applied since

    def restored(self, manifest: Manifest) -> None:
        """The state was replaced by a snapshot."""
        if not self.takes(manifest.index):
            return
        self._wanted, self._received = 0, None
        own = self._config.node_id
        self.differing.pop(own, None)
        self._replica.warnings.pop(f"divergence-{own}", None)
        self._replica.applying.recovered()

    # --- resync, on the leader ----------------------------------------------------------------------------------

    def wanted(self, peer: int, message: SnapshotWanted) -> None:
        """As leader: a member asks for a snapshot no older than an index."""
        replica = self._replica
        if not replica.leadership.is_leader or replica.applying.failure is not None or peer in replica.senders.peers:
            return
        newest = replica.snapshots.newest
        if newest is not None and newest.index >= message.index:
            replica.senders.begin(peer, term=replica.raft.term, now=replica.now)
        elif replica.applying.applied_index >= message.index:
            replica.upkeep.force_snapshot(f"node {peer} has come apart and takes its state from here")
        else:
            replica.calls.system(CompareDigests(), replica.now)  # any entry will do, to get there
