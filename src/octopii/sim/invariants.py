"""What must hold in every run, checked on what each step changed; everything again at intervals and at the end.

Figure 3 of the Raft paper: election safety, leader append-only, log matching, leader completeness, state-machine
safety. Beside it: terms, commit and applied indexes that never go back; a committed prefix that never changes; votes
and acknowledged entries that are there after every restart; snapshots that stand where the history was; calls of a
session that are executed once; replicated time that never goes back; one membership for each index; bounded queues.

Log matching is checked by induction: a table maps each (index, term) to its entry and to the term before it. If every
entry of every log agrees with the table, two logs that share an entry share all before it.

Beside the replicas a *reference* applies the log: one applier on a fresh machine that takes no snapshot and is never
restarted, but for a newer version of the machine's commands. A replica's state has to be the reference's at the same
index.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from octopii.errors import CommandError
from octopii.raft import ConfState, Entry, Message, MessageType, Role
from octopii.replica.applier import Applier, local_exceptions
from octopii.replica.jobs import (
    Applied,
    ApplyJob,
    Cause,
    Change,
    Job,
    LocalFailure,
    Restored,
    RestoreJob,
    Result,
    SnapshotView,
)
from octopii.replica.replica import max_unapplied_bytes
from octopii.replica.work import PeerOutput
from octopii.sim.node import MachineMaker, Node
from octopii.sim.world import Observer
from octopii.state_machine import Place, SnapshotSource, StateMachine
from octopii.wire.codec import CallGroup, decode_entry

full_check_steps = 1000
"""Steps between two checks of everything."""

max_disk_bytes = 16 << 20
"""What a machine's files may have together: many times what the settings of a simulated cluster allow to pile up."""

read_bytes = 1 << 20

After = Callable[[Place, bytes, object], None]
"""Told of a command that was applied: its place, the command, and what it came to."""


class Violation(AssertionError):
    """Something that must hold does not; `rule` names it, and `node` the machine (0: none in particular)."""

    def __init__(self, rule: str, detail: str, *, node: int = 0) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.node = node


class View(msgspec.Struct):
    """What was last seen of a machine since it booted; `promised` is what it told others that it has on disk."""

    storage: bytes
    term: int = 0
    role: Role = Role.FOLLOWER
    last: int = 0
    last_term: int = 0
    base: int = 0  # entries up to here are behind a snapshot
    terms: dict[int, int] = {}
    conf: ConfState = msgspec.field(default_factory=ConfState)
    committed: int = 0
    compared: int = 0  # committed entries up to here were compared
    applied: int = 0
    time: float = 0.0
    promised_term: int = 0
    promised_vote: int = 0
    promised_index: int = 0
    promised_entry_term: int = 0


class Known(msgspec.Struct, frozen=True):
    """An entry as first seen anywhere."""

    before: int  # the term of the entry before it; -1 where that is not known
    entry: Entry


class Operator(Protocol):
    """Whoever starts again what went down."""

    def went_down(self, node: Node) -> None:
        """A machine is down."""


class Checker(Observer):
    """Holds what a run has shown so far, and raises `Violation` at the first step that contradicts it."""

    def __init__(self, makers: tuple[MachineMaker, ...]) -> None:
        self.cluster: Operator | None = None
        self.rotten: set[int] = set()  # machines whose disk may have lost what it promised, by design
        self.views: dict[int, View] = {}
        self.leaders: dict[int, int] = {}
        self.entries: dict[tuple[int, int], Known] = {}
        self.committed: dict[int, tuple[int, int]] = {}  # index -> (term of the entry, term in which it was first seen)
        self.commit = 0
        self.came_to: dict[tuple[int, int], tuple[bytes, object]] = {}
        self.memberships: dict[int, object] = {}
        self.steps = 0
        self._held: Violation | None = None
        self.reference = Reference(makers, lambda *applied: self._applied(0, *applied))

    # --- hooks --------------------------------------------------------------------------------------------------

    def booted(self, node: Node) -> None:
        """Compare what is there with what was promised, and begin to look on."""
        replica = node.replica
        storage = replica.identity.identity.storage_id
        view = self.views.get(node.id)
        if view is None or view.storage != storage or replica.identity.empty:
            view = self.views[node.id] = View(storage)
        elif node.id not in self.rotten:
            self._check_promises(node, view)
        store = replica.store
        view.term, view.role = replica.raft.term, replica.raft.role
        view.last = store.last_index()
        view.last_term = store.term(view.last)
        view.terms = {index: store.term(index) for index in range(store.first_index(), view.last + 1)}
        view.base = store.first_index() - 1
        view.conf = replica.conf_state
        view.committed = view.compared = replica.raft.committed
        view.applied, view.time = 0, 0.0
        self._record(node, store.first_index(), view.last)

    def went_down(self, node: Node) -> None:
        """Whoever operates the cluster hears of it."""
        if self.cluster is not None:
            self.cluster.went_down(node)

    def stepped(self, node: Node) -> None:
        """Compare a machine with what was last seen of it."""
        self.steps += 1
        view = self.views[node.id]
        replica = node.replica
        raft, store = replica.raft, replica.store
        last = store.last_index()
        last_term = store.term(last)
        if last != view.last or last_term != view.last_term:
            self._follow_log(node, view, last=last, last_term=last_term)
        if raft.term != view.term or raft.role is not view.role:
            self._follow_role(node, view)
        if raft.committed != view.committed or view.compared < view.committed:
            self._follow_commit(node, view, raft.committed)
        view.conf = raft.conf_state
        if self.steps % full_check_steps == 0:
            for each in node.world.nodes.values():
                if each.up:
                    self.check_fully(each)

    def says(self, node: Node, peer: int, outputs: list[PeerOutput]) -> None:
        """Note what a machine promises."""
        view = self.views[node.id]
        for output in outputs:
            if not isinstance(output, Message) or output.reject:
                continue
            kind = output.type
            if kind is MessageType.APPEND_RESPONSE:
                in_force = output.term == node.replica.raft.term  # else the entry may have been replaced since
                start = node.replica.store.first_index()
                if in_force and max(view.promised_index, start - 1) < output.index <= view.last:
                    view.promised_index = output.index
                    view.promised_entry_term = node.replica.store.term(output.index)
                if output.term > view.promised_term:
                    view.promised_term, view.promised_vote = output.term, 0
            elif kind is MessageType.VOTE_RESPONSE or kind is MessageType.VOTE_REQUEST:
                vote = output.to if kind is MessageType.VOTE_RESPONSE else node.id
                if view.promised_term == output.term and view.promised_vote not in (0, vote):
                    detail = f"node {node.id} voted for {view.promised_vote} and for {vote} in term {output.term}"
                    raise Violation("one vote per term", detail, node=node.id)
                if output.term >= view.promised_term:
                    view.promised_term, view.promised_vote = output.term, vote

    def job_done(self, node: Node, job: Job, result: Result) -> None:
        """Follow what is applied and restored."""
        view = self.views[node.id]
        if isinstance(job, ApplyJob):
            assert isinstance(result, Applied)
            self.reference.follow(job)
            if self._held is not None:
                raise self._held
            if result.index < view.applied:
                self._fail(node, "applied index", f"went back from {view.applied} to {result.index}")
            view.applied = result.index
            self._check_membership(node, result.index, result.conf_state)
            if result.index == self.reference.index:
                self.compare_with_reference(node)
        elif isinstance(job, RestoreJob):
            assert isinstance(result, Restored)
            self._check_snapshot(node, job.manifest.index, job.manifest.term)
            if job.manifest.index < view.applied:
                self._fail(node, "applied index", f"a snapshot at {job.manifest.index} replaced {view.applied}")
            if result.failure is None:
                view.applied = job.manifest.index
                view.time = 0.0
        elif isinstance(result, SnapshotView):
            self._check_snapshot(node, result.manifest.index, result.manifest.term)
            self._check_membership(node, result.manifest.index, result.manifest.conf_state)

    # --- logs ---------------------------------------------------------------------------------------------------

    def _follow_log(self, node: Node, view: View, *, last: int, last_term: int) -> None:
        store, raft = node.replica.store, node.replica.raft
        first, terms = store.first_index(), view.terms
        same = min(view.last, last)
        while same >= first and store.term(same) != terms.get(same):
            same -= 1
        if same < first - 1 or (same == first - 1 and view.last < same):
            terms.clear()  # a snapshot took the place of the log
            same = view.base = first - 1
            if same:
                self._check_snapshot(node, same, store.term(same))
        elif same < view.last:
            if same < min(view.committed, view.last) and first <= view.last:
                self._fail(node, "committed prefix", f"entry {same + 1} changed, {view.committed} was committed")
            if raft.role is Role.LEADER and view.role is Role.LEADER and raft.term == view.term:
                self._fail(node, "leader append-only", f"entry {same + 1} changed in term {raft.term}")
            for index in range(same + 1, view.last + 1):
                terms.pop(index, None)
            if view.promised_index > same:
                view.promised_index, view.promised_entry_term = same, store.term(same) if same >= first else 0
        self._record(node, same + 1, last)
        for index in range(same + 1, last + 1):
            terms[index] = store.term(index)
        view.last, view.last_term = last, last_term

    def _record(self, node: Node, low: int, high: int) -> None:
        """Compare entries with what is known of them, or make it known."""
        if low > high:
            return
        store, table = node.replica.store, self.entries
        before = store.term(low - 1) if low > 1 and low > store.first_index() else (0 if low == 1 else -1)
        for entry in entries_of(node, low, high):
            known = table.get((entry.index, entry.term))
            if known is None:
                table[entry.index, entry.term] = Known(before, entry)
            else:
                if known.entry is not entry and known.entry != entry:
                    self._fail(node, "log matching", f"two entries {entry.index} of term {entry.term}")
                if known.before != before and known.before >= 0 and before >= 0:
                    detail = f"entry {entry.index} of term {entry.term} follows terms {known.before} and {before}"
                    self._fail(node, "log matching", detail)
            if before > entry.term:
                self._fail(node, "log order", f"entry {entry.index} has term {entry.term} after {before}")
            before = entry.term

    def _follow_role(self, node: Node, view: View) -> None:
        raft = node.replica.raft
        term, role = raft.term, raft.role
        if term < view.term:
            self._fail(node, "term", f"went back from {view.term} to {term}")
        if role is Role.LEADER and (view.role is not Role.LEADER or view.term != term):
            known = self.leaders.setdefault(term, node.id)
            if known != node.id:
                self._fail(node, "one leader per term", f"nodes {known} and {node.id} both won term {term}")
            self._check_completeness(node, term)
        view.term, view.role = term, role

    def _check_completeness(self, node: Node, term: int) -> None:
        store = node.replica.store
        if node.replica.writes.blocked:
            return  # the end of the log waits for room on the disk, and cannot be seen from here
        index = self.commit
        while index in self.committed and self.committed[index][1] >= term:
            index -= 1
        if index not in self.committed or index < store.first_index():
            return
        entry_term, _ = self.committed[index]
        if index > store.last_index() or store.term(index) != entry_term:
            detail = f"leader {node.id} of term {term} lacks committed entry {index} of term {entry_term}"
            self._fail(node, "leader completeness", detail)

    def _follow_commit(self, node: Node, view: View, committed: int) -> None:
        if committed < view.committed:
            self._fail(node, "commit index", f"went back from {view.committed} to {committed}")
        store, raft = node.replica.store, node.replica.raft
        term = raft.term
        end = min(committed, store.last_index())
        if raft.role is Role.LEADER and committed > max(view.committed, self.commit) and committed == end:
            self._check_first_commit(node, view, committed)
        for index in range(max(view.compared + 1, store.first_index()), end + 1):
            entry_term = view.terms[index]
            known = self.committed.setdefault(index, (entry_term, term))
            if known[0] != entry_term:
                detail = f"entry {index} is committed with terms {known[0]} and {entry_term}"
                self._fail(node, "state-machine safety", detail)
        view.committed = committed
        view.compared = max(view.compared, end)
        self.commit = max(self.commit, end)

    def _check_first_commit(self, node: Node, view: View, index: int) -> None:
        """A leader commits an entry of its own term that a quorum has; the change that it brings may count already."""
        entry_term, term = view.terms[index], node.replica.raft.term
        if entry_term != term:
            self._fail(node, "commit of own term", f"entry {index} of term {entry_term} is committed in term {term}")
        holders = {
            peer for peer, other in self.views.items() if index <= other.base or other.terms.get(index) == entry_term
        }
        confs = (view.conf, node.replica.conf_state)
        if not self.rotten and not any(_is_quorum(conf, holders) for conf in confs):
            detail = f"entry {index} is in the logs of {sorted(holders)} alone: {confs[0]}"
            self._fail(node, "commit by a quorum", detail)

    def _check_promises(self, node: Node, view: View) -> None:
        """What others were told is on disk is there after a restart."""
        store = node.replica.store
        hard = node.replica.raft.status()
        if hard.term < view.promised_term:
            detail = f"node {node.id} came back in term {hard.term}, it had promised {view.promised_term}"
            self._fail(node, "durable promises", detail)
        if hard.term == view.promised_term and view.promised_vote and hard.vote != view.promised_vote:
            detail = f"node {node.id} forgot its vote for {view.promised_vote} in term {hard.term}"
            self._fail(node, "durable promises", detail)
        index, term = view.promised_index, view.promised_entry_term
        if index >= store.first_index() and (index > store.last_index() or store.term(index) != term):
            detail = f"node {node.id} had acknowledged entry {index} of term {term}, its log ends at "
            self._fail(node, "durable promises", detail + str(store.last_index()))

    def _check_snapshot(self, node: Node, index: int, term: int) -> None:
        known = self.committed.get(index)
        if known is not None and known[0] != term:
            detail = f"a snapshot of node {node.id} at {index} has term {term}, committed is {known[0]}"
            self._fail(node, "snapshot is a prefix", detail)
        if known is None and index > max(self.commit, self.reference.index):
            self._fail(node, "snapshot is a prefix", f"a snapshot at {index}, committed is {self.commit}")

    def _check_membership(self, node: Node, index: int, conf: object) -> None:
        known = self.memberships.setdefault(index, conf)
        if known != conf:
            self._fail(node, "membership", f"node {node.id} has {conf} at entry {index}, others have {known}")

    # --- state machines -----------------------------------------------------------------------------------------

    def on_apply(self, node: Node, machine: StateMachine) -> Callable[[bytes], bytes]:
        """Look on as a replica's machine applies."""

        def before(place: Place) -> None:
            if node.fails_apply:
                node.fails_apply = False
                raise MemoryError
            view = self.views[node.id]
            if place.time < view.time:
                detail = f"on node {node.id} replicated time went back from {view.time} to {place.time}"
                self._hold(Violation("clock", detail, node=node.id))
            view.time = place.time

        return watched(machine, before, lambda *applied: self._applied(node.id, *applied))

    def _applied(self, node_id: int, place: Place, command: bytes, came_to: object) -> None:
        """The same commands and answers at the same places everywhere."""
        known = self.came_to.setdefault((place.index, place.position), (command, came_to))
        if known != (command, came_to):
            who = f"node {node_id}" if node_id else "the reference"
            detail = f"entry {place.index}, command {place.position}: {command!r} came to {came_to!r} on {who}; "
            detail += f"elsewhere {known[0]!r} came to {known[1]!r}"
            self._hold(Violation("state-machine safety", detail, node=node_id))

    def _hold(self, violation: Violation) -> None:
        """Keep what was found in the midst of `apply`, whose exceptions are answers, until the job is done."""
        if self._held is None:
            self._held = violation

    def compare_with_reference(self, node: Node) -> None:
        """A replica at the reference's index has its sessions, members and time; see `compare_states` for the rest."""
        mine, other = node.applier, self.reference.applier
        if node.replica.applying.failure is not None or node.skip_indexes:
            return
        if (mine.time_ns, mine.term, len(mine.sessions)) != (other.time_ns, other.term, len(other.sessions)):
            self._fail(node, "state-machine safety", f"time, term or sessions differ at entry {mine.index}")

    def compare_states(self, nodes: list[Node]) -> None:
        """All of these are in the same state, which is the reference's; for the quiet, it costs a snapshot each.

        Those of one class are compared: the next version of a machine may have added to its snapshot.
        """
        seen: dict[type[StateMachine], tuple[str, bytes]] = {}
        other = self.reference.applier
        if all(node.applier.index == other.index for node in nodes):
            seen[type(other.machine)] = ("the reference", snapshot_of(other.machine))
        for node in nodes:
            mine = node.applier
            name = f"node {node.id}"
            who, state = seen.setdefault(type(mine.machine), (name, snapshot_of(mine.machine)))
            if state != snapshot_of(mine.machine):
                self._fail(node, "state-machine safety", f"{who} and {name} differ at entry {mine.index}")
            if mine.index == other.index:
                for what in ("roster", "conf_state", "time_ns"):
                    if getattr(mine, what) != getattr(other, what):
                        self._fail(node, "state-machine safety", f"the reference and {name} differ in {what}")
                if mine.sessions.capture() != other.sessions.capture():
                    self._fail(node, "state-machine safety", f"the reference and {name} differ in sessions")

    # --- everything ---------------------------------------------------------------------------------------------

    def check_fully(self, node: Node) -> None:
        """Look at all of a machine."""
        replica, view, config = node.replica, self.views[node.id], node.config
        store = replica.store
        self._record(node, store.first_index(), store.last_index())
        for index in range(store.first_index(), min(view.committed, store.last_index()) + 1):
            known = self.committed.get(index)
            if known is not None and known[0] != store.term(index):
                self._fail(node, "committed prefix", f"entry {index} has term {store.term(index)}, not {known[0]}")
        conf = replica.conf_state
        if set(conf.voters) & set(conf.learners):
            self._fail(node, "membership", f"{conf} has a voter that learns")
        for peer, status in replica.raft.status().peers.items():
            if status.inflight_messages > config.max_inflight_appends or status.match > store.last_index() + (
                1 << 30 if replica.writes.blocked else 0
            ):
                self._fail(node, "bounds", f"towards node {peer}: {status}")
        self._check_bounds(node)

    def _check_bounds(self, node: Node) -> None:
        """Queues, caches and the disk hold no more than their limits, one item over them at most."""
        replica, config = node.replica, node.config
        item = config.max_batch_bytes
        for what, size, limit in (
            ("bytes on disk", node.vfs.used_bytes(), max_disk_bytes),
            ("calls that wait", replica.calls._waiting_calls, config.max_pending_calls),
            ("bytes of calls that wait", replica.calls._waiting_bytes, config.max_pending_bytes),
            ("bytes of queued calls", replica.calls._queue_bytes, config.max_pending_bytes),
            ("bytes of cached entries", replica.store._cache_bytes, config.entry_cache_bytes + item),
            ("bytes to apply", replica.applying.handed_bytes, max_unapplied_bytes + item),
        ):
            if size > limit:
                self._fail(node, "bounds", f"node {node.id} has {size} {what}, {limit} are the limit")

    def _fail(self, node: Node, rule: str, detail: str) -> None:
        raise Violation(rule, detail if f"node {node.id}" in detail else f"node {node.id}: {detail}", node=node.id)


class Reference:
    """One applier beside the cluster that follows the log as far as any replica has applied it.

    Its machine is of the oldest version. Where the log asks for a newer one, that begins anew and applies all from the
    first entry on: it has to come to the same answers.
    """

    def __init__(self, makers: tuple[MachineMaker, ...], after: After) -> None:
        self._later = list(makers)
        self._after = after
        self._log: list[Entry] = []
        self._changes: dict[int, Change] = {}
        self._executed: list[int] = []  # positions in the entry that is being applied
        self._calls: set[tuple[int, int]] = set()
        self.applier = self._next_version()

    def _next_version(self) -> Applier:
        machine = self._later.pop(0)()
        self._calls.clear()
        apply = watched(machine, lambda place: self._executed.append(place.position), self._after)
        return Applier(machine, timer=lambda: 0.0, apply=apply)

    @property
    def index(self) -> int:
        """How far it has applied."""
        return self.applier.index

    def follow(self, job: ApplyJob) -> None:
        """Apply what is new; each call of a session is executed once."""
        for entry in job.entries:
            if entry.index != self.index + 1:
                continue
            self._log.append(entry)
            self._changes |= job.changes
            failure = self._apply(entry)
            while failure is not None and failure.cause is Cause.VERSION and self._later:
                self.applier = self._next_version()
                for each in self._log:
                    failure = self._apply(each)

    def _apply(self, entry: Entry) -> LocalFailure | None:
        self._executed.clear()
        result = self.applier.run(ApplyJob([entry], self._changes))
        assert isinstance(result, Applied)
        if self._executed:
            self._check_once(entry)
        return result.failure

    def _check_once(self, entry: Entry) -> None:
        executed = set(self._executed)
        position = 0
        for item in decode_entry(entry.data).groups:
            if not isinstance(item, CallGroup):
                position += 1
                continue
            for number in range(item.first, item.first + len(item.commands)):
                if position in executed:
                    if (item.session, number) in self._calls:
                        detail = f"call {number} of session {item.session} is executed again at entry {entry.index}"
                        raise Violation("at most once", detail)
                    self._calls.add((item.session, number))
                position += 1


def _is_quorum(conf: ConfState, holders: set[int]) -> bool:
    """Whether these are a majority, in a joint membership of both halves."""
    halves = [half for half in (conf.voters, conf.voters_outgoing) if half]
    return all(2 * len(holders.intersection(half)) > len(half) for half in halves)


def watched(machine: StateMachine, before: Callable[[Place], None], after: After) -> Callable[[bytes], bytes]:
    """A machine's `apply` between calls of `before` and `after`, with each command's place and what it came to.

    The machine is the user's, and stays as it is: a typed one refuses attributes that it does not declare.
    """
    right, clock = machine.apply, machine.clock

    def apply(command: bytes) -> bytes:
        place = clock.place
        before(place)
        try:
            answer = right(command)
        except CommandError as refusal:
            after(place, command, f"refused: {refusal}")
            raise
        except local_exceptions:
            raise
        except Exception as error:
            after(place, command, f"raised {type(error).__name__}")
            raise
        after(place, command, answer)
        return answer

    return apply


def snapshot_of(machine: StateMachine) -> bytes:
    """The machine's whole state."""
    return b"".join(SnapshotSource(machine.snapshot()))


def entries_of(node: Node, low: int, high: int) -> list[Entry]:
    """Entries of a machine's log, read so that no fault of its disk meets the one who only looks on."""
    faults = node.vfs.faults
    hook, faults.before_read = faults.before_read, None
    found: list[Entry] = []
    try:
        while low <= high:
            got = node.replica.store.entries(low, high + 1, read_bytes)
            if not got:  # written, not synced and not in the cache: the core has them
                unstable = node.replica.raft._state.log.unstable
                return found + [entry for entry in unstable if low <= entry.index <= high]
            found += got
            low = found[-1].index + 1
    finally:
        faults.before_read = hook
    return found
