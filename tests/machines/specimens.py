"""One specimen of each built-in machine: how to make it, commands that bring it to life, and questions to ask it."""

from collections.abc import Callable, Iterator

import msgspec

from octopii.blocks import read_blocks, write_blocks
from octopii.errors import CommandError
from octopii.machines import (
    AsyncStateMachine,
    CompositeStateMachine,
    CounterStateMachine,
    EventLogStateMachine,
    ImmutableStateMachine,
    IncrementalStateMachine,
    KvStateMachine,
    RegistryStateMachine,
    ShardedStateMachine,
    TaskQueueStateMachine,
    TimeSeriesStateMachine,
    VersionedStateMachine,
)
from octopii.machines.parsing import text, whole_number
from octopii.state_machine import SnapshotSource, StateMachine


class Specimen(msgspec.Struct, frozen=True, kw_only=True):
    """`commands` all succeed or are refused by `CommandError`; `queries` all answer; `verbs` begin commands."""

    factory: Callable[[], StateMachine]
    commands: list[bytes]
    queries: list[bytes]
    verbs: list[bytes]
    fixed_order: bool = True
    """Whether equal states have equal snapshots."""


def written(machine: StateMachine) -> bytes:
    """Return the machine's snapshot in one piece."""
    return b"".join(SnapshotSource(machine.snapshot()))


def state_of(machine: StateMachine) -> bytes:
    """Return bytes that are equal for equal states: the snapshot, or the inner machine's where that may differ."""
    return written(machine.inner if isinstance(machine, IncrementalStateMachine) else machine)


SPECIMENS: dict[str, Specimen] = {
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


class ImmutableSum(ImmutableStateMachine[tuple[int, ...]]):
    """Keeps the last five numbers, and refuses what is none."""

    def initial(self) -> tuple[int, ...]:
        """Start with none."""
        return ()

    def transition(self, state: tuple[int, ...], command: bytes) -> tuple[tuple[int, ...], bytes]:
        """Append a number."""
        state = (*state, whole_number(text(command), name="number", least=-(1 << 60), most=1 << 60))[-5:]
        return state, b"%d" % sum(state)

    def answer(self, state: tuple[int, ...], query: bytes) -> bytes:
        """Answer the sum."""
        if query != b"SUM":
            raise CommandError("ask for SUM")
        return b"%d" % sum(state)

    def compacted(self, state: tuple[int, ...]) -> tuple[int, ...]:
        """Drop all but one number, far in the future."""
        return state[-1:] if self.clock.now() > 2_000_000_000 else state

    def encode(self, state: tuple[int, ...]) -> Iterator[bytes]:
        """Write the numbers."""
        return write_blocks("immutable-sum/1", [state])

    def decode(self, data: memoryview) -> tuple[int, ...]:
        """Read the numbers."""
        [state] = read_blocks("immutable-sum/1", data, msgspec.msgpack.Decoder(tuple[int, ...]))
        return state


def two_parts() -> CompositeStateMachine:
    """A composite with a composite inside."""
    return CompositeStateMachine(
        {
            "kv": KvStateMachine,
            "inner": lambda: CompositeStateMachine({"tasks": TaskQueueStateMachine, "events": EventLogStateMachine}),
        }
    )


def incremental() -> IncrementalStateMachine:
    """An incremental machine over one that uses time, with small limits."""
    return IncrementalStateMachine(TaskQueueStateMachine, max_deltas=40)


def shards() -> ShardedStateMachine:
    """Five shards of a key-value store."""
    return ShardedStateMachine(shards=5)


def versioned() -> VersionedStateMachine:
    """A versioned store that keeps few versions."""
    return VersionedStateMachine(keep_versions=20)


def _prefixed(prefix: bytes, commands: list[bytes]) -> list[bytes]:
    return [prefix + command for command in commands]


_kv, _tasks, _events = SPECIMENS["kv"], SPECIMENS["task_queue"], SPECIMENS["event_log"]

SPECIMENS |= {
    "composite": Specimen(
        factory=two_parts,
        commands=_prefixed(b"kv:", _kv.commands)
        + _prefixed(b"inner:tasks:", _tasks.commands)
        + _prefixed(b"inner:events:", _events.commands)
        + [b"none:GET a", b"kv", b"inner:x"],
        queries=_prefixed(b"kv:", _kv.queries) + _prefixed(b"inner:events:", _events.queries),
        verbs=[b"kv:SET ", b"kv:", b"inner:", b"inner:tasks:"],
    ),
    "sharded": Specimen(factory=shards, commands=_kv.commands, queries=_kv.queries, verbs=_kv.verbs),
    "incremental": Specimen(
        factory=incremental, commands=_tasks.commands, queries=_tasks.queries, verbs=_tasks.verbs, fixed_order=False
    ),
    "immutable": Specimen(
        factory=ImmutableSum, commands=[b"%d" % n for n in range(-3, 30)], queries=[b"SUM", b"?"], verbs=[]
    ),
    "versioned": Specimen(
        factory=versioned,
        commands=[b"SET k%d v%d" % (n % 5, n) for n in range(60)] + [b"DELETE k2", b"DELETE k9", b"GET_AT 50 k1"],
        queries=[b"VERSION", b"GET k2", b"GET_AT 55 k2", b"GET_AT 3 k1"] + [b"GET k%d" % n for n in range(6)],
        verbs=[b"SET ", b"GET ", b"DELETE ", b"GET_AT ", b"VERSION"],
    ),
    "async": Specimen(
        factory=AsyncStateMachine,
        commands=[
            command
            for n in range(1, 25)
            for command in (
                b"REQUEST\tpayload %d" % n,
                b"TAKE\tworker-%d" % (n % 3),
                b"FINISH\t%d\t%d\tresult\twith tab" % (n // 2, n // 2),
                b"RESULT\t%d" % n,
            )
        ],
        queries=[b"RESULT\t%d" % n for n in range(30)],
        verbs=[b"REQUEST\t", b"TAKE\t", b"FINISH\t", b"RESULT\t"],
    ),
}
