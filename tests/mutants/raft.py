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
from typing import Any

from octopii.raft import Message, MessageType, Role
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


def after(right: Function, spoil: Callable[[Any], None]) -> Function:
    """The right function, and then something wrong done to its first argument."""

    def wrong(subject: Any, *args: Any, **kwargs: Any) -> Any:
        result = right(subject, *args, **kwargs)
        spoil(subject)
        return result

    return wrong


def before(right: Function, spoil: Callable[[Any], None]) -> Function:
    """Something wrong done to the first argument, and then the right function."""

    def wrong(subject: Any, *args: Any, **kwargs: Any) -> Any:
        spoil(subject)
        return right(subject, *args, **kwargs)

    return wrong


def forget_vote(state: RaftState) -> None:
    state.vote = 0


def forget_term(state: RaftState) -> None:
    state.term = state.vote = 0


def forget_pending_change(state: RaftState) -> None:
    state.pending_conf_index = 0


def forget_restart(state: RaftState) -> None:
    state.was_restarted = False


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


def stable_whatever_the_term(right: Function) -> Function:
    def wrong(log: RaftLog, index: int, term: int) -> bool:
        end = min(index, log.last_index())
        return bool(right(log, end, log.term(end)))

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


def install_whatever_comes(right: Function) -> Function:
    def wrong(state: RaftState, snapshot: Any) -> bool:
        state.log.restore(snapshot)
        state.set_conf(snapshot.metadata.conf_state)
        return True

    return wrong


def drop_what_follows(right: Function) -> Function:
    def wrong(state: RaftState, snapshot: Any) -> bool:
        if snapshot.metadata.index <= state.log.committed:
            return False
        state.log.restore(snapshot)
        state.set_conf(snapshot.metadata.conf_state)
        return True

    return wrong


def lose_membership(right: Function) -> Function:
    def wrong(state: RaftState, snapshot: Any) -> bool:
        conf = state.conf
        restored = right(state, snapshot)
        state.set_conf(conf)
        return bool(restored)

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
    Mutant("vote forgotten on restart", 1, CORE + "state:RaftState.__init__", lambda f: after(f, forget_vote)),
    Mutant("term forgotten on restart", 1, CORE + "state:RaftState.__init__", lambda f: after(f, forget_term)),
    Mutant("old term committed by counting", 2, CORE + "leader:maybe_commit", commit_by_counting),
    Mutant("acknowledged before the disk", 3, CORE + "state:RaftState.send", send_at_once),
    Mutant("acknowledgement of an old term counts", 4, CORE + "step:_answer_old_term", take_stale_acknowledgement),
    Mutant("stale reject moves next", 4, CORE + "progress:Progress.maybe_decrease", take_stale_reject),
    Mutant("write of a truncated log counts", 4, CORE + "log:RaftLog.stable_to", stable_whatever_the_term),
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
        lambda f: before(f, lambda node: forget_pending_change(node._state)),
    ),
    Mutant(
        "new leader forgets a pending change",
        8,
        CORE + "state:RaftState.become_leader",
        lambda f: after(f, forget_pending_change),
    ),
    Mutant("removed leader stays", 8, CORE + "leader:membership_changed", removed_leader_stays),
    Mutant("stale TimeoutNow acted on", 9, CORE + "step:_answer_old_term", act_on_stale_timeout_now),
    Mutant("rejoining node deposes the leader", 9, CORE + "candidate:ignores_vote_request", always(False)),
    Mutant("read before the first commit", 10, CORE + "leader:committed_in_term", always(True)),
    Mutant("read confirmed by an older round", 10, CORE + "leader:handle_heartbeat_response", confirm_by_any_answer),
    Mutant("lease without end", 11, CORE + "leader:lease_holds", lease_without_end),
    Mutant("restarted voter votes at once", 11, CORE + "state:RaftState.__init__", lambda f: after(f, forget_restart)),
    Mutant("snapshot over newer state", 12, CORE + "follower:restore", install_whatever_comes),
    Mutant("snapshot drops what follows", 12, CORE + "follower:restore", drop_what_follows),
    Mutant("membership lost with the snapshot", 12, CORE + "follower:restore", lose_membership),
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
                checks[f"{name}[{suffix}]" if suffix else name] = lambda f=function, a=arguments: f(**a)
    return checks


def scenarios() -> dict[str, Check]:
    """The scenario files."""

    def check(path: Any) -> None:
        assert not replay(path)

    return {path.stem: lambda path=path: check(path) for path in scenario_files()}


def schedules(count: int) -> dict[str, Check]:
    """The first random schedules."""

    def check(seed: int) -> None:
        failure = Schedule(seed).run()
        assert failure is None, failure.rule

    return {f"seed {seed}": lambda seed=seed: check(seed) for seed in range(count)}


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
