"""Who may take part: founding, wiped disks, other clusters, removed members."""

import random

import pytest

from octopii.errors import ConfigError, NoLeader, RefusedError, RemovedNode, WipedNode
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


def test_a_second_initial_leader_is_told_to_start_without_that() -> None:
    """Once there is a cluster, the usual remedy comes first; a lost disk is named last."""
    cluster = Cluster(21, start=False)
    cluster.nodes[2].config = config_of(2, 3, is_initial_leader=True)
    cluster.nodes[1].start()
    cluster.nodes[3].start()
    cluster.world.run(2.0)
    cluster.nodes[2].start()
    cluster.world.run_until(lambda: cluster.nodes[2].replica.refused is not None, what="node 2 is refused")
    text = str(cluster.nodes[2].replica.refused)
    assert "start this node again without --initial-leader (is_initial_leader when embedded)" in text
    assert text.index("without --initial-leader") < text.index("address is wrong") < text.index("lost its disk")


def test_an_empty_node_that_is_taken_for_a_wiped_one_is_asked_for_its_addresses_first() -> None:
    """It may have dialled a cluster that nobody meant: address and cluster are named before a remedy that removes."""
    cluster = Cluster(22)
    cluster_id = cluster.nodes[1].replica.identity.identity.cluster_id.hex()
    node = cluster.nodes[3]
    node.crash(survive_none)
    node.wipe()
    node.start()
    cluster.world.run_until(lambda: node.replica.refused is not None, what="node 3 is refused")
    assert isinstance(node.replica.refused, WipedNode)
    text = str(node.replica.refused)
    assert text.startswith(("127.0.0.1:5001 ", "127.0.0.1:5002 "))
    assert cluster_id in text
    assert text.index("Is this the right address of node") < text.index("Remove it and add it again")


def test_swapped_addresses_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log says which address belongs to which node, and which peer to look at, and does not repeat it."""
    cluster = Cluster(23, start=False)
    swapped = {2: "127.0.0.1:5003", 3: "127.0.0.1:5002"}
    cluster.nodes[1].config = config_of(1, 3, peers=swapped)
    for node in cluster.nodes.values():
        node.start()
    cluster.world.run(5.0)
    said = [record.getMessage() for record in caplog.records if "listens there" in record.getMessage()]
    expected = "node 1 has no connection with node 2 at 127.0.0.1:5003: node 3 listens there, not node 2"
    assert [text.split(": check")[0] for text in said if "node 2 at" in text] == [expected]
    assert all(text.endswith(("check the address of peer 2", "check the address of peer 3")) for text in said)
    assert len(said) <= 2


def test_a_refusal_stays_in_force_until_that_connection_is_made(caplog: pytest.LogCaptureFixture) -> None:
    """A peer that dials this node proves nothing of the address that this node has for it: no second log line."""
    cluster = Cluster(25)
    node = cluster.nodes[1]
    replica, facts = node.replica, node.replica.joining.peers[2]
    for _ in range(2):
        replica.peer_refused(2, RefusedError("node 3 listens there, not node 2"), "127.0.0.1:5003")
        replica.joining.met(facts)
    assert "127.0.0.1:5003" in replica.warnings["refused-by-2"]
    assert sum("listens there" in record.getMessage() for record in caplog.records) == 1
    replica.peer_connected(facts)
    assert "refused-by-2" not in replica.warnings


def test_a_call_on_a_node_without_a_cluster_says_so() -> None:
    """Nobody was started as initial leader: calls and queries end with that, not with an election that is awaited."""
    cluster = Cluster(24, start=False)
    cluster.nodes[1].config = config_of(1, 3, is_initial_leader=False)
    for node in cluster.nodes.values():
        node.start()
    client = cluster.client(at=2)
    asked = [client.propose(b"a", timeout=3.0), client.query(timeout=3.0)]
    cluster.wait(*asked)
    for each in asked:
        assert isinstance(each.error, NoLeader)
        assert "belongs to no cluster yet" in str(each.error)
        assert "--initial-leader (is_initial_leader when embedded)" in str(each.error)
    reply = cluster.reply(cluster.nodes[2], requests.CompactRequest(1))
    assert isinstance(reply, requests.Failure)
    assert "belongs to no cluster yet" in reply.text


def test_founding_members_that_were_early_raise_no_false_alarm(caplog: pytest.LogCaptureFixture) -> None:
    """They waited long for the founder, who brings them in by itself: nobody is told to do that."""
    for seed in range(5):
        cluster = Cluster(seed, start=False)
        cluster.nodes[2].start()
        cluster.nodes[3].start()
        cluster.world.run(5.0)
        assert "--initial-leader" in cluster.nodes[2].replica.warnings["waiting"]
        cluster.nodes[1].start()
        cluster.world.run_until(cluster.is_complete, what="the cluster is complete")
        cluster.world.run(3.0)
        assert not any("waiting" in node.replica.warnings for node in cluster.nodes.values())
    assert not [record for record in caplog.records if "to be brought in" in record.getMessage()]


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
