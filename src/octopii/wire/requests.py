"""What clients ask of nodes, what nodes answer, and what nodes say to each other beside Raft's own messages.

    client -> node    Request    one struct per kind of call, each with a number that the client chose (`request_id`)
    node -> client    Reply      the answer or the `Failure` with the same number; `LeaderHint` comes unasked
    node -> node      Forward    what a follower's clients want in the log, to the leader. Success is not answered: the
                                 follower sees the items when it applies them itself. `ForwardRefused` says that
                                 nothing of it was taken
                      Relay      a request that only the leader can serve, passed on whole; `Relayed` brings the reply
    node -> node      Pulse      how a member is; Removed tells a node that it is none any more
    node -> node      Snapshot*  on a connection of its own: offer, resume at a position, chunks, done or refused

Numbers of requests are unique per connection and direction; a reply to an unknown number is dropped. Limits and
encoding are those of `codec`: every decoder here returns a value or raises `MalformedMessage`.
"""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from octopii.errors import (
    ApplyFailed,
    BadCertificate,
    CallTimeout,
    CommandError,
    ConfigError,
    ConnectionLost,
    DiskFull,
    NoLeader,
    NotApplied,
    OctopiiError,
    OutcomeUnknown,
    Overloaded,
    QueryNotSupported,
    RefusedError,
    RemovedNode,
    SessionExpired,
    ShuttingDown,
    TooLarge,
    VersionNotActive,
    WipedNode,
    WrongCluster,
)
from octopii.wire.codec import (
    MAX_COMMANDS_PER_GROUP,
    MAX_GROUPS_PER_ENTRY,
    Address,
    Answers,
    Buffer,
    CallGroup,
    EntryItem,
    Identifier,
    Number,
    Text,
    decoded,
    short_text,
)

KEPT_ANSWERS = "kept_answers"
"""The limit that an `Overloaded` names when a session keeps too many bytes of answers, until some are acknowledged."""

MAX_CHANGES = 64
"""Most single changes in one membership request."""


class Consistency(enum.IntEnum):
    """How fresh a query's state has to be."""

    LINEARIZABLE = 0
    LEASE = 1
    STALE = 2


class MemberOperation(enum.IntEnum):
    """What to do with one member."""

    ADD_LEARNER = 0
    PROMOTE = 1
    REMOVE = 2


class FailureKind(enum.IntEnum):
    """Why a request has no answer; the numbers are the wire's, the names the error tree's."""

    NO_LEADER = 1
    OVERLOADED = 2
    TOO_LARGE = 3
    DISK_FULL = 4
    SHUTTING_DOWN = 5
    VERSION_NOT_ACTIVE = 6
    NOT_APPLIED = 15
    CALL_TIMEOUT = 16
    CONNECTION_LOST = 17
    SESSION_EXPIRED = 18
    OUTCOME_UNKNOWN = 19
    COMMAND_ERROR = 32
    APPLY_FAILED = 33
    QUERY_NOT_SUPPORTED = 34
    CONFIG_ERROR = 48
    WRONG_CLUSTER = 64
    WIPED_NODE = 65
    REMOVED_NODE = 66
    BAD_CERTIFICATE = 67
    REFUSED = 68
    INTERNAL = 96


class MemberChange(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """One step of a membership change; the address matters only where a member is new."""

    operation: MemberOperation
    node_id: Number
    address: Address = ""


# --- requests ---------------------------------------------------------------------------------------------------


class Propose(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """Replicate and apply a group of calls; answered by `ProposeAnswers`."""

    request_id: Number
    group: CallGroup


class SessionRequest(msgspec.Struct, array_like=True, tag=2, frozen=True, kw_only=True, gc=False):
    """Open the session of `nonce`, or find the one it opened; answered by `SessionOpened`."""

    request_id: Number
    nonce: Identifier
    ttl_ns: Number


class SessionEnd(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """Close a session whose calls are all answered; answered by `Done`."""

    request_id: Number
    session: Number


class Query(msgspec.Struct, array_like=True, tag=4, frozen=True, kw_only=True, gc=False):
    """Ask the state machine, several questions at once; answered by `QueryAnswers`.

    All are asked of one state. After `timeout_ns` the client no longer waits.
    """

    request_id: Number
    consistency: Consistency
    commands: Annotated[list[bytes], Meta(min_length=1, max_length=MAX_COMMANDS_PER_GROUP)]
    timeout_ns: Number


class StatusRequest(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """Ask the node how it is; answered by `Report`."""

    request_id: Number


class PeerProgressRequest(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """Ask the leader how far a member is; answered by `Report`."""

    request_id: Number
    node_id: Number


class ChangeMembership(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """Change the members, all steps as one; more than one step goes by joint consensus. Answered by `Done`."""

    request_id: Number
    changes: Annotated[list[MemberChange], Meta(min_length=1, max_length=MAX_CHANGES)]


class ChangeAddress(msgspec.Struct, array_like=True, tag=8, frozen=True, kw_only=True, gc=False):
    """Say where a member listens from now on; answered by `Done`."""

    request_id: Number
    node_id: Number
    address: Address


class TransferLeader(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """Hand leadership to a member; answered by `Done`."""

    request_id: Number
    node_id: Number


class ForceSnapshot(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """Take a snapshot on the node that is asked; answered by `Done` with its index."""

    request_id: Number


class ForceSnapshotToPeer(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """Make the leader send a member a snapshot; answered by `Done`."""

    request_id: Number
    node_id: Number


class CompactRequest(msgspec.Struct, array_like=True, tag=12, frozen=True, gc=False):
    """Compact the state machine on every replica; answered by `Done` with the entry's index."""

    request_id: Number


class Campaign(msgspec.Struct, array_like=True, tag=13, frozen=True, gc=False):
    """Make the node that is asked stand for election; answered by `Done`."""

    request_id: Number


class ReadIndex(msgspec.Struct, array_like=True, tag=14, frozen=True, gc=False):
    """Ask for an index that every call acknowledged before now lies at or below; answered by `Done`."""

    request_id: Number


class FetchSnapshot(msgspec.Struct, array_like=True, tag=15, frozen=True, kw_only=True, gc=False):
    """Ask a node for a part of its snapshot at `index` (0: the newest) from byte `position`; see `SnapshotPart`.

    What was asked for once stays readable on that node for a while, also when a newer snapshot has come.
    """

    request_id: Number
    index: Number
    position: Number


class ProposeSince(msgspec.Struct, array_like=True, tag=16, frozen=True, gc=False):
    """As `Propose`, for commands that need version `since` of the state machine: refused until it is active."""

    request_id: Number
    group: CallGroup
    since: Number


Request = (
    Propose
    | SessionRequest
    | SessionEnd
    | Query
    | StatusRequest
    | PeerProgressRequest
    | ChangeMembership
    | ChangeAddress
    | TransferLeader
    | ForceSnapshot
    | ForceSnapshotToPeer
    | CompactRequest
    | Campaign
    | ReadIndex
    | FetchSnapshot
    | ProposeSince
)
"""All that a client can ask."""


# --- replies ----------------------------------------------------------------------------------------------------


class ProposeAnswers(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """One answer for each command of the group, in order; `more` when further ones follow in another reply."""

    request_id: Number
    answers: Answers
    more: bool = False


class SessionOpened(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """The session that a nonce stands for."""

    request_id: Number
    session: Number


class QueryAnswers(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """What the state machine said to each question, in order; `more` likewise."""

    request_id: Number
    answers: Answers
    more: bool = False


class Done(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """The request was carried out; `index` is the log index it led to, 0 where there is none."""

    request_id: Number
    index: Number = 0


class Report(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """Facts for people and programs: `body` is a JSON object, so that versions need not agree on its fields."""

    request_id: Number
    body: bytes


class Failure(msgspec.Struct, array_like=True, tag=6, frozen=True, kw_only=True, gc=False):
    """Why there is no answer; `error_of` turns it into the exception that the caller gets.

    `leader` and `leader_address` say who may know better (0 and empty: nobody known). `detail` is the limit of
    `Overloaded`, the exception's name of `ApplyFailed`, the field of `ConfigError`; `size` and `limit` are
    `TooLarge`'s, in bytes, or what `VersionNotActive` needs and what is active.
    """

    request_id: Number
    kind: FailureKind
    text: Text = ""
    leader: Number = 0
    leader_address: Address = ""
    detail: Text = ""
    size: Number = 0
    limit: Number = 0


class LeaderHint(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """Who leads now, sent to clients after the handshake and whenever it changes; 0 and empty while nobody does."""

    leader: Number
    address: Address


class SnapshotPart(msgspec.Struct, array_like=True, tag=8, frozen=True, kw_only=True, gc=False):
    """A run of a snapshot's bytes from `position`; `manifest` says all else, and is empty but at position 0."""

    request_id: Number
    index: Number
    manifest: bytes
    size: Number
    position: Number
    data: bytes


Reply = ProposeAnswers | SessionOpened | QueryAnswers | Done | Report | Failure | LeaderHint | SnapshotPart
"""All that a node can say to a client."""


# --- between nodes ----------------------------------------------------------------------------------------------


class Forward(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """Put these into the log, all or none: from a follower to the leader."""

    forward_id: Number
    items: Annotated[list[EntryItem], Meta(max_length=MAX_GROUPS_PER_ENTRY)]


class ForwardRefused(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """Nothing of a `Forward` was taken, and nothing of it will be; `failure.request_id` is the forward's number."""

    failure: Failure


class Relay(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """Serve this request for a client of mine; `request.request_id` is my number for it."""

    request: Request


class Relayed(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """The reply to a `Relay`; its number is that of the relayed request."""

    reply: Reply


class SnapshotOffer(msgspec.Struct, array_like=True, tag=5, frozen=True, kw_only=True, gc=False):
    """I have this snapshot for you: leader's term, manifest as the replica encodes it, size in bytes, checksum."""

    term: Number
    index: Number
    manifest: bytes
    size: Number
    checksum: Identifier


class SnapshotResume(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """Send it from this byte position on: 0, or where an earlier connection broke."""

    position: Number


class SnapshotProgress(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """All bytes before this position have arrived: opens the sender's window."""

    position: Number


class SnapshotDone(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """The whole snapshot is there, verified, and handed to the replica."""

    index: Number


class SnapshotRefused(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """I do not want it, or could not take it."""

    text: Text


class Pulse(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """How a node is, a few times per election timeout: wall clock (UTC, nanoseconds), whether its disk is low.

    Also its cluster (it may have joined one since the handshake), its term, the end of its log on disk (0: a crash may
    take it back), and of what it acknowledged before its disk lost some; what `command_version` it can run; its newest
    `digest`, of entry `digest_index`: 8 bytes over all answers, 8 over any state; where it `stopped_at` applying, or 0.
    """

    wall: Number
    disk_low: bool
    cluster_id: Identifier = b""
    term: Number = 0
    log_term: Number = 0
    log_index: Number = 0
    held_term: Number = 0
    held_index: Number = 0
    command_version: Number = 1
    digest_index: Number = 0
    digest: Identifier = b""
    stopped_at: Number = 0


class Removed(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """You are no member any more: the answer to anything that a removed node still sends."""

    index: Number


class Acknowledged(msgspec.Struct, array_like=True, tag=12, frozen=True, kw_only=True, gc=False):
    """You have come with a log that ends before this: you have said, in `term`, that yours ends there, on disk."""

    term: Number
    log_term: Number
    log_index: Number


class SnapshotWanted(msgspec.Struct, array_like=True, tag=13, frozen=True, gc=False):
    """To the leader: my state has come apart from the others'; offer me a snapshot at this index or a later one."""

    index: Number


PeerMessage = (
    Forward
    | ForwardRefused
    | Relay
    | Relayed
    | SnapshotOffer
    | SnapshotResume
    | SnapshotProgress
    | SnapshotDone
    | SnapshotRefused
    | Pulse
    | Removed
    | Acknowledged
    | SnapshotWanted
)
"""What nodes say to each other beside Raft's messages and snapshot chunks."""


class SnapshotChunk(msgspec.Struct, frozen=True, gc=False):
    """A run of a snapshot's bytes. It has a frame type of its own: the bytes are never copied into a message."""

    position: int
    data: Buffer


# --- bytes ------------------------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_peer_decoder: msgspec.msgpack.Decoder[PeerMessage] = msgspec.msgpack.Decoder(PeerMessage)


def encode_request(request: Request) -> bytes:
    """Return the payload of a REQUEST frame."""
    return _encoder.encode(request)


def decode_request(payload: Buffer) -> Request:
    """Read the payload of a REQUEST frame; raises `MalformedMessage`."""
    return decoded(_request_decoder, payload, "request")


def encode_reply(reply: Reply) -> bytes:
    """Return the payload of a REPLY frame."""
    return _encoder.encode(reply)


def decode_reply(payload: Buffer) -> Reply:
    """Read the payload of a REPLY frame; raises `MalformedMessage`."""
    return decoded(_reply_decoder, payload, "reply")


def encode_peer_message(message: PeerMessage) -> bytes:
    """Return the payload of a PEER frame."""
    return _encoder.encode(message)


def decode_peer_message(payload: Buffer) -> PeerMessage:
    """Read the payload of a PEER frame; raises `MalformedMessage`."""
    return decoded(_peer_decoder, payload, "peer message")


# --- failures and exceptions ------------------------------------------------------------------------------------

_KIND_OF_ERROR: dict[type[OctopiiError], FailureKind] = {
    NoLeader: FailureKind.NO_LEADER,
    Overloaded: FailureKind.OVERLOADED,
    TooLarge: FailureKind.TOO_LARGE,
    DiskFull: FailureKind.DISK_FULL,
    ShuttingDown: FailureKind.SHUTTING_DOWN,
    VersionNotActive: FailureKind.VERSION_NOT_ACTIVE,
    NotApplied: FailureKind.NOT_APPLIED,
    CallTimeout: FailureKind.CALL_TIMEOUT,
    ConnectionLost: FailureKind.CONNECTION_LOST,
    SessionExpired: FailureKind.SESSION_EXPIRED,
    OutcomeUnknown: FailureKind.OUTCOME_UNKNOWN,
    CommandError: FailureKind.COMMAND_ERROR,
    ApplyFailed: FailureKind.APPLY_FAILED,
    QueryNotSupported: FailureKind.QUERY_NOT_SUPPORTED,
    ConfigError: FailureKind.CONFIG_ERROR,
    WrongCluster: FailureKind.WRONG_CLUSTER,
    WipedNode: FailureKind.WIPED_NODE,
    RemovedNode: FailureKind.REMOVED_NODE,
    BadCertificate: FailureKind.BAD_CERTIFICATE,
    RefusedError: FailureKind.REFUSED,
}
_ERROR_OF_KIND = {kind: error for error, kind in _KIND_OF_ERROR.items()}

NOT_APPLIED_KINDS = frozenset(kind for kind in FailureKind if kind < FailureKind.CALL_TIMEOUT)
"""The kinds that promise that this try was not and will never be applied."""


def failure_of(error: OctopiiError, request_id: int, *, leader: int = 0, leader_address: str = "") -> Failure:
    """Say an exception on the wire; one without a kind of its own becomes the nearest parent's, or INTERNAL."""
    kind = next((_KIND_OF_ERROR[base] for base in type(error).__mro__ if base in _KIND_OF_ERROR), FailureKind.INTERNAL)
    detail, size, limit = "", 0, 0
    if isinstance(error, NoLeader):
        leader = leader or error.leader or 0
    elif isinstance(error, Overloaded):
        detail = error.limit
    elif isinstance(error, TooLarge):
        size, limit = error.size, error.limit
    elif isinstance(error, VersionNotActive):
        size, limit = error.needed, error.active
    elif isinstance(error, ApplyFailed):
        detail = error.exception
    elif isinstance(error, ConfigError):
        detail = error.field or ""
    return Failure(
        request_id=request_id,
        kind=kind,
        text=short_text(str(error)),
        leader=leader,
        leader_address=leader_address,
        detail=short_text(detail),
        size=size,
        limit=limit,
    )


def error_of(failure: Failure) -> OctopiiError:
    """Return the exception that a failure stands for, with its typed fields."""
    kind, text = failure.kind, failure.text
    if kind is FailureKind.NO_LEADER:
        return NoLeader(text or "the cluster has no leader at the moment", leader=failure.leader or None)
    if kind is FailureKind.OVERLOADED:
        return Overloaded(text, limit=failure.detail)
    if kind is FailureKind.TOO_LARGE:
        return TooLarge(text, size=failure.size, limit=failure.limit)
    if kind is FailureKind.VERSION_NOT_ACTIVE:
        return VersionNotActive(text, needed=failure.size, active=failure.limit)
    if kind is FailureKind.APPLY_FAILED:
        return ApplyFailed(text, exception=failure.detail)
    if kind is FailureKind.CONFIG_ERROR:
        return ConfigError(text, field=failure.detail or None)
    return _ERROR_OF_KIND.get(kind, OctopiiError)(text)
