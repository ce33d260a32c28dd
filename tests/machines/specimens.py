"""One specimen of each built-in machine: how to make it, commands that bring it to life, and questions to ask it."""

from collections.abc import Callable

import msgspec

from octopii.machines import (
    CounterStateMachine,
    EventLogStateMachine,
    KvStateMachine,
    RegistryStateMachine,
    TaskQueueStateMachine,
    TimeSeriesStateMachine,
)
from octopii.state_machine import SnapshotSource, StateMachine


class Specimen(msgspec.Struct, frozen=True, kw_only=True):
    """`commands` all succeed or are refused by `CommandError`; `queries` all answer; `verbs` begin commands."""

    factory: Callable[[], StateMachine]
    commands: list[bytes]
    queries: list[bytes]
    verbs: list[bytes]


def written(machine: StateMachine) -> bytes:
    """Return the machine's snapshot in one piece."""
    return b"".join(SnapshotSource(machine.snapshot()))


SPECIMENS = {
    "kv": Specimen(
        factory=KvStateMachine,
        commands=[b"SET k%d some value %d" % (n % 9, n) for n in range(30)] + [b"DELETE k4", b"GET k5", b"SET", b"?"],
        queries=[b"GET k%d" % n for n in range(9)],
        verbs=[b"SET ", b"GET ", b"DELETE "],
    ),
    "counter": Specimen(
        factory=CounterStateMachine,
        commands=[b"INC c%d %d" % (n % 5, n - 12) for n in range(40)] + [b"INC c1", b"GET c2", b"INC c1 x"],
        queries=[b"GET c%d" % n for n in range(6)],
        verbs=[b"INC ", b"GET "],
    ),
    "time_series": Specimen(
        factory=TimeSeriesStateMachine,
        commands=[b"PUT s%d %d %d.5" % (n % 3, 1_697_500_000 + n * 7919 % 40_000, n) for n in range(60)]
        + [b"PUT s0 1 nan", b"QUERY s1 0 9999999999"],
        queries=[b"QUERY s%d 0 9999999999" % n for n in range(4)] + [b"QUERY s1 1697505000 1697510000"],
        verbs=[b"PUT ", b"QUERY "],
    ),
    "event_log": Specimen(
        factory=EventLogStateMachine,
        commands=[b"LOG\tuser%d\taction\tdetails\twith tab %d" % (n % 4, n) for n in range(40)]
        + [b"LOG\tx", b"QUERY\t3\t2"],
        queries=[b"QUERY\t1", b"QUERY\t7\t3", b"QUERY\t99"],
        verbs=[b"LOG\t", b"QUERY\t"],
    ),
    "registry": Specimen(
        factory=RegistryStateMachine,
        commands=[b"REGISTER web%d 10.0.0.%d 80 zone=z%d" % (n % 12, n, n % 2) for n in range(36)]
        + [b"HEARTBEAT web%d" % (n % 15) for n in range(20)]
        + [b"DEREGISTER web3", b"LOOKUP web1", b"REGISTER a b c"],
        queries=[b"LOOKUP web%d" % n for n in range(13)] + [b"DESCRIBE web2"],
        verbs=[b"REGISTER ", b"HEARTBEAT ", b"DEREGISTER ", b"LOOKUP ", b"DESCRIBE "],
    ),
    "task_queue": Specimen(
        factory=TaskQueueStateMachine,
        commands=[
            command
            for n in range(1, 16)
            for command in (
                b"SUBMIT\tpayload %d" % n,
                b"SUBMIT\tother\twith tab",
                b"CLAIM\tworker-%d" % (n % 3),
                b"START\t%d" % n,
                [b"COMPLETE", b"FAIL", b"RELEASE", b"STATUS"][n % 4] + b"\t%d" % n,
            )
        ],
        queries=[b"STATUS\t%d" % n for n in range(10, 15)],
        verbs=[b"SUBMIT\t", b"CLAIM\t", b"START\t", b"COMPLETE\t", b"FAIL\t", b"RELEASE\t", b"STATUS\t"],
    ),
}
