"""Snapshots: when they are taken, how they travel, and what a crash at any step leaves."""

import msgspec
import pytest
import xxhash

from octopii.walrus.faults import Operation, PowerLoss, Survives, survive_all, survive_none
from octopii.wire import requests
from octopii.wire.requests import Done
from tests.replica.clusters import KIB, Cluster, Node
from tests.replica.journal import Journal, Ledger


def big_machine(ledger: Ledger) -> Journal:
    """A machine whose snapshot takes many chunks."""
    return Journal(ledger, filler=40 * KIB, frozen=False)


def test_snapshots_are_taken_every_so_many_entries_on_every_replica() -> None:
    """Each node takes its own, and its log shrinks."""
    cluster = Cluster(1, snapshot_every_entries=10, log_keep_entries=2)
    client = cluster.client()
    for _ in range(40):
        cluster.write(client)
    cluster.settle()
    cluster.world.run(0.5)
    for node in cluster.nodes.values():
        assert node.replica.snapshots.newest is not None
        assert node.replica.snapshots.newest.index > 20
        assert node.replica.store.first_index() > 20
        files = [name for name in node.vfs.list_folder(f"/node-{node.id}") if name.startswith("snapshot-")]
        assert files == [node.replica.snapshots.newest.file_name]


def test_snapshots_are_taken_every_so_many_bytes() -> None:
    """Few entries with many bytes lead to one, too."""
    cluster = Cluster(2, snapshot_every_bytes=20_000)
    client = cluster.client()
    for _ in range(30):
        cluster.wait(client.propose(b"x" * 1000))
    cluster.world.run(0.5)
    assert all(node.replica.snapshots.newest is not None for node in cluster.nodes.values())


def test_a_forced_snapshot_is_taken_on_the_node_that_is_asked() -> None:
    """It is answered with its index when it is durable."""
    cluster = Cluster(3)
    cluster.write(cluster.client(), 5)
    cluster.settle()
    reply = cluster.reply(cluster.nodes[2], requests.ForceSnapshot(7))
    assert isinstance(reply, Done)
    assert reply.index == cluster.nodes[2].applier.index
    assert cluster.nodes[1].replica.snapshots.newest is None
    cluster.nodes[2].crash(survive_none)
    cluster.nodes[2].start()
    assert cluster.nodes[2].replica.snapshots.newest is not None


def test_a_snapshot_is_sent_by_force() -> None:
    """A leader sends one to a member although the log would reach it."""
    cluster = Cluster(4)
    cluster.write(cluster.client(), 5)
    leader = cluster.wait_for_leader()
    follower = cluster.followers[0]
    cluster.reply(leader, requests.ForceSnapshot(1))
    cluster.world.network.cut(leader.id, follower.id)
    cluster.write(cluster.client(at=leader.id), 5)
    cluster.reply(leader, requests.ForceSnapshot(2))
    cluster.world.network.heal()
    cluster.world.run_until(lambda: follower.id in leader.replica.connected, what="they have met again")
    reply = cluster.reply(leader, requests.ForceSnapshotToPeer(3, follower.id))
    assert isinstance(reply, Done), reply
    cluster.settle()
    cluster.recover()
    cluster.check()


def test_a_snapshot_that_cannot_be_sent_is_not_said_to_be() -> None:
    """A leader sends none to itself."""
    cluster = Cluster(15)
    cluster.write(cluster.client(), 5)
    leader = cluster.wait_for_leader()
    cluster.reply(leader, requests.ForceSnapshot(1))
    reply = cluster.reply(leader, requests.ForceSnapshotToPeer(2, leader.id))
    assert isinstance(reply, requests.Failure)
    assert reply.kind is requests.FailureKind.NOT_APPLIED


def test_a_member_that_has_all_of_a_snapshot_is_sent_none() -> None:
    """Asked by force for a member whose log holds all that the snapshot does, the leader is done at once."""
    cluster = Cluster(16)
    cluster.write(cluster.client(), 5)
    leader = cluster.wait_for_leader()
    (follower, _) = cluster.followers
    taken = cluster.reply(leader, requests.ForceSnapshot(1))
    assert isinstance(taken, requests.Done)
    cluster.world.run_until(lambda: leader.replica.raft.match_index(follower.id) >= taken.index)
    assert cluster.reply(leader, requests.ForceSnapshotToPeer(2, follower.id)) == requests.Done(2, taken.index)
    assert not leader.replica.senders.peers


def test_a_peer_that_lags_far_behind_is_sent_a_snapshot_where_that_is_less() -> None:
    """Lag beyond the threshold: the snapshot goes, not the entries, though the log still has them."""
    cluster = Cluster(5, snapshot_lag_threshold=20, log_keep_entries=1000, snapshot_every_entries=50)
    follower = cluster.followers[0]
    leader = cluster.wait_for_leader()
    cluster.world.network.isolate(follower.id)
    client = cluster.client(at=leader.id)
    for _ in range(80):
        cluster.wait(client.propose(b"y" * 500))
    assert leader.replica.store.first_index() == 1
    cluster.world.network.heal()
    cluster.world.run_until(lambda: cluster.applied(follower), what="the follower has caught up")
    assert follower.replica.snapshots.newest is not None
    assert follower.replica.store.first_index() > 1
    cluster.recover()


def test_a_transfer_goes_on_where_it_broke_off() -> None:
    """A connection that breaks half-way costs only what was on its way."""
    cluster = Cluster(6, machine=big_machine, snapshot_every_entries=5, log_keep_entries=0)
    client = cluster.client()
    cluster.nodes[3].crash(survive_none)
    for _ in range(10):
        cluster.write(client)
    leader = cluster.wait_for_leader()
    node = cluster.nodes[3]
    node.start()
    receiver = node.replica.receiver

    def half_way() -> bool:
        incoming = receiver._incoming
        return incoming is not None and incoming.position > 10 * KIB

    cluster.world.run_until(half_way, what="the transfer is half-way")
    incoming = receiver._incoming
    connection = cluster.world.network.connection(leader.id, 3)
    assert connection is not None
    connection.close()
    cluster.world.run_until(lambda: cluster.applied(node), what="the follower has caught up")
    assert incoming is not None
    assert incoming.complete
    cluster.recover()
    cluster.check()


def test_compaction_is_at_one_index_on_three_replicas() -> None:
    """Asked for, or by the clock: every replica compacts at the same entries, also after a restart."""
    cluster = Cluster(7, compact_interval=1.0, session_ttl=600.0)
    client = cluster.client()
    cluster.write(client, 3)
    reply = cluster.reply(cluster.followers[0], requests.CompactRequest(1))
    assert isinstance(reply, Done)
    assert reply.index in cluster.ledger.compacted
    cluster.world.run(5.0)
    cluster.nodes[2].crash(survive_none)
    cluster.nodes[2].start()
    cluster.world.run(3.0)
    cluster.settle()
    counts = {node.machine.state.compactions for node in cluster.nodes.values()}
    assert len(counts) == 1
    assert counts == {len(cluster.ledger.compacted)}
    assert len(cluster.ledger.compacted) >= 6


def test_a_snapshot_that_raises_keeps_the_log_and_is_tried_again() -> None:
    """The user's `snapshot` fails a few times: nothing is lost, and later it succeeds."""
    cluster = Cluster(8, snapshot_every_entries=10, log_keep_entries=0)
    node = cluster.followers[0]
    failures = 0

    def fail() -> None:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise ValueError("not now")

    node.machine.snapshot_trouble = fail
    client = cluster.client()
    for _ in range(15):
        cluster.write(client)
    cluster.world.run(0.5)
    assert failures == 1
    assert node.replica.store.first_index() == 1
    assert "snapshot" in node.replica.warnings
    cluster.world.run(5.0)
    assert failures == 3
    assert node.replica.store.first_index() > 10
    assert "snapshot" not in node.replica.warnings


def crash_at(node: Node, number: int) -> None:
    """Lose power at one of the next operations of a node's disk."""
    left = number

    def before(_operation: Operation) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise PowerLoss

    node.vfs.faults.before = before


@pytest.mark.parametrize("survives", [survive_none, survive_all])
def test_a_crash_at_each_step_of_taking_a_snapshot_loses_nothing(survives: Survives) -> None:
    """Wherever the power goes, the node comes back with a snapshot that counts, or with the whole log."""
    cluster = Cluster(9, machine=big_machine, snapshot_every_entries=100_000, log_keep_entries=0)
    node = cluster.followers[0]
    node.survives = survives
    client = cluster.client(at=cluster.wait_for_leader().id)
    for number in range(1, 60):
        cluster.write(client)
        cluster.settle()
        epoch = node.epoch
        node.vfs.faults.before = None
        crash_at(node, number)
        replies = cluster.request(node, requests.ForceSnapshot(1))
        cluster.world.run(0.3)
        if node.epoch == epoch:
            assert replies, "the snapshot was taken before the power went"
            break
        node.start()
        cluster.settle()
    else:
        raise AssertionError("a snapshot takes more operations than that?")
    assert number > 8
    cluster.recover()
    cluster.check()


@pytest.mark.parametrize("lag", [1, 3])
def test_a_crash_at_each_step_of_installing_a_snapshot_loses_nothing(lag: int) -> None:
    """A follower that loses power while it takes a snapshot over starts from before it or from it."""
    cluster = Cluster(10, machine=big_machine, snapshot_every_entries=2, log_keep_entries=0)
    leader = cluster.wait_for_leader()
    node = cluster.followers[0]
    client = cluster.client(at=leader.id)
    finished = 0
    for number in range(1, 120):
        if node.up:
            node.crash()
        for _ in range(lag + 2):
            cluster.write(client)
        cluster.world.run(0.1)
        node.start()
        epoch = node.epoch
        installed = node.replica.snapshots.newest.index if node.replica.snapshots.newest else 0
        crash_at(node, number)
        cluster.world.run(0.6)
        if node.epoch == epoch and node.replica.snapshots.newest is not None:
            finished += node.replica.snapshots.newest.index > installed
        if finished > 3:
            break
    assert number > 10
    cluster.recover()
    cluster.check()


def test_a_damaged_snapshot_is_noticed_at_open() -> None:
    """A flipped byte in the payload is an error that names the file, not a state."""
    cluster = Cluster(11)
    cluster.write(cluster.client(), 5)
    node = cluster.followers[0]
    cluster.settle()
    cluster.reply(node, requests.ForceSnapshot(1))
    assert node.replica.snapshots.newest is not None
    name = node.replica.snapshots.newest.file_name
    node.stop()
    path = f"/node-{node.id}/{name}"
    node.vfs.contents(path)[10] ^= 1
    with pytest.raises(Exception, match=name):
        node.start()


def test_membership_and_sessions_travel_with_a_snapshot() -> None:
    """A node that only ever got a snapshot knows the members, and a retried call gets its first answer from it."""
    cluster = Cluster(12, snapshot_every_entries=5, log_keep_entries=0)
    client = cluster.client()
    node = cluster.followers[0]
    node.crash(survive_none)
    for _ in range(20):
        cluster.write(client)
    node.start()
    cluster.settle()
    leader = cluster.wait_for_leader()
    assert node.applier.sessions.capture() == leader.applier.sessions.capture()
    assert node.applier.roster == leader.applier.roster
    assert node.replica.conf_state == leader.replica.conf_state
    cluster.reply(leader, requests.TransferLeader(1, node.id))
    cluster.write(client, 3)
    cluster.recover()
    cluster.check()


@pytest.mark.parametrize("survives", [survive_none, survive_all])
def test_a_snapshot_received_at_the_index_of_an_own_one_does_not_touch_its_file(survives: Survives) -> None:
    """The same entries may lead to other bytes; power loss before the new manifest counts leaves the old pair whole."""
    cluster = Cluster(13)
    cluster.write(cluster.client(), 5)
    cluster.settle()
    node = cluster.followers[0]
    cluster.reply(node, requests.ForceSnapshot(1))
    store = node.replica.snapshots
    own = store.newest
    assert own is not None
    payload = store.open(own)
    data = payload.read(0, own.size) + b"other"
    payload.close()
    theirs = msgspec.structs.replace(own, size=len(data), checksum=xxhash.xxh3_64_intdigest(data))
    incoming = store.receive(theirs)
    assert incoming.add(0, data)
    assert incoming.finish()
    node.crash(survives)
    node.start()
    assert node.replica.snapshots.newest == own
    files = [name for name in node.vfs.list_folder(f"/node-{node.id}") if name.startswith(("snapshot-", "incoming-"))]
    assert files == [own.file_name]
    cluster.recover()
    cluster.check()


def test_of_two_snapshots_at_one_index_the_recorded_one_stays() -> None:
    """Whatever the order of their checksums: the other's file goes as soon as the newer manifest counts."""
    cluster = Cluster(14)
    cluster.write(cluster.client(), 5)
    cluster.settle()
    node = cluster.followers[0]
    folder = f"/node-{node.id}"
    for number in range(6):
        cluster.reply(node, requests.ForceSnapshot(1))
        store = node.replica.snapshots
        newest = store.newest
        assert newest is not None
        data = b"other %d" % number
        theirs = msgspec.structs.replace(newest, size=len(data), checksum=xxhash.xxh3_64_intdigest(data))
        incoming = store.receive(theirs)
        incoming.add(0, data)
        assert incoming.finish()
        store.prune(theirs, store.record(theirs), frozenset())
        assert [name for name in node.vfs.list_folder(folder) if name.startswith("snapshot-")] == [theirs.file_name]
