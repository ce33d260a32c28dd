"""What other nodes say, after the handshake has made sure who they are, and what a replica does about it."""

import logging
from typing import TYPE_CHECKING

from octopii.errors import LogFull, RemovedNode
from octopii.raft import Message, MessageType
from octopii.replica.work import PeerOrigin, PeerOutput
from octopii.wire import requests

if TYPE_CHECKING:
    from octopii.replica.replica import Replica

logger = logging.getLogger("octopii.replica")


_vote_requests = (MessageType.VOTE_REQUEST, MessageType.PRE_VOTE_REQUEST)
_from_leader = (MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT)


class Inbox:
    """The listening part of one replica."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica

    def receive(self, peer: int, message: PeerOutput) -> None:
        """Take one message."""
        replica = self._replica
        if isinstance(message, Message):
            self._receive_raft(peer, message)
        elif isinstance(message, requests.Pulse):
            if peer not in replica.joining.peers:
                return  # one stranger too many, that was forgotten
            replica.vitals.heard(
                peer,
                wall=message.wall,
                disk_low=message.disk_low,
                stopped_at=message.stopped_at,
                now=replica.now,
            )
            replica.joining.heard(peer, message.cluster_id)
            replica.quarantine.heard(peer, message)
            replica.versions.heard(peer, message.command_version)
            replica.divergence.heard(peer, message.digest_index, message.digest)
            if not message.cluster_id:
                self.empty_peer_is_there(peer)
        elif isinstance(message, requests.Forward):
            replica.news.follower_waits(peer, replica.now)
            replica.calls.take_forwarded(peer, message, replica.now)
        elif isinstance(message, requests.SnapshotWanted):
            replica.divergence.wanted(peer, message)
        elif isinstance(message, requests.ForwardRefused):
            replica.calls.forward_refused(message)
        elif isinstance(message, requests.Relay):
            replica.request(PeerOrigin(peer), message.request)
        elif isinstance(message, requests.Relayed):
            replica.admin.relayed(message)
        elif isinstance(message, requests.Removed):
            self._was_removed(message.index)
        elif isinstance(message, requests.Acknowledged):
            replica.quarantine.told(peer, message)
        else:
            self._receive_snapshot_message(peer, message)

    # --- Raft ---------------------------------------------------------------------------------------------------

    def _receive_raft(self, peer: int, message: Message) -> None:
        replica = self._replica
        if message.sender != peer or message.to != replica.config.node_id:
            return
        if message.type is MessageType.SNAPSHOT:
            return  # snapshots come as offers: the core hears of one when its state is here
        if replica.refused is not None and not (
            isinstance(replica.refused, RemovedNode) and message.type in _vote_requests
        ):
            return  # (who does not know yet that this node was removed may need its vote: thesis, section 4.2.2)
        if not replica.identity.empty and replica.joining.cluster_of(peer) != replica.identity.identity.cluster_id:
            return  # not one of us, or not yet: it says so with its next pulse
        if peer in replica.applying.roster.removed and message.type is not MessageType.APPEND_RESPONSE:
            replica.outbox.send(peer, requests.Removed(replica.applying.applied_index))
            return
        if replica.identity.empty and not self._adopt(peer, message.type):
            return
        if message.entries and (replica.disk.critical or replica.writes.blocked):
            if not replica.writes.blocked:  # else the disk has said so itself
                free = replica.disk.free
                replica.warn("disk", f"the disk is full ({free} bytes free): entries from the leader are not taken")
            return  # they would gather in memory
        replica.raft.step(message)

    def empty_peer_is_there(self, peer: int) -> None:
        """A member that is still empty answers no heartbeat, so this sign of life stands for the answer.

        Without it, the loss of the first append would leave the leader waiting, and the node outside, for ever. It
        confirms no round of heartbeats: the index is that of none.
        """
        replica = self._replica
        if replica.leadership.is_leader and peer in replica.raft.peers():
            own, term = replica.config.node_id, replica.raft.term
            replica.raft.step(Message(type=MessageType.HEARTBEAT_RESPONSE, sender=peer, to=own, term=term, index=0))

    def _adopt(self, peer: int, kind: MessageType) -> bool:
        """An empty node belongs to the cluster whose leader first calls on it; until then it hears nothing else."""
        replica = self._replica
        cluster_id = replica.joining.cluster_of(peer)
        if not cluster_id or kind not in _from_leader:
            return False
        try:
            replica.identity.adopt(cluster_id)
        except LogFull:
            return False
        replica.writes.must_sync()
        replica.joining.adopted()
        replica.upkeep.pulse()
        logger.info("node %d joins cluster %s", replica.config.node_id, cluster_id.hex())
        return True

    def _was_removed(self, index: int) -> None:
        node_id = self._replica.config.node_id
        self._replica.refuse(
            RemovedNode(f"node {node_id} was removed from the cluster (by entry {index} at the latest)")
        )

    # --- snapshots ----------------------------------------------------------------------------------------------

    def _receive_snapshot_message(self, peer: int, message: PeerOutput) -> None:
        replica = self._replica
        if replica.refused is not None:
            return
        if isinstance(message, requests.SnapshotOffer):
            self._offered(peer, message)
        elif isinstance(message, requests.SnapshotChunk):
            replica.receiver.chunk(peer, message)
        elif isinstance(message, requests.SnapshotResume):
            replica.senders.resume(peer, message, replica.now)
        elif isinstance(message, requests.SnapshotProgress):
            replica.senders.progress(peer, message, replica.now)
        elif isinstance(message, requests.SnapshotDone):
            replica.senders.done(peer, message, replica.now)
        elif isinstance(message, requests.SnapshotRefused):
            logger.warning("node %d refused a snapshot: %s", peer, message.text)
            replica.senders.refused(peer)

    def _offered(self, peer: int, offer: requests.SnapshotOffer) -> None:
        replica = self._replica
        if replica.identity.empty and not self._adopt(peer, MessageType.SNAPSHOT):
            return
        if offer.term < replica.raft.term:
            return  # from a leader that is none any more
        if replica.disk.free < offer.size + replica.config.disk_reserve_bytes:
            text = f"node {replica.config.node_id} has no room for {offer.size} bytes ({replica.disk.free} free)"
            replica.outbox.send(peer, requests.SnapshotRefused(text))
            return
        replica.receiver.offered(peer, offer)
