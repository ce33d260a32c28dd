"""One specimen of each built-in machine: how to make it, commands that bring it to life, and questions to ask it."""

import asyncio
import itertools
from collections.abc import Callable, Iterator

import msgspec

from octopii.blocks import read_blocks, write_blocks
from octopii.errors import CommandError
from octopii.machines import (
    AsyncStateMachine,
    CompositeStateMachine,
    CounterStateMachine,
    DeferredWorkStateMachine,
    EventLogStateMachine,
    ImmutableStateMachine,
    IncrementalStateMachine,
    InstrumentedStateMachine,
    KvStateMachine,
    PersistentMap,
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
    inside: str = ""
    """Name of the specimen whose snapshots it takes, because it passes them on."""
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
                b"SUBMIT\tother\t%d\t%d" % (n % 4 - 1, 1 + n % 2),
                b"CLAIM\tworker-%d\t%d" % (n % 3, 1 + n % 5),
                b"START\t%d" % n,
                b"CLAIM\tworker-%d" % (n % 2),
                b"EXTEND\t%d\tworker-1\t9" % (n // 2),
                [b"COMPLETE", b"FAIL", b"RELEASE", b"STATUS"][n % 4] + b"\t%d" % n,
                b"FAIL\t%d" % (2 * n),
            )
        ],
        queries=[b"STATUS\t%d" % n for n in range(10, 15)] + [b"DESCRIBE\t%d" % n for n in range(30)],
        verbs=[b"SUBMIT\t", b"CLAIM\t", b"START\t", b"EXTEND\t", b"COMPLETE\t", b"FAIL\t", b"RELEASE\t", b"STATUS\t"]
        + [b"DESCRIBE\t"],
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


class ImmutableStore(ImmutableStateMachine[PersistentMap[bytes, bytes]]):
    """A key-value store over a persistent map: SET, DELETE, GET."""

    def initial(self) -> PersistentMap[bytes, bytes]:
        """Start with an empty map."""
        return PersistentMap()

    def transition(
        self, state: PersistentMap[bytes, bytes], command: bytes
    ) -> tuple[PersistentMap[bytes, bytes], bytes]:
        """Return the changed map."""
        match command.split(b" "):
            case [b"SET", key, value]:
                return state.set(key, value), b"OK"
            case [b"DELETE", key] if key in state:
                return state.delete(key), b"OK"
        raise CommandError("SET <key> <value> or DELETE <key>")

    def answer(self, state: PersistentMap[bytes, bytes], query: bytes) -> bytes:
        """Answer the value."""
        if query not in state:
            raise CommandError("no such key")
        return state[query]

    def encode(self, state: PersistentMap[bytes, bytes]) -> Iterator[bytes]:
        """Write the pairs, a few thousand to a block."""
        pairs = iter(state.items())
        return write_blocks("immutable-store/1", iter(lambda: list(itertools.islice(pairs, 4096)), []))

    def decode(self, data: memoryview) -> PersistentMap[bytes, bytes]:
        """Read the pairs."""
        shape = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])
        blocks = read_blocks("immutable-store/1", data, shape)
        return PersistentMap({key: value for block in blocks for key, value in block})


class Echo(AsyncStateMachine):
    """Keeps the last commands, by way of coroutines that wait for each other."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    async def apply(self, command: bytes) -> bytes:
        """Append the command, after a turn of the loop."""
        if len(command) > 20:
            raise CommandError("too long")
        task = asyncio.create_task(asyncio.sleep(0))
        await task
        self.kept = [*self.kept[-9:], command]
        return b"%d" % len(self.kept)

    async def query(self, command: bytes) -> bytes:
        """Answer how often a command is there; writing has no query."""
        if not command.startswith(b"?"):
            raise CommandError("ask by ?")
        return b"%d" % self.kept.count(command[1:])

    async def compact(self) -> None:
        """Drop half, far in the future."""
        if self.clock.now() > 2_000_000_000:
            del self.kept[::2]

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Freeze the list, which is never changed."""
        kept = list(self.kept)
        return lambda: write_blocks("echo/1", [kept])

    def restore(self, data: memoryview) -> None:
        """Read the list."""
        [self.kept] = read_blocks("echo/1", data, msgspec.msgpack.Decoder(list[bytes]))


def instrumented() -> InstrumentedStateMachine:
    """A key-value store on a timer that counts its calls."""
    return InstrumentedStateMachine(KvStateMachine(), timer=itertools.count().__next__)


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
    "immutable_store": Specimen(
        factory=ImmutableStore,
        commands=[b"SET k%d v%d" % (n * 7 % 40, n) for n in range(60)] + [b"DELETE k%d" % n for n in range(0, 50, 3)],
        queries=[b"k%d" % n for n in range(40)],
        verbs=[b"SET ", b"DELETE "],
    ),
    "async": Specimen(
        factory=Echo, commands=[b"word%d" % (n % 7) for n in range(30)], queries=[b"?word1", b"?"], verbs=[b"?"]
    ),
    "instrumented": Specimen(
        factory=instrumented, commands=_kv.commands, queries=_kv.queries, verbs=_kv.verbs, inside="kv"
    ),
    "versioned": Specimen(
        factory=versioned,
        commands=[b"SET k%d v%d" % (n % 5, n) for n in range(60)] + [b"DELETE k2", b"DELETE k9", b"GET_AT 50 k1"],
        queries=[b"VERSION", b"GET k2", b"GET_AT 55 k2", b"GET_AT 3 k1"] + [b"GET k%d" % n for n in range(6)],
        verbs=[b"SET ", b"GET ", b"DELETE ", b"GET_AT ", b"VERSION"],
    ),
    "deferred_work": Specimen(
        factory=DeferredWorkStateMachine,
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
