"""Raft consensus without I/O: the semantics of etcd-io/raft, in Python that follows the paper.

A `RawNode` is one member of a cluster. It has no thread, no socket, no file and no clock: messages and ticks go in, a
numbered `Ready` comes out, and the caller does what it says. The driver loop:

    node = RawNode(config, storage)
    while True:
        for event in wait_for_events():              # messages, ticks, completions, proposals
            event(node)                              # node.step(m), node.tick(now), node.propose(data), ...
        while node.has_ready():
            ready = node.ready()
            network.send(ready.messages)
            storage.write(ready.snapshot, ready.entries, ready.hard_state)   # may go on in the background,
            node.on_persisted(ready.number)                                  # as may what follows it
            network.send(ready.messages_after_persist)
            for entry in ready.committed_entries:
                if entry.kind == EntryKind.MEMBERSHIP:
                    node.apply_membership(decode_membership_change(entry.data))
                machine.apply(entry)
            if ready.committed_entries:
                node.on_applied(ready.committed_entries[-1].index)

Order. `messages` may be sent before anything is written: a leader's appends, heartbeats, snapshots and transfers say
nothing of its own disk. `messages_after_persist` (votes, requests for votes, acknowledgements) may go out only when
this Ready and all before it are on disk. Several Readys may be on their way to the disk: each holds only what is new,
`on_persisted(number)` vouches for that number and all before, and entries that were replaced meanwhile count for
nothing. `committed_entries` are always on this node's own disk already. A leader's own log counts in the quorum only
through `on_persisted`.

Messages, and when each is sent (paper: Ongaro and Ousterhout, In Search of an Understandable Consensus Algorithm,
extended version; thesis: Ongaro, Consensus: Bridging Theory and Practice):

    APPEND              leader: new entries, or none to probe or to tell a new commit index (paper, 5.3)
    APPEND_RESPONSE     follower: matches up to `index`; or `reject` with a hint (index, term) where logs may meet. Also
                        sent to a leader of an old term, so that it learns the newer one
    HEARTBEAT           leader, every `heartbeat_ticks`, and at once to confirm reads; `index` numbers the round
    HEARTBEAT_RESPONSE  follower: the same number back
    PRE_VOTE_REQUEST    would you vote for me? (thesis, 9.6);  PRE_VOTE_RESPONSE  the answer, no promise
    VOTE_REQUEST        vote for me (paper, 5.2);              VOTE_RESPONSE      the answer, a promise
    SNAPSHOT            leader: the log no longer reaches you (paper, 7); the state itself travels outside the core
    TIMEOUT_NOW         leader: campaign at once, you are to lead (thesis, 3.10)
    READ_INDEX          follower to leader: which index must a read wait for? (thesis, 6.4)
    READ_INDEX_RESPONSE leader: that one, and I still led when you asked

Everything else a caller needs: `propose`, `propose_batch`, `propose_membership` raise a `ProposalDropped` when nothing
was taken; `read_index` answers through `Ready.read_states`; `lease_holds(now)` tells whether a leader may answer a read
without asking; `report_unreachable` and `report_snapshot` tell how sending went. Proposals are not forwarded: that is
the caller's business, which knows how to retry.
"""

from octopii.raft.membership import InvalidChange, apply_change
from octopii.raft.messages import (
    ChangeOperation,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MembershipChange,
    MembershipStep,
    Message,
    MessageType,
    Role,
    Snapshot,
    SnapshotMetadata,
    SoftState,
    Transition,
    decode_membership_change,
    encode_membership_change,
)
from octopii.raft.progress import ProgressState
from octopii.raft.raw_node import (
    ChangeInProgress,
    ChangeRefused,
    NotLeader,
    PeerStatus,
    ProposalDropped,
    RawNode,
    ReadState,
    Ready,
    Status,
    TooManyUncommitted,
    TransferInProgress,
)
from octopii.raft.state import RaftConfig
from octopii.raft.storage import (
    Compacted,
    MemoryStorage,
    SnapshotTemporarilyUnavailable,
    Storage,
    StorageError,
    Unavailable,
)

__all__ = [
    "ChangeInProgress",
    "ChangeOperation",
    "ChangeRefused",
    "Compacted",
    "ConfState",
    "Entry",
    "EntryKind",
    "HardState",
    "InvalidChange",
    "MembershipChange",
    "MembershipStep",
    "MemoryStorage",
    "Message",
    "MessageType",
    "NotLeader",
    "PeerStatus",
    "ProgressState",
    "ProposalDropped",
    "RaftConfig",
    "RawNode",
    "ReadState",
    "Ready",
    "Role",
    "Snapshot",
    "SnapshotMetadata",
    "SnapshotTemporarilyUnavailable",
    "SoftState",
    "Status",
    "Storage",
    "StorageError",
    "TooManyUncommitted",
    "TransferInProgress",
    "Transition",
    "Unavailable",
    "apply_change",
    "decode_membership_change",
    "encode_membership_change",
]
