"""The core's vocabulary: entries, hard state, membership, messages. Plain data, encoded by whoever sends it.

All structs are arrays on the wire: fields are only ever added at the end, with a default. Entries and messages are
shared between the log and what is sent, so nobody may change one after it was made.
"""

import enum

import msgspec

from octopii.errors import OctopiiError


class Role(enum.IntEnum):
    """What a node is at the moment (paper, section 5.1; pre-candidate: thesis, section 9.6)."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


# What is compared for every message has a name of its own: reading `Role.LEADER` costs seven times as much as a global.
FOLLOWER = Role.FOLLOWER
PRE_CANDIDATE = Role.PRE_CANDIDATE
CANDIDATE = Role.CANDIDATE
LEADER = Role.LEADER


class EntryKind(enum.IntEnum):
    """What an entry holds: the user's bytes (none in the entry that opens a term), or a membership change."""

    NORMAL = 0
    MEMBERSHIP = 1


NORMAL = EntryKind.NORMAL
MEMBERSHIP = EntryKind.MEMBERSHIP


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One entry of the replicated log."""

    term: int
    index: int
    kind: EntryKind
    data: bytes


class HardState(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What must survive a restart beside the log (paper, figure 2). `vote` is 0 for nobody.

    The commit index is not part of it: a leader tells it anew, and no sync is ever owed for it.
    """

    term: int = 0
    vote: int = 0


class SoftState(msgspec.Struct, frozen=True, gc=False):
    """What is worth telling but need not be kept: who leads (0 for nobody known), what this node is, in which term."""

    leader: int
    role: Role
    term: int


class ConfState(msgspec.Struct, array_like=True):
    """A membership. In a joint one `voters_outgoing` is not empty and both sets of voters must agree (section 6).

    `learners_next` are outgoing voters that become learners once the joint membership is left; with `auto_leave` the
    leader proposes that by itself.
    """

    voters: list[int] = []
    learners: list[int] = []
    voters_outgoing: list[int] = []
    learners_next: list[int] = []
    auto_leave: bool = False


class SnapshotMetadata(msgspec.Struct, array_like=True):
    """What a snapshot stands for: all entries up to `index`, whose term is `term`, and the membership there."""

    index: int = 0
    term: int = 0
    conf_state: ConfState = msgspec.field(default_factory=ConfState)


class Snapshot(msgspec.Struct, array_like=True):
    """A snapshot as the core sees it. The state itself travels outside; `data` is the caller's own."""

    metadata: SnapshotMetadata = msgspec.field(default_factory=SnapshotMetadata)
    data: bytes = b""


class ChangeOperation(enum.IntEnum):
    """One step of a membership change."""

    ADD_VOTER = 0
    ADD_LEARNER = 1
    REMOVE = 2


class Transition(enum.IntEnum):
    """How a change gets from one membership to the next.

    AUTO takes the simple way for one step and a joint membership that is left by itself for more; IMPLICIT always takes
    the joint way and leaves by itself; EXPLICIT stays joint until an empty change is proposed.
    """

    AUTO = 0
    IMPLICIT = 1
    EXPLICIT = 2


class MembershipStep(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What happens to one node."""

    operation: ChangeOperation
    node_id: int


class MembershipChange(msgspec.Struct, array_like=True, frozen=True):
    """A change of membership; without steps it leaves a joint one. `context` is the caller's own."""

    transition: Transition = Transition.AUTO
    steps: list[MembershipStep] = []
    context: bytes = b""


class MessageType(enum.IntEnum):
    """Every message; the package's text says when each is sent."""

    APPEND = 1
    APPEND_RESPONSE = 2
    HEARTBEAT = 3
    HEARTBEAT_RESPONSE = 4
    VOTE_REQUEST = 5
    VOTE_RESPONSE = 6
    PRE_VOTE_REQUEST = 7
    PRE_VOTE_RESPONSE = 8
    SNAPSHOT = 9
    TIMEOUT_NOW = 10
    READ_INDEX = 11
    READ_INDEX_RESPONSE = 12


APPEND = MessageType.APPEND
APPEND_RESPONSE = MessageType.APPEND_RESPONSE
HEARTBEAT = MessageType.HEARTBEAT
HEARTBEAT_RESPONSE = MessageType.HEARTBEAT_RESPONSE
VOTE_REQUEST = MessageType.VOTE_REQUEST
VOTE_RESPONSE = MessageType.VOTE_RESPONSE
PRE_VOTE_REQUEST = MessageType.PRE_VOTE_REQUEST
PRE_VOTE_RESPONSE = MessageType.PRE_VOTE_RESPONSE
SNAPSHOT = MessageType.SNAPSHOT
TIMEOUT_NOW = MessageType.TIMEOUT_NOW
READ_INDEX = MessageType.READ_INDEX
READ_INDEX_RESPONSE = MessageType.READ_INDEX_RESPONSE


class Message(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """One message between nodes. Which fields matter depends on `type`; the rest keep their defaults."""

    type: MessageType
    to: int
    sender: int = 0
    """Set by the node that sends it, as `term` is."""
    term: int = 0
    """The sender's; of a pre-vote's request and grant, the term that is asked about."""
    log_term: int = 0
    """Term of the entry at `index` (appends, requests for votes) or at `reject_hint` (rejections, 0 if not known)."""
    index: int = 0
    """Appends: the entry before the new ones. Acknowledgements: what matches, or the `index` of what is rejected.
    Requests for votes: the end of the log. Heartbeats and their answers: the round. Reads: the answer."""
    entries: list[Entry] = []
    commit: int = 0
    """The leader's commit index; in heartbeats never beyond what the receiver is known to have."""
    reject: bool = False
    reject_hint: int = 0
    """Rejected appends: the last index at which the logs may meet."""
    context: bytes = b""
    """Reads: the asker's own. Requests for votes: whether the leader asked for the election."""
    snapshot: Snapshot | None = None


_change_encoder = msgspec.msgpack.Encoder()
_change_decoder = msgspec.msgpack.Decoder(MembershipChange)


def encode_membership_change(change: MembershipChange) -> bytes:
    """The data of a membership entry."""
    return _change_encoder.encode(change)


class MalformedChange(OctopiiError):
    """The data of a membership entry is none that `encode_membership_change` gives."""


def decode_membership_change(data: bytes) -> MembershipChange:
    """Inverse of `encode_membership_change`; empty data is the change that leaves a joint membership.

    Raises `MalformedChange`.
    """
    try:
        return _change_decoder.decode(data) if data else MembershipChange()
    except (ValueError, RecursionError) as error:
        raise MalformedChange(f"membership entry: {error}") from error
