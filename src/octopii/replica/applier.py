"""The apply side of a replica: the user's machine, and with it all the state that follows the log.

One `Applier` owns the machine, the session table, the roster and the replicated clock. It is called from one thread at
a time and never from the replica's own; nothing here is shared. What it does depends on the entries alone, so that all
replicas agree, but for two things that stay out of the state: the text of an unexpected exception, and the time taken.

What an exception from `apply` means:

    CommandError                        an answer, kept and replicated with its text
    any other Exception                 an answer: the type's name is replicated, the text is this node's alone
    MemoryError, OSError (timeouts too) trouble of this machine: the replica stops applying
    anything that is no Exception       likewise
"""

from collections.abc import Callable

import msgspec
import xxhash

from octopii.errors import CommandError, ConfigError, QueryNotSupported
from octopii.raft import ConfState, Entry, EntryKind
from octopii.replica.jobs import (
    Applied,
    ApplyJob,
    Cause,
    Change,
    GroupAnswered,
    Job,
    LocalFailure,
    Manifest,
    OpenedSession,
    Queried,
    QueryJob,
    Restored,
    RestoreJob,
    Result,
    SnapshotFailed,
    SnapshotView,
)
from octopii.replica.machine_errors import MachineErrors
from octopii.replica.roster import Roster, members_of
from octopii.replica.sessions import Session, SessionTable, Verdict, decode_sessions
from octopii.state_machine import ClockDriver, SnapshotSource, StateMachine, restore_snapshot
from octopii.wire import codec
from octopii.wire.codec import (
    Answer,
    ApplyFailedAnswer,
    CallGroup,
    CommandErrorAnswer,
    DeclaredErrorAnswer,
    short_text,
)

max_sessions = 65_536
"""Sessions in the replicated table. A constant of the protocol: it must be the same on every replica.

Leaders take no more than `Config.max_sessions`; what differs between nodes is never looked at when an entry is applied.
"""

max_session_bytes = 16 << 20
"""Bytes of answers kept for one session, a constant likewise: beyond it new calls wait for acknowledgements."""

max_kept_bytes = 256 << 20
"""Bytes of answers kept for all sessions, a constant likewise: they are in every node's memory and snapshots.

Beyond it the sessions that were idle for longest end before their time.
"""

slow_apply_seconds = 0.010
"""A command that takes longer is reported, unless `Config.slow_apply_threshold` says otherwise."""

local_exceptions = (MemoryError, OSError)
"""What `apply` may raise because of this machine alone; `TimeoutError` is an `OSError`."""


_encode_answers = msgspec.msgpack.Encoder().encode


class Applier:
    """Runs jobs for one replica; see the module's text.

    `apply` is called in place of the machine's own, and calls that in turn: one who looks on leaves the machine
    as it is.
    """

    def __init__(
        self,
        machine: StateMachine,
        *,
        timer: Callable[[], float],
        skip_indexes: frozenset[int] = frozenset(),
        slow_seconds: float = slow_apply_seconds,
        apply: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.machine = machine
        self._apply_command = machine.apply if apply is None else apply
        self.sessions = SessionTable(
            max_sessions=max_sessions, max_session_bytes=max_session_bytes, max_bytes=max_kept_bytes
        )
        self.roster = Roster()
        self.conf_state = ConfState()
        self.index = 0
        self.term = 0
        self.time_ns = 0
        self.active_version = 1
        self.answers_digest = 0
        self.command_version = machine.command_version
        if type(self.command_version) is not int or self.command_version < 1:
            name, found = type(machine).__name__, self.command_version
            raise ConfigError(f"{name}.command_version is a whole number from 1 on, not {found!r}", field="machine")
        self._driver = ClockDriver(machine)
        self._driver.activate(self.active_version)
        self._timer = timer
        self._skip_indexes = skip_indexes
        self._slow_seconds = slow_seconds
        self._failure: LocalFailure | None = None
        self._report = _Report()
        self._errors = MachineErrors()

    def run(self, job: Job) -> Result:
        """Do one job; never raises for what the user's code does."""
        if isinstance(job, ApplyJob):
            return self._apply(job)
        if isinstance(job, QueryJob):
            return self._query(job)
        if isinstance(job, RestoreJob):
            return self.restore(job.manifest, job.data)
        return self._capture()

    # --- entries ------------------------------------------------------------------------------------------------

    def _apply(self, job: ApplyJob) -> Applied:
        self._report = report = _Report()
        for entry in job.entries:
            if self._failure is not None:
                break
            if entry.index <= self.index:
                continue
            self._apply_entry(entry, job.changes)
        return Applied(
            index=self.index,
            term=self.term,
            time=self.time_ns,
            entry_bytes=report.entry_bytes,
            answers=report.answers,
            opened=report.opened,
            compacted=report.compacted,
            slow=report.slow,
            conf_state=self.conf_state,
            roster=self.roster.copy() if report.roster_changed else None,
            sessions=len(self.sessions),
            wants_compaction=self._driver.wants_compaction,
            active_version=self.active_version,
            digests=report.digests,
            failure=self._failure,
            errors=self._errors.take(),
        )

    def _apply_entry(self, entry: Entry, changes: dict[int, Change]) -> None:
        report = self._report
        if entry.kind == EntryKind.MEMBERSHIP:
            self._apply_membership(changes[entry.index])
        elif entry.data:
            payload = codec.decode_entry(entry.data)
            self.time_ns = max(self.time_ns, payload.stamp)
            self._driver.enter(entry.index, entry.term, self.time_ns / 1e9)
            position = 0
            for item in payload.groups:
                if isinstance(item, CallGroup):
                    self._apply_group(entry, item, position)
                    position += len(item.commands)
                else:
                    self._apply_system(entry, item, changes)
                    position += 1
                if self._failure is not None:
                    return
        self.index = entry.index
        self.term = entry.term
        report.entry_bytes += len(entry.data)

    def _apply_group(self, entry: Entry, group: CallGroup, position: int) -> None:
        verdict, kept = self.sessions.begin(
            group.session, first=group.first, count=len(group.commands), acked=group.acked, now_ns=self.time_ns
        )
        answers = self._report.answers
        if verdict is not Verdict.NEW:
            answers.append(GroupAnswered(group.session, group.first, kept, verdict))
            return
        if not group.commands:
            answers.append(GroupAnswered(group.session, group.first, []))
            return
        if entry.index in self._skip_indexes:
            given: list[Answer] = [ApplyFailedAnswer("Skipped")] * len(group.commands)
        else:
            given = self._apply_commands(entry, group.commands, position)
        if self._failure is not None:
            return
        kept, kinds = given, set(map(type, given))
        if ApplyFailedAnswer in kinds:
            kept = [ApplyFailedAnswer(a.exception) if type(a) is ApplyFailedAnswer else a for a in given]
        compared = kept
        if DeclaredErrorAnswer in kinds:  # whether an error is declared may differ between two versions of a program
            compared = [CommandErrorAnswer(a.text) if type(a) is DeclaredErrorAnswer else a for a in kept]
        self._fold(compared)
        self.sessions.record(group.session, first=group.first, answers=kept)
        answers.append(GroupAnswered(group.session, group.first, given))

    def _apply_commands(self, entry: Entry, commands: list[bytes], position: int) -> list[Answer]:
        answers: list[Answer] = []
        append, apply, at, timer = answers.append, self._apply_command, self._driver.at, self._timer
        slow = self._slow_seconds
        before = timer()
        for command in commands:
            at(position)
            position += 1
            try:
                answer = apply(command)
                append(answer if type(answer) is bytes else _as_bytes(answer))
            except CommandError as refusal:
                append(_refused(refusal))
            except local_exceptions as trouble:
                self._fail(entry.index, trouble)
                break
            except Exception as error:  # noqa: BLE001  (any Exception of the user's code is an answer)
                append(self._raised("apply", entry.index, error))
            except BaseException as trouble:  # noqa: BLE001  (SystemExit and its like must not end the apply thread)
                self._fail(entry.index, trouble)
                break
            now = timer()
            if now - before > slow:
                self._report.slow.append((entry.index, len(command), now - before))
            before = now
        return answers

    def _apply_system(self, entry: Entry, item: codec.SystemCommand, changes: dict[int, Change]) -> None:
        report = self._report
        if isinstance(item, codec.OpenSession):
            session = self.sessions.open(entry.index, nonce=item.nonce, ttl_ns=item.ttl_ns, now_ns=self.time_ns)
            report.opened.append(OpenedSession(item.nonce, session))
        elif isinstance(item, codec.CloseSession):
            self.sessions.close(item.session)
        elif isinstance(item, codec.Compact):
            self.sessions.expire(self.time_ns)
            self._compact(entry.index)
        elif isinstance(item, codec.Found):
            self.conf_state = changes[entry.index].conf_state
            self.roster.found(item)
            self._driver.found(item.cluster_id)
            report.roster_changed = True
        elif isinstance(item, codec.ActivateVersion):
            self._activate(entry.index, item.version)
        elif isinstance(item, codec.CompareDigests):
            self._digest(entry.index)
        elif isinstance(item, codec.UpdateAddress):
            self.roster.set_address(item.node_id, item.address)
            report.roster_changed = True
        else:
            self.roster.admit_storage(item.node_id, item.storage_id)
            report.roster_changed = True

    def _activate(self, index: int, version: int) -> None:
        if version > self.command_version:
            self._failure = _too_new(index, version, self.command_version)
        elif version > self.active_version:
            self.active_version = version
            self._driver.activate(version)

    def _fold(self, answers: list[Answer]) -> None:
        """Take answers, without what is this replica's alone, into the running digest."""
        self.answers_digest = xxhash.xxh3_64_intdigest(_encode_answers(answers), seed=self.answers_digest)

    def _digest(self, index: int) -> None:
        """Note the digests as of here: 8 bytes over all answers, and 8 over the state if the machine has a digest."""
        try:
            state = self.machine.digest()
            own = b"" if state is None else xxhash.xxh3_64_digest(_as_bytes(state))
        except local_exceptions as trouble:
            self._fail(index, trouble)
            return
        except Exception as error:  # noqa: BLE001  (raised on every replica alike, or a difference like any other)
            self._raised("digest", index, error)
            own = xxhash.xxh3_64_digest(f"digest() raised {type(error).__name__}".encode())
        except BaseException as trouble:  # noqa: BLE001
            self._fail(index, trouble)
            return
        self._report.digests.append((index, self.answers_digest.to_bytes(8, "big") + own))

    def _compact(self, index: int) -> None:
        self._report.compacted.append(index)
        if index in self._skip_indexes:
            return
        try:
            self.machine.compact()
        except local_exceptions as trouble:
            self._fail(index, trouble)
        except Exception as error:  # noqa: BLE001  (a compaction that raises does so on every replica)
            self._raised("compact", index, error)
            self._fold([ApplyFailedAnswer(type(error).__name__)])
        except BaseException as trouble:  # noqa: BLE001
            self._fail(index, trouble)

    def _apply_membership(self, change: Change) -> None:
        self.conf_state = change.conf_state
        self.roster.change(change.conf_state, members_of(change.added))
        self._report.roster_changed = True

    def _raised(self, method: str, index: int, error: Exception) -> ApplyFailedAnswer:
        """The answer that an unexpected exception becomes."""
        text = _text_of(error)
        self._errors.note(method, index, error, text)
        return ApplyFailedAnswer(type(error).__name__, text)

    def _fail(self, index: int, trouble: BaseException) -> None:
        self._failure = LocalFailure(index, f"{type(trouble).__name__}: {_text_of(trouble)}")

    # --- questions ----------------------------------------------------------------------------------------------

    def _query(self, job: QueryJob) -> Queried:
        answers: list[Answer] = []
        if self._failure is not None:
            return Queried(job.token, answers, self._failure)
        query = self.machine.query
        for command in job.commands:
            try:
                answer = query(command)
                answers.append(answer if type(answer) is bytes else _as_bytes(answer))
            except QueryNotSupported as refusal:
                answers.append(ApplyFailedAnswer("QueryNotSupported", str(refusal)))
            except CommandError as refusal:
                answers.append(_refused(refusal))
            except Exception as error:  # noqa: BLE001  (any Exception of the user's code is an answer)
                answers.append(self._raised("query", self.index, error))
        return Queried(job.token, answers, None, self._errors.take())

    # --- snapshots ----------------------------------------------------------------------------------------------

    def _capture(self) -> SnapshotView | SnapshotFailed:
        if self._failure is not None:
            return SnapshotFailed(f"the replica stopped applying at entry {self._failure.index}")
        try:
            source = SnapshotSource(self.machine.snapshot())
        except Exception as error:  # noqa: BLE001  (a snapshot that cannot be taken is reported and tried again)
            return SnapshotFailed(f"snapshot() raised {type(error).__name__}: {_text_of(error)}")
        manifest = Manifest(
            index=self.index,
            term=self.term,
            conf_state=self.conf_state,
            roster=self.roster.copy(),
            time=self.time_ns,
            machine_version=self.machine.snapshot_version,
            active_version=self.active_version,
            answers_digest=self.answers_digest,
        )
        return SnapshotView(manifest, source, [_frozen_session(session) for session in self.sessions.capture()])

    def restore(self, manifest: Manifest, data: memoryview) -> Restored:
        """Replace everything by a snapshot, or nothing."""
        if manifest.active_version > self.command_version:
            self._failure = _too_new(manifest.index, manifest.active_version, self.command_version)
            return Restored(manifest, self._failure)
        try:
            sessions = decode_sessions(data[manifest.state_size :], count=manifest.sessions)
            restore_snapshot(self.machine, version=manifest.machine_version, data=data[: manifest.state_size])
        except Exception as error:  # noqa: BLE001  (the machine may raise anything; the replica then refuses to go on)
            reason = f"restore() raised {type(error).__name__}: {_text_of(error)}"
            self._failure = LocalFailure(manifest.index, reason, Cause.SNAPSHOT)
            return Restored(manifest, self._failure)
        self.sessions.restore(sessions)
        self.roster = manifest.roster.copy()
        self.conf_state = manifest.conf_state
        self.index, self.term, self.time_ns = manifest.index, manifest.term, manifest.time
        self.active_version, self.answers_digest = manifest.active_version, manifest.answers_digest
        self._driver.activate(self.active_version)
        self._driver.found(self.roster.cluster_id)
        self._driver.restore(index=self.index, term=self.term, time=self.time_ns / 1e9)
        return Restored(manifest, None)


class _Report(msgspec.Struct):
    """What one job's entries led to, while they are being applied."""

    answers: list[GroupAnswered] = msgspec.field(default_factory=list)
    opened: list[OpenedSession] = msgspec.field(default_factory=list)
    compacted: list[int] = msgspec.field(default_factory=list)
    slow: list[tuple[int, int, float]] = msgspec.field(default_factory=list)
    digests: list[tuple[int, bytes]] = msgspec.field(default_factory=list)
    roster_changed: bool = False
    entry_bytes: int = 0


def _frozen_session(session: Session) -> Session:
    """Copy a session so that neither the table nor a snapshot of it changes under the other; answers are shared."""
    return msgspec.structs.replace(session, answers=dict(session.answers))


def _too_new(index: int, needed: int, own: int) -> LocalFailure:
    text = (
        f"from there on version {needed} of the state machine's commands is active, and this program has version {own}"
    )
    return LocalFailure(index, text, Cause.VERSION)


def _refused(refusal: CommandError) -> Answer:
    """The answer that a refusal becomes."""
    text = _text_of(refusal)
    return CommandErrorAnswer(text) if refusal.declared is None else DeclaredErrorAnswer(text, *refusal.declared)


def _as_bytes(answer: object) -> bytes:
    if isinstance(answer, (bytes, bytearray, memoryview)):
        return bytes(answer)
    raise TypeError(f"apply() and query() have to return bytes, not {type(answer).__name__}")


def _text_of(error: BaseException) -> str:
    """The exception's text, whatever its `__str__` does."""
    try:
        return short_text(str(error))
    except Exception:  # noqa: BLE001  (a broken __str__ is no reason to stop)
        return ""
