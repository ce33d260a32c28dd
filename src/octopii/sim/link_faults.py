"""What goes wrong between machines: see `faults.py` for what a kind of fault is."""

from octopii.sim.cluster import Cluster
from octopii.sim.plan import Fault
from octopii.sim.victims import NOT_NOW, End, choose, nothing, rng_of


def _pair(cluster: Cluster, fault: Fault) -> tuple[int, int] | None:
    ids = sorted(cluster.nodes)
    if len(ids) < 2:
        return None
    one, other = rng_of(cluster, fault).sample(ids, 2)
    return one, other


def cut_link(cluster: Cluster, fault: Fault) -> End:
    """Two machines hear nothing of each other."""
    pair, network = _pair(cluster, fault), cluster.world.network
    if pair is None:
        return NOT_NOW
    network.cut(*pair)
    return lambda: network.mend(*pair)


def cut_one_way(cluster: Cluster, fault: Fault) -> End:
    """One machine's words do not reach another, or nobody, while it hears all."""
    pair, network = _pair(cluster, fault), cluster.world.network
    if pair is None:
        return NOT_NOW
    source = pair[0]
    targets = sorted(set(cluster.nodes) - {source}) if fault.amount < 0.5 else [pair[1]]
    for target in targets:
        network.cut_one_way(source, target)

    def end() -> None:
        for target in targets:
            network.mend(source, target)

    return end


def separate(cluster: Cluster, one_side: list[int], other_side: list[int]) -> End:
    """Cut all links between two groups."""
    network = cluster.world.network
    pairs = [(one, other) for one in one_side for other in other_side]
    if not pairs:
        return NOT_NOW
    for pair in pairs:
        network.cut(*pair)

    def mend() -> None:
        for pair in pairs:
            network.mend(*pair)

    return mend


def isolate_node(cluster: Cluster, fault: Fault) -> End:
    """One machine is alone."""
    node = choose(list(cluster.nodes.values()), fault)
    if node is None:
        return NOT_NOW
    return separate(cluster, [node.id], [other for other in cluster.nodes if other != node.id])


def isolate_leader(cluster: Cluster, fault: Fault) -> End:
    """The leader is alone."""
    leader = cluster.leader
    if leader is None:
        return NOT_NOW
    return separate(cluster, [leader.id], [other for other in cluster.nodes if other != leader.id])


def split(cluster: Cluster, fault: Fault) -> End:
    """Two groups hear nothing of each other."""
    ids = sorted(cluster.nodes)
    rng_of(cluster, fault).shuffle(ids)
    half = (len(ids) + 1) // 2
    return separate(cluster, ids[:half], ids[half:])


def bridge(cluster: Cluster, fault: Fault) -> End:
    """Two groups hear nothing of each other, and one machine hears both."""
    ids = sorted(cluster.nodes)
    rng_of(cluster, fault).shuffle(ids)
    half = len(ids) // 2
    return separate(cluster, ids[:half], ids[half + 1 :])


def flap(cluster: Cluster, fault: Fault) -> End:
    """A link is cut and mended again and again."""
    pair, world = _pair(cluster, fault), cluster.world
    if pair is None:
        return NOT_NOW
    over = False
    period = 0.1 + 0.5 * fault.amount

    def toggle(cut: bool) -> None:
        if over:
            return
        if cut:
            world.network.cut(*pair)
        else:
            world.network.mend(*pair)
        world.at(period, lambda: toggle(not cut))

    def end() -> None:
        nonlocal over
        over = True
        world.network.mend(*pair)

    toggle(True)
    return end


def slow_link(cluster: Cluster, fault: Fault) -> End:
    """A link takes up to several election timeouts in one direction."""
    pair, network = _pair(cluster, fault), cluster.world.network
    if pair is None:
        return NOT_NOW
    network.slow_down(*pair, 0.02 + 1.5 * fault.amount**2)
    return lambda: network.mend(*pair)


def disconnect_client(cluster: Cluster, fault: Fault) -> End:
    """A client loses its connections."""
    clients = cluster.clients
    if not clients:
        return NOT_NOW
    clients[int(fault.pick * len(clients))].break_link()
    return nothing
