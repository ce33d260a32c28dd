"""Whole clusters in one thread and from one seed: the code that runs in production, in a world made to go wrong.

    from octopii.sim import Simulation

    Simulation(MyMachine, workload=MyWorkload, seed=7, profile="chaos").run()

Only clock, random numbers, network and file system are the simulator's own; replica, Raft core, log, wire and client
are the ones that run in production. One seed is one run, always the same, in every process.

    simulation.py        one run: rounds of faults, quiet after each, what has to hold
    workload.py          what clients do; derive from `Workload`. workloads.py: those of the package's machines
    profiles.py          what may go wrong, by name
    plan.py              what one seed has in store
    faults.py            each kind of fault, with link_faults.py, disk.py, victims.py
    cluster.py           the machines, and the operator who restarts and replaces them
    invariants.py        what is checked at each step
    history.py           what clients asked and were told
    models.py            what a machine should answer, one call at a time
    linearizability.py   whether a history can be explained by such a machine
    story.py, shrink.py  a failure told, and cut down
    world.py             the clock and the events to come; everything else hangs on it
    network.py           links between machines: what they lose, repeat, delay, cut
    node.py              one machine: a disk that outlives crashes, and, while it is up, a replica
    apply_thread.py      its jobs
    client.py            a program that calls the cluster
    trace.py             what happened: a digest of everything, and the last events of each machine
    pytest_plugin.py     the fixture `simulation`
"""

from octopii.sim.client import Asked, SimulatedClient
from octopii.sim.history import Operation, Query
from octopii.sim.invariants import Violation
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
from octopii.sim.profiles import PROFILES
from octopii.sim.shrink import shrink
from octopii.sim.simulation import Report, Simulation, SimulationFailed
from octopii.sim.trace import Trace
from octopii.sim.workload import Workload
from octopii.sim.workloads import CounterWorkload, KvWorkload, RegistryWorkload
from octopii.sim.world import Observer, World

__all__ = [
    "PROFILES",
    "Asked",
    "CompositeModel",
    "CounterModel",
    "CounterWorkload",
    "KvModel",
    "KvWorkload",
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
    "RegistryWorkload",
    "Report",
    "SimulatedClient",
    "Simulation",
    "SimulationFailed",
    "Trace",
    "Verdict",
    "Violation",
    "Weather",
    "Workload",
    "World",
    "check_history",
    "shrink",
]
