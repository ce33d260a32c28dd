"""Known bugs of replicated systems, put back into the replica one at a time.

    python -m tests.mutants.replica [SEEDS]     plant each, run the suite against it, print which check caught it

Each is named after what it breaks; the number is that of its class in the field's list of bugs. Checks are the named
tests of whole clusters and runs of the simulator; each family is run up to its first failure.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import msgspec
import pytest

from octopii.errors import LogFull, LogPoisoned
from octopii.raft import ConfState
from octopii.replica.jobs import SnapshotFailed, SnapshotView, SnapshotWritten
from octopii.replica.roster import Roster
from octopii.replica.sessions import Verdict
from octopii.sim import Simulation
from tests.mutants.planting import Check, Mutant, catchers, table
from tests.replica import (
    test_clock,
    test_disk,
    test_divergence,
    test_hostile,
    test_identity,
    test_quarantine,
    test_reads,
    test_restarts,
    test_sessions,
    test_snapshots,
    test_trouble,
    test_versions,
)

Function = Callable[..., Any]

MODULES = (
    test_restarts,
    test_sessions,
    test_identity,
    test_reads,
    test_snapshots,
    test_clock,
    test_trouble,
    test_disk,
    test_versions,
    test_divergence,
    test_quarantine,
    test_hostile,
)


# --- the bugs ---------------------------------------------------------------------------------------------------


def count_before_the_sync(right: Function) -> Function:
    """What was written counts as durable as soon as its sync begins."""

    def wrong(writes: Any) -> Any:
        ticket = right(writes)
        writes._count(writes._newest)
        return ticket

    return wrong


def send_promises_at_once(right: Function) -> Function:
    """Votes and acknowledgements go out when they are made, not when they are on disk."""

    def wrong(writes: Any, ready: Any) -> None:
        for message in ready.messages_after_persist:
            writes._replica.send(message)
        right(writes, msgspec.structs.replace(ready, messages_after_persist=[]))

    return wrong


def answers_with(**lost: Any) -> Callable[[Function], Function]:
    """A captured snapshot lacks something."""

    def build(right: Function) -> Function:
        def wrong(applier: Any) -> Any:
            view = right(applier)
            if not isinstance(view, SnapshotView):
                return view  # it failed, as the right one would have
            return msgspec.structs.replace(view, manifest=msgspec.structs.replace(view.manifest, **lost))

        return wrong

    return build


def answers_without_sessions(right: Function) -> Function:
    """A snapshot lacks the sessions."""

    def wrong(applier: Any) -> Any:
        view = right(applier)
        return msgspec.structs.replace(view, sessions=[]) if isinstance(view, SnapshotView) else view

    return wrong


def count_at_record(right: Function) -> Function:
    """A manifest counts, and the log behind it goes, before the manifest is on disk."""

    def wrong(writes: Any, manifest: Any) -> bool:
        taken = bool(right(writes, manifest))
        writes._replica.snapshot_counts(manifest, writes._recorded.offset)
        return taken

    return wrong


def write_without_sync(right: Function) -> Function:
    """The payload of a snapshot is named before its bytes are on disk."""

    def wrong(store: Any, view: Any) -> Any:
        class Unsynced:
            def __init__(self, file: Any) -> None:
                self._file = file

            def __getattr__(self, name: str) -> Any:
                return (lambda: None) if name == "datasync" else getattr(self._file, name)

        vfs = store._vfs
        open_file = vfs.open
        vfs.open = lambda *args, **kwargs: Unsynced(open_file(*args, **kwargs))
        try:
            return right(store, view)
        finally:
            del vfs.open

    return wrong


def purge_what_is_being_sent(right: Function) -> Function:
    """The log is trimmed to the newest snapshot, whatever a follower still needs, and the file goes that it is sent."""

    def wrong(store: Any, manifest: Any, offset: int, _in_use: frozenset[str]) -> None:
        right(store, manifest, offset, frozenset())
        for name in store._vfs.list_folder(store._folder):
            if name.startswith("snapshot-"):
                store._vfs.remove(f"{store._folder}/{name}")

    return wrong


def judge_every_call_new(right: Function) -> Function:
    """A retried call is applied again."""

    def wrong(sessions: Any, *args: Any, **kwargs: Any) -> tuple[Verdict, Any]:
        verdict, kept = right(sessions, *args, **kwargs)
        return (Verdict.NEW, None) if verdict in (Verdict.REPEATED, Verdict.STALE) else (verdict, kept)

    return wrong


def judge_late_copies_new(right: Function) -> Function:
    """A late copy of a group whose answers were dropped is applied again."""

    def wrong(sessions: Any, *args: Any, **kwargs: Any) -> tuple[Verdict, Any]:
        verdict, kept = right(sessions, *args, **kwargs)
        return (Verdict.NEW, None) if verdict is Verdict.STALE else (verdict, kept)

    return wrong


def drop_answers_too_early(right: Function) -> Function:
    """An answer goes before the client has acknowledged it."""

    def wrong(session: Any, acked: int) -> None:
        right(session, acked + 1)

    return wrong


def record_and_forget(right: Function) -> Function:
    """Only the newest group's answers are kept."""

    def wrong(sessions: Any, session_id: int, *, first: int, answers: Any) -> None:
        sessions._sessions[session_id].answers.clear()
        right(sessions, session_id, first=first, answers=answers)

    return wrong


def reopen_expired_sessions(right: Function) -> Function:
    """A call under a session that is gone opens it again."""

    def wrong(sessions: Any, session_id: int, **kwargs: Any) -> tuple[Verdict, Any]:
        verdict, kept = right(sessions, session_id, **kwargs)
        if verdict is Verdict.EXPIRED:
            sessions.open(session_id, nonce=b"", ttl_ns=1 << 60, now_ns=kwargs["now_ns"])
            return Verdict.NEW, None
        return verdict, kept

    return wrong


def forget_failures(right: Function) -> Function:
    """A local failure is swallowed, and the replica goes on."""
    return lambda _applier, _index, _trouble: None


def keep_the_text(right: Function) -> Function:
    """The text of an unexpected exception becomes a part of the replicated state."""

    def wrong(applier: Any, entry: Any, group: Any, position: int) -> None:
        right(applier, entry, group, position)
        answered = applier._report.answers[-1]
        session = applier.sessions._sessions.get(group.session)
        if session is not None and answered.answers and group.first in session.answers:
            session.answers[group.first] = answered.answers

    return wrong


def admit_wiped_nodes(right: Function) -> Function:
    """The storage that comes with a node's id is not looked at."""
    return lambda _hello, _standing: None


def admit_other_clusters(right: Function) -> Function:
    """The cluster id is not looked at in the handshake."""
    return lambda _hello, _standing, _expected: None


def trust_every_peer(right: Function) -> Function:
    """Whoever is connected counts as a member of this cluster."""

    def wrong(joining: Any, peer: int) -> bytes:
        return joining._replica.identity.identity.cluster_id or bytes(right(joining, peer))

    return wrong


def found_without_asking(right: Function) -> Function:
    """The initial leader founds a cluster without hearing from anybody."""
    return property(lambda _founding: True)  # type: ignore[return-value]


def be_complete_at_once(right: Function) -> Function:
    """Calls are taken while the founder is the only voter."""
    return property(lambda _joining: True)  # type: ignore[return-value]


def take_a_full_disk_for_success(right: Function) -> Function:
    """What found no room counts as written."""

    def wrong(writes: Any, ready: Any) -> None:
        try:
            right(writes, ready)
        except LogFull:
            return

    return wrong


def take_a_failed_sync_for_success(right: Function) -> Function:
    """An error of the sync is ignored, and the sync counts."""

    def wrong(writes: Any, ticket: Any) -> None:
        ticket.error = None
        try:
            right(writes, ticket)
        except LogPoisoned:
            return

    return wrong


def take_a_failed_snapshot_for_success(right: Function) -> Function:
    """A snapshot that could not be written is recorded all the same."""

    def wrong(store: Any, view: Any) -> Any:
        result = right(store, view)
        return SnapshotWritten(view.manifest) if isinstance(result, SnapshotFailed) else result

    return wrong


def stamp_by_any_clock(right: Function) -> Function:
    """A leader stamps entries however wrong its clock is."""

    def wrong(replica: Any) -> bool:
        return not replica.writes.blocked and replica.joining.complete

    return wrong


def forget_the_time(right: Function) -> Function:
    """Applied time is the newest stamp, also when that is earlier."""

    def wrong(applier: Any, *args: Any) -> None:
        applier.time_ns = 0
        right(applier, *args)

    return wrong


def compact_by_oneself(right: Function) -> Function:
    """A machine is compacted when its replica has applied a batch, not when the log says so."""

    def wrong(applier: Any, job: Any) -> Any:
        result = right(applier, job)
        applier.machine.compact()
        return result

    return wrong


def read_before_the_index(right: Function) -> Function:
    """A confirmed read does not wait for the entries that it has to see."""

    def wrong(reads: Any, _index: int) -> None:
        right(reads, 1 << 60)

    return wrong


def read_unconfirmed(right: Function) -> Function:
    """A read is answered without asking whether the leader still leads."""

    def wrong(reads: Any, now: float) -> None:
        context = (reads._count + 1).to_bytes(8, "little")
        right(reads, now)
        reads.confirmed(context, 0)

    return wrong


def do_nothing(right: Function) -> Function:
    """It is left out."""
    return lambda *_arguments: None


def forget_promises(right: Function) -> Function:
    """A member whose disk has lost what it acknowledged votes and campaigns by what is left."""
    return lambda _node, **_what: None


def raise_when_connected_members_can(right: Function) -> Function:
    """Members that are away are not waited for before the version is raised."""

    def wrong(versions: Any, now: float) -> None:
        members = versions._replica.applying.roster.members
        away = {member: members.pop(member) for member in set(members) - {*versions.reported, 0}}
        right(versions, now)
        members.update(away)

    return wrong


def remember_reports(right: Function) -> Function:
    """What a member reported counts although it has gone, and may come back as another program."""
    return lambda _versions, _peer: None


def take_what_is_too_new(right: Function) -> Function:
    """An older program applies what it does not know."""

    def wrong(applier: Any, index: int, version: int) -> None:
        applier.active_version = version

    return wrong


def agree_with_anybody(right: Function) -> Function:
    """Two that agree are enough to judge the others, majority or not."""

    def wrong(divergence: Any, index: int) -> None:
        digests = divergence._digests[index]
        if digests:
            divergence._compare_with(next(iter(digests.values())), index)

    return wrong


def go_back_without_the_log(right: Function) -> Function:
    """A state that is replaced by a snapshot is not brought up to where the node was."""

    def wrong(applying: Any, manifest: Any) -> None:
        applying.restore(manifest)

    return wrong


REPLICA = "octopii.replica."
MUTANTS = [
    Mutant("ack before fsync", 3, REPLICA + "writes:Writes.begin_sync", count_before_the_sync),
    Mutant("promises before fsync", 3, REPLICA + "writes:Writes.take", send_promises_at_once),
    Mutant("reads before their index", 10, REPLICA + "reads:Reads.reached", read_before_the_index),
    Mutant("reads unconfirmed", 10, REPLICA + "reads:Reads.start", read_unconfirmed),
    Mutant("snapshot lacks sessions", 12, REPLICA + "applier:Applier._capture", answers_without_sessions),
    Mutant("snapshot lacks membership", 12, REPLICA + "applier:Applier._capture", answers_with(conf_state=ConfState())),
    Mutant("snapshot lacks roster", 12, REPLICA + "applier:Applier._capture", answers_with(roster=Roster())),
    Mutant("snapshot lacks version", 12, REPLICA + "applier:Applier._capture", answers_with(active_version=1)),
    Mutant("snapshot lacks digest", 12, REPLICA + "applier:Applier._capture", answers_with(answers_digest=0)),
    Mutant("snapshot lacks time", 12, REPLICA + "applier:Applier._capture", answers_with(time=0)),
    Mutant("snapshot file purged", 12, REPLICA + "snapshots:SnapshotStore.prune", purge_what_is_being_sent),
    Mutant("manifest before its sync", 13, REPLICA + "writes:Writes.record", count_at_record),
    Mutant("payload without a sync", 13, REPLICA + "snapshots:SnapshotStore.write", write_without_sync),
    Mutant("retries applied again", 14, REPLICA + "sessions:SessionTable.begin", judge_every_call_new),
    Mutant("late copies applied again", 14, REPLICA + "sessions:SessionTable.begin", judge_late_copies_new),
    Mutant("answers dropped early", 14, REPLICA + "sessions:Session.drop_acknowledged", drop_answers_too_early),
    Mutant("one answer kept", 14, REPLICA + "sessions:SessionTable.record", record_and_forget),
    Mutant("expired sessions reopened", 14, REPLICA + "sessions:SessionTable.begin", reopen_expired_sessions),
    Mutant("local failure swallowed", 15, REPLICA + "applier:Applier._fail", forget_failures),
    Mutant("exception text replicated", 15, REPLICA + "applier:Applier._apply_group", keep_the_text),
    Mutant("version raised early", 15, REPLICA + "versions:Versions._maybe_raise", raise_when_connected_members_can),
    Mutant("old reports count", 15, REPLICA + "versions:Versions.lost", remember_reports),
    Mutant("newer entries applied", 15, REPLICA + "applier:Applier._activate", take_what_is_too_new),
    Mutant("answers not compared", 15, REPLICA + "applier:Applier._fold", do_nothing),
    Mutant("judged without a majority", 15, REPLICA + "divergence:Divergence._judge", agree_with_anybody),
    Mutant("differing node serves on", 15, REPLICA + "divergence:Divergence._differs", do_nothing),
    Mutant("resync without the log", 15, REPLICA + "applying:Applying.go_back_to", go_back_without_the_log),
    Mutant("lost acks still counted", 4, "octopii.raft.raw_node:RawNode.report_lost_entries", do_nothing),
    Mutant("lost entries forgotten", 16, "octopii.raft.raw_node:RawNode.hold_to", forget_promises),
    Mutant("quarantine not kept", 16, REPLICA + "identity:IdentityStore.hold", do_nothing),
    Mutant("wiped node admitted", 16, "octopii.wire.handshake:_judge_member", admit_wiped_nodes),
    Mutant("ENOSPC taken for success", 18, REPLICA + "writes:Writes._write", take_a_full_disk_for_success),
    Mutant("EIO at a sync ignored", 18, REPLICA + "writes:Writes.sync_done", take_a_failed_sync_for_success),
    Mutant(
        "failed snapshot recorded", 18, REPLICA + "snapshots:SnapshotStore.write", take_a_failed_snapshot_for_success
    ),
    Mutant("stamps by any clock", 19, REPLICA + "replica:Replica._may_propose", stamp_by_any_clock),
    Mutant("time goes back", 19, REPLICA + "applier:Applier._apply_entry", forget_the_time),
    Mutant("compaction by oneself", 19, REPLICA + "applier:Applier._apply", compact_by_oneself),
    Mutant("other clusters admitted", 20, "octopii.wire.handshake:_judge_place", admit_other_clusters),
    Mutant("every peer trusted", 20, REPLICA + "founding:Joining.cluster_of", trust_every_peer),
    Mutant("founding unasked", 20, REPLICA + "identity:Founding.may_found", found_without_asking),
    Mutant("calls before founding", 20, REPLICA + "founding:Joining.complete", be_complete_at_once),
]


# --- what may catch them ----------------------------------------------------------------------------------------


def tests_of(module: ModuleType) -> dict[str, Check]:
    """The tests of a module, one check for each set of parameters."""
    checks: dict[str, Check] = {}
    for name, function in vars(module).items():
        if not name.startswith("test_") or not inspect.isfunction(function):
            continue
        marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
        spans = []
        for mark in marks:
            given = mark.args[0]
            names = [part.strip() for part in given.split(",")] if isinstance(given, str) else [*given]
            spans.append([dict(zip(names, value if len(names) > 1 else (value,))) for value in mark.args[1]])
        for number, values in enumerate(itertools.product(*spans)):
            arguments = {key: value for chosen in values for key, value in chosen.items()}
            checks[f"{name.removeprefix('test_')}-{number}"] = with_fixtures(function, arguments)
    return checks


def with_fixtures(function: Callable[..., None], arguments: dict[str, Any]) -> Check:
    """A test that is given its arguments, and `monkeypatch` and the records of `caplog` if it asks for them.

    Raises `LookupError` when it asks for more: it would fail at once, and seem to catch every mutant.
    """
    missing = inspect.signature(function).parameters.keys() - arguments.keys()
    if not missing:
        return partial(function, **arguments)
    if not missing <= {"monkeypatch", "caplog"}:
        raise LookupError(f"{function.__name__} asks for {sorted(missing)}")

    def check() -> None:
        heard = Heard()
        logging.getLogger().addHandler(heard)
        try:
            with pytest.MonkeyPatch.context() as patch:
                given = {"monkeypatch": patch, "caplog": heard}
                function(**arguments, **{name: given[name] for name in missing})
        finally:
            logging.getLogger().removeHandler(heard)

    return check


class Heard(logging.Handler):
    """What was logged, under the name that it has in `caplog`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)


LIKELY: dict[int, tuple[ModuleType, ...]] = {
    3: (test_disk,),
    10: (test_reads,),
    14: (test_sessions,),
    15: (test_trouble, test_versions, test_divergence),
    4: (test_quarantine,),
    16: (test_identity, test_quarantine),
    18: (test_disk,),
    19: (test_clock,),
    20: (test_identity,),
}
"""Where a class of bug is looked for first, which saves time and nothing else."""


def families(seeds: int, *, number: int = 0) -> dict[str, dict[str, Check]]:
    """Everything that may catch a mutant of a class."""
    modules = sorted(MODULES, key=lambda module: module not in LIKELY.get(number, ()))
    named = {name: check for module in modules for name, check in tests_of(module).items()}
    return {"named": named, "simulator": {f"seed {seed}": partial(simulate, seed) for seed in range(seeds)}}


def simulate(seed: int) -> None:
    """One run of the simulator; the profiles take turns."""
    Simulation(seed=seed, profile="all").run()


def main() -> None:
    """Plant every mutant, print the table, and fail if one was not caught."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    rows = [(mutant, catchers(mutant, families(seeds, number=mutant.number))) for mutant in MUTANTS]
    print(table(rows))
    sys.exit(any(not any(caught.values()) for _, caught in rows))


if __name__ == "__main__":
    main()
