"""Replicas whose machines are not deterministic: found by the running cluster, named, stopped, and set right."""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from octopii.errors import CommandError
from octopii.replica.divergence import max_compared
from octopii.replica.jobs import Cause, LocalFailure, Manifest
from octopii.walrus.faults import survive_none
from octopii.wire import requests
from octopii.wire.codec import DeclaredErrorAnswer
from octopii.wire.requests import Consistency
from tests.replica.clusters import Cluster, Node
from tests.replica.journal import Journal, Ledger
from tests.replica.test_versions import status_of

Answer = Callable[[Journal, bytes], bytes]


class Faulty(Journal):
    """A journal whose answer, or more than it, is up to something that is not in the log."""

    def __init__(self, ledger: Ledger, answer: Answer) -> None:
        super().__init__(ledger)
        self.answer = answer
        self.calls = 0

    def apply(self, command: bytes) -> bytes:
        """The journal's answer, and what should not be in it."""
        self.calls += 1
        return super().apply(command) + self.answer(self, command)


def by_time(_machine: Journal, _command: bytes) -> bytes:
    return b"%d" % time.time_ns()


def by_chance(_machine: Journal, _command: bytes) -> bytes:
    return b"%d" % random.getrandbits(64)


def by_set_order(seed: int) -> Answer:
    """As a process with another hash seed iterates: the order of one set, turned round."""

    def answer(_machine: Journal, command: bytes) -> bytes:
        names = {b"a", b"b", b"c", command}
        return b",".join(sorted(names, key=lambda name: hash((seed, name))))

    return answer


def by_local_state(machine: Journal, _command: bytes) -> bytes:
    """State that is in no snapshot: the calls since the process started."""
    assert isinstance(machine, Faulty)
    return b"x" if machine.calls > 5 else b""


def faulty_cluster(seed: int, faults: dict[int, Answer], **changes: Any) -> Cluster:
    """A cluster some of whose nodes have a fault."""
    cluster = Cluster(seed, start=False, digest_interval=0.5, **changes)
    for node_id, answer in faults.items():
        cluster.nodes[node_id].machine_maker = lambda answer=answer: Faulty(cluster.ledger, answer)  # type: ignore[misc]
    cluster.start()
    return cluster


def is_named(cluster: Cluster, node_id: int) -> bool:
    """Whether every member that is up, the one in question too, knows of it."""
    return all(node_id in node.replica.divergence.differing for node in cluster.nodes.values() if node.up)


FAULTS: dict[str, Answer] = {
    "time.time()": by_time,
    "random": by_chance,
    "order of a set": by_set_order(1),
}


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("on_leader", [True, False])
def test_one_replica_that_differs_is_found_named_and_halted(fault: str, on_leader: bool) -> None:
    """It stops serving, leads no more, and every member's status names it; the others go on."""
    cluster = Cluster(1, digest_interval=0.5)
    node = cluster.wait_for_leader() if on_leader else cluster.followers[0]
    faulty = node.applier.machine = Faulty(cluster.ledger, FAULTS[fault])
    node.applier._apply_command = faulty.apply
    faulty.use_clock(node.applier._driver._clock)
    client = cluster.client()
    client.propose(cluster.name())
    cluster.world.run_until(lambda: is_named(cluster, node.id), what="it is named")
    failure = node.replica.applying.failure
    assert failure is not None
    assert failure.cause is Cause.DIVERGENCE
    healthy = [other.id for other in cluster.nodes.values() if other is not node]
    assert f"its answers differ from those of nodes {healthy[0]}, {healthy[1]}" in failure.reason
    cluster.world.run_until(lambda: cluster.leader not in (None, node), what="another leads")
    cluster.write(client, 5)
    for other in cluster.nodes.values():
        status = status_of(cluster, other)
        assert list(status["digest"]["differing"]) == [str(node.id)]
        assert f"node {node.id} has come apart" in status["warnings"][f"divergence-{node.id}"]
        assert (status["failure"] is not None) == (other is node)
    for consistency in Consistency:
        question = requests.Query(request_id=2, consistency=consistency, commands=[b""], timeout_ns=10**9)
        reply = cluster.reply(node, question)
        assert isinstance(reply, requests.Failure), consistency
    cluster.world.run(10.0)
    assert node.replica.applying.failure is not None
    assert cluster.leader is not node


def test_a_question_that_is_under_way_when_it_is_found_gets_no_answer() -> None:
    """What was asked before the node knew is refused after it: clients go to another node."""
    cluster = Cluster(33)
    cluster.write(cluster.client(), 3)
    cluster.settle()
    node = cluster.followers[0]
    question = requests.Query(request_id=2, consistency=Consistency.STALE, commands=[b""], timeout_ns=10**9)
    replies = cluster.request(node, question)
    assert not replies
    node.enter(lambda: node.replica.applying.stop(LocalFailure(5, "found", Cause.DIVERGENCE)))
    cluster.world.run_until(lambda: bool(replies))
    assert isinstance(replies[0], requests.Failure)
    assert replies[0].kind is requests.FailureKind.SHUTTING_DOWN


def test_local_state_is_found_when_one_replica_restarts() -> None:
    """All answer alike until one has restarted: its count of calls is in no snapshot."""
    cluster = faulty_cluster(2, dict.fromkeys((1, 2, 3), by_local_state), snapshot_every_entries=10)
    client = cluster.client()
    for _ in range(25):
        cluster.write(client)
    cluster.settle()
    cluster.world.run(2.0)
    assert not any(node.replica.divergence.differing for node in cluster.nodes.values())
    node = cluster.followers[0]
    node.stop()
    node.start()
    cluster.settle()
    cluster.write(client, 1)
    cluster.world.run_until(lambda: is_named(cluster, node.id), what="it is named")
    assert node.replica.applying.failure is not None


@pytest.mark.parametrize("on_leader", [True, False])
def test_with_resync_the_replica_takes_its_state_from_the_leader(on_leader: bool) -> None:
    """It keeps log, term and vote, replaces its state by a snapshot, serves again, and agrees from then on."""
    cluster = Cluster(3, digest_interval=0.5, on_divergence="resync")
    client = cluster.client()
    cluster.write(client, 20)
    cluster.settle()
    node = cluster.wait_for_leader() if on_leader else cluster.followers[0]
    node.machine.state.names[3] = b"rotten"
    first = node.replica.store.first_index()
    node.applier.answers_digest ^= 1
    cluster.write(client)
    cluster.world.run_until(lambda: node.replica.applying.failure is not None, what="it is found")
    term, last = node.replica.raft.term, node.replica.store.last_index()
    cluster.world.run_until(lambda: node.replica.applying.failure is None, what="it serves again")
    assert node.replica.raft.term >= term
    assert node.replica.store.last_index() >= last
    assert node.replica.store.first_index() >= first
    cluster.write(client, 3)
    cluster.settle()
    assert b"rotten" not in node.machine.state.names
    agreed = node.replica.divergence.agreed_index
    cluster.world.run_until(lambda: node.replica.divergence.agreed_index > agreed, what="it is compared again")
    cluster.world.run(1.0)
    assert not any(other.replica.divergence.differing for other in cluster.nodes.values())
    assert not any(key.startswith("divergence") for other in cluster.nodes.values() for key in other.replica.warnings)
    asked = cluster.client(at=node.id).query()
    cluster.wait(asked)
    assert asked.error is None
    node.crash(survive_none)
    node.start()
    cluster.settle()
    assert b"rotten" not in node.machine.state.names
    cluster.recover()
    cluster.check()


def test_a_resync_under_load_loses_nothing() -> None:
    """What was committed while the snapshot was on its way is applied behind it, from the node's own log."""
    cluster = Cluster(32, digest_interval=0.5, on_divergence="resync")
    cluster.world.weather.delay = (0.005, 0.02)
    client = cluster.client()
    cluster.write(client, 20)
    cluster.settle()
    node = cluster.followers[0]
    node.machine.state.names[3] = b"rotten"
    node.applier.answers_digest ^= 1
    again: list[int] = []
    right = node.replica.applying.go_back_to

    def go_back_to(manifest: Manifest) -> None:
        again.append(node.replica.applying.handed_index - manifest.index)
        right(manifest)

    node.replica.applying.go_back_to = go_back_to  # type: ignore[method-assign]
    while not again or node.replica.applying.failure is not None:
        cluster.write(client)
    assert again[0] > 0, "there was something to apply again"
    cluster.settle()
    names = cluster.wait_for_leader().machine.state.names
    cluster.world.run_until(lambda: node.machine.state.names == names, what="it has what the others have")
    cluster.write(client)
    cluster.world.run(3.0)
    assert len(again) == 1, "once was enough"
    cluster.recover()
    cluster.check()


def test_a_resync_that_power_fails_is_done_again() -> None:
    """Wherever the power goes, the node comes back with its log, is found again, and ends in the right state."""
    for seed in range(12):
        cluster = Cluster(100 + seed, digest_interval=0.5, on_divergence="resync", snapshot_every_entries=15)
        client = cluster.client()
        cluster.write(client, 20)
        cluster.settle()
        node = cluster.followers[0]
        node.machine.state.names[3] = b"rotten"
        node.applier.answers_digest ^= 1
        node.replica.upkeep.force_snapshot("so that the wrong state is on disk")
        cluster.write(client)
        cluster.world.run_until(lambda node=node: node.replica.divergence.resyncing)  # type: ignore[misc]
        cluster.world.run(cluster.world.rng.uniform(0.0, 0.3))
        node.crash()
        node.start()
        cluster.settle()
        cluster.write(client)
        cluster.world.run_until(
            lambda node=node: (
                node.up and b"rotten" not in node.machine.state.names and not node.replica.applying.failure
            ),  # type: ignore[misc]
            what="it is right again",
        )
        cluster.recover()
        cluster.check()


def test_nobody_is_sent_the_state_of_a_leader_that_has_come_apart() -> None:
    """A leader that nobody can take over from sends no snapshot: who needs one waits for another leader."""
    cluster = Cluster(31, members=5, digest_interval=0.5, snapshot_every_entries=10, log_keep_entries=0)
    client = cluster.client()
    away = cluster.followers[0]
    away.crash(survive_none)
    leader = cluster.wait_for_leader()
    for _ in range(30):
        cluster.write(client)
    leader.applier.answers_digest ^= 1
    leader.machine.state.names[3] = b"rotten"
    leader.replica.upkeep.hand_over = lambda why: False  # type: ignore[method-assign]
    cluster.write(client)
    cluster.world.run_until(lambda: leader.replica.divergence.own, what="it is found")
    away.start()
    cluster.world.run(5.0)
    assert cluster.leader is leader
    assert away.machine.state.names == []
    del leader.replica.upkeep.hand_over
    cluster.world.run_until(lambda: cluster.leader not in (None, leader), what="another leads")
    cluster.settle(away)
    assert len(away.machine.state.names) > 30
    assert b"rotten" not in away.machine.state.names


def test_without_a_majority_all_report_and_none_stops() -> None:
    """Three answers of three replicas: every status says so; nobody can tell who is right."""
    cluster = faulty_cluster(4, dict.fromkeys((1, 2, 3), by_chance), on_divergence="resync")
    client = cluster.client()
    client.propose(cluster.name())
    cluster.world.run_until(
        lambda: all("divergence" in node.replica.warnings for node in cluster.nodes.values()), what="all say so"
    )
    cluster.world.run(5.0)
    for node in cluster.nodes.values():
        assert node.replica.applying.failure is None
        assert not node.replica.divergence.resyncing
        assert not node.replica.divergence.differing
        assert "no majority agrees as of entry" in node.replica.warnings["divergence"]


class Digested(Journal):
    """A journal with a digest of its state, and a field that no answer shows."""

    hidden = 0

    def digest(self) -> bytes:
        """Of all, the hidden field too."""
        return b"%d %s" % (self.hidden, self.state.digest.encode())


def test_a_digest_of_the_state_finds_what_no_answer_shows() -> None:
    """A machine with `digest()` is compared by it as well."""
    cluster = Cluster(5, machine=Digested, digest_interval=0.5)
    client = cluster.client()
    cluster.write(client, 3)
    cluster.world.run(2.0)
    assert all(node.replica.divergence.agreed_index for node in cluster.nodes.values())
    assert not any(node.replica.divergence.differing for node in cluster.nodes.values())
    node = cluster.followers[0]
    assert isinstance(node.machine, Digested)
    node.machine.hidden = 1
    cluster.write(client)
    cluster.world.run_until(lambda: is_named(cluster, node.id), what="it is named")
    assert node.replica.applying.failure is not None
    assert "its state differ" in node.replica.applying.failure.reason


def test_the_digest_is_part_of_snapshots_and_survives_restarts() -> None:
    """Restarted, behind a snapshot, or in the way of any restart: a replica comes to the same value."""
    cluster = Cluster(6, snapshot_every_entries=20, log_keep_entries=5, snapshot_lag_threshold=30, digest_interval=0.5)
    client = cluster.client()
    slow = cluster.followers[0]
    slow.crash(survive_none)
    for _ in range(12):
        cluster.write(client, 10)
    slow.start()
    cluster.settle()
    for node in list(cluster.nodes.values()):
        node.crash(survive_none)
        node.start()
        cluster.settle()
    cluster.write(client, 3)
    cluster.settle()
    assert len({node.applier.answers_digest for node in cluster.nodes.values()}) == 1
    assert slow.applier.answers_digest != 0
    cluster.world.run(3.0)
    assert not any(node.replica.divergence.differing for node in cluster.nodes.values())


def test_the_text_of_an_unexpected_exception_is_no_part_of_the_digest() -> None:
    """It is each replica's own; the type's name is the answer, and that counts."""
    cluster = Cluster(7, digest_interval=0.5)

    def raising(node: Node, kind: type[Exception]) -> None:
        def trouble(command: bytes) -> None:
            if command.startswith(b"bad"):
                raise kind(f"on node {node.id}")

        node.machine.trouble = trouble

    for node in cluster.nodes.values():
        raising(node, ValueError)
    client = cluster.client()
    cluster.wait(client.propose(b"bad 1"))
    cluster.world.run(2.0)
    assert not any(node.replica.divergence.differing for node in cluster.nodes.values())
    node = cluster.followers[0]
    raising(node, KeyError)
    cluster.wait(client.propose(b"bad 2"))
    cluster.world.run_until(lambda: is_named(cluster, node.id), what="it is named")


class Refusing(Journal):
    """Refuses with an error that it declares, or does not."""

    declares = False

    def apply(self, command: bytes) -> bytes:
        """Refused."""
        error = CommandError("refused")
        error.declared = ("Refused", b"\x90") if self.declares else None
        raise error


def test_whether_an_error_is_declared_makes_no_difference() -> None:
    """A version of a program that declares more errors gives the same answers: the text counts."""
    cluster = Cluster(34, machine=Refusing, digest_interval=0.5)
    node = cluster.wait_for_leader()
    assert isinstance(node.machine, Refusing)
    node.machine.declares = True
    asked = cluster.client().propose(b"x")
    cluster.wait(asked)
    assert asked.result == [DeclaredErrorAnswer("refused", "Refused", b"\x90")]
    cluster.settle()
    assert len({each.applier.answers_digest for each in cluster.nodes.values()}) == 1


def test_an_idle_cluster_compares_nothing() -> None:
    """Entries are written for commands only, and at most one for each interval."""
    cluster = Cluster(8, digest_interval=0.5)
    cluster.write(cluster.client(), 3)
    cluster.settle()
    cluster.world.run(2.0)
    last = cluster.wait_for_leader().replica.store.last_index()
    cluster.world.run(30.0)
    compactions = len(cluster.ledger.compacted)
    assert cluster.wait_for_leader().replica.store.last_index() <= last + compactions


def test_a_member_that_was_away_is_still_compared_and_tables_stay_small() -> None:
    """What is remembered of comparisons is bounded; one that comes back is judged by what it reports then."""
    cluster = Cluster(9, digest_interval=0.1, election_timeout=0.4)
    client = cluster.client()
    node = cluster.followers[0]
    cluster.write(client, 2)
    node.crash(survive_none)
    for _ in range(3 * max_compared):
        cluster.write(client)
        cluster.world.run(0.2)
    node.start()
    cluster.settle()
    for each in cluster.nodes.values():
        assert len(each.replica.divergence._digests) <= max_compared
    node.applier.answers_digest ^= 1
    cluster.write(client)
    cluster.world.run_until(lambda: is_named(cluster, node.id), what="it is named")
