"""What nodes say to each other, as frames and back: Raft's messages, other peer messages, snapshot chunks.

    RAFT            an array of Raft messages, as `octopii.raft.messages` lays them out. Small ones share a frame; one
                    with entries ends it, so that a frame holds at most one run of entries
    PEER            one peer message (`requests.PeerMessage`)
    SNAPSHOT_CHUNK  position in the snapshot, 8 bytes, little-endian; then the bytes themselves. They are not copied:
                    neither into the frame nor out of it

What a frame says is checked as far as that needs no state: who it claims to be from and for, that no number is
negative, that entries follow each other. The Raft core below may rely on it.
"""

import struct
from collections.abc import Iterable
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from octopii.raft.messages import MEMBERSHIP, Entry, MalformedChange, Message, decode_membership_change
from octopii.wire.codec import Buffer, decode_members, decoded
from octopii.wire.frames import (
    FrameType,
    MalformedMessage,
    UnexpectedMessage,
    encode_frame,
    encode_frame_parts,
)
from octopii.wire.requests import PeerMessage, SnapshotChunk, decode_peer_message, encode_peer_message

PeerOutput: TypeAlias = Message | PeerMessage | SnapshotChunk
"""Anything that one node says to another after the handshake."""

MAX_MESSAGES_PER_FRAME = 1024
"""Most Raft messages in one frame."""

_MAX_NUMBER = 2**63 - 1
_POSITION = struct.Struct("<Q")
_encoder = msgspec.msgpack.Encoder()
_raft_decoder: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(
    Annotated[list[Message], Meta(max_length=MAX_MESSAGES_PER_FRAME)]
)


def encode_peer_frames(outputs: Iterable[PeerOutput]) -> list[Buffer]:
    """Return frames that say all this in this order: buffers to write one after the other."""
    buffers: list[Buffer] = []
    raft: list[Message] = []
    for output in outputs:
        if isinstance(output, Message):
            raft.append(output)
            if output.entries or len(raft) == MAX_MESSAGES_PER_FRAME:
                buffers.append(encode_frame(FrameType.RAFT, _encoder.encode(raft)))
                raft = []
            continue
        if raft:
            buffers.append(encode_frame(FrameType.RAFT, _encoder.encode(raft)))
            raft = []
        if isinstance(output, SnapshotChunk):
            buffers += encode_frame_parts(FrameType.SNAPSHOT_CHUNK, _POSITION.pack(output.position), output.data)
        else:
            buffers.append(encode_frame(FrameType.PEER, encode_peer_message(output)))
    if raft:
        buffers.append(encode_frame(FrameType.RAFT, _encoder.encode(raft)))
    return buffers


def decode_peer_frame(frame_type: int, payload: memoryview, *, sender: int, to: int) -> list[PeerOutput]:
    """Read a frame from the admitted node `sender` to this node, `to`.

    Raises `MalformedMessage`, and `UnexpectedMessage` for a frame that nodes do not send or a message from or for
    somebody else. A chunk's data is a view of the payload.
    """
    if frame_type == FrameType.RAFT:
        return [*decode_raft_messages(payload, sender=sender, to=to)]
    if frame_type == FrameType.PEER:
        return [decode_peer_message(payload)]
    if frame_type == FrameType.SNAPSHOT_CHUNK:
        return [decode_snapshot_chunk(payload)]
    raise UnexpectedMessage(f"a frame of type {frame_type} from node {sender}")


def decode_snapshot_chunk(payload: memoryview) -> SnapshotChunk:
    """Read the payload of a SNAPSHOT_CHUNK frame; raises `MalformedMessage`. The data is a view of the payload."""
    if len(payload) < _POSITION.size:
        raise MalformedMessage(f"snapshot chunk: {len(payload)} bytes")
    (position,) = _POSITION.unpack_from(payload)
    if position > _MAX_NUMBER:
        raise MalformedMessage(f"snapshot chunk: position {position}")
    return SnapshotChunk(position, payload[_POSITION.size :])


def decode_raft_messages(payload: Buffer, *, sender: int, to: int) -> list[Message]:
    """Read the payload of a RAFT frame; raises `MalformedMessage`, or `UnexpectedMessage` for somebody else's."""
    messages = decoded(_raft_decoder, payload, "raft messages")
    for message in messages:
        if message.sender != sender or message.to != to:
            raise UnexpectedMessage(
                f"a raft message from {message.sender} to {message.to} on the connection from {sender} to {to}"
            )
        _check_numbers(message)
        if message.entries:
            _check_entries(message)
        if message.snapshot is not None:
            _check_snapshot(message)
    return messages


def _check_numbers(message: Message) -> None:
    numbers = (message.term, message.log_term, message.index, message.commit, message.reject_hint)
    if min(numbers) < 0 or max(numbers) > _MAX_NUMBER:
        raise MalformedMessage(f"raft message: {message.type.name} with numbers {numbers}")


def _check_entries(message: Message) -> None:
    """Entries follow `index` one by one; terms start at `log_term`, never fall, and end at the message's."""
    index, term = message.index, message.log_term
    for entry in message.entries:
        index += 1
        if entry.index != index or entry.term < term:
            raise MalformedMessage(
                f"raft message: entry {entry.index} of term {entry.term} where {index} of {term} or later belongs"
            )
        term = entry.term
        if entry.kind is MEMBERSHIP:
            _check_change(entry)
    if term > message.term or index > _MAX_NUMBER:
        raise MalformedMessage(
            f"raft message: entries up to {index} of term {term} in a message of term {message.term}"
        )


def _check_change(entry: Entry) -> None:
    """Every replica will act on it, so nothing that cannot be understood may come to stand in a log."""
    try:
        decode_members(decode_membership_change(entry.data).context)
    except MalformedChange as error:
        raise MalformedMessage(f"raft message: entry {entry.index}: {error}") from error


def _check_snapshot(message: Message) -> None:
    assert message.snapshot is not None
    metadata = message.snapshot.metadata
    membership = metadata.conf_state
    ids = [*membership.voters, *membership.learners, *membership.voters_outgoing, *membership.learners_next]
    numbers = [metadata.index, metadata.term, *ids]
    if min(numbers) < 0 or max(numbers) > _MAX_NUMBER or 0 in ids:
        raise MalformedMessage(f"raft message: snapshot of {metadata.index} in term {metadata.term}, members {ids}")
