"""Who may take part: founding, wiped disks, other clusters, removed members."""

import random

import pytest

from octopii.errors import ConfigError, RefusedError, RemovedNode, WipedNode
from octopii.raft import ChangeRefused, MembershipChange, Role
from octopii.replica.replica import Replica
from octopii.sim.cluster import config_of
from octopii.walrus.faults import survive_none
from octopii.walrus.memory_vfs import MemoryFileSystem
from octopii.wire import requests
from octopii.wire.requests import MemberChange, MemberOperation
from tests.replica.clusters import Cluster, Node


def test_a_wiped_node_is_refused() -> None:
    """A member that comes back with an empty disk is refused, says why, and neither votes nor acknowledges."""
    cluster = Cluster(1)
    client = cluster.client()
    cluster.write(client, 5)
    node = cluster.nodes[2]
    node.crash(survive_none)
    node.wipe()
    node.start()
    cluster.world.run(2.0)
    assert isinstance(node.replica.refused, WipedNode)
    assert node.replica.store.last_index() == 0
    assert node.replica.store.hard_state.vote == 0
    cluster.write(client, 5)


def test_a_wiped_node_makes_no_majority_with_a_cut_off_leader() -> None:
    """Two of three members have lost their disks: the third alone acknowledges nothing."""
    cluster = Cluster(2)
    client = cluster.client()
    cluster.write(client, 5)
    for node_id in (2, 3):
        cluster.nodes[node_id].crash(survive_none)
        cluster.nodes[node_id].wipe()
        cluster.nodes[node_id].start()
    asked = client.propose(cluster.name(), timeout=3.0)
    cluster.wait(asked)
    assert asked.error is not None
    assert all(isinstance(cluster.nodes[node_id].replica.refused, WipedNode) for node_id in (2, 3))


def test_a_wiped_initial_leader_founds_no_second_cluster() -> None:
    """Started again with `is_initial_leader` on an empty disk it is refused: its peers belong to a cluster already."""
    cluster = Cluster(3)
    client = cluster.client()
    cluster.write(client, 5)
    node = cluster.nodes[1]
    node.crash(survive_none)
    node.wipe()
    node.start()
    cluster.world.run(3.0)
    assert isinstance(node.replica.refused, RefusedError)
    assert node.replica.identity.empty
    cluster.write(client, 5)


def test_an_initial_leader_alone_founds_nothing() -> None:
    """Without a majority of its peers known to be empty, another cluster might be founded by them."""
    cluster = Cluster(11, start=False)
    cluster.nodes[1].start()
    cluster.world.run(3.0)
    assert cluster.nodes[1].replica.identity.empty
    assert cluster.nodes[1].replica.store.last_index() == 0
    cluster.nodes[3].start()
    cluster.world.run(1.0)
    cluster.write(cluster.client(at=1))


def test_is_initial_leader_is_ignored_on_a_folder_that_has_a_cluster() -> None:
    """A restarted founder goes on with its cluster."""
    cluster = Cluster(4)
    cluster_id = cluster.nodes[1].replica.identity.identity.cluster_id
    cluster.nodes[1].crash(survive_none)
    cluster.nodes[1].start()
    cluster.write(cluster.client(), 2)
    cluster.settle()
    assert cluster.nodes[1].replica.identity.identity.cluster_id == cluster_id


def test_of_two_initial_leaders_at_most_one_gets_a_cluster() -> None:
    """Two nodes were started as initial leaders: never do both take calls, and the one that does not says something."""
    for seed in range(30):
        cluster = Cluster(seed, start=False)
        cluster.nodes[2].config = config_of(2, 3, is_initial_leader=True)
        for node in cluster.nodes.values():
            node.start()
            cluster.world.run(cluster.world.rng.choice((0.0, 0.05, 0.1)))
        cluster.world.run(4.0)
        working = [
            node
            for node in cluster.nodes.values()
            if node.replica.leadership.is_leader and not node.replica.applying.roster.founding
        ]
        assert len(working) <= 1, f"seed {seed}"
        if working:
            founders = {working[0].id, 1, 2} - {working[0].id}
            assert any(
                cluster.nodes[other].replica.warnings or cluster.nodes[other].replica.identity.empty
                for other in founders
            )


def test_nodes_of_another_cluster_never_take_part() -> None:
    """A node that belongs to another cluster, added by mistake, is refused; neither log takes an entry of the other."""
    cluster = Cluster(5)
    stranger = Node(cluster, config_of(4, 3, peers={}, is_initial_leader=True))
    stranger.start()
    cluster.world.run_until(lambda: stranger.replica.leadership.is_leader, what="node 4 is a cluster of its own")
    last = stranger.replica.store.last_index()
    change = MemberChange(operation=MemberOperation.ADD_LEARNER, node_id=4, address=stranger.address)
    client = cluster.client(at=1)
    cluster.wait(client.ask(requests.ChangeMembership(0, [change])))
    cluster.write(client, 5)
    cluster.world.run(2.0)
    assert stranger.replica.store.last_index() == last
    assert any("cluster" in text for node in (*cluster.nodes.values(),) for text in node.replica.warnings.values())


def test_a_removed_node_is_told_so() -> None:
    """A member that was removed while it was away is refused when it comes back, and does not disturb the others."""
    cluster = Cluster(6)
    client = cluster.client(at=1)
    cluster.write(client, 3)
    cluster.nodes[3].crash(survive_none)
    change = MemberChange(operation=MemberOperation.REMOVE, node_id=3)
    asked = client.ask(requests.ChangeMembership(0, [change]))
    cluster.wait(asked)
    assert asked.error is None
    cluster.nodes[3].start()
    cluster.world.run(2.0)
    assert isinstance(cluster.nodes[3].replica.refused, RemovedNode)
    term = cluster.wait_for_leader().replica.raft.term
    asked_to = cluster.reply(cluster.nodes[3], requests.Campaign(1))
    assert isinstance(asked_to, requests.Failure)
    assert asked_to.kind is requests.FailureKind.REMOVED_NODE
    cluster.world.run(3.0)
    assert cluster.nodes[3].replica.raft.role is Role.FOLLOWER
    assert cluster.wait_for_leader().replica.raft.term == term
    cluster.write(client, 3)


def test_a_change_that_would_leave_no_majority_of_living_voters_is_refused() -> None:
    """With one of three members away, removing another would leave a cluster that cannot elect anybody."""
    cluster = Cluster(10)
    leader = cluster.wait_for_leader()
    away, there = cluster.followers
    away.crash(survive_none)
    cluster.world.run(0.5)
    for node_id in (leader.id, there.id):
        change = MemberChange(operation=MemberOperation.REMOVE, node_id=node_id)
        reply = cluster.reply(leader, requests.ChangeMembership(1, [change]))
        assert isinstance(reply, requests.Failure)
        assert reply.kind is requests.FailureKind.NOT_APPLIED
    change = MemberChange(operation=MemberOperation.REMOVE, node_id=away.id)
    assert isinstance(cluster.reply(leader, requests.ChangeMembership(2, [change])), requests.Done)
    cluster.write(cluster.client(at=leader.id), 2)


def test_a_removed_leader_steps_down() -> None:
    """A leader that is to be removed hands over first, and the new one removes it."""
    cluster = Cluster(7)
    leader = cluster.wait_for_leader()
    client = cluster.client()
    cluster.write(client, 3)
    change = MemberChange(operation=MemberOperation.REMOVE, node_id=leader.id)
    asked = client.ask(requests.ChangeMembership(1, [change]))
    cluster.wait(asked)
    assert asked.error is None
    assert cluster.leader not in (None, leader)
    cluster.world.run_until(lambda: leader.replica.refused is not None, what="it knows that it was removed")
    cluster.write(client, 3)


def test_a_learner_joins_catches_up_and_is_promoted() -> None:
    """A new empty node is added, is sent everything, and counts as a voter afterwards."""
    cluster = Cluster(8, snapshot_every_entries=5, log_keep_entries=0)
    client = cluster.client()
    for _ in range(10):
        cluster.write(client)
    node = Node(cluster, config_of(4, 3, is_initial_leader=False, **cluster.changes))
    node.start()
    leader = cluster.wait_for_leader()
    add = MemberChange(operation=MemberOperation.ADD_LEARNER, node_id=4, address=node.address)
    assert isinstance(cluster.reply(leader, requests.ChangeMembership(1, [add])), requests.Done)
    promote = requests.ChangeMembership(2, [MemberChange(operation=MemberOperation.PROMOTE, node_id=4)])
    assert isinstance(cluster.reply(leader, promote), requests.Failure)  # it has nothing yet
    cluster.settle()
    cluster.world.run(0.3)
    assert isinstance(cluster.reply(leader, promote), requests.Done)
    assert leader.replica.conf_state.voters == [1, 2, 3, 4]
    cluster.recover()
    cluster.check()


def test_a_member_that_was_never_met_is_bound_to_its_first_storage() -> None:
    """A founding member that was down at the founding comes later, and from then on its disk is known."""
    cluster = Cluster(9, start=False)
    for node_id in (1, 2):
        cluster.nodes[node_id].start()
    cluster.world.run(2.0)
    cluster.write(cluster.client(at=1))
    assert cluster.nodes[1].applier.roster.members[3].storage_id == b""
    cluster.nodes[3].start()
    storage = cluster.nodes[3].replica.identity.identity.storage_id
    cluster.world.run_until(
        lambda: all(node.applier.roster.members.get(3, None) is not None for node in cluster.nodes.values())
    )
    cluster.world.run(1.0)
    assert all(node.applier.roster.members[3].storage_id == storage for node in cluster.nodes.values())


def test_two_membership_changes_at_once_and_one_that_makes_no_sense_are_told_apart() -> None:
    """The one can be tried again, and is carried out then; the other never can."""
    cluster = Cluster(12)
    leader = cluster.wait_for_leader()
    adding = [
        requests.ChangeMembership(
            number,
            [MemberChange(operation=MemberOperation.ADD_LEARNER, node_id=number, address=f"127.0.0.1:60{number}")],
        )
        for number in (10, 11)
    ]
    first = cluster.request(leader, adding[0])
    meanwhile = cluster.reply(leader, adding[1])
    assert isinstance(meanwhile, requests.Failure)
    assert meanwhile.kind is requests.FailureKind.NOT_APPLIED
    assert "try again" in meanwhile.text
    cluster.world.run_until(lambda: bool(first))
    assert isinstance(first[0], requests.Done)
    assert isinstance(cluster.reply(leader, adding[1]), requests.Done)
    both = [
        MemberChange(operation=operation, node_id=12, address="127.0.0.1:6012")
        for operation in (MemberOperation.ADD_LEARNER, MemberOperation.ADD_LEARNER)
    ]
    last = leader.replica.store.last_index()
    again = cluster.reply(leader, adding[0])
    assert isinstance(again, requests.Failure)
    assert again.kind is requests.FailureKind.CONFIG_ERROR
    assert "member already" in again.text
    leader.replica.raft.propose_membership = refuse  # type: ignore[method-assign]
    refused = cluster.reply(leader, requests.ChangeMembership(1, both))
    assert isinstance(refused, requests.Failure)
    assert (refused.kind, refused.detail) == (requests.FailureKind.CONFIG_ERROR, "changes")
    assert leader.replica.store.last_index() == last


def refuse(change: MembershipChange) -> int:
    """What the Raft core says of a change that fits no membership."""
    raise ChangeRefused(f"{change}")


def test_a_change_of_address_is_answered_when_that_address_is_in_force() -> None:
    """Another change to the members meanwhile is no answer to it."""
    cluster = Cluster(13)
    leader, other = cluster.wait_for_leader(), cluster.followers[0]
    for node in cluster.followers:
        node.stall_disk(True)
    changed = cluster.request(leader, requests.ChangeAddress(request_id=1, node_id=other.id, address="127.0.0.1:7777"))
    leader.replica.admin.roster_changed(leader.applier.index)
    cluster.world.run(0.2)
    assert changed == []
    for node in cluster.followers:
        node.stall_disk(False)
    cluster.world.run_until(lambda: bool(changed))
    assert isinstance(changed[0], requests.Done)
    assert leader.applier.roster.members[other.id].address == "127.0.0.1:7777"


def test_a_folder_that_a_node_may_not_use_is_given_back() -> None:
    """A node that does not start lets go of its folder: the next start says the same, not that the folder is in use."""
    cluster = Cluster(12, members=1)
    node = cluster.nodes[1]
    node.stop()
    for _ in range(2):
        with pytest.raises(ConfigError, match="belongs to node 1"):
            Replica(
                config_of(2, 2, wal_dir="/node-1"),
                vfs=node.vfs,
                rng=random.Random(1),
                now=0.0,
                wall=0,
                random_id=bytes(16),
            )
    node.start()
    assert node.up


def test_another_state_machine_than_before_is_named() -> None:
    """A folder knows whose state it holds: a slip is said at once, a new name once, and nothing where it fits."""
    system = MemoryFileSystem()

    def warned(machine: str) -> str:
        replica = Replica(
            config_of(1, 1), vfs=system, rng=random.Random(1), now=0.0, wall=0, random_id=bytes(16), machine=machine
        )
        said = replica.warnings.get("machine", "")
        replica.close()
        return said

    assert [warned(""), warned("Queue"), warned("Queue"), warned("")] == [""] * 4
    said = warned("KvStateMachine")
    assert "was run by the state machine Queue" in said
    assert "now KvStateMachine runs it" in said
    assert warned("KvStateMachine") == ""


@pytest.mark.parametrize("seed", range(40))
def test_a_founder_that_is_lost_after_the_first_call_is_not_needed(seed: int) -> None:
    """No call is taken before the founder alone can stop nothing: with its disk gone the others go on."""
    cluster = Cluster(seed, start=False)
    cluster.world.weather.sync_time = (0.0, 0.03)  # entries come while those before them wait for a disk
    for node in cluster.nodes.values():
        node.start()
    opened = cluster.client()
    call = opened.propose(cluster.name(), timeout=20.0)
    cluster.world.run_until(lambda: opened.machine.session_id is not None, what="the first session is open")
    founder = cluster.nodes[1]
    founder.crash()
    founder.wipe()
    cluster.wait_for_leader(among=(2, 3))
    cluster.world.run_until(lambda: call.done, what="the call is answered by the others")
    assert call.error is None
