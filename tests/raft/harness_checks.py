"""What must hold in every run of the core: checked after each step, on the node that the step touched.

Election safety, leader append-only, log matching, leader completeness and state-machine safety are figure 3 of the
Raft paper. The rest is what a sound use of disks and reads asks for: a commit index and an applied index that never go
back, a committed prefix that never changes, a leader that commits only what a quorum of *disks* holds, votes that were
on disk when they were counted, match indexes that the follower's disk bears out, reads that see every write committed
before they were asked for.

Log matching is checked by induction: a global table maps each (index, term) to its entry and to the term of the entry
before it. If every entry of every log agrees with that table, two logs that share an entry share all before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octopii.raft import Entry, Role

if TYPE_CHECKING:
    from tests.raft.harness import Cluster, Peer


class Violation(AssertionError):
    """A property of the protocol does not hold. `rule` names it: schedules shrink as long as it stays the same."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


@dataclass(slots=True)
class View:
    """What was last seen of one node: compared with what is there after its next step."""

    incarnation: int
    role: Role = Role.FOLLOWER
    term: int = 0
    commit: int = 0
    first: int = 1
    log: list[Entry] = field(default_factory=list)
    match: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Election:
    """A won election: who won, and the log it began its term with."""

    leader: int
    incarnation: int
    first: int
    terms: list[int]

    def lacks(self, index: int, term: int) -> bool:
        """Return whether the entry is missing from this log; what was compacted away had been committed and applied."""
        position = index - self.first
        return position >= 0 and (position >= len(self.terms) or self.terms[position] != term)


class Checker:
    """Holds what a run has shown so far and raises `Violation` at the first step that contradicts it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.views: dict[int, View] = {}
        self.elections: dict[int, Election] = {}
        self.entries: dict[tuple[int, int], tuple[int, Entry]] = {}
        # Committed entries by index - 1, each with the term of the leader that committed it; None where only the index
        # is known, from a snapshot that the run began with.
        self.committed: list[tuple[Entry | None, int]] = []
        self.applied: dict[int, tuple[int, int]] = {}
        self.memberships: dict[int, object] = {}
        self.reads: dict[tuple[int, bytes], int] = {}

    def believe(self, commit: int) -> None:
        """Take it that everything up to this index is committed, whatever it is."""
        self.committed.extend([(None, 0)] * (commit - self.commit))

    @property
    def commit(self) -> int:
        """The highest index known to be committed anywhere."""
        return len(self.committed)

    def after(self, peer: Peer) -> None:
        """Compare the node with what was last seen of it, then remember what it is now."""
        if peer.node is None:
            return
        view = self.views.get(peer.id)
        if view is None or view.incarnation != peer.incarnation:
            view = self.views[peer.id] = View(peer.incarnation, first=peer.first_index)
        role, term, commit = peer.role, peer.term, peer.commit
        if term < view.term:
            raise Violation("term monotonicity", f"node {peer.id} went from term {view.term} to {term}")
        if commit < view.commit:
            raise Violation("commit monotonicity", f"node {peer.id} went from commit {view.commit} to {commit}")
        self._check_log(peer, view, role=role, term=term)
        if role is Role.LEADER:
            if view.role is not Role.LEADER or view.term != term:
                self._check_election(peer, view, term)
            self._check_match(peer, view, term)
        if commit > view.commit:
            self._check_commit(peer, view, role=role, term=term, commit=commit)
        view.role, view.term, view.commit = role, term, commit

    def unchanged(self, peer: Peer) -> None:
        """The log in memory does not change by what a Ready in flight leaves on the disk."""
        view = self.views.get(peer.id)
        if view is not None and view.incarnation == peer.incarnation and peer.log() != (view.first, view.log):
            raise Violation("log and disk", f"node {peer.id} reads its log otherwise after a write reached the disk")

    def _check_log(self, peer: Peer, view: View, *, role: Role, term: int) -> None:
        """Leader append-only, an unchanging committed prefix, and log matching for what is new."""
        first, log = peer.log()
        old_first, old = view.first, view.log
        if first == old_first and log == old:
            view.log = log
            return
        shift = first - old_first
        if shift > 0:
            old = old[shift:]
        elif shift < 0:
            raise Violation("log start", f"node {peer.id}: first index went back from {old_first} to {first}")
        same = 0
        for before, now in zip(old, log):
            if before is not now and before != now:
                break
            same += 1
        if same < len(old):
            changed = first + same
            if changed <= view.commit:
                raise Violation(
                    "committed prefix", f"node {peer.id} changed entry {changed}, committed up to {view.commit}"
                )
            if role is Role.LEADER and view.role is Role.LEADER and view.term == term:
                raise Violation("leader append-only", f"leader {peer.id} of term {term} changed entry {changed}")
        self._record_entries(peer, first=first, log=log, start=same)
        view.first, view.log = first, log

    def _record_entries(self, peer: Peer, *, first: int, log: list[Entry], start: int) -> None:
        table = self.entries
        before = log[start - 1].term if start else peer.term_before(first)
        for position in range(start, len(log)):
            entry = log[position]
            if entry.index != first + position:
                raise Violation("log order", f"node {peer.id} holds entry {entry.index} at {first + position}")
            if before >= 0 and entry.term < before:
                raise Violation(
                    "log order", f"node {peer.id}: entry {entry.index} has term {entry.term} after {before}"
                )
            known = table.setdefault((entry.index, entry.term), (before, entry))
            if known[1] is not entry and known[1] != entry:
                raise Violation("log matching", f"two entries {entry.index} of term {entry.term}: {known[1]}, {entry}")
            if known[0] != before and known[0] >= 0 and before >= 0:
                raise Violation(
                    "log matching", f"entry {entry.index} of term {entry.term} follows terms {known[0]} and {before}"
                )
            before = entry.term

    def _check_election(self, peer: Peer, view: View, term: int) -> None:
        """Election safety, leader completeness, and that every vote counted was on its voter's disk."""
        known = self.elections.get(term)
        if known is not None:
            raise Violation("election safety", f"nodes {known.leader} and {peer.id} both won term {term}")
        won = Election(peer.id, peer.incarnation, view.first, [entry.term for entry in view.log])
        self.elections[term] = won
        view.match = {}
        for index, (entry, commit_term) in enumerate(self.committed, start=1):
            if entry is not None and commit_term < term and won.lacks(index, entry.term):
                raise Violation(
                    "leader completeness",
                    f"leader {peer.id} of term {term} lacks {index}/{entry.term}, committed in term {commit_term}",
                )
        if peer.id not in peer.voters():
            raise Violation(
                "learners do not lead", f"node {peer.id} won term {term} and is no voter of its own membership"
            )
        # Who has a later term on disk cannot vote in this one again, so its vote need not be there any more.
        voted = {
            voter
            for voter, other in self.cluster.peers.items()
            if peer.id in other.durable_votes.get(term, ()) or other.durable_term() > term
        }
        if not peer.is_quorum(voted):
            raise Violation(
                "durable votes", f"node {peer.id} won term {term}; on disk are the votes of {sorted(voted)}"
            )

    def _check_match(self, peer: Peer, view: View, term: int) -> None:
        """A match index says what is on the follower's disk, unless a later leader has changed that since."""
        match = peer.match()
        if match == view.match:
            return
        first, log = view.first, view.log
        for follower, index in match.items():
            if index <= view.match.get(follower, 0) or index < first:
                continue
            other = self.cluster.peers.get(follower)
            if other is None or other.durable_term() > term:
                continue
            if index - first >= len(log) or not other.durably_holds(index, log[index - first].term):
                raise Violation(
                    "match on disk", f"leader {peer.id} of term {term} believes that {index} is on disk at {follower}"
                )
        view.match = match

    def _check_commit(self, peer: Peer, view: View, *, role: Role, term: int, commit: int) -> None:
        """State-machine safety at the source: one entry per committed index; a leader's, on a quorum of disks."""
        if commit > self.commit:
            if role is not Role.LEADER:
                raise Violation("commit source", f"node {peer.id} committed {commit} before any leader did")
            self._check_first_commit(peer, view, term=term, commit=commit)
        first = view.first
        for index in range(max(view.commit + 1, first), commit + 1):
            if index - first >= len(view.log):
                raise Violation("commit beyond log", f"node {peer.id} committed {commit}, its log ends at {index - 1}")
            entry = view.log[index - first]
            agreed = self.committed[index - 1][0]
            if agreed is not None and entry is not agreed and entry != agreed:
                raise Violation("state-machine safety", f"node {peer.id} committed {entry} where {agreed} is committed")

    def _check_first_commit(self, peer: Peer, view: View, *, term: int, commit: int) -> None:
        first, log = view.first, view.log
        if commit - first >= len(log):
            raise Violation(
                "commit beyond log", f"node {peer.id} committed {commit}, its log ends at {first + len(log) - 1}"
            )
        last = log[commit - first]
        if last.term != term:
            raise Violation(
                "commit of own term",
                f"leader {peer.id} of term {term} committed {commit}, an entry of term {last.term}",
            )
        holders = {other.id for other in self.cluster.peers.values() if other.durably_holds(commit, last.term)}
        if not peer.is_quorum(holders):
            raise Violation(
                "durable commit",
                f"leader {peer.id} committed {commit}; on disk only at {sorted(holders)} of {peer.members}",
            )
        fresh = [(log[index - first], term) for index in range(self.commit + 1, commit + 1)]
        for later, won in self.elections.items():
            if later > term:
                for entry, _ in fresh:
                    if won.lacks(entry.index, entry.term):
                        raise Violation(
                            "leader completeness",
                            f"leader {won.leader} of term {later} lacks {entry.index}, committed later in term {term}",
                        )
        self.committed.extend(fresh)

    def applied_entry(self, peer: Peer, entry: Entry, digest: int) -> None:
        """State-machine safety at its end: every node applies the same entries in the same order, once."""
        if entry.index > self.commit:
            raise Violation("apply", f"node {peer.id} applied {entry.index}, which no leader has committed")
        agreed = self.committed[entry.index - 1][0]
        if agreed is not None and entry is not agreed and entry != agreed:
            raise Violation("state-machine safety", f"node {peer.id} applied {entry} where {agreed} is committed")
        self.reached_state(peer, entry.index, digest)

    def reached_state(self, peer: Peer, index: int, digest: int) -> None:
        """All replicas reach the same state at the same index, by applying or by a snapshot."""
        who, known = self.applied.setdefault(index, (peer.id, digest))
        if known != digest:
            raise Violation("state-machine safety", f"nodes {who} and {peer.id} differ in state at index {index}")

    def reached_membership(self, peer: Peer, index: int, conf: object) -> None:
        """All replicas have the same membership at the same index."""
        known = self.memberships.setdefault(index, conf)
        if known != conf:
            raise Violation("membership", f"node {peer.id} has {conf} at index {index}, others {known}")

    def asked_read(self, peer: Peer, context: bytes) -> None:
        """Note what was committed when the read was asked for."""
        self.reads[peer.id, context] = self.commit

    def answered_read(self, peer: Peer, context: bytes, index: int) -> None:
        """A read sees all that was committed before it was asked for."""
        asked = self.reads.get((peer.id, context))
        if asked is None:
            raise Violation("reads", f"node {peer.id} answers read {context!r}, which it was not asked")
        if index < asked:
            raise Violation(
                "linearizable reads", f"node {peer.id}: read at {index}, but {asked} was committed before it"
            )

    def leased_read(self, peer: Peer, index: int) -> None:
        """A lease read sees all that is committed at this moment."""
        if index < self.commit:
            raise Violation("lease reads", f"node {peer.id} reads at {index} by lease, {self.commit} is committed")
