"""What `apply` may raise, and what comes of it on one replica and on all."""

import pytest

from octopii.walrus.faults import survive_none
from octopii.wire import requests
from octopii.wire.codec import ApplyFailedAnswer, CommandErrorAnswer
from tests.replica.clusters import Cluster, Node


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


def test_an_entry_that_fails_everywhere_can_be_skipped() -> None:
    """Every replica stops at one entry; started to skip it, all go on, and the skipped call is an answer."""
    cluster = Cluster(5)
    client = cluster.client()
    cluster.write(client, 3)
    for node in cluster.nodes.values():
        fail_on(node, b"bad", MemoryError())
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
    import json

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
