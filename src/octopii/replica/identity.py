"""Who this node is: its storage's own number, the cluster it belongs to, and how a cluster is founded.

Each folder gets a random storage id when it is first opened. A folder is *empty* until it belongs to a cluster, either
because it founded one or because a leader of one appended to it. An empty node neither votes nor campaigns.

Founding. The initial leader waits until a majority of the configured members, itself included, is known to be empty:
then nobody else can have a majority to found another cluster with. One peer that belongs to a cluster already is an
error: either this node was wiped, or an address is wrong.

The topic `membership` keeps the newest committed membership with the roster, so that a node that restarts knows whom to
talk to, and which quorum counts, before anything is committed anew. It is on disk before the node acknowledges anything
behind the change: else a node that forgot, in a restart, that a change was committed could be elected by the old quorum
while the next change has already been committed by the new one.
"""

import msgspec

from octopii.config import Config
from octopii.errors import ConfigError, LogFull, RefusedError
from octopii.raft import ConfState
from octopii.replica.records import last_record
from octopii.replica.roster import Roster
from octopii.walrus import Log
from octopii.wire.codec import Found, MemberFact, decoded
from octopii.wire.frames import MalformedMessage

ID_BYTES = 16
"""Length of a storage id, and of a cluster id."""


class Held(msgspec.Struct, array_like=True, frozen=True):
    """What this node is known to have acknowledged before its disk lost some of it: in `term`, a log that ends so."""

    term: int
    log_term: int
    log_index: int


class Identity(msgspec.Struct, array_like=True, frozen=True):
    """What the topic `identity` says; `cluster_id` is empty while the node belongs to no cluster.

    `machine` is the name of the class whose state the log is, as of the last start; empty where nobody has said.
    """

    node_id: int
    storage_id: bytes
    cluster_id: bytes = b""
    held: Held | None = None
    machine: str = ""


class Membership(msgspec.Struct, array_like=True, frozen=True):
    """The membership as of entry `index`, which is committed; `roster` has the addresses as of entry `applied`."""

    index: int
    conf_state: ConfState
    roster: Roster
    applied: int = 0


_identity_decoder = msgspec.msgpack.Decoder(Identity)
_membership_decoder = msgspec.msgpack.Decoder(Membership)


def decode_identity(record: bytes) -> Identity:
    """What a record of the topic `identity` says; raises `MalformedMessage`."""
    identity = decoded(_identity_decoder, record, "identity")
    if identity.node_id < 1 or len(identity.cluster_id) > ID_BYTES or len(identity.storage_id) != ID_BYTES:
        raise MalformedMessage(f"identity: node {identity.node_id}, storage id of {len(identity.storage_id)} bytes")
    return identity


def decode_membership(record: bytes) -> Membership:
    """What a record of the topic `membership` says; raises `MalformedMessage`."""
    return decoded(_membership_decoder, record, "membership")


class IdentityStore:
    """The topics `identity` and `membership` of one node."""

    def __init__(self, log: Log, *, prefix: str, node_id: int, new_storage_id: bytes) -> None:
        self._walrus = log
        self._identity_topic = f"{prefix}/identity"
        self._membership_topic = f"{prefix}/membership"
        self.identity = Identity(node_id, new_storage_id)
        identity = last_record(log, self._identity_topic, decode_identity)
        if identity is None:
            self._save_identity(self.identity)
        else:
            self.identity = identity
        if self.identity.node_id != node_id:
            raise ConfigError(
                f"the folder {log.path} belongs to node {self.identity.node_id}, not to node {node_id}: "
                "give each node a folder of its own",
                field="wal_dir",
            )
        self.membership = last_record(log, self._membership_topic, decode_membership)

    @property
    def empty(self) -> bool:
        """Whether the node belongs to no cluster yet."""
        return not self.identity.cluster_id

    def run_by(self, machine: str) -> str:
        """Note the state machine's class from now on; returns what is to be said if it was another at the last start.

        It may be the same one under a new name, or a slip that costs the state with the next snapshot.
        """
        before = self.identity.machine
        if machine in ("", before):
            return ""
        try:
            self._save_identity(msgspec.structs.replace(self.identity, machine=machine))
        except LogFull:
            return ""  # the next start says it
        if not before:
            return ""
        return (
            f"the folder {self._walrus.path} of node {self.identity.node_id} was run by the state machine {before}, "
            f"and now {machine} runs it: unless that is its new name, stop the node at once, and start it with "
            f"{before} (--machine)"
        )

    def forget_membership(self) -> None:
        """Begin anew: nothing that was written counts, because the node never came to belong to a cluster."""
        self.membership = None

    def adopt(self, cluster_id: bytes) -> None:
        """Belong to a cluster from now on; durable with the next sync. Raises `LogFull`."""
        self._save_identity(msgspec.structs.replace(self.identity, cluster_id=cluster_id))

    def hold(self, held: Held) -> None:
        """Note what this node has lost; durable with the next sync. Raises `LogFull`."""
        known = self.identity.held
        if known is not None:
            known_end = (known.log_term, known.log_index)
            log_term, log_index = max(known_end, (held.log_term, held.log_index))
            held = Held(max(known.term, held.term), log_term, log_index)
        if held != known:
            self._save_identity(msgspec.structs.replace(self.identity, held=held))

    def _save_identity(self, identity: Identity) -> None:
        _replace(self._walrus, self._identity_topic, msgspec.msgpack.encode(identity))
        self.identity = identity

    def save_membership(self, membership: Membership) -> None:
        """Keep the newest membership; durable with the next sync. Raises `LogFull`."""
        _replace(self._walrus, self._membership_topic, msgspec.msgpack.encode(membership))
        self.membership = membership


class Founding:
    """Whether the initial leader may found its cluster yet."""

    def __init__(self, config: Config, *, storage_id: bytes) -> None:
        self._config = config
        self._storage_id = storage_id
        self._empty_peers: dict[int, bytes] = {}

    def heard(self, peer: int, *, storage_id: bytes, cluster_id: bytes) -> None:
        """A configured peer has said what it is; raises `RefusedError` when it already belongs to a cluster."""
        if peer not in self._config.peers:
            return
        if cluster_id:
            raise RefusedError(
                f"node {self._config.node_id} is to found a cluster (is_initial_leader), but node {peer} at "
                f"{self._config.peers[peer]} already belongs to cluster {cluster_id.hex()}. If that is the cluster to "
                "join, start this node again without --initial-leader (is_initial_leader when embedded); if the "
                "address is wrong, correct it; if this node lost its disk, start it under a new id as a learner"
            )
        self._empty_peers[peer] = storage_id

    @property
    def may_found(self) -> bool:
        """Whether a majority of the members, this one included, is known to be empty."""
        members = len(self._config.peers) + 1
        return 2 * (len(self._empty_peers) + 1) > members

    def entry(self, cluster_id: bytes) -> Found:
        """What entry 1 says; the first member is the founder, who is the only voter to begin with."""
        config = self._config
        founder = MemberFact(config.node_id, config.advertised_addr, self._storage_id)
        others = [
            MemberFact(peer, address, self._empty_peers.get(peer, b""))
            for peer, address in sorted(config.peers.items())
        ]
        return Found(cluster_id=cluster_id, members=[founder, *others])


def _replace(log: Log, topic: str, record: bytes) -> None:
    """Append a record and let go of all but the one before it: that one counts until this one is durable."""
    offset = log.append_for_topic(topic, record, urgent=True)
    if offset > 1:
        log.trim(topic, offset - 1)
