"""Work for the apply thread: what the replica hands out and what comes back.

The replica itself never calls the user's code. It hands out jobs in order; whoever drives it (a thread in production,
an event in the simulator) runs them one at a time, in that order, with `Applier.run`, and brings each result back to
`Replica.job_done`. A `SnapshotView` is the one exception: it may run beside later jobs.
"""

import enum
from typing import TypeAlias

import msgspec

from octopii.raft import ConfState, Entry
from octopii.replica.machine_errors import MachineError
from octopii.replica.roster import Roster
from octopii.replica.sessions import Session, Verdict
from octopii.state_machine import SnapshotSource
from octopii.wire.codec import Answer, MemberFact


class Change(msgspec.Struct, frozen=True):
    """What a membership entry led to, and what it said of the members that it added."""

    conf_state: ConfState
    added: list[MemberFact]


class ApplyJob(msgspec.Struct, frozen=True):
    """Committed entries, in order, and by index what the membership entries among them led to (entry 1 is one)."""

    entries: list[Entry]
    changes: dict[int, Change]


class QueryJob(msgspec.Struct, frozen=True):
    """Questions to ask of the state as it is then; `token` is the replica's own and comes back with the answers."""

    token: int
    commands: list[bytes]


class SnapshotJob(msgspec.Struct, frozen=True):
    """Capture the state as it is then."""

    reason: str


class RestoreJob(msgspec.Struct, frozen=True):
    """Replace the state by a snapshot: `manifest` and the verified bytes of its payload."""

    manifest: "Manifest"
    data: memoryview


Job: TypeAlias = ApplyJob | QueryJob | SnapshotJob | RestoreJob


class Manifest(msgspec.Struct, kw_only=True, frozen=True):
    """What a snapshot is, beside its payload.

    `time` is the applied time in nanoseconds. The payload has `size` bytes with the XXH3-64 `checksum`: first what the
    machine's `snapshot` gave, `state_size` bytes, then the sessions, of which there are `sessions`.
    `machine_version` is the machine's `snapshot_version`, `active_version` that of its commands, `answers_digest` the
    running digest of all answers.
    """

    index: int
    term: int
    conf_state: ConfState
    roster: Roster
    time: int
    machine_version: int
    sessions: int = 0
    state_size: int = 0
    active_version: int = 1
    answers_digest: int = 0
    size: int = 0
    checksum: int = 0

    @property
    def file_name(self) -> str:
        """Name of the payload's file in the node's folder.

        The checksum is a part of it: at one index two replicas may have the same state in other bytes.
        """
        return f"{self.place}-{self.checksum:016x}"

    @property
    def place(self) -> str:
        """What the names of all payloads at this place in the log begin with; they sort as the places do."""
        return f"snapshot-{self.index:020d}-{self.term:010d}"


# --- results ----------------------------------------------------------------------------------------------------


class GroupAnswered(msgspec.Struct, frozen=True):
    """A group of calls was reached in the log; `answers` is None where it was not applied, and `verdict` says why."""

    session: int
    first: int
    answers: list[Answer] | None
    verdict: Verdict = Verdict.NEW


class OpenedSession(msgspec.Struct, frozen=True):
    """A session was opened for `nonce`; `session` is None when the table was full."""

    nonce: bytes
    session: int | None


class Cause(enum.Enum):
    """Why a replica cannot go on, and what there is to do; entries are never the cause, or all replicas would stop."""

    TROUBLE = "restart it; if the command in that entry stops every node, start every node with --skip-index {index}"
    VERSION = "start a newer program on this node"
    SNAPSHOT = "start it with the machine, and the version of it, that wrote the snapshot"
    DIVERGENCE = (
        "find out what in the state machine differs between nodes (do all run the same --machine?); "
        "see --on-divergence=resync"
    )


class LocalFailure(msgspec.Struct, frozen=True):
    """This replica cannot go on applying: `reason` is for people, `index` the entry that it happened at."""

    index: int
    reason: str
    cause: Cause = Cause.TROUBLE

    @property
    def remedy(self) -> str:
        """What there is to do."""
        return self.cause.value.format(index=self.index)


class Applied(msgspec.Struct, frozen=True):
    """Result of an `ApplyJob`: all entries up to `index` count as applied.

    `slow` lists (index, command bytes, seconds) of commands over the limit; `roster` is a copy when it changed, and
    `conf_state` the membership that goes with it; `sessions` counts the open ones;
    `wants_compaction` tells whether time matters to the machine; `active_version` is that of its commands;
    `digests` lists (index, digests) of the entries at which replicas are compared; `errors` is what the machine raised
    that is to be reported.
    """

    index: int
    term: int
    time: int
    entry_bytes: int
    answers: list[GroupAnswered]
    opened: list[OpenedSession]
    compacted: list[int]
    slow: list[tuple[int, int, float]]
    conf_state: ConfState
    roster: Roster | None
    sessions: int
    wants_compaction: bool
    active_version: int
    digests: list[tuple[int, bytes]]
    failure: LocalFailure | None
    errors: list[MachineError] = []


class Queried(msgspec.Struct, frozen=True):
    """Result of a `QueryJob`: one answer per question."""

    token: int
    answers: list[Answer]
    failure: LocalFailure | None
    errors: list[MachineError] = []


class SnapshotView(msgspec.Struct, frozen=True):
    """A captured state: consume `source` at once, or, when it is frozen, beside later jobs; `sessions` are copies."""

    manifest: Manifest
    source: SnapshotSource
    sessions: list[Session]


class SnapshotFailed(msgspec.Struct, frozen=True):
    """The machine's `snapshot` raised, or its result could not be written; the log is kept and it is tried again."""

    reason: str


class SnapshotWritten(msgspec.Struct, frozen=True):
    """The payload is on disk under its name; the manifest, with size and checksum, is not yet."""

    manifest: Manifest


class Restored(msgspec.Struct, frozen=True):
    """Result of a `RestoreJob`."""

    manifest: Manifest
    failure: LocalFailure | None


Result: TypeAlias = Applied | Queried | SnapshotView | SnapshotFailed | SnapshotWritten | Restored
