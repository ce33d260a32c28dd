"""Members whose disks have lost what they had acknowledged."""

import json

from octopii.durability import Milliseconds
from octopii.walrus.faults import survive_all, survive_none
from octopii.walrus.memory_vfs import MemoryFileSystem
from octopii.wire import requests
from tests.replica.clusters import Cluster, Node


def disk_of(node: Node) -> MemoryFileSystem:
    """What is on a node's disk now, to be put back later."""
    disk = node.vfs.clone()
    disk.crash(survive_none)
    return disk


def roll_back(node: Node, disk: MemoryFileSystem) -> None:
    """Lose power, and come back with an older disk."""
    node.crash(survive_all)
    node.vfs = disk


def status_of(cluster: Cluster, node: Node) -> dict[str, object]:
    """What a node says of itself."""
    reply = cluster.reply(node, requests.StatusRequest(1))
    assert isinstance(reply, requests.Report)
    status = json.loads(reply.body)
    assert isinstance(status, dict)
    return status


class Loss:
    """Two of three nodes hold a call; then one is gone for good, and the other's disk has lost it.

    The third knows nothing of the call, but has heard the second say how far its log was.
    """

    def __init__(self, seed: int) -> None:
        cluster = self.cluster = Cluster(seed)
        self.client = cluster.client()
        cluster.write(self.client, 3)
        cluster.settle()
        self.holder = cluster.wait_for_leader()
        self.loser, self.third = cluster.followers
        old = disk_of(self.loser)
        cluster.world.network.cut(self.holder.id, self.third.id)
        cluster.world.run(0.6)
        assert cluster.leader is self.holder
        at_holder = cluster.client(at=self.holder.id)
        cluster.write(at_holder, 5)
        cluster.world.run(0.3)  # two pulses
        self.last = self.holder.replica.store.last_index()
        self.holder.crash(survive_all)
        roll_back(self.loser, old)
        self.loser.start()
        cluster.world.network.heal()

    def assert_nobody_leads(self, seconds: float = 6.0) -> None:
        """Nor ever does for a while."""
        world = self.cluster.world
        end = world.now + seconds
        while world.now < end:
            world.run(0.1)
            assert self.cluster.leader is None

    def assert_all_is_well(self) -> None:
        """The holder is back: all calls are there, and nobody is in quarantine."""
        self.cluster.write(self.client, 3)
        self.cluster.settle()
        self.cluster.world.run(1.0)
        for node in self.cluster.nodes.values():
            assert len(node.machine.state.names) == 11
            assert status_of(self.cluster, node)["quarantined"] == {}
            assert not any(key.startswith("quarantine") for key in node.replica.warnings)
        self.cluster.recover()
        self.cluster.check()


def test_a_member_that_lost_what_it_acknowledged_elects_nobody_without_it() -> None:
    """It neither stands nor votes for a node that lacks those entries: together they would forget committed calls."""
    loss = Loss(1)
    loss.assert_nobody_leads()
    loss.cluster.reply(loss.loser, requests.Campaign(1))
    loss.cluster.reply(loss.third, requests.Campaign(1))
    loss.assert_nobody_leads()
    loss.holder.start()
    loss.assert_all_is_well()


def test_a_quarantined_member_is_named_by_itself_and_by_others() -> None:
    """`status` and the warnings of whoever knows say which node it is, what is missing and what to do."""
    loss = Loss(2)
    loss.cluster.world.run(2.0)
    for node in (loss.loser, loss.third):
        status = status_of(loss.cluster, node)
        quarantined = status["quarantined"]
        assert isinstance(quarantined, dict)
        assert list(quarantined) == [str(loss.loser.id)]
        text = quarantined[str(loss.loser.id)]
        last = loss.loser.replica.store.last_index()
        assert f"node {loss.loser.id} has acknowledged entry {loss.last}, but its log ends at {last}" in text
        assert node.replica.warnings[f"quarantine-{loss.loser.id}"] == text


def test_a_quarantine_outlasts_restarts_of_all_who_know_of_it() -> None:
    """The member has it on its own disk, and tells the others anew."""
    loss = Loss(3)
    loss.cluster.world.run(2.0)
    for node in (loss.loser, loss.third):
        node.crash(survive_none)
    loss.loser.start()
    loss.cluster.world.run(1.0)
    loss.third.start()
    loss.assert_nobody_leads()
    assert list(loss.third.replica.quarantine.members) == [loss.loser.id]
    assert list(loss.loser.replica.quarantine.members) == [loss.loser.id]
    loss.holder.start()
    loss.assert_all_is_well()


def test_a_member_that_has_caught_up_is_a_member_like_others() -> None:
    """Sent again what it had lost, it votes and may lead, and the quarantine is over on every node."""
    cluster = Cluster(4)
    client = cluster.client()
    cluster.write(client, 3)
    loser = cluster.followers[0]
    leader = cluster.wait_for_leader()
    old = disk_of(loser)
    cluster.write(client, 5)
    cluster.settle()
    cluster.world.run(0.5)
    roll_back(loser, old)
    loser.start()
    assert leader.replica.raft.match_index(loser.id) > loser.replica.store.last_index()
    cluster.world.run_until(lambda: loser.id in leader.replica.quarantine.members, what="the leader has noticed")
    assert leader.replica.raft.match_index(loser.id) == 0, "what it acknowledged before counts no more"
    cluster.world.run_until(lambda: cluster.applied(loser), what="it has caught up")
    cluster.world.run(0.5)
    assert all(not node.replica.quarantine.members for node in cluster.nodes.values())
    cluster.world.network.isolate(next(node for node in cluster.followers if node is not loser).id)
    assert isinstance(cluster.reply(leader, requests.TransferLeader(1, loser.id)), requests.Done)
    assert cluster.leader is loser
    cluster.recover()
    cluster.check()


def test_a_leader_that_lost_entries_does_not_lead_again_without_them() -> None:
    """The same for a leader that comes back: its followers know how far its log was."""
    cluster = Cluster(5)
    client = cluster.client()
    cluster.write(client, 3)
    leader = cluster.wait_for_leader()
    old = disk_of(leader)
    cluster.write(client, 5)
    cluster.settle()
    cluster.world.run(0.5)
    away = cluster.followers[0]
    roll_back(leader, old)
    away.crash(survive_all)
    leader.start()
    cluster.world.run_until(lambda: bool(leader.replica.quarantine.members), what="it was told")
    assert list(leader.replica.quarantine.members) == [leader.id]
    other = cluster.wait_for_leader()
    assert other is not leader, "it votes for who has what it acknowledged"
    cluster.write(cluster.client(at=other.id), 3)
    cluster.recover()
    cluster.check()


def test_a_removed_member_is_no_longer_named() -> None:
    """A member that stays in quarantine is replaced: once it is removed, nothing of it is left in `status`."""
    cluster = Cluster(6)
    client = cluster.client()
    cluster.write(client, 3)
    loser, other = cluster.followers
    leader = cluster.wait_for_leader()
    old = disk_of(loser)
    cluster.write(client, 5)
    cluster.settle()
    cluster.world.run(0.5)
    roll_back(loser, old)
    loser.start()
    cluster.world.run_until(lambda: bool(leader.replica.quarantine.members), what="the leader has noticed")
    cluster.world.network.isolate(loser.id)
    cluster.world.run(0.6)
    assert list(leader.replica.quarantine.members) == [loser.id]
    change = requests.MemberChange(operation=requests.MemberOperation.REMOVE, node_id=loser.id)
    assert isinstance(cluster.reply(leader, requests.ChangeMembership(1, [change])), requests.Done)
    cluster.settle(leader, other)
    assert not leader.replica.quarantine.members
    assert not any(key.startswith("quarantine") for key in leader.replica.warnings)


def test_a_member_that_syncs_now_and_then_is_sent_again_what_a_crash_took() -> None:
    """It promised nothing that a crash could break: nobody names it, and it catches up under the same leader."""
    cluster = Cluster(7, fsync_schedule=Milliseconds(60_000))
    client = cluster.client()
    cluster.write(client, 5)
    leader, node = cluster.wait_for_leader(), cluster.followers[0]
    term = leader.replica.raft.term
    match = leader.replica.raft.match_index(node.id)
    node.crash(survive_none)
    cluster.write(client, 3)
    node.start()
    assert node.replica.store.last_index() < match
    cluster.world.run_until(lambda: cluster.applied(node), limit=5.0, what="it has caught up")
    assert leader.replica.raft.term == term
    assert not leader.replica.quarantine.members
    cluster.recover()
    cluster.check()
