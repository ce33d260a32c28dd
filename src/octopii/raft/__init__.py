"""Raft consensus without I/O: the semantics of etcd-io/raft, in Python that follows the paper.

A `RawNode` is one member of a cluster. It has no thread, no socket, no file and no clock: messages and ticks go in, a
numbered `Ready` comes out, and the caller does what it says. The simplest driver, which a test runs as it stands here:

    for event in events:  # messages, ticks, proposals: node.step(m), node.tick(now), node.propose(data), ...
        event()
        while node.has_ready():
            ready = node.ready()
            send(ready.messages)
            write(ready.snapshot, ready.entries, ready.hard_state)  # and sync
            send(ready.messages_after_persist)
            if ready.snapshot is not None:
                restore(ready.snapshot)
            for entry in ready.committed_entries:
                if entry.kind is EntryKind.MEMBERSHIP:
                    node.apply_membership(decode_membership_change(entry.data))
                apply(entry)
            node.advance(ready)

`advance` is `on_persisted` and `on_applied` in one. A faster driver calls these two itself, from wherever its disk and
its state machine get done, and takes further Readys meanwhile. The rules are then:

 1. `messages` may be sent before anything is written. A leader's appends, heartbeats, snapshots and transfers say
    nothing of its own disk, which counts in the quorum only through `on_persisted`.
 2. Of one Ready, `snapshot` is written first, then `entries` (they replace what stands at the first one's index and
    behind), then `hard_state`. Readys are written in the order of their numbers. What the core reads of `Storage` may
    be ahead of the disk, but must hold what was written, as soon as `on_persisted` is called at the latest.
 3. `on_persisted(number)` says that all of it is on disk, and all of the Readys before. Entries that were replaced
    since count for nothing: each write in flight remembers what it still stands for.
 4. `messages_after_persist` (requests for votes, votes, acknowledgements) promise what this Ready or one before holds.
    They may go out only when all these are on disk. A Ready with nothing to write still waits for the ones before.
 5. `committed_entries` are on this node's own disk already. They are applied in order; `apply_membership` is called for
    each membership entry, before the next entry is applied, and `on_applied(index)` afterwards. Both may lag behind.
    A snapshot takes the place of everything handed out before, and its membership counts from when it is on disk; its
    index is said to be applied when it is installed.
 6. The commit index is never written. After a restart `RaftConfig.applied` says what the state machine has, and the
    leader, or the log itself, tells the rest. A restart hands out everything behind `applied` again.
 7. Nobody changes an entry or a message after it was made: log, Readys and messages share them.

Messages, and when each is sent (paper: Ongaro and Ousterhout, In Search of an Understandable Consensus Algorithm,
extended version; thesis: Ongaro, Consensus: Bridging Theory and Practice):

    APPEND              leader: the entries behind (`index`, `log_term`) and the commit index; without entries to probe
                        where the logs meet, or to tell a new commit index (paper, 5.3)
    APPEND_RESPONSE     follower: its log matches up to `index`; or `reject`, with a hint (`reject_hint`, `log_term`)
                        where the logs may meet. Also sent to a leader of an old term: so it learns the newer one
    HEARTBEAT           leader, every `heartbeat_ticks`, and at once to confirm reads; `index` numbers the round
    HEARTBEAT_RESPONSE  follower: the same number back; opens a paused flow of appends again
    PRE_VOTE_REQUEST    would you vote for me in `term`, which I have not entered? (thesis, 9.6)
    PRE_VOTE_RESPONSE   yes, in the term asked about, or no, in one's own; no promise
    VOTE_REQUEST        vote for me; my log ends at (`index`, `log_term`) (paper, 5.2)
    VOTE_RESPONSE       yes, a promise, or no
    SNAPSHOT            leader: the log no longer reaches you (paper, 7); the state itself travels outside the core, and
                        the caller steps this message only when it is there
    TIMEOUT_NOW         leader: campaign at once, you are to lead (thesis, 3.10)
    READ_INDEX          follower to leader: which index must a read wait for? (thesis, 6.4)
    READ_INDEX_RESPONSE leader: this one, and I still led after you had asked

All of them may be lost, doubled, delayed and overtaken. One of an older term changes nothing; an answer counts for the
election or the round that it belongs to only.

Proposals: `propose`, `propose_batch` and `propose_membership` return the (first) index, or raise a `ProposalDropped`
when nothing was taken. The entry may still be replaced by another leader's: the term of what `committed_entries` holds
at that index tells. Proposals are not forwarded; that is the caller's business, which knows how to retry.

Reads: `read_index` answers through `Ready.read_states`, on leader and followers; a read may be lost with a leader or a
message, then nothing comes and the caller asks again. `lease_holds(now)` tells whether a leader may answer without
asking: every voter promises, by answering a heartbeat, to help elect nobody for `election_ticks`, whatever happens to
it meanwhile, a restart included; the leader counts from when it sent the round, less one tick and the drift of clocks.
It gives the lease up for the rest of its term once it has told another to take over. While such a promise is fresh,
`campaign` and `forget_leader` do nothing.

Office: `transfer_leader` brings a voter up to date and hands over to it; no proposals meanwhile, and after an election
timeout it is given up. `campaign` stands for election at once, `forget_leader` lets another be elected at once.

Sending: `report_unreachable` and `report_snapshot` tell how it went; `send_snapshot` sends a member a snapshot although
the log reaches it. `status` shows each member's progress; `is_voter` and `silence`, since a leader was heard,
this node.

Lost disks: a log's end (term, index) never goes back, but for a snapshot, unless the disk has lost what was synced.
Who notices tells the node by `hold_to`, and `has_lost_entries` is true until its log is whole again, and the leader by
`report_lost_entries`; `log_on_disk` is what to remember.

What differs from etcd: nothing is forwarded; refused proposals raise instead of becoming empty entries; the commit
index is not kept, and a log itself proves its membership changes but the last to be committed; votes
are asked for only when the candidate's own is on disk; a leader that a change removes steps down; a snapshot may lack
the node that it is sent to; leases as above.
"""

from octopii.raft.membership import InvalidChange, apply_change
from octopii.raft.messages import (
    ChangeOperation,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MalformedChange,
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
    "MalformedChange",
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
