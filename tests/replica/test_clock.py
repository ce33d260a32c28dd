"""Replicated time: it never goes back, and no single wrong clock can move it."""

import pytest

from octopii.sim.node import START_WALL
from octopii.walrus.faults import survive_none
from octopii.wire import requests
from tests.replica.clusters import Cluster


@pytest.mark.parametrize("offset", [-3600.0, 3600.0, 1e9, -1e9])
def test_a_leader_with_a_wrong_clock_hands_over(offset: float) -> None:
    """An hour behind, or decades ahead: it stamps nothing with that clock, and another takes over."""
    cluster = Cluster(1, clock_skew_max=5.0)
    client = cluster.client()
    cluster.write(client, 3)
    before = cluster.wait_for_leader()
    before.wall_offset = offset
    asked = client.propose(cluster.name())
    cluster.world.run_until(lambda: cluster.leader not in (None, before), what="another leads")
    cluster.wait(asked)
    cluster.write(client, 3)
    cluster.settle()
    right = START_WALL + int(cluster.world.now * 1e9)
    assert all(abs(node.applier.time_ns - right) < 10 * 10**9 for node in cluster.nodes.values())
    assert "clock" in before.replica.warnings
    cluster.recover()
    cluster.check()


def test_a_node_with_a_wrong_clock_stamps_nothing_even_when_it_is_made_leader() -> None:
    """Elected because nobody else may be, it holds calls back instead of replicating a wrong time."""
    cluster = Cluster(2)
    client = cluster.client()
    cluster.write(client, 3)
    leader = cluster.wait_for_leader()
    others = cluster.followers
    others[0].crash(survive_none)
    leader.wall_offset = 1e9
    cluster.world.run(0.2)
    asked = client.propose(cluster.name(), timeout=3.0)
    cluster.world.run(2.0)
    assert all(node.applier.time_ns < 1_700_001_000 * 10**9 for node in cluster.nodes.values() if node.up)
    leader.wall_offset = 0.0
    others[0].start()
    cluster.wait(asked)
    cluster.recover()
    cluster.check()


def test_time_does_not_go_back_when_leadership_moves_to_a_slower_clock() -> None:
    """Clocks that differ within what is allowed: a machine never sees time go back (it would say so)."""
    cluster = Cluster(3, clock_skew_max=5.0)
    for node in cluster.nodes.values():
        node.wall_offset = (node.id - 2) * 2.0
    client = cluster.client()
    times: dict[int, int] = {}
    for _ in range(6):
        cluster.write(client, 2)
        leader = cluster.wait_for_leader()
        for node in cluster.nodes.values():
            assert node.applier.time_ns >= times.get(node.id, 0)
            times[node.id] = node.applier.time_ns
        leader.replica.upkeep.hand_over("the test wants it")
        cluster.world.run(0.5)
    cluster.recover()
    cluster.check()


def test_time_moves_in_an_idle_cluster_whose_machine_asks_for_it() -> None:
    """Compaction entries carry the clock on."""
    cluster = Cluster(4, compact_interval=1.0)
    cluster.write(cluster.client())
    before = cluster.nodes[1].applier.time_ns
    cluster.world.run(10.0)
    assert cluster.nodes[1].applier.time_ns - before > 8 * 10**9


def test_a_snapshot_holds_the_applied_time() -> None:
    """Restarted from a snapshot alone, under a leader whose clock is behind, a replica is where the others are."""
    cluster = Cluster(21, clock_skew_max=5.0)
    leader = cluster.wait_for_leader()
    node = cluster.followers[0]
    leader.wall_offset = 3.0
    client = cluster.client()
    cluster.write(client, 3)
    cluster.settle()
    assert isinstance(cluster.reply(node, requests.ForceSnapshot(1)), requests.Done)
    assert node.replica.snapshots.newest is not None
    assert node.replica.snapshots.newest.index == node.applier.index, "nothing behind it tells the time"
    time = node.applier.time_ns
    node.crash(survive_none)
    leader.crash(survive_none)
    node.start()
    cluster.wait_for_leader()
    cluster.write(client)
    cluster.settle()
    assert {each.applier.time_ns for each in cluster.nodes.values() if each.up} == {time}
