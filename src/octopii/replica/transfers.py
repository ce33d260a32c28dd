"""Snapshots on their way between nodes: the sender's and the receiver's half.

    leader                                      follower
    SnapshotOffer(term, manifest, size)  ->
                                         <-     SnapshotResume(position)        0, or where it broke off
    SnapshotChunk(position, data) ...    ->
                                         <-     SnapshotProgress(position)      opens the window
                                         <-     SnapshotDone(index)             verified, renamed, handed to Raft

The Raft core says when a peer needs a snapshot and is told how it ended; the bytes never pass through it. Nothing here
is bound to a call's timeout. A connection that breaks leaves both halves where they are: the offer is made again, and
the transfer goes on at the position that the follower names. The same is done when nothing was heard for a while.
"""

import logging
from collections.abc import Callable

import msgspec

from octopii.config import Config
from octopii.raft import Message, MessageType, Snapshot, SnapshotMetadata
from octopii.replica.jobs import Manifest
from octopii.replica.snapshots import Incoming, Payload, SnapshotStore, decode_manifest, encode_manifest
from octopii.replica.work import Outbox
from octopii.wire.codec import short_text
from octopii.wire.frames import MalformedMessage
from octopii.wire.requests import (
    SnapshotChunk,
    SnapshotDone,
    SnapshotOffer,
    SnapshotProgress,
    SnapshotRefused,
    SnapshotResume,
)

logger = logging.getLogger("octopii.replica")

patience_elections = 4
"""Election timeouts without progress after which an offer is made again."""

give_up_offers = 10
"""Offers without any progress between them after which a transfer counts as failed (Raft will ask again)."""


class Sending(msgspec.Struct):
    """A snapshot on its way to one peer; positions are bytes of its payload."""

    manifest: Manifest
    payload: Payload
    term: int
    began: float
    heard: float
    sent: int = -1
    confirmed: int = 0
    offers: int = 1


class Senders:
    """The leader's half. `finished(peer, ok)` tells the Raft core."""

    def __init__(
        self, config: Config, outbox: Outbox, store: SnapshotStore, finished: Callable[[int, bool], None]
    ) -> None:
        self._config = config
        self._outbox = outbox
        self._store = store
        self._finished = finished
        self._sending: dict[int, Sending] = {}

    def begin(self, peer: int, *, term: int, now: float) -> None:
        """Offer the newest snapshot to a peer, in place of any that is on its way there."""
        self.stop(peer)
        manifest = self._store.newest
        if manifest is None:
            self._finished(peer, False)
            return
        sending = Sending(manifest=manifest, payload=self._store.open(manifest), term=term, began=now, heard=now)
        self._sending[peer] = sending
        self._offer(peer, sending)

    def _offer(self, peer: int, sending: Sending) -> None:
        manifest = sending.manifest
        sending.sent = -1
        self._outbox.send(
            peer,
            SnapshotOffer(
                term=sending.term,
                index=manifest.index,
                manifest=encode_manifest(manifest),
                size=manifest.size,
                checksum=manifest.checksum.to_bytes(8, "little"),
            ),
        )

    def resume(self, peer: int, message: SnapshotResume, now: float) -> None:
        """The peer wants the bytes from a position on."""
        sending = self._sending.get(peer)
        if sending is None or message.position > sending.manifest.size:
            return
        sending.sent = sending.confirmed = message.position
        self._heard(sending, now)
        self._fill(peer, sending)

    def progress(self, peer: int, message: SnapshotProgress, now: float) -> None:
        """The peer has all bytes below a position."""
        sending = self._sending.get(peer)
        if sending is None or sending.sent < 0 or message.position > sending.sent:
            return
        sending.confirmed = max(sending.confirmed, message.position)
        self._heard(sending, now)
        self._fill(peer, sending)

    @staticmethod
    def _heard(sending: Sending, now: float) -> None:
        sending.heard = now
        sending.offers = 0

    def _fill(self, peer: int, sending: Sending) -> None:
        """Send chunks until the window is full."""
        chunk, window = self._config.snapshot_chunk_bytes, self._config.snapshot_window_bytes
        size = sending.manifest.size
        while sending.sent < size and sending.sent - sending.confirmed + chunk <= window:
            data = sending.payload.read(sending.sent, min(chunk, size - sending.sent))
            self._outbox.send(peer, SnapshotChunk(sending.sent, data))
            sending.sent += len(data)

    def done(self, peer: int, message: SnapshotDone, now: float) -> None:
        """The peer has it all."""
        sending = self._sending.get(peer)
        if sending is not None and message.index >= sending.manifest.index:
            manifest = sending.manifest
            logger.info(
                "node %d was sent a snapshot of %d bytes at entry %d in %.1f s",
                peer,
                manifest.size,
                manifest.index,
                now - sending.began,
            )
            self.stop(peer)
            self._finished(peer, True)

    def refused(self, peer: int) -> None:
        """The peer does not want it, or could not take it."""
        if peer in self._sending:
            self.stop(peer)
            self._finished(peer, False)

    def connected(self, peer: int) -> None:
        """The peer is there (again): say once more what there is for it."""
        sending = self._sending.get(peer)
        if sending is not None:
            self._offer(peer, sending)

    def tick(self, now: float) -> None:
        """Offer again where nothing was heard for a while; give up where that did not help."""
        patience = patience_elections * self._config.election_timeout
        for peer, sending in list(self._sending.items()):
            if now - sending.heard <= patience:
                continue
            if sending.offers >= give_up_offers:
                self.refused(peer)
                continue
            sending.offers += 1
            sending.heard = now
            self._offer(peer, sending)

    def stop(self, peer: int) -> None:
        """Forget a transfer."""
        sending = self._sending.pop(peer, None)
        if sending is not None:
            sending.payload.close()

    def stop_all(self) -> None:
        """Leadership is gone: the next leader sends its own."""
        for peer in list(self._sending):
            self.stop(peer)

    @property
    def peers(self) -> list[int]:
        """Who is being sent a snapshot."""
        return list(self._sending)

    @property
    def files_in_use(self) -> frozenset[str]:
        """Payload files that must not be deleted."""
        return frozenset(sending.manifest.file_name for sending in self._sending.values())

    @property
    def lowest_index(self) -> int | None:
        """Index of the oldest snapshot on its way: the log behind it is still needed."""
        return min((sending.manifest.index for sending in self._sending.values()), default=None)


class Receiver:
    """The follower's half: one snapshot at a time, the newest offered wins.

    `is_needed` tells of an index whether a snapshot there is of use: the log does not hold it already, or the state
    that came of it is to be replaced. When a payload is complete, `record(manifest)` is called to make its manifest
    durable, and only after `durable` does `step` hand the snapshot to the Raft core: the log is thrown away for it, so
    it has to count by then.
    """

    def __init__(
        self,
        node_id: int,
        outbox: Outbox,
        store: SnapshotStore,
        *,
        is_needed: Callable[[int], bool],
        record: Callable[[Manifest], bool],
        step: Callable[[Message], None],
    ) -> None:
        self._node_id = node_id
        self._outbox = outbox
        self._store = store
        self._is_needed = is_needed
        self._record = record
        self._step = step
        self._incoming: Incoming | None = None
        self._recorded: Manifest | None = None
        self._from = 0
        self._term = 0
        self._handed_over: dict[int, Manifest] = {}

    def offered(self, peer: int, message: SnapshotOffer) -> None:
        """A leader has a snapshot for this node."""
        try:
            manifest = decode_manifest(message.manifest)
        except MalformedMessage as error:
            self._outbox.send(peer, SnapshotRefused(short_text(str(error))))
            return
        if manifest.index != message.index or manifest.size != message.size:
            text = f"{manifest.size} bytes at entry {manifest.index}, offered as {message.size} at {message.index}"
            self._outbox.send(peer, SnapshotRefused(text))
            return
        self._from, self._term = peer, message.term
        newest = self._store.newest
        if self._recorded is not None:
            return  # it is answered as soon as that one is durable
        if not self._is_needed(manifest.index) or (newest is not None and _same(newest, manifest)):
            self._hand_over(manifest)
            return
        incoming = self._incoming
        if incoming is None or not _same(incoming.manifest, manifest):
            if incoming is not None:
                incoming.abandon()
                self._incoming = None
            try:
                self._incoming = incoming = self._store.receive(manifest)
            except OSError as error:
                self._outbox.send(peer, SnapshotRefused(short_text(str(error))))
                return
        self._outbox.send(peer, SnapshotResume(incoming.position))
        if incoming.complete:
            self._finish(peer, incoming)

    def chunk(self, peer: int, message: SnapshotChunk) -> None:
        """A run of bytes has come."""
        incoming = self._incoming
        if incoming is None or peer != self._from:
            return
        try:
            if not incoming.add(message.position, bytes(message.data)):
                return
        except OSError as error:
            self.close()
            self._outbox.send(peer, SnapshotRefused(short_text(str(error))))
            return
        self._outbox.send(peer, SnapshotProgress(incoming.position))
        if incoming.complete:
            self._finish(peer, incoming)

    def _finish(self, peer: int, incoming: Incoming) -> None:
        self._incoming = None
        if not self._is_needed(incoming.manifest.index):
            # The entries have come meanwhile. This node may have a snapshot of its own there, of the same name.
            incoming.abandon()
            self._hand_over(incoming.manifest)
            return
        try:
            trouble = "" if incoming.finish() else "the checksum over the whole snapshot is wrong"
        except OSError as error:
            incoming.abandon()
            trouble = short_text(str(error))
        if not trouble and not self._record(incoming.manifest):
            trouble = "there is no room for the manifest"
        if trouble:
            self._outbox.send(peer, SnapshotRefused(trouble))
            return
        self._recorded = incoming.manifest

    def durable(self, manifest: Manifest) -> Manifest | None:
        """A manifest is on disk, perhaps the received one, which is then handed over and returned."""
        recorded = self._recorded
        if recorded is None or recorded.index > manifest.index:
            return None
        self._recorded = None
        self._hand_over(recorded)
        return recorded

    def take(self, index: int) -> Manifest:
        """The snapshot at `index` that the Raft core has taken."""
        manifest = self._handed_over[index]
        self._handed_over = {later: held for later, held in self._handed_over.items() if later > index}
        return manifest

    def _hand_over(self, manifest: Manifest) -> None:
        self._outbox.send(self._from, SnapshotDone(manifest.index))
        self._handed_over[manifest.index] = manifest
        metadata = SnapshotMetadata(index=manifest.index, term=manifest.term, conf_state=manifest.conf_state)
        self._step(
            Message(
                type=MessageType.SNAPSHOT,
                to=self._node_id,
                sender=self._from,
                term=self._term,
                snapshot=Snapshot(metadata=metadata),
            )
        )

    def close(self) -> None:
        """Drop what is on its way: the node stops, or the disk does not take it."""
        if self._incoming is not None:
            self._incoming.abandon()
            self._incoming = None


def _same(one: Manifest, other: Manifest) -> bool:
    return one.index == other.index and one.term == other.term and one.checksum == other.checksum
