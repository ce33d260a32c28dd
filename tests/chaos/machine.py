"""The machine that is run under chaos: keys and values, counters, and many task queues."""

from octopii.machines import CompositeStateMachine, CounterStateMachine, KvStateMachine, TaskQueueStateMachine
from octopii.sim import CompositeModel, CounterModel, KvModel, QueueModel

QUEUES = 1_024
"""One after the other is used: the checker judges a queue as a whole, so each has to stay small."""


class ChaosStateMachine(CompositeStateMachine):
    """What `octopii serve --machine` is given."""

    def __init__(self) -> None:
        queues = {f"queue-{number}": TaskQueueStateMachine for number in range(QUEUES)}
        super().__init__({"kv": KvStateMachine, "counter": CounterStateMachine, **queues})


def chaos_model() -> CompositeModel:
    """Return the model of that machine."""
    queues = {f"queue-{number}": QueueModel() for number in range(QUEUES)}
    return CompositeModel({"kv": KvModel(), "counter": CounterModel(), **queues})
