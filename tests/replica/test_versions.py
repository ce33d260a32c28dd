"""Versions of the state machine in mixed clusters: nothing new runs anywhere before it can run everywhere."""

import json
from typing import Any

import pytest

from octopii.errors import CommandError, ConfigError, VersionNotActive
from octopii.replica.applier import Applier
from octopii.replica.jobs import Cause
from octopii.replica.versions import max_waiting_bytes, max_waiting_proposals
from octopii.sim import Asked
from octopii.sim.cluster import config_of
from octopii.typed import Method, TypedStateMachine, command, query
from octopii.walrus.faults import survive_none
from octopii.wire import requests
from octopii.wire.call import unwrap
from octopii.wire.codec import CallGroup, CommandErrorAnswer
from octopii.wire.requests import Consistency, MemberOperation
from tests.replica.clusters import Cluster, Node
from tests.replica.journal import Journal, Ledger


class Second(Journal):
    """The later program: `new...` is understood from version 2 on, and until then is what it always was."""

    command_version = 2

    def apply(self, command: bytes) -> bytes:
        """Version 2 takes the prefix away."""
        if command.startswith(b"new ") and self.active_version >= 2:
            command = command.removeprefix(b"new ")
        return super().apply(command)


def status_of(cluster: Cluster, node: Node) -> dict[str, Any]:
    """What a node says of itself."""
    reply = cluster.reply(node, requests.StatusRequest(1))
    assert isinstance(reply, requests.Report)
    status: dict[str, Any] = json.loads(reply.body)
    return status


def upgrade(cluster: Cluster, node: Node, machine: type[Journal] = Second) -> None:
    """Restart a node with another program."""
    node.stop()
    node.machine_maker = lambda: machine(cluster.ledger)
    node.start()
    cluster.settle()
    cluster.world.run_until(lambda: cluster.leader is not None)


def raised(cluster: Cluster, version: int = 2) -> bool:
    """Whether all that are up run a version."""
    return all(node.applier.active_version == version for node in cluster.nodes.values() if node.up)


def test_a_rolling_upgrade_raises_the_version_when_the_last_member_has_it() -> None:
    """Before that what needs it is refused and in nobody's log, on old and new nodes; afterwards it runs everywhere."""
    cluster = Cluster(1)
    client = cluster.client()
    cluster.write(client, 3)
    for node in list(cluster.nodes.values()):
        for at in cluster.nodes:
            early = cluster.client(at=at).propose(b"new early", since=2)
            cluster.wait(early)
            assert isinstance(early.error, VersionNotActive)
            assert (early.error.needed, early.error.active) == (2, 1)
            assert "node 3 has version 1" in str(early.error)
        before = client.propose(b"new %d" % node.id)
        cluster.wait(before)
        assert before.error is None
        upgrade(cluster, node)
    cluster.world.run_until(lambda: raised(cluster), what="the version is raised")
    late = client.propose(b"new late", since=2)
    cluster.wait(late)
    assert late.error is None
    names = cluster.nodes[1].machine.state.names
    assert {b"new 1", b"new 2", b"new 3"} <= set(names)
    assert b"late" in names
    assert b"new early" not in names
    status = status_of(cluster, cluster.wait_for_leader())["machine"]
    assert status["command_version"] == status["active_version"] == 2
    assert list(status["reported"].values()) == [2, 2]
    cluster.recover()
    states = [node.machine.state for node in cluster.nodes.values()]
    assert states[0] == states[1] == states[2]


def test_the_version_is_part_of_the_state_and_of_snapshots() -> None:
    """A node that restarts from a snapshot, and one that gets one sent, run the version that is active."""
    cluster = Cluster(2, machine=Second, snapshot_every_entries=20, log_keep_entries=5, snapshot_lag_threshold=30)
    cluster.world.run_until(lambda: raised(cluster))
    slow = cluster.followers[0]
    slow.crash(survive_none)
    client = cluster.client()
    for _ in range(12):
        cluster.write(client, 10)
    slow.start()
    cluster.settle()
    manifest = slow.replica.snapshots.newest
    assert manifest is not None
    assert manifest.active_version == slow.applier.active_version == 2
    slow.stop()
    slow.start()
    cluster.world.run_until(lambda: slow.replica.applying.applied_index >= manifest.index)
    assert slow.applier.active_version == slow.replica.versions.active == 2
    cluster.recover()
    cluster.check()


def test_a_new_cluster_runs_the_newest_version_from_its_first_call() -> None:
    """A proposal that comes before the version is raised waits for it."""
    cluster = Cluster(3, machine=Second, start=False)
    for node in cluster.nodes.values():
        node.start()
    first = cluster.client().propose(b"new first", since=2)
    cluster.wait(first)
    assert first.error is None
    assert cluster.wait_for_leader().machine.state.names == [b"first"]


def test_a_restarted_node_does_not_refuse_what_is_active() -> None:
    """Before it has applied its log a node does not know the version: what needs it waits."""
    cluster = Cluster(4, machine=Second)
    cluster.world.run_until(lambda: raised(cluster))
    cluster.write(cluster.client(), 30)
    for node in cluster.nodes.values():
        node.crash(survive_none)
        node.start()
    assert all(node.replica.versions.active == 1 for node in cluster.nodes.values())
    asked = [cluster.client(at=node_id).propose(b"new %d" % node_id, since=2) for node_id in cluster.nodes]
    cluster.wait(*asked)
    assert [each.error for each in asked] == [None] * 3


def join(cluster: Cluster, node_id: int, machine: type[Journal]) -> Node:
    """Add a learner."""
    node = Node(cluster, config_of(node_id, 3, is_initial_leader=False))
    node.machine_maker = lambda: machine(cluster.ledger)
    node.start()
    change = requests.MemberChange(operation=MemberOperation.ADD_LEARNER, node_id=node_id, address=node.address)
    reply = cluster.reply(cluster.wait_for_leader(), requests.ChangeMembership(1, [change]))
    assert isinstance(reply, requests.Done)
    return node


def test_a_learner_counts() -> None:
    """The version is not raised while a learner's program is older, nor while it is away."""
    cluster = Cluster(5)
    learner = join(cluster, 4, Journal)
    cluster.settle()
    for node_id in (1, 2, 3):
        upgrade(cluster, cluster.nodes[node_id])
    cluster.world.run(5.0)
    assert raised(cluster, 1)
    learner.stop()
    cluster.world.run(5.0)
    assert raised(cluster, 1)
    learner.machine_maker = lambda: Second(cluster.ledger)
    learner.start()
    cluster.world.run_until(lambda: raised(cluster), what="the version is raised")


def test_what_a_member_reported_is_forgotten_when_it_goes() -> None:
    """It may come back as another program: the version is not raised while it is away, though it once had it."""
    cluster = Cluster(10)
    for node_id in (1, 2):
        upgrade(cluster, cluster.nodes[node_id])
    leader, away = cluster.wait_for_leader(among=(1, 2)), cluster.nodes[2]
    if leader is away:
        away = cluster.nodes[1]
    cluster.world.run_until(lambda: leader.replica.versions.reported.get(away.id) == 2)
    away.stop()
    last = cluster.nodes[3]
    last.crash(survive_none)  # no orderly end, so that leadership stays
    last.machine_maker = lambda: Second(cluster.ledger)
    last.start()
    cluster.world.run(5.0)
    assert leader.replica.versions.reported == {3: 2}
    asked = cluster.client(at=leader.id).propose(b"new", since=2)
    cluster.wait(asked)
    assert f"(node {away.id} is not connected to node {leader.id})" in str(asked.error)
    assert raised(cluster, 1)
    away.machine_maker = lambda: Journal(cluster.ledger)
    away.start()
    cluster.settle()
    cluster.world.run(5.0)
    assert raised(cluster, 1)
    assert away.replica.applying.failure is None


def test_an_older_program_stops_at_the_entry_and_goes_on_after_an_upgrade() -> None:
    """It says so in status, answers nothing on its own, and the others go on without it."""
    cluster = Cluster(6, machine=Second)
    cluster.world.run_until(lambda: raised(cluster))
    client = cluster.client()
    cluster.write(client, 3)
    old = join(cluster, 4, Journal)
    cluster.world.run_until(lambda: old.replica.applying.failure is not None, what="it has stopped")
    failure = old.replica.applying.failure
    assert failure is not None
    assert failure.cause is Cause.VERSION
    assert "version 2 of the state machine's commands is active, and this program has version 1" in failure.reason
    status = status_of(cluster, old)
    assert status["failure"] == failure.reason
    assert status["machine"]["command_version"] == 1
    leader = cluster.wait_for_leader()
    assert "node 4 runs version 1" in status_of(cluster, leader)["warnings"]["version-4"]
    for consistency in Consistency:
        question = requests.Query(request_id=2, consistency=consistency, commands=[b""], timeout_ns=10**9)
        reply = cluster.reply(old, question)
        assert isinstance(reply, requests.Failure), consistency
        assert reply.kind is requests.FailureKind.SHUTTING_DOWN
    cluster.write(client, 3)
    assert old.applier.index < failure.index
    old.stop()
    old.machine_maker = lambda: Second(cluster.ledger)
    old.start()
    cluster.settle()
    assert old.machine.state == leader.machine.state
    cluster.world.run_until(lambda: "version-4" not in cluster.wait_for_leader().replica.warnings)
    cluster.recover()
    cluster.check()


def test_an_older_program_takes_no_snapshot_of_a_newer_version() -> None:
    """A snapshot above its version is kept on disk, and not restored; the newer program starts from it."""
    cluster = Cluster(7, machine=Second, snapshot_every_entries=20, log_keep_entries=5, snapshot_lag_threshold=30)
    cluster.world.run_until(lambda: raised(cluster))
    client = cluster.client()
    for _ in range(12):
        cluster.write(client, 10)
    old = join(cluster, 4, Journal)
    cluster.world.run_until(lambda: old.replica.applying.failure is not None, what="it has stopped")
    assert old.machine.state.names == []
    manifest = old.replica.snapshots.newest
    assert manifest is not None
    assert manifest.active_version == 2
    upgrade(cluster, old)
    assert old.machine.state == cluster.wait_for_leader().machine.state


def test_what_waits_for_a_version_is_bounded() -> None:
    """At the limits of count and bytes a proposal is refused at once; those that wait hear when the node stops."""
    cluster = Cluster(8)
    node = cluster.followers[0]

    def propose(first: int, data: bytes) -> list[requests.Reply]:
        group = CallGroup(session=1, first=first, acked=0, commands=[data])
        return cluster.request(node, requests.ProposeSince(1, group, 2))

    waiting = [propose(number, b"x") for number in range(max_waiting_proposals)]
    assert not any(waiting)
    (refused,) = propose(max_waiting_proposals, b"x")
    assert isinstance(refused, requests.Failure)
    assert refused.kind is requests.FailureKind.VERSION_NOT_ACTIVE
    cluster.world.run_until(lambda: all(waiting), what="they are refused in time")
    assert not propose(0, bytes(max_waiting_bytes))
    assert propose(1, b"x")
    last = propose(2, b"")
    assert not last
    node.replica.close()
    assert [reply for _, reply in node.replica.outbox.take(None).replies if isinstance(reply, requests.Failure)][-1:]


class Inventory(TypedStateMachine):
    def __init__(self) -> None:
        self.stock: dict[str, int] = {}

    @command
    def add(self, sku: str, n: int) -> int:
        self.stock[sku] = self.stock.get(sku, 0) + n
        return self.stock[sku]


class InventoryTwo(Inventory):
    @command(since=2)
    def clear(self, sku: str) -> int:
        return self.stock.pop(sku, 0)

    @query
    def count(self) -> int:
        return len(self.stock)


def result_of(method: Method[..., Any], asked: Asked) -> Any:
    """What a typed call came to."""
    assert isinstance(asked.result, list)
    answer = unwrap(asked.result[0])
    assert isinstance(answer, bytes)
    return method.decode(answer)


def test_a_typed_command_answers_alike_on_old_and_new_programs_until_it_is_active() -> None:
    """Whoever slips it into the log early gets one answer from all: there is no such command. So nobody diverges."""
    cluster = Cluster(9, start=False)
    for node in cluster.nodes.values():
        node.machine_maker = InventoryTwo if node.id == 1 else Inventory
    cluster.start()
    client = cluster.client()
    add = client.propose(Inventory.add.encode("apple", 3))
    early = client.propose(InventoryTwo.clear.encode("apple"))
    cluster.wait(add, early)
    assert early.result == [CommandErrorAnswer("there is no command 'clear'")]
    cluster.settle()
    assert len({node.applier.answers_digest for node in cluster.nodes.values()}) == 1
    for node_id in (2, 3):
        cluster.nodes[node_id].stop()
        cluster.nodes[node_id].machine_maker = InventoryTwo
        cluster.nodes[node_id].start()
    cluster.world.run_until(lambda: raised(cluster), what="the version is raised")
    late = client.propose(InventoryTwo.clear.encode("apple"), since=InventoryTwo.clear.since)
    cluster.wait(late)
    assert result_of(InventoryTwo.clear, late) == 3


@pytest.mark.parametrize("version", [0, "2", True, 1.0])
def test_an_unfit_version_is_refused_at_the_start(version: object) -> None:
    """Before anything is opened, with the class's name."""
    machine = Journal(Ledger())
    machine.command_version = version  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"Journal\.command_version is a whole number"):
        Applier(machine, timer=lambda: 0.0)


def test_the_version_of_a_typed_machine_is_that_of_its_newest_command() -> None:
    """Unless the class says a higher one; a lower one is an error when the class is made. Alone a machine runs it."""

    class Third(InventoryTwo):
        command_version = 3

    class Fourth(Third):
        @command(since=4)
        def fourth(self) -> None:
            return None

    assert [kind.command_version for kind in (Inventory, InventoryTwo, Third, Fourth)] == [1, 2, 3, 4]
    assert Fourth().active_version == 4
    Fourth().apply(Fourth.fourth.encode())
    with pytest.raises(TypeError, match=r"Wrong\.command_version is 1, and a command has since=2"):

        class Wrong(InventoryTwo):
            command_version = 1

    with pytest.raises(CommandError):
        Inventory().apply(InventoryTwo.clear.encode("x"))
