"""One of each thing that goes over the wire, with the functions that encode and decode it."""

from collections.abc import Callable
from typing import Any

import msgspec

from octopii.raft.messages import ConfState, Entry, EntryKind, Message, MessageType, Snapshot, SnapshotMetadata
from octopii.wire import codec, handshake, peer_frames, requests
from octopii.wire.codec import (
    AdmitStorage,
    ApplyFailedAnswer,
    CallGroup,
    CloseSession,
    CommandErrorAnswer,
    Compact,
    DeclaredErrorAnswer,
    EntryPayload,
    Found,
    MemberFact,
    OpenSession,
    UpdateAddress,
)
from octopii.wire.requests import FailureKind, MemberOperation

GROUP = CallGroup(session=7, first=3, acked=2, commands=[b"SET a 1", b"", b"\x00" * 50])
FACT = MemberFact(2, "b.example:5001", b"s" * 16)
ITEMS: list[codec.EntryItem] = [
    GROUP,
    OpenSession(nonce=b"n" * 16, ttl_ns=3_600_000_000_000),
    CloseSession(7),
    Compact(),
    Found(cluster_id=b"c" * 16, members=[MemberFact(1, "a:1"), FACT]),
    UpdateAddress(2, "c:2"),
    AdmitStorage(2, b"t" * 16),
]
LATER_ITEMS: list[codec.EntryItem] = [codec.ActivateVersion(2), codec.CompareDigests()]
ANSWERS: list[codec.Answer] = [b"OK", CommandErrorAnswer("no such key"), ApplyFailedAnswer("ZeroDivisionError", "1/0")]
FAILURE = requests.Failure(
    request_id=5, kind=FailureKind.NO_LEADER, text="none", leader=2, leader_address="b:1", detail="d", size=1, limit=2
)
REQUESTS: list[requests.Request] = [
    requests.Propose(1, GROUP),
    requests.SessionRequest(request_id=2, nonce=b"n" * 16, ttl_ns=1),
    requests.SessionEnd(3, 7),
    requests.Query(request_id=4, consistency=requests.Consistency.LEASE, commands=[b"GET a"], timeout_ns=10**9),
    requests.StatusRequest(5),
    requests.PeerProgressRequest(6, 2),
    requests.ChangeMembership(
        7,
        [
            requests.MemberChange(operation=MemberOperation.ADD_LEARNER, node_id=4, address="d:1"),
            requests.MemberChange(operation=MemberOperation.REMOVE, node_id=1),
        ],
    ),
    requests.ChangeAddress(request_id=8, node_id=2, address="e:1"),
    requests.TransferLeader(9, 2),
    requests.ForceSnapshot(10),
    requests.ForceSnapshotToPeer(11, 2),
    requests.CompactRequest(12),
    requests.Campaign(13),
    requests.ReadIndex(14),
    requests.FetchSnapshot(request_id=15, index=1000, position=1 << 20),
    requests.ProposeSince(16, GROUP, 2),
]
REPLIES: list[requests.Reply] = [
    requests.ProposeAnswers(1, ANSWERS),
    requests.SessionOpened(2, 7),
    requests.QueryAnswers(3, [b"1"]),
    requests.ProposeAnswers(1, ANSWERS, more=True),
    requests.QueryAnswers(3, [CommandErrorAnswer("no")]),
    requests.Done(4, 99),
    requests.Report(5, b'{"id": 1}'),
    FAILURE,
    requests.LeaderHint(2, "b:1"),
    requests.SnapshotPart(request_id=15, index=1000, manifest=b"m", size=1 << 30, position=0, data=b"d" * 9),
    requests.QueryAnswers(3, [DeclaredErrorAnswer("only 1 left", "OutOfStock", b"\x92\xa5apple\x01")]),
]
PEER_MESSAGES: list[requests.PeerMessage] = [
    requests.Forward(1, ITEMS),
    requests.ForwardRefused(FAILURE),
    requests.Relay(REQUESTS[6]),
    requests.Relayed(REPLIES[4]),
    requests.SnapshotOffer(term=3, index=1000, manifest=b"m" * 30, size=1 << 40, checksum=b"k" * 8),
    requests.SnapshotResume(1 << 20),
    requests.SnapshotProgress(1 << 21),
    requests.SnapshotDone(1000),
    requests.SnapshotRefused("no room"),
    requests.Pulse(1_700_000_000_000_000_000, True, b"c" * 16, 4, 3, 1000, 3, 1001),
    requests.Removed(50),
    requests.Acknowledged(term=4, log_term=3, log_index=1001),
    requests.SnapshotWanted(1000),
    requests.Pulse(1_700_000_000_000_000_000, False, b"c" * 16, command_version=3, digest_index=1000, digest=b"d" * 16),
    requests.Pulse(1_700_000_000_000_000_000, False, b"c" * 16, stopped_at=81_237),
]
ENTRIES = [Entry(3, 11, EntryKind.NORMAL, b"data"), Entry(4, 12, EntryKind.MEMBERSHIP, b"")]
RAFT = [
    Message(type=MessageType.HEARTBEAT, to=1, sender=2, term=4, commit=3, context=b"round"),
    Message(type=MessageType.APPEND, to=1, sender=2, term=4, log_term=3, index=10, entries=ENTRIES, commit=10),
    Message(
        type=MessageType.SNAPSHOT,
        to=1,
        sender=2,
        term=4,
        snapshot=Snapshot(SnapshotMetadata(9, 3, ConfState([1, 2], [3], [1], [4], True)), b"x"),
    ),
]
HELLO = handshake.Hello(role=handshake.Role.NODE, node_id=2, storage_id=b"s" * 16, cluster_id=b"c" * 16, address="b:1")


def decode_raft(data: bytes) -> list[Message]:
    return peer_frames.decode_raft_messages(data, sender=2, to=1)


DECODERS: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any], list[Any]]] = {
    "entry": (
        codec.encode_entry,
        codec.decode_entry,
        [EntryPayload(1_700_000_000_000_000_000, each) for each in (ITEMS, LATER_ITEMS)],
    ),
    "members": (codec.encode_members, codec.decode_members, [[FACT, MemberFact(1, "")], [FACT]]),
    "request": (requests.encode_request, requests.decode_request, REQUESTS),
    "reply": (requests.encode_reply, requests.decode_reply, REPLIES),
    "peer": (requests.encode_peer_message, requests.decode_peer_message, PEER_MESSAGES),
    "raft": (msgspec.msgpack.encode, decode_raft, [RAFT, RAFT[:1], []]),
    "hello": (handshake.encode_hello, handshake.decode_hello, [HELLO]),
    "refusal": (
        handshake.encode_refusal,
        handshake.decode_refusal,
        [handshake.Refusal(handshake.RefusalKind.WIPED_NODE, "wiped", 3)],
    ),
}
