"""How a node comes to be in a cluster: meeting its peers, founding, admitting storages, following addresses.

Founding, step by step. The initial leader meets its peers and waits until a majority of the configured members is known
to be empty. It then writes entry 1 (cluster id, addresses, storage ids), by which it is the only voter, and only when
that is on disk, that it belongs to the new cluster: a crash between leaves a node that is still empty. It elects itself
and brings the others in: first as learners, and when a majority of all has entries on disk, as voters. (An empty node
does not vote, so making it a voter at once might leave a cluster that cannot elect anybody.) No call is taken before
that, so that nothing is ever acknowledged on one disk alone. Should two nodes found a cluster each, only one of the two
can bring a majority in.
"""

import logging
from typing import TYPE_CHECKING

import msgspec

from octopii.errors import RefusedError, RemovedNode, WipedNode, WrongCluster
from octopii.raft import (
    ChangeOperation,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MembershipChange,
    MembershipStep,
    ProposalDropped,
    Transition,
)
from octopii.replica.identity import Founding, Membership
from octopii.replica.roster import Roster
from octopii.wire.codec import AdmitStorage, EntryPayload, UpdateAddress, encode_entry, encode_members
from octopii.wire.handshake import Hello

if TYPE_CHECKING:
    from octopii.replica.replica import Replica

logger = logging.getLogger("octopii.replica")

CLUSTER_ID_BYTES = 16

waiting_elections = 4
"""Election timeouts after which a node says what it waits for: without a cluster, and again once it has met one."""


class PeerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer said of itself in the handshake."""

    node_id: int
    storage_id: bytes
    cluster_id: bytes
    address: str
    last_index: int
    last_term: int
    python_minor: int = 0


def facts_of(hello: Hello) -> PeerFacts:
    """What a node's hello says of it."""
    return PeerFacts(
        node_id=hello.node_id,
        storage_id=hello.storage_id,
        cluster_id=hello.cluster_id,
        address=hello.address,
        last_index=hello.last_index,
        last_term=hello.last_term,
        python_minor=hello.python_minor,
    )


class Joining:
    """The meeting part of one replica."""

    def __init__(self, replica: "Replica", founding: Founding | None) -> None:
        self._replica = replica
        self._founding = founding
        self._waits_since = replica.now
        self._met_cluster = False
        replica.leadership.outside = replica.identity.empty
        self.peers: dict[int, PeerFacts] = {}

    # --- meeting ------------------------------------------------------------------------------------------------

    def met(self, facts: PeerFacts) -> None:
        """A handshake with a peer succeeded."""
        replica = self._replica
        self.peers.pop(facts.node_id, None)
        self.peers[facts.node_id] = facts
        self._forget_strangers()
        self._tell_founding(facts)
        if replica.leadership.is_leader:
            self._learn_about(facts)

    def _forget_strangers(self) -> None:
        """Remember no more nodes than may be connected at once: without TLS anybody may come, under ever new ids.

        Those that are connected are forgotten last. Members are not, nor is whoever leads: to a node that has no
        cluster yet all others are strangers.
        """
        replica = self._replica
        if len(self.peers) <= replica.config.max_connections:
            return
        known = replica.applying.roster.members.keys() | replica.config.peers.keys() | {*replica.raft.peers()}
        known |= {replica.leadership.leader}
        strangers = [peer for peer in self.peers if peer not in known][:-1]  # not the newest
        if strangers:
            oldest = next((peer for peer in strangers if peer not in replica.connected), strangers[0])
            del self.peers[oldest]
            replica.vitals.forget(oldest)
            replica.versions.lost(oldest)
            for about in ("refused-by", "python"):
                replica.warnings.pop(f"{about}-{oldest}", None)

    def heard(self, peer: int, cluster_id: bytes) -> None:
        """A peer says which cluster it belongs to by now."""
        facts = self.peers.get(peer)
        if facts is None or facts.cluster_id == cluster_id:
            return
        self.peers[peer] = facts = msgspec.structs.replace(facts, cluster_id=cluster_id)
        own = self._replica.identity.identity.cluster_id
        if own and cluster_id and cluster_id != own:
            text = f"node {peer} belongs to cluster {cluster_id.hex()}, this node to cluster {own.hex()}"
            self.refused_by(peer, WrongCluster(text), facts.address)
        self._tell_founding(facts)

    def cluster_of(self, peer: int) -> bytes:
        """The cluster that a peer belongs to, as far as it has said; empty for none."""
        facts = self.peers.get(peer)
        return facts.cluster_id if facts is not None else b""

    def _tell_founding(self, facts: PeerFacts) -> None:
        if self._founding is None:
            return
        try:
            self._founding.heard(facts.node_id, storage_id=facts.storage_id, cluster_id=facts.cluster_id)
        except RefusedError as error:
            self._founding = None
            self._replica.refuse(error)

    def refused_by(self, peer: int, error: RefusedError, address: str) -> None:
        """A peer does not want to talk to this node, or who is at its address."""
        replica, own = self._replica, self._replica.config.node_id
        if isinstance(error, WipedNode | RemovedNode):
            if replica.identity.empty:  # so nothing says yet that it means that cluster
                error = type(error)(
                    f"{address} lets node {own} not in. Is this the right address of node {peer}, and of the cluster "
                    f"that you mean? If it is: {error}"
                )
            replica.refuse(error)
            return
        hint = ""
        if isinstance(error, WrongCluster) and replica.leadership.is_leader and not self.complete:
            hint = (
                ". Was another node started as initial leader, too? Then empty one of the two folders, and start again"
            )
        text = f"node {own} has no connection with node {peer} at {address}: {error}{hint}"
        replica.warn(f"refused-by-{peer}", text)

    def leadership_changed(self) -> None:
        """A new leader begins with what it knows of its peers."""
        if self._replica.leadership.is_leader:
            self._lead()

    def _learn_about(self, facts: PeerFacts) -> None:
        """As leader: put into the log what the handshake said and the roster does not know yet."""
        replica = self._replica
        member = replica.applying.roster.members.get(facts.node_id)
        if member is None:
            return
        if not member.storage_id and facts.storage_id:
            replica.calls.system(AdmitStorage(facts.node_id, facts.storage_id), replica.now)
        if facts.address and member.address != facts.address:
            replica.calls.system(UpdateAddress(facts.node_id, facts.address), replica.now)

    def _lead(self) -> None:
        """This node leads now: catch up with what it knows of its peers and of itself."""
        replica, config = self._replica, self._replica.config
        own = replica.applying.roster.members.get(config.node_id)
        if own is not None and own.address != config.advertised_addr:
            replica.calls.system(UpdateAddress(config.node_id, config.advertised_addr), replica.now)
        for node_id in sorted(replica.connected):
            if node_id in self.peers:
                self._learn_about(self.peers[node_id])

    # --- founding -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Found the cluster when it may be founded; go on with bringing the others in."""
        founding = self._founding
        if founding is not None and founding.may_found and self._replica.identity.empty:
            self._founding = None
            self._found(founding, self._replica.rng.randbytes(CLUSTER_ID_BYTES))
        self._say_what_is_missing()
        if self._replica.leadership.is_leader and not self.complete:
            self._bring_in()

    def _say_what_is_missing(self) -> None:
        """A node that stays without a cluster was perhaps started wrongly: it says what it waits for."""
        replica, config = self._replica, self._replica.config
        if not self._met_cluster and any(facts.cluster_id for facts in self.peers.values()):
            self._met_cluster = True
            self._waits_since = replica.now  # it may bring its founding members in by itself
            replica.warnings.pop("waiting", None)
        if not replica.identity.empty:
            replica.warnings.pop("waiting", None)
        elif replica.now - self._waits_since > waiting_elections * config.election_timeout:
            who = f"node {config.node_id} belongs to no cluster yet: it waits"
            if self._founding is not None:
                met = sorted(self.peers.keys() & config.peers.keys())
                replica.warn(
                    "waiting", f"{who} to meet a majority, and of its peers {sorted(config.peers)} has met {met}"
                )
            elif self._met_cluster:
                address = config.advertised_addr
                replica.warn("waiting", f"{who} to be brought in with: octopii member add {config.node_id} {address}")
            else:
                replica.warn("waiting", f"{who} for the one node that is started with --initial-leader")

    def adopted(self) -> None:
        """The node belongs to a cluster, its own or one that another node founded."""
        self._founding = None
        self._replica.leadership.outside = False

    @property
    def complete(self) -> bool:
        """Whether all founding members are voters; calls wait until then."""
        return not self._replica.applying.roster.founding

    def _found(self, founding: Founding, cluster_id: bytes) -> None:
        replica = self._replica
        found = founding.entry(cluster_id)
        data = encode_entry(EntryPayload(replica.wall, [found]))
        replica.store.append([Entry(term=1, index=1, kind=EntryKind.NORMAL, data=data)])
        replica.store.save_hard_state(HardState(term=1, vote=0))
        roster = Roster()
        roster.found(found)
        conf_state = ConfState(voters=[replica.config.node_id])
        replica.identity.save_membership(Membership(index=1, conf_state=conf_state, roster=roster))
        replica.writes.sync_now()
        replica.identity.adopt(cluster_id)
        self.adopted()
        replica.writes.sync_now()
        replica.upkeep.pulse()
        logger.info("node %d founds cluster %s", replica.config.node_id, cluster_id.hex())
        replica.founded()

    def _bring_in(self) -> None:
        """Make all founding members learners, then voters; tried until it is in the log."""
        replica = self._replica
        roster, conf = replica.applying.roster, replica.conf_state
        if conf.voters_outgoing:
            return  # they are on their way
        strangers = sorted(roster.founding - {*conf.voters, *conf.learners})
        if strangers:
            steps = [MembershipStep(ChangeOperation.ADD_LEARNER, peer) for peer in strangers]
        else:
            present = [peer for peer in conf.learners if replica.raft.match_index(peer) > 0]
            if 2 * (len(conf.voters) + len(present)) <= len(roster.members):
                return
            steps = [MembershipStep(ChangeOperation.ADD_VOTER, peer) for peer in sorted(roster.founding)]
        change = MembershipChange(transition=Transition.AUTO, steps=steps, context=encode_members([]))
        try:
            replica.raft.propose_membership(change)
        except ProposalDropped:
            return
