"""Nodes that lose power and come back, alone or together."""

import pytest

from octopii.walrus.faults import survive_none
from tests.replica.clusters import Cluster


def test_a_cluster_founds_itself_elects_and_applies() -> None:
    """Three empty nodes, one of them the initial leader, become a cluster that answers calls alike everywhere."""
    cluster = Cluster(1)
    client = cluster.client()
    answers = [asked.result for asked in cluster.write(client, 20)]
    assert answers == [[b"%d" % number] for number in range(1, 21)]
    cluster.recover()
    cluster.check()


def test_a_cluster_of_one_founds_itself() -> None:
    """A node without peers is a cluster."""
    cluster = Cluster(2, members=1)
    cluster.write(cluster.client(), 3)
    cluster.nodes[1].crash(survive_none)
    cluster.recover()
    assert len(cluster.nodes[1].machine.state.names) == 4
    cluster.check()


@pytest.mark.parametrize("node_id", [1, 2])
def test_restart_of_one(node_id: int) -> None:
    """A node that was away, the leader too, catches up, and calls go on meanwhile."""
    cluster = Cluster(3)
    client = cluster.client()
    cluster.write(client, 10)
    cluster.nodes[node_id].crash(survive_none)
    cluster.write(client, 10)
    cluster.nodes[node_id].start()
    cluster.settle()
    assert len(cluster.nodes[node_id].machine.state.names) == 20
    cluster.recover()
    cluster.check()


@pytest.mark.parametrize("away", [(1, 2), (2, 3)])
def test_restart_of_a_majority(away: tuple[int, int]) -> None:
    """Without a majority nothing is acknowledged; when it is back all that was is still there."""
    cluster = Cluster(4)
    client = cluster.client()
    cluster.write(client, 10)
    for node_id in away:
        cluster.nodes[node_id].crash(survive_none)
    asked = client.propose(cluster.name(), timeout=2.0)
    cluster.wait(asked)
    assert asked.error is not None
    for node_id in away:
        cluster.nodes[node_id].start()
    cluster.write(client, 10)
    cluster.recover()
    cluster.check()


@pytest.mark.parametrize("seed", range(10))
def test_restart_of_all(seed: int) -> None:
    """Power loss everywhere at once, in the middle of the work, loses nothing that was acknowledged."""
    cluster = Cluster(seed, snapshot_every_entries=7, log_keep_entries=0)
    client = cluster.client()
    cluster.write(client, 30)
    for _ in range(20):
        client.propose(cluster.name())
    cluster.world.run(0.004)
    for node in cluster.nodes.values():
        node.crash(survive_none)
    cluster.recover()
    cluster.check()


def test_a_restart_applies_nothing_twice_to_the_state() -> None:
    """After a restart the state is that of one pass over the log, from the snapshot on."""
    cluster = Cluster(5, snapshot_every_entries=5, log_keep_entries=0)
    client = cluster.client()
    for _ in range(12):
        cluster.write(client)
    cluster.settle()
    before = cluster.nodes[2].machine.state
    cluster.nodes[2].stop()
    cluster.nodes[2].start()
    cluster.settle()
    assert cluster.nodes[2].machine.state == before


def test_a_restarted_founder_goes_on_with_founding() -> None:
    """A founder that loses power at any moment before its cluster is complete completes it afterwards."""
    for moment in range(40):
        cluster = Cluster(moment, start=False)
        for node in cluster.nodes.values():
            node.start()
        cluster.world.run(0.05 + moment * 0.002)
        cluster.nodes[1].crash(survive_none)
        cluster.world.run(0.1)
        cluster.nodes[1].start()
        cluster.world.run_until(cluster.is_complete, what=f"founded after a crash at moment {moment}")
        cluster.write(cluster.client(), 2)


def test_a_member_behind_the_start_of_the_log_is_sent_a_snapshot() -> None:
    """A node whose next entry nobody has any more gets a snapshot and goes on from there."""
    cluster = Cluster(6, snapshot_every_entries=5, log_keep_entries=0)
    client = cluster.client()
    cluster.write(client)
    cluster.nodes[3].crash(survive_none)
    for _ in range(20):
        cluster.write(client)
    leader = cluster.wait_for_leader()
    assert leader.replica.store.first_index() > 10
    cluster.nodes[3].start()
    cluster.settle()
    assert cluster.nodes[3].replica.store.first_index() > 10
    cluster.recover()
    cluster.check()
