"""Everything that can go wrong on purpose, one function for each kind: it begins, and returns how to end it.

A function is given the cluster and the fault of the plan. It returns a function that ends the fault after its time, or
None for what has no end; `NOT_NOW` when there is nobody whom it could meet.
"""

from collections.abc import Callable

from octopii.sim import link_faults as links
from octopii.sim.cluster import Cluster, max_nodes, max_voters
from octopii.sim.disk import arm, rot, used_bytes
from octopii.sim.invariants import entries_of
from octopii.sim.link_faults import separate
from octopii.sim.node import Node
from octopii.sim.plan import KIB, Fault
from octopii.sim.victims import NOT_NOW, End, choose, nothing, rng_of, up
from octopii.walrus.faults import survive_all, survive_randomly
from octopii.wire import requests

isolated_seconds = 2.0
"""How long a slow leader is alone: several election timeouts of the others."""

max_drift = 0.9
"""A clock runs at a tenth of its speed at least, or time would all but end."""


# --- machines and processes -------------------------------------------------------------------------------------


def crash(cluster: Cluster, fault: Fault) -> End:
    """Power loss."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.crash(survive_randomly(rng_of(cluster, fault)))
    return nothing


def crash_leader(cluster: Cluster, fault: Fault) -> End:
    """Power loss of the leader."""
    leader = cluster.leader
    if leader is None:
        return NOT_NOW
    leader.crash(survive_randomly(rng_of(cluster, fault)))
    return nothing


def crash_all(cluster: Cluster, fault: Fault) -> End:
    """Power loss of everything at once."""
    for node in cluster.running:
        node.crash()
    return nothing


def crash_at_operation(cluster: Cluster, fault: Fault) -> End:
    """Power loss at one of the next writes or syncs of a disk."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    arm(node, "power", after=1 + int(60 * fault.amount**2))
    return nothing


def crash_at_message(cluster: Cluster, fault: Fault) -> End:
    """Power loss right after one of the next messages, and before those that were to go with it."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.crash_after_messages = 1 + int(20 * fault.amount**2)
    return nothing


def crash_in_recovery(cluster: Cluster, fault: Fault) -> End:
    """Power loss, and again while the machine recovers from it."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.crash()
    arm(node, "power", after=1 + int(40 * fault.amount**2))
    return nothing


def kill(cluster: Cluster, fault: Fault) -> End:
    """The process is killed, and the machine goes on."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.kill()
    return nothing


def restart(cluster: Cluster, fault: Fault) -> End:
    """The process is stopped in good order."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.stop()
    return nothing


def pause(cluster: Cluster, fault: Fault) -> End:
    """The process stands still."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.pause()
    return node.resume


# --- disks ------------------------------------------------------------------------------------------------------


def write_error(cluster: Cluster, fault: Fault) -> End:
    """EIO at one of the next writes."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    arm(node, "write", after=1 + int(3 * fault.amount))
    return nothing


def sync_error(cluster: Cluster, fault: Fault) -> End:
    """EIO at one of the next syncs; what it was to write is lost, and marked as written."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    arm(node, "sync", after=1 + int(10 * fault.amount))
    return nothing


def read_error(cluster: Cluster, fault: Fault) -> End:
    """EIO at one of the next reads."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    arm(node, "read", after=1 + int(5 * fault.amount))
    return nothing


def full_disk(cluster: Cluster, fault: Fault) -> End:
    """A disk has little room left, or none."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    left = (0, 4 * KIB, 40 * KIB, 100 * KIB, 200 * KIB)[int(5 * fault.amount)]
    node.vfs.faults.capacity = used_bytes(node) + left

    def free() -> None:
        node.vfs.faults.capacity = None

    return free


def slow_disk(cluster: Cluster, fault: Fault) -> End:
    """Each sync takes up to a second more."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.slow_sync = fault.amount**2

    def end() -> None:
        node.slow_sync = 0.0

    return end


def stalled_disk(cluster: Cluster, fault: Fault) -> End:
    """Syncs do not come back."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.stall_disk(True)
    return lambda: node.stall_disk(False)


def write_back(cluster: Cluster, fault: Fault) -> End:
    """A disk writes some of what it was not told to sync, as it may at any time."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.vfs.write_back(survive_randomly(rng_of(cluster, fault)))
    return nothing


def bit_rot(cluster: Cluster, fault: Fault) -> End:
    """A byte of a disk changes while its machine is down."""
    node = choose(cluster.running, fault)
    if node is None or not may_lose_one(cluster):
        return NOT_NOW
    rng = rng_of(cluster, fault)
    if cluster.plan.rules.rot_anywhere:
        store = node.replica.store
        low = max(store.first_index(), store.last_index())
        newest = [entry.data for entry in entries_of(node, low, store.last_index())] if rng.random() < 0.8 else []
        cluster.at_risk.add(node.id)
        cluster.rotten.add(node.id)
        for other in cluster.running if fault.amount < 0.5 else []:
            if other is not node:
                other.crash(survive_all)  # so that nobody remembers what this one had acknowledged
        node.crash(survive_all)
        rot(node, rng, newest[0] if newest else b"")
        return nothing
    node.rots = rng
    cluster.at_risk.add(node.id)
    node.stop()
    return nothing


# --- clocks and state machines ----------------------------------------------------------------------------------


def clock_jump(cluster: Cluster, fault: Fault) -> End:
    """A wall clock is set wrong."""
    node = choose(list(cluster.nodes.values()), fault)
    if node is None:
        return NOT_NOW
    node.wall_offset = (-3600.0, -1.0, 1.0, 60.0, 1e9)[int(5 * fault.amount)]

    def end() -> None:
        node.wall_offset = 0.0

    return end


def clock_drift(cluster: Cluster, fault: Fault) -> End:
    """A machine's clocks run fast or slow from now on, up to half of what two may run apart."""
    node = choose(list(cluster.nodes.values()), fault)
    if node is None:
        return NOT_NOW
    node.set_clock_rate(1.0 + _drift_bound(cluster, node) * (2 * fault.amount - 1))
    return nothing


def isolate_slow_leader(cluster: Cluster, fault: Fault) -> End:
    """The leader is alone and its clock as slow as it may be, while the others' are as fast: the worst for a lease."""
    leader = cluster.leader
    if leader is None or len(cluster.nodes) < 3:
        return NOT_NOW
    for node in cluster.nodes.values():
        bound = _drift_bound(cluster, node)
        node.set_clock_rate(1.0 - bound if node is leader else 1.0 + bound)
    mend = separate(cluster, [leader.id], [other for other in cluster.nodes if other != leader.id])

    def end() -> None:
        mend()
        for node in cluster.nodes.values():
            node.set_clock_rate(1.0)

    cluster.world.at(isolated_seconds, end)
    return nothing


def _drift_bound(cluster: Cluster, node: Node) -> float:
    """By how much one clock may be off: two of them by twice as much."""
    return min(max_drift, cluster.plan.rules.drift * node.config.lease_drift_max / 2)


def slow_apply(cluster: Cluster, fault: Fault) -> End:
    """Each job of a machine's apply thread takes up to two seconds more."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.slow_apply = 2 * fault.amount**3

    def end() -> None:
        node.slow_apply = 0.0

    return end


def out_of_memory(cluster: Cluster, fault: Fault) -> End:
    """`apply` runs out of memory on one machine."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.fails_apply = True
    return nothing


def wipe(cluster: Cluster, fault: Fault) -> End:
    """A machine loses its disk, and comes back under its old number."""
    node = choose(cluster.running, fault)
    if node is None or not may_lose_one(cluster):
        return NOT_NOW
    cluster.at_risk.add(node.id)
    node.crash()
    node.wipe()
    return nothing


def may_lose_one(cluster: Cluster) -> bool:
    """Whether a disk more may go: three voters at least, and every other one still has its disk and runs.

    A voter that no leader has reached yet votes for nobody, and one that has not heard of the end of a joint membership
    cannot do without the voters before it, of which the founder may be the only one.
    """
    voters = cluster.voters()
    return (
        len(voters) >= 3
        and not cluster.lost
        and not cluster.at_risk
        and not cluster.errands
        and all(voter in cluster.nodes and cluster.nodes[voter].up for voter in voters)
        and not any(cluster.nodes[voter].replica.identity.empty for voter in voters)
        and not any(cluster.nodes[voter].replica.conf_state.voters_outgoing for voter in voters)
    )


def may_do_without(cluster: Cluster, member: int) -> bool:
    """Whether a member may leave: of the voters that stay, a majority have disks that are to be trusted."""
    rest = set(cluster.voters()) - {member}
    return 2 * len(rest - cluster.at_risk) > len(rest)


# --- what operators do ------------------------------------------------------------------------------------------


def add_member(cluster: Cluster, fault: Fault) -> End:
    """A machine joins."""
    if len(cluster.nodes) >= max_nodes or len(cluster.voters()) >= max_voters or not cluster.voters():
        return NOT_NOW
    cluster.send(cluster.joining(cluster.add()))
    return nothing


def remove_member(cluster: Cluster, fault: Fault) -> End:
    """A member leaves, the leader perhaps."""
    members = cluster.members()
    if len(cluster.voters()) < 2 or cluster.lost:
        return NOT_NOW
    gone = members[int(fault.pick * len(members))]
    if not may_do_without(cluster, gone):
        return NOT_NOW
    cluster.send(cluster.leaving(gone))
    return nothing


def replace_member(cluster: Cluster, fault: Fault) -> End:
    """One member comes and another one goes, in one change of two steps."""
    members = cluster.members()
    if len(cluster.voters()) < 2 or len(cluster.nodes) >= max_nodes or cluster.lost:
        return NOT_NOW
    gone = members[int(fault.pick * len(members))]
    if not may_do_without(cluster, gone):
        return NOT_NOW
    cluster.send(cluster.swapping(cluster.add(), gone))
    return nothing


def transfer(cluster: Cluster, fault: Fault) -> End:
    """Leadership is to move."""
    ids = sorted(cluster.nodes)
    cluster.ask(requests.TransferLeader(0, ids[int(fault.pick * len(ids))]))
    return nothing


def campaign(cluster: Cluster, fault: Fault) -> End:
    """A machine is told to stand for election."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.take_request(("campaign", fault.number), requests.Campaign(1))
    return nothing


def snapshot(cluster: Cluster, fault: Fault) -> End:
    """A machine is told to take a snapshot."""
    node = up(cluster, fault)
    if node is None:
        return NOT_NOW
    node.take_request(("snapshot", fault.number), requests.ForceSnapshot(1))
    return nothing


def send_snapshot(cluster: Cluster, fault: Fault) -> End:
    """A member is sent a snapshot that it does not need."""
    ids = sorted(cluster.nodes)
    cluster.ask(requests.ForceSnapshotToPeer(0, ids[int(fault.pick * len(ids))]))
    return nothing


def compact(cluster: Cluster, fault: Fault) -> End:
    """The state machine is compacted by request."""
    cluster.ask(requests.CompactRequest(0))
    return nothing


def end_session(cluster: Cluster, fault: Fault) -> End:
    """A client's session ends while it is used: calls with late answers meet a session that is gone."""
    clients = cluster.clients
    if not clients:
        return NOT_NOW
    client = clients[int(fault.pick * len(clients))]
    session = client.machine.session_id
    if session is None:
        return NOT_NOW
    client.ask(requests.SessionEnd(0, session), timeout=2.0)
    return nothing


def rolling_restart(cluster: Cluster, fault: Fault) -> End:
    """All machines are restarted, one after the other."""
    cluster.send(cluster.rolling_restart(upgrade=False))
    return nothing


def rolling_upgrade(cluster: Cluster, fault: Fault) -> End:
    """All machines are restarted with the next version of the state machine, one after the other."""
    if all(version == len(cluster.machines) - 1 for version in cluster.version.values()):
        return NOT_NOW
    cluster.send(cluster.rolling_restart(upgrade=True))
    return nothing


KINDS: dict[str, Callable[[Cluster, Fault], End]] = {
    "cut link": links.cut_link,
    "one-way cut": links.cut_one_way,
    "isolated node": links.isolate_node,
    "isolated leader": links.isolate_leader,
    "split": links.split,
    "bridge": links.bridge,
    "flapping link": links.flap,
    "slow link": links.slow_link,
    "client disconnected": links.disconnect_client,
    "crash": crash,
    "leader crash": crash_leader,
    "crash of all": crash_all,
    "crash at an operation": crash_at_operation,
    "crash at a message": crash_at_message,
    "crash in recovery": crash_in_recovery,
    "kill": kill,
    "restart": restart,
    "pause": pause,
    "write error": write_error,
    "sync error": sync_error,
    "read error": read_error,
    "full disk": full_disk,
    "slow disk": slow_disk,
    "stalled disk": stalled_disk,
    "written back": write_back,
    "bit rot": bit_rot,
    "clock jump": clock_jump,
    "clock drift": clock_drift,
    "slow leader isolated": isolate_slow_leader,
    "slow apply": slow_apply,
    "out of memory": out_of_memory,
    "wiped node": wipe,
    "member added": add_member,
    "member removed": remove_member,
    "member replaced": replace_member,
    "leader transfer": transfer,
    "campaign": campaign,
    "snapshot": snapshot,
    "snapshot sent": send_snapshot,
    "compaction": compact,
    "session ended": end_session,
    "rolling restart": rolling_restart,
    "rolling upgrade": rolling_upgrade,
}
"""By the names that profiles give rates to."""
