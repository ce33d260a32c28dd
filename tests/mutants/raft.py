"""Known bugs of Raft implementations, put back into the core one at a time.

    python -m tests.mutants.raft [SEEDS]     plant each, run the suite against it, print which check caught it

Each is named after what it breaks; the number is that of its class in the field's list of bugs. The families of checks
are the claims of paper and thesis, the scenario files, and random schedules; each is run up to its first failure.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from octopii.raft import Message, MessageType, RawNode, Role, Snapshot
from octopii.raft.candidate import campaign
from octopii.raft.leader import handle_append_response
from octopii.raft.log import RaftLog
from octopii.raft.progress import Progress
from octopii.raft.quorum import committed_index, vote_result
from octopii.raft.state import RaftState
from tests import test_paper, test_thesis
from tests.mutants.planting import Check, Mutant, catchers, table
from tests.raft.harness_scenario import replay, scenario_files
from tests.raft.harness_schedule import Schedule

Function = Callable[..., Any]


def after(spoil: Callable[[Any], None]) -> Callable[[Function], Function]:
    """The right function, and then something wrong done to its first argument."""

    def build(right: Function) -> Function:
        def wrong(subject: Any, *args: Any, **kwargs: Any) -> Any:
            result = right(subject, *args, **kwargs)
            spoil(subject)
            return result

        return wrong

    return build


def before(spoil: Callable[[Any], None]) -> Callable[[Function], Function]:
    """Something wrong done to the first argument, and then the right function."""

    def build(right: Function) -> Function:
        def wrong(subject: Any, *args: Any, **kwargs: Any) -> Any:
            spoil(subject)
            return right(subject, *args, **kwargs)

        return wrong

    return build


def forget_vote(state: RaftState) -> None:
    state.vote = 0


def forget_term(state: RaftState) -> None:
    state.term = state.vote = 0


def forget_pending_change(state: RaftState) -> None:
    state.pending_conf_index = 0


def forget_own_pending_change(node: RawNode) -> None:
    forget_pending_change(node._state)


def forget_restart(state: RaftState) -> None:
    state.ticks_since_leader = state.config.election_ticks


def take_lease_back(state: RaftState) -> None:
    state.lease_given_up = False


def count_stale_pre_votes(right: Function) -> Function:
    def wrong(state: RaftState, message: Message) -> bool:
        if message.type is MessageType.PRE_VOTE_RESPONSE:
            return state.role is Role.PRE_CANDIDATE
        return bool(right(state, message))

    return wrong


def commit_by_counting(right: Function) -> Function:
    def wrong(state: RaftState) -> bool:
        return bool(state.log.commit_to(state.quorum_index()))

    return wrong


def send_at_once(right: Function) -> Function:
    def wrong(state: RaftState, message: Message) -> None:
        right(state, message)
        state.messages += state.messages_after_persist
        state.messages_after_persist = []

    return wrong


def take_stale_acknowledgement(right: Function) -> Function:
    def wrong(state: RaftState, message: Message) -> None:
        if message.type is MessageType.APPEND_RESPONSE and state.role is Role.LEADER:
            handle_append_response(state, message)
        else:
            right(state, message)

    return wrong


def take_stale_reject(right: Function) -> Function:
    def wrong(progress: Progress, rejected: int, hint: int) -> bool:
        progress.next = max(1, min(rejected, hint + 1))
        progress.paused = False
        return True

    return wrong


def count_replaced_writes(right: Function) -> Function:
    def wrong(log: RaftLog, entries: list[Any]) -> None:
        vouched = [write.last_index for write in log._writes]
        right(log, entries)
        for write, last in zip(log._writes, vouched):
            write.last_index = min(last, log.last_index())

    return wrong


def truncate_what_matches(right: Function) -> Function:
    def wrong(log: RaftLog, entries: list[Any]) -> int | None:
        return next((place for place, entry in enumerate(entries) if entry.index > log.committed), None)

    return wrong


def accept_conflict_with_committed(right: Function) -> Function:
    def wrong(state: RaftState, message: Message) -> None:
        log = state.log
        for entry in message.entries:
            if entry.index <= log.committed and not log.matches(entry.index, entry.term):
                log.committed = log.handed = log.applied = entry.index - 1
        right(state, message)

    return wrong


def commit_by_incoming(right: Function) -> Function:
    return lambda incoming, outgoing, match_of: committed_index(incoming, match_of)


def elect_by_incoming(right: Function) -> Function:
    return lambda incoming, outgoing, votes: vote_result(incoming, votes)


def count_learners(right: Function) -> Function:
    def wrong(state: RaftState) -> int:
        return committed_index(list(state.progress), lambda node_id: state.progress[node_id].match)

    return wrong


def anybody_campaigns(right: Function) -> Any:
    return property(lambda state: state.log.snapshot is None)


def learners_refuse(right: Function) -> Function:
    return lambda state, message: state.is_voter and right(state, message)


def removed_leader_stays(right: Function) -> Function:
    def wrong(state: RaftState) -> None:
        if state.id in state.progress:
            right(state)

    return wrong


def act_on_stale_timeout_now(right: Function) -> Function:
    def wrong(state: RaftState, message: Message) -> None:
        if message.type is MessageType.TIMEOUT_NOW and state.role is Role.FOLLOWER:
            campaign(state, transfer=True)
        else:
            right(state, message)

    return wrong


def always(value: object) -> Callable[[Function], Function]:
    """A function that returns the same whatever it is asked."""
    return lambda right: lambda *args, **kwargs: value


def confirm_by_any_answer(right: Function) -> Function:
    def wrong(state: RaftState, message: Message) -> None:
        right(state, Message(type=message.type, to=message.to, sender=message.sender, index=state.reads.round))

    return wrong


def lease_without_end(right: Function) -> Function:
    return lambda state, now: state.role is Role.LEADER and state.lease_start is not None


def forget_proven_commits(right: Function) -> Function:
    return lambda log: (right(log)[0], 0)


def break_promise(right: Function) -> Any:
    return property(lambda state: False)


def install_whatever_comes(right: Function) -> Function:
    def wrong(state: RaftState, snapshot: Snapshot) -> bool:
        state.log.restore(snapshot)
        return True

    return wrong


def drop_what_follows(right: Function) -> Function:
    def wrong(state: RaftState, snapshot: Snapshot) -> bool:
        if snapshot.metadata.index <= state.log.committed:
            return False
        state.log.restore(snapshot)
        return True

    return wrong


def lose_membership(right: Function) -> Function:
    def wrong(node: RawNode, number: int) -> None:
        conf = node._state.conf
        installing = node._state.log.snapshot is not None
        right(node, number)
        if installing:
            node._state.set_conf(conf)

    return wrong


def membership_at_once(right: Function) -> Function:
    def wrong(state: RaftState, snapshot: Snapshot) -> bool:
        restored = bool(right(state, snapshot))
        if restored:
            state.set_conf(snapshot.metadata.conf_state)
        return restored

    return wrong


def hand_out_twice(right: Function) -> Function:
    def wrong(log: RaftLog, max_bytes: int) -> Any:
        entries = right(log, max_bytes)
        if len(entries) > 1:
            log.handed -= 1
        return entries

    return wrong


CORE = "octopii.raft."
MUTANTS = [
    Mutant("vote forgotten on restart", 1, CORE + "state:RaftState.__init__", after(forget_vote)),
    Mutant("term forgotten on restart", 1, CORE + "state:RaftState.__init__", after(forget_term)),
    Mutant("old term committed by counting", 2, CORE + "leader:maybe_commit", commit_by_counting),
    Mutant("acknowledged before the disk", 3, CORE + "state:RaftState.send", send_at_once),
    Mutant("acknowledgement of an old term counts", 4, CORE + "step:_answer_old_term", take_stale_acknowledgement),
    Mutant("stale reject moves next", 4, CORE + "progress:Progress.maybe_decrease", take_stale_reject),
    Mutant("write of replaced entries counts", 4, CORE + "log:RaftLog.append", count_replaced_writes),
    Mutant("matching suffix truncated", 5, CORE + "log:RaftLog._find_conflict", truncate_what_matches),
    Mutant("conflict below commit accepted", 6, CORE + "follower:handle_append", accept_conflict_with_committed),
    Mutant("joint commit by one half", 7, CORE + "quorum:joint_committed_index", commit_by_incoming),
    Mutant("joint election by one half", 7, CORE + "quorum:joint_vote_result", elect_by_incoming),
    Mutant("learner counted", 7, CORE + "state:RaftState.quorum_index", count_learners),
    Mutant("learner campaigns", 7, CORE + "state:RaftState.promotable", anybody_campaigns),
    Mutant("promoted learner refuses its vote", 7, CORE + "candidate:may_grant", learners_refuse),
    Mutant(
        "two changes at once",
        8,
        CORE + "raw_node:RawNode.propose_membership",
        before(forget_own_pending_change),
    ),
    Mutant(
        "new leader forgets a pending change",
        8,
        CORE + "state:RaftState.become_leader",
        after(forget_pending_change),
    ),
    Mutant("restart with an old membership", 8, CORE + "log:RaftLog._membership_changes", forget_proven_commits),
    Mutant("removed leader stays", 8, CORE + "leader:membership_changed", removed_leader_stays),
    Mutant("stale TimeoutNow acted on", 9, CORE + "step:_answer_old_term", act_on_stale_timeout_now),
    Mutant("stale pre-vote counted", 9, CORE + "candidate:answers_this_election", count_stale_pre_votes),
    Mutant("rejoining node deposes the leader", 9, CORE + "candidate:ignores_vote_request", always(False)),
    Mutant("read before the first commit", 10, CORE + "leader:committed_in_term", always(True)),
    Mutant("read confirmed by an older round", 10, CORE + "leader:handle_heartbeat_response", confirm_by_any_answer),
    Mutant("lease without end", 11, CORE + "leader:lease_holds", lease_without_end),
    Mutant("restarted voter votes at once", 11, CORE + "state:RaftState.__init__", after(forget_restart)),
    Mutant("lease back after a transfer", 11, CORE + "leader:send_timeout_now", after(take_lease_back)),
    Mutant("promise to the leader broken", 11, CORE + "state:RaftState.has_promised", break_promise),
    Mutant("snapshot over newer state", 12, CORE + "follower:restore", install_whatever_comes),
    Mutant("snapshot drops what follows", 12, CORE + "follower:restore", drop_what_follows),
    Mutant("membership lost with the snapshot", 12, CORE + "raw_node:RawNode.on_persisted", lose_membership),
    Mutant("membership of a snapshot too early", 12, CORE + "follower:restore", membership_at_once),
    Mutant("no snapshot for one too far behind", 12, CORE + "leader:_maybe_send_snapshot", always(False)),
    Mutant("entry handed out twice", 14, CORE + "log:RaftLog.take_committed", hand_out_twice),
]


def claims() -> dict[str, Check]:
    """The claims of paper and thesis, each set of parameters a check of its own."""
    checks: dict[str, Check] = {}
    for module in (test_paper, test_thesis):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("test_") or function.__module__ != module.__name__:
                continue
            marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
            for values in itertools.product(*(mark.args[1] for mark in marks)):
                arguments: dict[str, Any] = {}
                for mark, value in zip(marks, values):
                    names = [mark.args[0]] if isinstance(mark.args[0], str) else list(mark.args[0])
                    arguments.update(zip(names, value if len(names) > 1 else [value]))
                suffix = "-".join(str(value) for value in arguments.values())
                checks[f"{name}[{suffix}]" if suffix else name] = partial(function, **arguments)
    return checks


def scenarios() -> dict[str, Check]:
    """The scenario files."""

    def check(path: Path) -> None:
        assert not replay(path)

    return {path.stem: partial(check, path) for path in scenario_files()}


def schedules(count: int) -> dict[str, Check]:
    """The first random schedules."""

    def check(seed: int) -> None:
        failure = Schedule(seed).run()
        assert failure is None, failure.rule

    return {f"seed {seed}": partial(check, seed) for seed in range(count)}


def families(seeds: int) -> dict[str, dict[str, Check]]:
    """Everything that may catch a mutant."""
    return {"claim": claims(), "scenario": scenarios(), "schedule": schedules(seeds)}


def main() -> None:
    """Plant every mutant, print the table, and fail if one was not caught."""
    suite = families(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
    rows = [(mutant, catchers(mutant, suite)) for mutant in MUTANTS]
    print(table(rows))
    sys.exit(any(not any(caught.values()) for _, caught in rows))


if __name__ == "__main__":
    main()
