"""Chapters 4 to 6 and 9 of the specification: machines, patterns, advanced topics, the complete example."""

import asyncio
import json
import re

from octopii import CommandError, StateMachine
from octopii.machines import (
    AsyncStateMachine,
    CompositeStateMachine,
    CounterStateMachine,
    EventLogStateMachine,
    ImmutableStateMachine,
    IncrementalStateMachine,
    KvStateMachine,
    PersistentMap,
    RegistryStateMachine,
    ShardedStateMachine,
    TaskQueueStateMachine,
    TimeSeriesStateMachine,
    VersionedStateMachine,
)
from octopii.testing import check_determinism
from tests.machines.replicas import ThreeReplicas
from tests.specification.steps import ROOT, run, written

# --- chapter 4: kinds of machines -------------------------------------------------------------------------------


def test_4_key_value_store() -> None:
    """SET and GET, with OK, the value and NOT_FOUND."""
    run(
        KvStateMachine(),
        (b"SET key val", b"OK"),
        (b"GET key", b"val"),
        (b"GET other", b"NOT_FOUND"),
        (b"SET key", CommandError),
        (b"PUT key val", CommandError),
    )


def test_4_counter() -> None:
    """INC by one or by a delta answers the value, GET too, 0 for a new one."""
    run(
        CounterStateMachine(),
        (b"INC hits", b"1"),
        (b"INC hits 41", b"42"),
        (b"GET hits", b"42"),
        (b"GET misses", b"0"),
        (b"INC hits x", CommandError),
    )


def test_4_time_series() -> None:
    """PUT and QUERY of an inclusive range as JSON; points of more than 30 days go."""
    machine = TimeSeriesStateMachine()
    run(
        machine,
        (b"PUT cpu 10 0.5", b"OK"),
        (b"PUT cpu 20 0.75", b"OK"),
        (b"QUERY cpu 10 15", b'[{"timestamp":10,"value":0.5}]'),
        (b"QUERY mem 0 99", b"[]"),
        (b"PUT cpu now 1", CommandError),
    )
    machine.clock.set(30 * 24 * 3600 + 15)
    machine.compact()
    run(machine, (b"QUERY cpu 0 99", b'[{"timestamp":20,"value":0.75}]'))


def test_4_event_log() -> None:
    """LOG answers the id; QUERY pages through events as JSON."""
    machine = EventLogStateMachine()
    machine.clock.set(5.0)
    event = b'{"id":1,"timestamp":5,"user":"ann","action":"login","details":"from home"}'
    run(
        machine,
        (b"LOG\tann\tlogin\tfrom home", b"1"),
        (b"LOG\tbob\tlogin\t", b"2"),
        (b"QUERY\t1\t1", b"[" + event + b"]"),
        (b"QUERY\t3", b"[]"),
        (b"LOG\tann", CommandError),
    )


def test_4_service_registry() -> None:
    """REGISTER, LOOKUP, HEARTBEAT; who is silent for an hour goes."""
    machine = RegistryStateMachine()
    run(
        machine,
        (b"REGISTER web 10.0.0.1 80", b"REGISTERED"),
        (b"LOOKUP web", b"10.0.0.1:80"),
        (b"LOOKUP db", b"NOT_FOUND"),
        (b"HEARTBEAT web", b"OK"),
        (b"HEARTBEAT db", b"NOT_REGISTERED"),
        (b"REGISTER web 10.0.0.1 port", CommandError),
    )
    machine.clock.advance(3601)
    machine.compact()
    run(machine, (b"LOOKUP web", b"NOT_FOUND"))


# --- chapter 5: patterns ----------------------------------------------------------------------------------------


class Tally(ImmutableStateMachine[PersistentMap[bytes, int]]):
    """Counts words in a map that is never changed."""

    def initial(self) -> PersistentMap[bytes, int]:
        return PersistentMap()

    def transition(self, state: PersistentMap[bytes, int], command: bytes) -> tuple[PersistentMap[bytes, int], bytes]:
        return state.set(command, state.get(command, 0) + 1), b"OK"

    def encode(self, state: PersistentMap[bytes, int]) -> bytes:
        return json.dumps({word.decode(): count for word, count in state.items()}).encode()

    def decode(self, data: memoryview) -> PersistentMap[bytes, int]:
        return PersistentMap({word.encode(): count for word, count in json.loads(bytes(data)).items()})


def test_5_immutable_state_machine() -> None:
    """A command makes a new state; whoever holds the old one, as a snapshot does, sees no change."""
    machine = Tally()
    machine.apply(b"word")
    before = machine.state
    machine.apply(b"word")
    assert (before[b"word"], machine.state[b"word"]) == (1, 2)


def test_5_sharded_state_machine() -> None:
    """Keys spread over shards by a hash that is the same everywhere."""
    machine = ShardedStateMachine(shards=4)
    for n in range(50):
        run(machine, (b"SET key%d %d" % (n, n), b"OK"))
    run(machine, (b"GET key7", b"7"), (b"GET other", b"NOT_FOUND"))
    assert {machine.shard_of(b"key%d" % n) for n in range(50)} == {0, 1, 2, 3}


def test_5_versioned_state_machine() -> None:
    """Every command that writes answers its version, and any kept version can be asked."""
    machine = VersionedStateMachine()
    run(machine, (b"SET a 1", b"1"), (b"SET a 2", b"2"))
    assert [dict(machine.query_at_version(version)) for version in (0, 1, 2)] == [{}, {b"a": b"1"}, {b"a": b"2"}]


# --- chapter 6: advanced ----------------------------------------------------------------------------------------


class Numbers(StateMachine):
    """A snapshot in a codec of its own, read without a copy."""

    def __init__(self) -> None:
        self.numbers = memoryview(b"").cast("q")

    def apply(self, command: bytes) -> bytes:
        self.numbers = memoryview(bytes(self.numbers.cast("B")) + int(command).to_bytes(8, "little")).cast("q")
        return b"%d" % len(self.numbers)

    def snapshot(self) -> memoryview:
        return self.numbers

    def restore(self, data: memoryview) -> None:
        self.numbers = data.cast("q")


def test_6_custom_serialization() -> None:
    """Any codec will do, and may refer to the snapshot's bytes instead of copying them."""
    machine, copy = Numbers(), Numbers()
    machine.apply(b"7")
    data = memoryview(written(machine))
    copy.restore(data)
    assert copy.numbers.obj is data.obj
    check_determinism(Numbers, [b"%d" % n for n in range(20)], other_processes=False)


def test_6_incremental_snapshots() -> None:
    """Base and deltas, until a threshold of deltas is passed; then a full one."""
    machine = IncrementalStateMachine(KvStateMachine, max_deltas=3)
    machine.apply(b"SET a 1")
    base = written(machine)
    machine.apply(b"SET a 2")
    copy = IncrementalStateMachine(KvStateMachine)
    copy.restore(memoryview(written(machine)))
    assert copy.query(b"GET a") == b"2"
    assert written(machine).startswith(base[:20])
    for n in range(3):
        machine.apply(b"SET a %d" % n)
    assert written(machine).startswith(written(machine.inner))


class Fetches(AsyncStateMachine):
    """Awaits before it answers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def apply(self, command: bytes) -> bytes:
        await asyncio.sleep(0)
        self.seen.append(command.decode())
        return command.upper()

    def snapshot(self) -> bytes:
        return json.dumps(self.seen).encode()

    def restore(self, data: memoryview) -> None:
        self.seen = json.loads(bytes(data))


def test_6_async_io() -> None:
    """`async def apply` runs to its end, in order, on every replica."""
    cluster = ThreeReplicas(Fetches)
    assert [cluster.ask(word) for word in (b"a", b"b")] == [b"A", b"B"]
    cluster.come_to_rest()
    assert {written(node.machine) for node in cluster.nodes} == {b'["a", "b"]'}


def test_6_state_machine_composition() -> None:
    """Several machines behind one log, by a prefix, in one snapshot."""

    def build() -> CompositeStateMachine:
        return CompositeStateMachine(
            {"kv": KvStateMachine, "counter": CounterStateMachine, "registry": RegistryStateMachine}
        )

    machine, copy = build(), build()
    run(
        machine,
        (b"kv:SET a 1", b"OK"),
        (b"counter:INC a", b"1"),
        (b"registry:REGISTER web h 80", b"REGISTERED"),
        (b"mail:SEND", CommandError),
    )
    copy.restore(memoryview(written(machine)))
    run(copy, (b"kv:GET a", b"1"), (b"counter:INC a", b"2"), (b"registry:LOOKUP web", b"h:80"))


# --- chapter 9: the complete example ----------------------------------------------------------------------------


def test_9_distributed_task_queue() -> None:
    """SUBMIT, CLAIM, COMPLETE, STATUS: ids from 1, JSON of the task, a refusal when there is none; a day's keeping."""
    machine = TaskQueueStateMachine()
    machine.clock.set(1_000.0)
    task = b'{"id":1,"payload":"process_video.mp4","status":"%b","assigned_to":%b,"created_at":1000,"completed_at":%b}'
    run(
        machine,
        (b"CLAIM\tworker-1", CommandError),
        (b"SUBMIT\tprocess_video.mp4", b"1"),
        (b"STATUS\t1", task % (b"Pending", b"null", b"null")),
        (b"CLAIM\tworker-1", task % (b"Assigned", b'"worker-1"', b"null")),
        (b"COMPLETE\t1", b"OK"),
        (b"STATUS\t1", task % (b"Completed", b'"worker-1"', b"1000")),
        (b"STATUS\t2", CommandError),
        (b"COMPLETE\tone", CommandError),
    )
    machine.clock.advance(24 * 3600 + 1)
    machine.compact()
    run(machine, (b"STATUS\t1", CommandError))


def test_9_usage() -> None:
    """The program is `examples/task_queue.py`; `tests/test_examples.py` runs it and compares what it prints."""
    program = (ROOT / "examples" / "task_queue.py").read_text(encoding="utf-8")
    steps = ["SUBMIT", "Submitted task", "CLAIM", "Claimed task", "COMPLETE", "Completed"]
    assert [step for step in re.findall("|".join(steps), program.split("async def main")[1]) if step] == steps
