"""Whom a fault meets, and what every kind of fault needs: its end, and random numbers of its own."""

import random
from collections.abc import Callable
from typing import TypeAlias

from octopii.sim.cluster import Cluster
from octopii.sim.node import Node
from octopii.sim.plan import Fault

End: TypeAlias = Callable[[], None]


def NOT_NOW() -> None:  # noqa: N802  (a constant that has the type of an end)
    """There is nobody whom the fault could meet: it does not count."""


def nothing() -> None:
    """The fault has no end of its own."""


def choose(nodes: list[Node], fault: Fault) -> Node | None:
    """One of these, or None where there are none."""
    return nodes[int(fault.pick * len(nodes))] if nodes else None


def up(cluster: Cluster, fault: Fault) -> Node | None:
    """One of the machines that are up."""
    return choose(cluster.running, fault)


def rng_of(cluster: Cluster, fault: Fault) -> random.Random:
    """Random numbers of the fault's own, so that taking another one out of the plan does not change it."""
    return random.Random(f"{cluster.plan.seed} {fault.number}")
