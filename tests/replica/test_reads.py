"""Queries: how fresh they are, on any node."""

import pytest

from octopii.wire.requests import Consistency, Done, ReadIndex
from tests.replica.clusters import Cluster, Node


@pytest.mark.parametrize("consistency", [Consistency.LINEARIZABLE, Consistency.LEASE])
def test_a_query_on_any_node_sees_what_was_acknowledged_before(consistency: Consistency) -> None:
    """Also on a follower that has not heard yet that it was committed, and one that is slow to apply."""
    cluster = Cluster(1)
    cluster.world.weather.job_time = (0.0, 0.05)
    writer = cluster.client(at=cluster.wait_for_leader().id)
    readers = [cluster.client(at=node.id) for node in cluster.nodes.values()]
    for number in range(1, 30):
        cluster.write(writer)
        queries = [reader.query(consistency) for reader in readers]
        cluster.wait(*queries)
        assert [query.result for query in queries] == [[b"%d" % number]] * 3


def test_a_follower_that_lacks_what_was_acknowledged_holds_the_query_back() -> None:
    """Its disk hangs, so it cannot apply what the others have committed: it answers when it can."""
    cluster = Cluster(6)
    follower = cluster.followers[0]
    writer = cluster.client(at=cluster.wait_for_leader().id)
    cluster.write(writer, 3)
    cluster.settle()
    follower.stall_disk(True)
    cluster.write(writer)
    query = cluster.client(at=follower.id).query(timeout=30.0)
    cluster.world.run(0.3)
    assert not query.done
    follower.stall_disk(False)
    cluster.wait(query)
    assert query.result == [b"4"]


def wait_for_another(cluster: Cluster, old: Node) -> Node:
    """Let time pass until somebody else leads, whatever the old leader takes itself for."""

    def leaders() -> list[Node]:
        return [node for node in cluster.nodes.values() if node is not old and node.replica.leadership.is_leader]

    cluster.world.run_until(lambda: bool(leaders()), what="another leads")
    return leaders()[0]


@pytest.mark.parametrize("consistency", [Consistency.LINEARIZABLE, Consistency.LEASE])
def test_a_leader_that_was_cut_off_answers_no_query_with_old_state(consistency: Consistency) -> None:
    """It still takes itself for the leader; the others have elected another and gone on."""
    for seed in range(10):
        cluster = Cluster(seed)
        old = cluster.wait_for_leader()
        reader = cluster.client(at=old.id)
        cluster.write(reader)
        cluster.world.network.isolate(old.id)
        new = wait_for_another(cluster, old)
        writer = cluster.client(at=new.id)
        cluster.write(writer)
        query = reader.query(consistency, timeout=3.0)
        cluster.wait(query)
        assert query.result in (None, [b"2"])
        cluster.world.network.heal()
        again = reader.query(consistency)
        cluster.wait(again)
        assert again.result == [b"2"]


def test_a_lease_read_asks_nobody() -> None:
    """A leader whose lease holds answers at once, with the network slow."""
    cluster = Cluster(2)
    leader = cluster.wait_for_leader()
    client = cluster.client(at=leader.id)
    cluster.write(client)
    cluster.world.run(0.5)
    assert leader.replica.lease_holds
    cluster.world.weather.job_time = (0.0, 0.0)
    sent = leader.replica.reads._count
    query = client.query(Consistency.LEASE)
    cluster.wait(query)
    assert query.result == [b"1"]
    assert leader.replica.reads._count == sent + 1  # the question itself, and no round before it


def test_a_stale_query_is_answered_without_a_leader() -> None:
    """It asks for nothing but what this node has."""
    cluster = Cluster(3)
    cluster.write(cluster.client(), 3)
    cluster.settle()
    for node_id in (2, 3):
        cluster.nodes[node_id].crash()
    cluster.world.run(2.0)
    query = cluster.client(at=1).query(Consistency.STALE)
    cluster.wait(query)
    assert query.result == [b"3"]


def test_a_query_right_after_an_election_is_held_not_refused() -> None:
    """Before the new leader has committed in its term it waits with the answer."""
    cluster = Cluster(4)
    client = cluster.client()
    cluster.write(client, 3)
    cluster.wait_for_leader().crash()
    query = client.query(timeout=10.0)
    cluster.wait(query)
    assert query.result == [b"3"]


def test_the_read_index_can_be_asked_for() -> None:
    """Everything acknowledged lies at or below it."""
    cluster = Cluster(5)
    cluster.write(cluster.client(), 3)
    leader = cluster.wait_for_leader()
    for node in cluster.nodes.values():
        reply = cluster.reply(node, ReadIndex(1))
        assert isinstance(reply, Done)
        assert reply.index == leader.replica.raft.committed
