"""Peers and clients that break the rules: what they say is refused or ignored, and everything stays within limits."""

from collections.abc import Callable

import msgspec
import pytest

from octopii.errors import WrongCluster
from octopii.raft import ConfState, Message, MessageType, Snapshot, SnapshotMetadata
from octopii.replica import writes
from octopii.replica.founding import PeerFacts
from octopii.replica.jobs import SnapshotView, SnapshotWritten
from octopii.replica.snapshots import decode_manifest, encode_manifest
from octopii.sim.cluster import config_of
from octopii.walrus.faults import survive_none
from octopii.wire import requests
from octopii.wire.codec import AdmitStorage, CallGroup, EntryItem, Found, MemberFact
from octopii.wire.requests import Failure, FailureKind, Forward, SnapshotOffer
from tests.replica.clusters import KIB, Cluster, Node
from tests.replica.test_disk import fill


def say(cluster: Cluster, sender: Node, target: Node, message: object) -> None:
    """Have one node hear something from another that the other's replica never said."""
    target.enter(lambda: target.replica.receive(sender.id, message))  # type: ignore[arg-type]
    cluster.world.run(0.5)


def assert_all_well(cluster: Cluster) -> None:
    """Every node is up, and calls go on."""
    assert all(node.up and node.broken is None for node in cluster.nodes.values())
    cluster.write(cluster.client(), 3)
    cluster.recover()
    cluster.check()


def test_a_snapshot_that_was_not_transferred_is_ignored() -> None:
    """Bare metadata from a peer would cost the log, and there is no state to go with it."""
    cluster = Cluster(1)
    cluster.write(cluster.client(), 5)
    cluster.settle()
    leader, target = cluster.wait_for_leader(), cluster.followers[0]
    last = target.replica.store.last_index()
    message = Message(
        type=MessageType.SNAPSHOT,
        to=target.id,
        sender=leader.id,
        term=leader.replica.raft.term,
        snapshot=Snapshot(SnapshotMetadata(last + 100, leader.replica.raft.term, ConfState([1, 2, 3]))),
    )
    say(cluster, leader, target, message)
    assert target.up
    assert target.replica.store.first_index() == 1
    assert_all_well(cluster)


HUGE = CallGroup(session=7, first=0, acked=0, commands=[bytes(9 << 20)])


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        (Found(cluster_id=b"x" * 16, members=[MemberFact(9, "a:1")]), FailureKind.NOT_APPLIED),
        (HUGE, FailureKind.TOO_LARGE),
        (CallGroup(session=7, first=0, acked=0, commands=[bytes(1 << 20)] * 5), FailureKind.TOO_LARGE),
    ],
)
def test_what_may_not_stand_in_a_log_is_not_taken_from_a_follower(item: EntryItem, kind: FailureKind) -> None:
    """It would end every replica, now and at every start: founding anew, or more than a record can hold."""
    cluster = Cluster(2)
    cluster.write(cluster.client())
    leader, follower = cluster.wait_for_leader(), cluster.followers[0]
    last = leader.replica.store.last_index()
    answers: list[object] = []
    send = leader.replica.outbox.send

    def note(peer: int, message: object) -> None:
        answers.append(message)
        send(peer, message)  # type: ignore[arg-type]

    leader.replica.outbox.send = note  # type: ignore[method-assign]
    say(cluster, follower, leader, Forward(999, [AdmitStorage(1, b"s" * 16), item]))
    assert [answer.failure.kind for answer in answers if isinstance(answer, requests.ForwardRefused)] == [kind]
    assert leader.replica.store.last_index() == last
    assert_all_well(cluster)


def test_an_offer_that_contradicts_its_manifest_is_refused() -> None:
    """The room on the disk is compared with the size that is offered: the manifest has to say the same."""
    cluster = Cluster(3)
    cluster.write(cluster.client(), 5)
    leader, target = cluster.wait_for_leader(), cluster.followers[0]
    cluster.reply(leader, requests.ForceSnapshot(1))
    manifest = leader.replica.snapshots.newest
    assert manifest is not None
    forged = msgspec.structs.replace(manifest, index=manifest.index + 50, size=1 << 50)
    offer = SnapshotOffer(
        term=leader.replica.raft.term, index=forged.index, manifest=encode_manifest(forged), size=10, checksum=b""
    )
    say(cluster, leader, target, offer)
    assert target.replica.receiver._incoming is None
    assert_all_well(cluster)


def test_a_client_cannot_ask_for_more_than_is_kept_in_mind() -> None:
    """Requests that wait for something else than an apply have limits, too; what was asked before is answered."""
    cluster = Cluster(
        4, max_pending_calls=200, max_pending_bytes=100 * KIB, max_batch_bytes=50 * KIB, max_command_bytes=50 * KIB
    )
    leader = cluster.wait_for_leader()
    for node in cluster.followers:
        node.crash(survive_none)
    makers: dict[str, Callable[[], requests.Request]] = {
        "read index": lambda: requests.ReadIndex(1),
        "snapshot": lambda: requests.ForceSnapshot(1),
        "compaction": lambda: requests.CompactRequest(1),
        "query": lambda: requests.Query(
            request_id=1, consistency=requests.Consistency.LINEARIZABLE, commands=[bytes(10 * KIB)], timeout_ns=10**9
        ),
    }
    leader.applier.run = lambda job: None  # type: ignore[method-assign, assignment, return-value]
    leader._apply.submit = lambda jobs: None  # type: ignore[method-assign]  # (nothing is ever applied)
    for what, make in makers.items():
        replies = [cluster.request(leader, make()) for _ in range(2000)]
        refused = [reply[0] for reply in replies if reply]
        assert len(refused) > 900, what
        assert all(isinstance(reply, Failure) and reply.kind is FailureKind.OVERLOADED for reply in refused), what


def test_strangers_without_number_are_not_remembered() -> None:
    """Who comes under ever new ids leaves a bounded trace, and the members are not forgotten over it."""
    cluster = Cluster(7, max_connections=64)
    cluster.settle()
    node = cluster.followers[0]
    replica = node.replica
    members = set(replica.applying.roster.members) - {node.id}
    for stranger in range(100, 1100):
        facts = PeerFacts(
            node_id=stranger, storage_id=b"s", cluster_id=b"other", address="127.0.0.1:1", last_index=0, last_term=0
        )
        replica.joining.met(facts)
        replica.peer_refused(stranger, WrongCluster("another cluster"), "127.0.0.1:1")
        pulse = requests.Pulse(wall=1, disk_low=False, command_version=9, digest_index=stranger, digest=b"x" * 8)
        replica.receive(stranger, pulse)
        replica.receive(100, pulse)
    assert members < set(replica.joining.peers)
    assert 1099 in replica.joining.peers
    assert len(replica.joining.peers) == 64
    assert len(replica.vitals._vitals) <= 64
    assert len(replica.versions.reported) <= 64
    assert len(replica.warnings) <= 64
    assert not any(member >= 100 for digests in replica.divergence._digests.values() for member in digests)
    assert_all_well(cluster)


def test_who_leads_is_not_forgotten_over_strangers_that_stay() -> None:
    """To an empty node its leader is a stranger among strangers, and the newest to come is remembered in any case."""
    cluster = Cluster(8, max_connections=16)
    node = cluster.followers[0]
    replica = node.replica
    replica.applying.roster.members.clear()
    replica.raft.peers = list  # type: ignore[method-assign]
    for stranger in range(100, 140):
        facts = PeerFacts(
            node_id=stranger, storage_id=b"s", cluster_id=b"", address="127.0.0.1:1", last_index=0, last_term=0
        )
        replica.connected.add(stranger)
        replica.joining.met(facts)
        assert stranger in replica.joining.peers
    assert replica.leadership.leader in replica.joining.peers
    assert len(replica.joining.peers) <= 17


def test_a_full_disk_that_stays_full_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for room does not grow with the heartbeats that come meanwhile, and all goes on when there is room."""
    monkeypatch.setattr(writes, "max_held", 100)
    cluster = Cluster(5, disk_low_water_bytes=0)
    client = cluster.client()
    cluster.write(client, 3)
    cluster.settle()
    node = cluster.followers[0]
    fill(node, 0)
    node.vfs.remove(f"/node-{node.id}/reserve")
    fill(node, 0)
    node.replica.disk.check = lambda: None  # type: ignore[method-assign]  # (it does not know yet)
    for _ in range(50):
        cluster.wait(client.propose(cluster.name() + b"-" + b"z" * 3000))
    assert node.replica.writes.blocked
    cluster.world.run(5.0)
    sizes = []
    for _ in range(3):
        cluster.world.run(60.0)
        sizes.append((len(node.replica.writes._unwritten), len(node.replica.writes._held)))
    assert sizes == [(1, 100)] * 3
    del node.replica.disk.check
    node.vfs.faults.capacity = None
    cluster.settle()
    assert_all_well(cluster)


def test_a_snapshot_that_a_newer_one_has_overtaken_is_dropped_in_peace() -> None:
    """Its payload was written beside, and is gone by the time that the replica hears of it."""
    cluster = Cluster(6, log_keep_entries=0)
    client = cluster.client()
    cluster.write(client, 5)
    cluster.settle()
    node = cluster.followers[0]
    view = node.applier._capture()
    assert isinstance(view, SnapshotView)
    written = node.replica.snapshots.write(view)
    assert isinstance(written, SnapshotWritten)
    cluster.write(client, 5)
    cluster.settle()
    assert isinstance(cluster.reply(node, requests.ForceSnapshot(1)), requests.Done)
    assert not node.vfs.exists(f"/node-{node.id}/{written.manifest.file_name}")
    node.enter(lambda: node.replica.job_done(written))
    assert_all_well(cluster)


def test_a_snapshot_that_arrives_when_its_entries_are_there_replaces_nothing() -> None:
    """A follower that has reached a snapshot's index by itself keeps its own snapshot there, and its file."""
    cluster = Cluster(7)
    client = cluster.client()
    cluster.write(client, 5)
    cluster.settle()
    leader, node = cluster.wait_for_leader(), cluster.followers[0]
    for one in (leader, node):
        assert isinstance(cluster.reply(one, requests.ForceSnapshot(1)), requests.Done)
    theirs, own = leader.replica.snapshots.newest, node.replica.snapshots.newest
    assert theirs is not None
    assert own is not None
    assert theirs.index == own.index
    forged = msgspec.structs.replace(theirs, checksum=theirs.checksum ^ 1)  # the same state in other bytes
    receiver = node.replica.receiver
    payload = leader.replica.snapshots.open(theirs)
    data = payload.read(0, theirs.size)
    payload.close()
    forged = decode_manifest(encode_manifest(msgspec.structs.replace(forged, checksum=theirs.checksum)))
    receiver._incoming = node.replica.snapshots.receive(forged)
    receiver._from = leader.id
    say(cluster, leader, node, requests.SnapshotChunk(0, data))
    assert receiver._recorded is None
    assert receiver._incoming is None
    assert not node.vfs.exists(f"/node-{node.id}/incoming-{forged.file_name}")
    assert node.replica.snapshots.newest is own
    node.crash(survive_none)
    node.start()
    cluster.settle()
    assert_all_well(cluster)


def test_a_follower_with_smaller_limits_takes_what_its_leader_took() -> None:
    """Limits are looked at where a command enters the log: another node's are no reason to stop, nor to fall behind."""
    cluster = Cluster(8, start=False)
    for node in cluster.nodes.values():
        small = {"max_batch_bytes": 64 * KIB, "max_command_bytes": 64 * KIB}
        large = {"max_batch_bytes": 6 << 20, "max_command_bytes": 6 << 20}
        node.config = config_of(node.id, 3, **(large if node.id == 1 else small))
    cluster.start()
    leader = cluster.wait_for_leader()
    if leader.id != 1:
        cluster.reply(leader, requests.TransferLeader(1, 1))
    asked = cluster.client(at=1).propose(bytes(2 << 20))
    cluster.wait(asked)
    assert asked.error is None
    cluster.settle()
    assert_all_well(cluster)
