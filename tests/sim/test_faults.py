"""Faults stay within what a cluster promises to survive: no more disks are lost than its voters can do without."""

from collections.abc import Callable

import msgspec
import pytest

from octopii.machines import KvStateMachine
from octopii.sim.cluster import Cluster
from octopii.sim.faults import KINDS
from octopii.sim.plan import Fault, draw
from octopii.sim.victims import NOT_NOW
from octopii.sim.world import World


def _running(members: int = 3) -> Cluster:
    """A cluster that leads and has all its voters."""
    plan = draw(1, "calm", members=members)
    cluster = Cluster(World(1), plan, (KvStateMachine,))
    cluster.start()

    def founded() -> bool:
        confs = [node.replica.conf_state for node in cluster.nodes.values()]
        return all(len(conf.voters) == members and not conf.voters_outgoing for conf in confs)

    cluster.world.run_until(founded, what="all know that all vote")
    return cluster


def _inject(cluster: Cluster, kind: str, pick: float = 0.0) -> Callable[[], None]:
    return KINDS[kind](cluster, Fault(number=0, round=0, at=0.0, kind=kind, lasts=0.1, pick=pick, amount=0.5))


LOSSES = ("bit rot", "wiped node")
LEAVINGS = ("member removed", "member replaced")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("leaving", LEAVINGS)
def test_nobody_leaves_while_a_disk_of_three_is_lost(loss: str, leaving: str) -> None:
    """Of the two voters that would stay, one has no disk to be trusted: no majority would be left."""
    cluster = _running()
    assert _inject(cluster, loss) is not NOT_NOW
    assert _inject(cluster, leaving, pick=0.99) is NOT_NOW


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("leaving", LEAVINGS)
def test_no_disk_is_lost_while_somebody_leaves(loss: str, leaving: str) -> None:
    """Three voters are two in a moment."""
    cluster = _running()
    assert _inject(cluster, leaving, pick=0.99) is not NOT_NOW
    assert _inject(cluster, loss) is NOT_NOW
    cluster.world.run_until(lambda: len(cluster.voters()) == 2, what="somebody has left")
    assert _inject(cluster, loss) is NOT_NOW


@pytest.mark.parametrize("loss", LOSSES)
def test_five_can_do_without_two(loss: str) -> None:
    """With one disk lost of five, one more may leave, and no second disk is lost."""
    cluster = _running(5)
    assert _inject(cluster, loss) is not NOT_NOW
    assert _inject(cluster, loss, pick=0.99) is NOT_NOW
    cluster.world.run_until(lambda: cluster.leader is not None, what="somebody leads")
    assert _inject(cluster, "member removed", pick=0.99) is not NOT_NOW


@pytest.mark.parametrize("loss", LOSSES)
def test_no_disk_is_lost_while_a_voter_belongs_to_no_cluster_yet(loss: str) -> None:
    """One that no leader has reached votes for nobody, so that the third alone would be left."""
    cluster = _running()
    store = cluster.nodes[3].replica.identity
    identity, store.identity = store.identity, msgspec.structs.replace(store.identity, cluster_id=b"")
    assert _inject(cluster, loss) is NOT_NOW
    store.identity = identity
    assert _inject(cluster, loss) is not NOT_NOW


@pytest.mark.parametrize("loss", LOSSES)
def test_no_disk_is_lost_before_all_know_that_the_founding_is_over(loss: str) -> None:
    """In the joint membership before, the founder alone is one of its two halves."""
    cluster = Cluster(World(1), draw(1, "calm", members=3), (KvStateMachine,))
    cluster.start()
    cluster.world.run_until(lambda: len(cluster.voters()) == 3, what="the leader knows that all vote")
    assert any(node.replica.conf_state.voters_outgoing for node in cluster.nodes.values())
    assert _inject(cluster, loss) is NOT_NOW


def test_the_only_machine_is_not_given_up() -> None:
    """There is nobody who could bring another one in: it is started again, however often its disk fails to read."""
    cluster = _running(1)
    node = cluster.nodes[1]
    node.kill()
    assert not any(cluster._found_damaged(node) for _ in range(5))
    assert not cluster.lost
