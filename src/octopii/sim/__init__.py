"""Whole clusters in one thread and from one seed: the code that runs in production, in a world made to go wrong.

    world.py             the clock and the events to come; everything else hangs on it
    network.py           links between machines: what they lose, repeat, delay, cut
    node.py              one machine: a disk that outlives crashes, and, while it is up, a replica with its apply thread
    client.py            a program that calls the cluster
    trace.py             what happened: a digest of everything, and the last events of each machine
    history.py           what clients asked and were told
    models.py            what a machine should answer, one call at a time
    linearizability.py   whether a history can be explained by such a machine

Only clock, random numbers, network and file system are the simulator's own. One seed is one run, always the same.
"""

from octopii.sim.client import Asked, SimulatedClient
from octopii.sim.history import Operation, Query
from octopii.sim.linearizability import Outcome, Verdict, check_history
from octopii.sim.models import (
    CompositeModel,
    CounterModel,
    KvModel,
    MachineModel,
    Model,
    QueueModel,
    RegisterModel,
    RegistryModel,
)
from octopii.sim.network import Network, Weather
from octopii.sim.node import Node
from octopii.sim.trace import Trace
from octopii.sim.world import Observer, World

__all__ = [
    "Asked",
    "CompositeModel",
    "CounterModel",
    "KvModel",
    "MachineModel",
    "Model",
    "Network",
    "Node",
    "Observer",
    "Operation",
    "Outcome",
    "Query",
    "QueueModel",
    "RegisterModel",
    "RegistryModel",
    "SimulatedClient",
    "Trace",
    "Verdict",
    "Weather",
    "World",
    "check_history",
]
