"""State machines that come with Octopii, to use as they are or to read as patterns."""

from octopii.machines.counter import CounterStateMachine
from octopii.machines.event_log import EventLogStateMachine
from octopii.machines.kv import KvStateMachine
from octopii.machines.registry import RegistryStateMachine
from octopii.machines.task_queue import TaskQueueStateMachine
from octopii.machines.time_series import TimeSeriesStateMachine

__all__ = [
    "CounterStateMachine",
    "EventLogStateMachine",
    "KvStateMachine",
    "RegistryStateMachine",
    "TaskQueueStateMachine",
    "TimeSeriesStateMachine",
]
