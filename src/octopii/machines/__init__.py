"""State machines that come with Octopii, to use as they are or to read as patterns.

Ready to use: key-value store, counters, time series, event log, service registry, task queue.
Patterns: several machines in one (composite), one machine in shards, a store with a past (versioned), state as an
immutable value, incremental snapshots, commands as coroutines (async), work for the outside world (deferred work), and
latencies without code in the machine (instrumented).
"""

from octopii.machines.asynchronous import AsyncStateMachine
from octopii.machines.composite import CompositeStateMachine
from octopii.machines.counter import CounterStateMachine
from octopii.machines.deferred import DeferredWorkStateMachine
from octopii.machines.event_log import EventLogStateMachine
from octopii.machines.immutable import ImmutableStateMachine
from octopii.machines.incremental import IncrementalStateMachine
from octopii.machines.instrumented import InstrumentedStateMachine
from octopii.machines.kv import KvStateMachine
from octopii.machines.persistent_map import PersistentMap
from octopii.machines.registry import RegistryStateMachine
from octopii.machines.sharded import ShardedStateMachine
from octopii.machines.task_queue import TaskQueueStateMachine
from octopii.machines.time_series import TimeSeriesStateMachine
from octopii.machines.versioned import VersionedStateMachine

__all__ = [
    "AsyncStateMachine",
    "CompositeStateMachine",
    "CounterStateMachine",
    "DeferredWorkStateMachine",
    "EventLogStateMachine",
    "ImmutableStateMachine",
    "IncrementalStateMachine",
    "InstrumentedStateMachine",
    "KvStateMachine",
    "PersistentMap",
    "RegistryStateMachine",
    "ShardedStateMachine",
    "TaskQueueStateMachine",
    "TimeSeriesStateMachine",
    "VersionedStateMachine",
]
