"""Disks that are full, or hang."""

from octopii.errors import DiskFull
from octopii.raft import Message
from octopii.walrus.faults import survive_none
from octopii.wire.codec import CallGroup
from octopii.wire.requests import Propose
from tests.replica.clusters import KIB, Cluster, Node


def fill(node: Node, left: int = 0) -> None:
    """Leave so many bytes on a node's volume."""
    node.vfs.faults.capacity = None
    used = sum(len(node.vfs.contents(f"/node-{node.id}/{name}")) for name in node.vfs.list_folder(f"/node-{node.id}"))
    node.vfs.faults.capacity = used + left


def test_a_leader_whose_disk_is_nearly_full_hands_over() -> None:
    """A member with room takes over, and calls go on."""
    cluster = Cluster(1)
    client = cluster.client()
    cluster.write(client, 3)
    leader = cluster.wait_for_leader()
    fill(leader, 80 * KIB)
    cluster.world.run_until(lambda: cluster.leader not in (None, leader), what="another leads")
    cluster.write(client, 10)
    assert "disk" in leader.replica.warnings
    fill(leader, 10_000 * KIB)
    cluster.world.run(0.5)
    assert "disk" not in leader.replica.warnings
    cluster.recover()
    cluster.check()


def test_a_full_follower_holds_nobody_up_and_catches_up_when_there_is_room() -> None:
    """It takes no entries and goes on voting; freeing space is all it needs."""
    cluster = Cluster(2)
    client = cluster.client()
    cluster.write(client, 3)
    follower = cluster.followers[0]
    fill(follower)
    for _ in range(100):
        cluster.wait(client.propose(b"z" * 2000))
    assert follower.broken is None
    assert follower.applier.index < cluster.wait_for_leader().applier.index
    follower.vfs.faults.capacity = None
    cluster.settle()
    assert follower.machine.state == cluster.wait_for_leader().machine.state


def test_with_every_disk_full_writes_are_refused_and_reads_go_on() -> None:
    """`DiskFull` is not applied; as soon as there is room, calls are taken again."""
    cluster = Cluster(3)
    client = cluster.client()
    cluster.write(client, 3)
    for node in cluster.nodes.values():
        fill(node, 80 * KIB)
    cluster.world.run(1.0)
    asked = client.propose(cluster.name())
    cluster.wait(asked)
    assert isinstance(asked.error, DiskFull)
    query = client.query()
    cluster.wait(query)
    assert query.result == [b"3"]
    for node in cluster.nodes.values():
        node.vfs.faults.capacity = None
    cluster.world.run(1.0)
    cluster.write(client, 3)
    cluster.recover()
    cluster.check()


def test_a_disk_that_fills_up_to_the_last_byte_breaks_no_node() -> None:
    """Without any warning there is no room at all: nobody stops, and nothing that was acknowledged is lost."""
    for seed in range(5):
        cluster = Cluster(seed, disk_low_water_bytes=0, snapshot_every_entries=20, log_keep_entries=0)
        client = cluster.client()
        cluster.write(client, 3)
        for node in cluster.nodes.values():
            fill(node, cluster.world.rng.choice((0, 5 * KIB, 20 * KIB)))
        for _ in range(60):
            client.propose(cluster.name() + b"-" + b"w" * 3000, timeout=3.0)
            cluster.world.run(0.05)
        assert all(node.broken is None for node in cluster.nodes.values())
        node = cluster.nodes[cluster.world.rng.choice((1, 2, 3))]
        node.crash(survive_none)
        node.start()
        cluster.world.run(1.0)
        for node in cluster.nodes.values():
            node.vfs.faults.capacity = None
        cluster.recover()
        cluster.check()


def test_a_leader_whose_disk_hangs_steps_down() -> None:
    """A sync that does not return costs leadership, not the cluster."""
    cluster = Cluster(4)
    client = cluster.client()
    cluster.write(client, 3)
    leader = cluster.wait_for_leader()
    leader.stall_disk(True)
    client.propose(cluster.name())
    cluster.world.run_until(lambda: cluster.leader not in (None, leader), what="another leads")
    cluster.write(client, 5)
    leader.stall_disk(False)
    cluster.recover()
    cluster.check()


def test_nothing_is_acknowledged_before_it_is_on_a_majority_of_disks() -> None:
    """With every disk hanging no call is answered; after a crash of all, only what was answered has to be there."""
    cluster = Cluster(5)
    client = cluster.client()
    cluster.write(client, 3)
    for node in cluster.nodes.values():
        node.stall_disk(True)
    asked = client.propose(cluster.name(), timeout=20.0)
    cluster.world.run(0.2)
    assert not asked.done
    for node in cluster.nodes.values():
        node.crash(survive_none)
        node.paused_sync = False
    cluster.recover()
    cluster.check()


def test_a_leaders_appends_go_out_before_it_writes() -> None:
    """Followers write while it does: messages first, then its own write and sync (thesis, section 10.2.1)."""
    cluster = Cluster(14)
    cluster.write(cluster.client(), 3)
    cluster.settle()
    leader = cluster.wait_for_leader()
    replica, last = leader.replica, leader.replica.store.last_index()
    group = CallGroup(session=1, first=0, acked=0, commands=[b"SET key value"])
    replica.request("the test", Propose(1, group))
    work = replica.poll()
    sent = [output for outputs in work.messages.values() for output in outputs if isinstance(output, Message)]
    assert [[entry.index for entry in message.entries] for message in sent] == [[last + 1], [last + 1]]
    assert (work.sync, work.more, replica.store.last_index()) == (None, True, last)
    work = replica.poll()
    assert (work.messages, work.more, replica.store.last_index()) == ({}, False, last + 1)
    assert work.sync is not None
    leader.crash(survive_none)
    cluster.recover()
    cluster.check()


def test_a_follower_acknowledges_nothing_before_it_is_on_its_disk() -> None:
    """With both followers' disks hanging the leader, whose own disk works, may not count them."""
    cluster = Cluster(7)
    client = cluster.client(at=cluster.wait_for_leader().id)
    cluster.write(client, 3)
    committed = cluster.wait_for_leader().replica.raft.committed
    for node in cluster.followers:
        node.stall_disk(True)
    asked = client.propose(cluster.name(), timeout=20.0)
    cluster.world.run(0.3)
    assert not asked.done
    assert cluster.wait_for_leader().replica.raft.committed == committed
    for node in cluster.followers:
        node.stall_disk(False)
    cluster.wait(asked)
    assert asked.error is None


def test_a_vote_is_sent_only_when_it_is_on_disk() -> None:
    """A candidate hears nothing from voters whose disks hang, and does not win; without a vote there is no leader."""
    cluster = Cluster(8)
    leader = cluster.wait_for_leader()
    for node in cluster.followers:
        node.stall_disk(True)
    leader.crash(survive_none)
    cluster.world.run(5.0)
    assert cluster.leader is None
    for node in cluster.followers:
        node.stall_disk(False)
    cluster.wait_for_leader()


def test_a_failed_sync_ends_the_node_and_not_its_data() -> None:
    """After EIO at a sync nothing more is written or acknowledged; the node says what happened."""
    cluster = Cluster(6)
    client = cluster.client()
    cluster.write(client, 3)
    node = cluster.followers[0]

    def fail(operation: object) -> None:
        if getattr(operation, "kind", "") == "datasync":
            raise OSError(5, "input/output error")

    node.vfs.faults.before = fail
    cluster.write(client, 3)
    cluster.world.run(1.0)
    assert node.broken is not None
    assert not node.up
    node.vfs.faults.before = None
    node.broken = None
    node.start()
    cluster.settle()
    cluster.recover()
    cluster.check()


def test_a_disk_that_becomes_low_leads_to_a_snapshot() -> None:
    """On whichever node it is: long before the counters would ask for one, so that the log behind it can go."""
    cluster = Cluster(9, snapshot_every_entries=100_000, log_keep_entries=0)
    client = cluster.client()
    for _ in range(20):
        cluster.write(client)
    cluster.settle()
    assert all(node.replica.snapshots.newest is None for node in cluster.nodes.values())
    leader, low = cluster.wait_for_leader(), cluster.followers[0]
    before = low.replica.store.last_index()
    fill(low, 100 * KIB)
    cluster.world.run(1.0)
    newest = low.replica.snapshots.newest
    assert newest is not None
    assert newest.index >= before
    assert low.replica.store.first_index() == newest.index + 1
    assert leader.replica.snapshots.newest is None
    cluster.write(client, 5)
    cluster.world.run(2.0)
    assert low.replica.snapshots.newest is newest, "once per time that it becomes low"
    low.vfs.faults.capacity = None
    cluster.world.run(0.5)
    fill(low, 100 * KIB)
    cluster.world.run(1.0)
    assert low.replica.snapshots.newest.index > newest.index


def reserve_of(node: Node) -> int:
    """Bytes that a node has set aside."""
    path = f"/node-{node.id}/reserve"
    return len(node.vfs.contents(path)) if node.vfs.exists(path) else 0


def test_the_reserve_keeps_room_for_votes_and_is_taken_back() -> None:
    """Volumes that something else has filled to the last byte: who is left elects a leader all the same, by name."""
    cluster = Cluster(10)
    client = cluster.client()
    cluster.write(client, 3)
    cluster.settle()
    size = cluster.nodes[1].config.disk_reserve_bytes
    assert [reserve_of(node) for node in cluster.nodes.values()] == [size] * 3
    leader = cluster.wait_for_leader()
    term = leader.replica.raft.term
    for node in cluster.nodes.values():
        fill(node, 0)
    cluster.world.run(0.5)
    assert [reserve_of(node) for node in cluster.nodes.values()] == [0] * 3
    leader.crash(survive_none)
    other = cluster.wait_for_leader()
    assert other.replica.raft.term > term
    assert other.replica.store.hard_state.term == other.replica.raft.term
    for node in cluster.nodes.values():
        node.vfs.faults.capacity = None
    cluster.world.run(0.5)
    assert [reserve_of(node) for node in cluster.nodes.values() if node.up] == [size] * 2
    cluster.recover()
    cluster.check()


def test_between_the_low_water_mark_and_the_reserve_a_follower_goes_on() -> None:
    """Low is the leader's business: a follower takes entries until what is left is the reserve's."""
    cluster = Cluster(11)
    client = cluster.client()
    cluster.write(client, 3)
    low = cluster.followers[0]
    fill(low, 100 * KIB)
    cluster.world.run(0.5)
    assert (low.replica.disk.low, low.replica.disk.critical) == (True, False)
    cluster.write(client, 5)
    cluster.settle()
    fill(low, 50 * KIB)
    low.vfs.remove(f"/node-{low.id}/reserve")
    fill(low, 50 * KIB)
    cluster.world.run(0.5)
    assert low.replica.disk.critical
    applied = low.applier.index
    cluster.write(client, 5)
    cluster.world.run(1.0)
    assert low.applier.index == applied
    assert "entries from the leader are not taken" in low.replica.warnings["disk"]
    low.vfs.faults.capacity = None
    cluster.settle()
    cluster.recover()
    cluster.check()
