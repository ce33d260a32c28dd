"""What `apply` may raise, and what comes of it on one replica and on all."""

import json
import logging

import pytest

from octopii.errors import NotApplied, OutcomeUnknown
from octopii.sim import SimulatedClient
from octopii.walrus.faults import survive_none
from octopii.wire import requests
from octopii.wire.codec import ApplyFailedAnswer, CommandErrorAnswer
from tests.replica.clusters import Cluster, Node
from tests.replica.journal import Journal


def fail_on(node: Node, name: bytes, trouble: BaseException) -> None:
    """Have one node's machine raise at one command."""

    def raise_it(command: bytes) -> None:
        if command == name:
            raise trouble

    node.machine.trouble = raise_it


def test_a_command_error_is_an_answer_on_every_replica() -> None:
    """Refused commands are answered alike, change nothing, and all go on."""
    cluster = Cluster(1)
    client = cluster.client()
    asked = client.propose(b"a", b"refuse", b"b")
    cluster.wait(asked)
    assert asked.result == [b"1", CommandErrorAnswer("refused, as asked"), b"2"]
    cluster.settle()
    assert all(node.machine.state.names == [b"a", b"b"] for node in cluster.nodes.values())


def test_any_other_exception_is_an_answer_and_the_text_is_no_state() -> None:
    """`KeyError` on every replica: an answer with the type's name, kept without the text."""
    cluster = Cluster(2)
    client = cluster.client()
    asked = client.propose(b"raise it", b"after")
    cluster.wait(asked)
    assert asked.result == [ApplyFailedAnswer("KeyError", "'raise it'"), b"1"]
    cluster.settle()
    for node in cluster.nodes.values():
        (session,) = node.applier.sessions.capture()
        assert list(session.answers.values()) == [[ApplyFailedAnswer("KeyError", ""), b"1"]]


@pytest.mark.parametrize("trouble", [RecursionError("deep"), ZeroDivisionError("0"), ValueError("bad")])
def test_an_exception_with_another_text_on_one_replica_makes_no_difference(trouble: Exception) -> None:
    """Only the type's name is replicated."""
    cluster = Cluster(3)
    for node in cluster.nodes.values():
        fail_on(node, b"x", type(trouble)(f"{trouble} on node {node.id}"))
    client = cluster.client()
    asked = client.propose(b"x", b"y")
    cluster.wait(asked)
    assert isinstance(asked.result, list)
    failed = asked.result[0]
    assert isinstance(failed, ApplyFailedAnswer)
    assert failed.exception == type(trouble).__name__
    assert "on node" in failed.text
    cluster.recover()
    cluster.check()


class Stop(BaseException):
    """Something that is no `Exception`."""


@pytest.mark.parametrize("trouble", [MemoryError(), OSError("disk"), TimeoutError(), SystemExit(1), Stop()])
@pytest.mark.parametrize("on_leader", [True, False])
def test_trouble_of_one_machine_stops_that_replica_alone(trouble: BaseException, on_leader: bool) -> None:
    """It stops applying, hands leadership over, says so; the others go on; after a restart it replays."""
    cluster = Cluster(4)
    client = cluster.client()
    cluster.write(client, 3)
    node = cluster.wait_for_leader() if on_leader else cluster.followers[0]
    fail_on(node, b"bad", trouble)
    asked = client.propose(b"bad")
    cluster.wait(asked)
    cluster.world.run_until(lambda: node.replica.applying.failure is not None, what="it has stopped")
    applied = node.applier.index
    assert "stopped applying" in node.replica.warnings["apply"]
    cluster.world.run_until(lambda: cluster.leader not in (None, node), what="another leads")
    cluster.write(client, 3)
    assert node.applier.index == applied
    assert b"bad" not in node.machine.state.names
    node.crash(survive_none)
    node.start()
    cluster.settle()
    assert node.machine.state.names.count(b"bad") == 1
    cluster.recover()
    cluster.check()


def failing_everywhere(seed: int) -> tuple[Cluster, SimulatedClient]:
    """A cluster with some calls behind it, in which every node stops at the command `bad`."""
    cluster = Cluster(seed)
    client = cluster.client()
    cluster.write(client, 3)
    for node in cluster.nodes.values():
        fail_on(node, b"bad", MemoryError())
    return cluster, client


def test_an_entry_that_fails_everywhere_can_be_skipped() -> None:
    """Every replica stops at one entry; started to skip it, all go on, and the skipped call is an answer."""
    cluster, client = failing_everywhere(5)
    asked = client.propose(b"bad", timeout=30.0)
    cluster.world.run_until(lambda: all(node.replica.applying.failure for node in cluster.nodes.values()))
    failures = [node.replica.applying.failure for node in cluster.nodes.values()]
    indexes = {failure.index for failure in failures if failure is not None}
    assert len(indexes) == 1
    for node in cluster.nodes.values():
        node.crash(survive_none)
        node.skip_indexes = frozenset(indexes)
        node.start()
    cluster.wait(asked)
    assert asked.result == [ApplyFailedAnswer("Skipped")]
    cluster.write(client, 3)
    assert b"bad" not in cluster.nodes[1].machine.state.names


def stop_all(cluster: Cluster) -> int:
    """Have every node's machine stop at the command `bad`, now and after a restart; returns its entry."""
    for node in cluster.nodes.values():
        fail_on(node, b"bad", FileNotFoundError(2, "No such file or directory", "/nofile"))
    asked = cluster.client().propose(b"bad")
    cluster.wait(asked)
    assert isinstance(asked.error, OutcomeUnknown)
    return stopped_at(cluster)


def stopped_at(cluster: Cluster) -> int:
    """Wait until every node has stopped and knows that all have; returns the one entry that they stopped at."""
    nodes = cluster.nodes.values()
    cluster.world.run_until(lambda: all(node.replica.upkeep.standstill.text for node in nodes), what="all stand still")
    failures = [node.replica.applying.failure for node in nodes]
    (index,) = {failure.index for failure in failures if failure is not None}
    return index


def test_leadership_stays_where_it_is_when_all_have_stopped(caplog: pytest.LogCaptureFixture) -> None:
    """Each node hands over once at most, on the way; then the term stands still, and each has said once what is."""
    cluster = Cluster(8)
    cluster.write(cluster.client(), 3)
    before = cluster.wait_for_leader().replica.raft.term
    index = stop_all(cluster)
    leader = cluster.wait_for_leader()
    term, last = leader.replica.raft.term, leader.replica.store.last_index()
    assert term <= before + len(cluster.nodes)
    cluster.world.run(60.0)
    assert cluster.leader is leader
    assert (leader.replica.raft.term, leader.replica.store.last_index()) == (term, last)
    for node in cluster.nodes.values():
        errors = [
            record.getMessage()
            for record in caplog.records
            if record.levelno >= logging.ERROR and record.getMessage().startswith(f"node {node.id} ")
        ]
        assert [text.split(":")[0] for text in errors] == [
            f"node {node.id} stopped applying at entry {index}",
            f"node {node.id} takes no calls, because no member applies any more",
        ]
    assert sum("hands leadership" in record.getMessage() for record in caplog.records) < len(cluster.nodes)


def test_callers_hear_soon_that_all_have_stopped() -> None:
    """A call of an open session, one of a new client and a query end at once, with what is the matter."""
    cluster = Cluster(9)
    known = cluster.client()
    cluster.write(known, 3)
    index = stop_all(cluster)
    for client in (known, cluster.client()):
        asked, query = client.propose(b"good", timeout=60.0), client.query(timeout=60.0)
        cluster.wait(asked, query, limit=2.0)
        for each in (asked, query):
            assert type(each.error) is NotApplied
            assert f"--skip-index {index}" in str(each.error)


def test_a_call_whose_outcome_is_open_ends_when_all_have_stopped() -> None:
    """The call that stopped them may be applied yet, by nodes that are started anew: its caller hears that soon."""
    cluster, client = failing_everywhere(10)
    asked = client.propose(b"bad", timeout=60.0)
    cluster.wait(asked, limit=5.0)
    assert isinstance(asked.error, OutcomeUnknown)
    assert "no member applies any more" in str(asked.error)


def test_nodes_that_stop_again_after_a_restart_stand_still_again() -> None:
    """A restart of all nodes brings no storm of elections, and `status` says how to go on."""
    cluster = Cluster(11, machine=Poisoned)
    cluster.write(cluster.client(), 3)
    cluster.client().propose(b"poison")
    index = stopped_at(cluster)
    for node in cluster.nodes.values():
        node.crash(survive_none)
    for node in cluster.nodes.values():
        node.start()
    assert stopped_at(cluster) == index
    leader = cluster.wait_for_leader()
    term = leader.replica.raft.term
    cluster.world.run(30.0)
    assert cluster.leader is leader
    assert leader.replica.raft.term == term
    reply = cluster.reply(cluster.followers[0], requests.StatusRequest(1))
    assert isinstance(reply, requests.Report)
    status = json.loads(reply.body)
    assert f"start every node with --skip-index {index}" in status["standstill"]
    assert "FileNotFoundError" in status["failure"]


class Poisoned(Journal):
    """Stops at one command, in every life."""

    def apply(self, command: bytes) -> bytes:
        """Raise what is about one machine alone, wherever it is raised."""
        if command == b"poison":
            raise FileNotFoundError(2, "No such file or directory", "/nofile")
        return super().apply(command)


def test_those_that_work_lead(caplog: pytest.LogCaptureFixture) -> None:
    """Of five, three stop: leadership goes to one of the two others, in two steps at most, and stays there."""
    cluster = Cluster(12, members=5)
    client = cluster.client()
    cluster.write(client, 3)
    stopping = [cluster.wait_for_leader(), *cluster.followers[:2]]
    for node in stopping:
        fail_on(node, b"bad", OSError("disk"))
    asked = client.propose(b"bad")
    cluster.wait(asked)
    assert asked.error is None
    cluster.world.run_until(lambda: all(node.replica.applying.failure for node in stopping), what="three have stopped")
    cluster.settle(*[node for node in cluster.nodes.values() if node not in stopping])
    leader = cluster.wait_for_leader(among=tuple(node.id for node in cluster.nodes.values() if node not in stopping))
    term = leader.replica.raft.term
    cluster.write(client, 3)
    cluster.world.run(30.0)
    assert cluster.leader is leader
    assert leader.replica.raft.term == term
    assert not any(node.replica.upkeep.standstill.text for node in cluster.nodes.values())
    assert sum("hands leadership" in record.getMessage() for record in caplog.records) <= 3


def test_one_that_comes_back_and_applies_ends_the_standstill() -> None:
    """One node is started to skip the entry: it is given the lead, and the others no longer say that nobody applies."""
    cluster = Cluster(13)
    client = cluster.client()
    cluster.write(client, 3)
    index = stop_all(cluster)
    node = cluster.followers[0]
    node.crash(survive_none)
    node.skip_indexes = frozenset([index])
    node.start()
    cluster.wait_for_leader(among=(node.id,))
    cluster.write(client, 3)
    cluster.world.run_until(lambda: not any(other.replica.upkeep.standstill.text for other in cluster.nodes.values()))
    for other in cluster.followers:
        failure = cluster.reply(other, requests.SessionRequest(request_id=1, nonce=b"n" * 16, ttl_ns=10**9))
        assert isinstance(failure, requests.Failure)
        assert failure.kind is requests.FailureKind.SHUTTING_DOWN  # this node is out; another may take it


def test_compaction_waits_while_nobody_applies() -> None:
    """A leader that has stopped puts nothing of its own into the log."""
    cluster = Cluster(14, compact_interval=0.5)
    cluster.write(cluster.client(), 3)
    stop_all(cluster)
    leader = cluster.wait_for_leader()
    leader.replica.calls.room.crowded = True
    last = leader.replica.store.last_index()
    cluster.world.run(10.0)
    assert leader.replica.store.last_index() == last


def test_a_query_that_raises_harms_nobody() -> None:
    """Questions are answered with errors; the replica goes on."""
    cluster = Cluster(6)
    client = cluster.client()
    cluster.write(client)
    for node in cluster.nodes.values():
        node.machine.query = lambda command: 1 // 0  # type: ignore[method-assign, assignment, return-value]
    asked = client.query()
    cluster.wait(asked)
    assert isinstance(asked.result, list)
    assert isinstance(asked.result[0], ApplyFailedAnswer)
    cluster.write(client)


def test_status_tells_how_a_replica_is() -> None:
    """Plain facts, in JSON, from any node."""
    cluster = Cluster(7)
    cluster.write(cluster.client(), 3)
    reply = cluster.reply(cluster.wait_for_leader(), requests.StatusRequest(1))
    assert isinstance(reply, requests.Report)
    status = json.loads(reply.body)
    assert status["role"] == "leader"
    assert set(status["members"]) == {"1", "2", "3"}
    assert status["fsync_schedule"] == "sync-each"
    assert status["sessions"] == 1
    assert all(member["connected"] for member in status["members"].values())
