"""Patterns whose point shows only among replicas: rolling upgrades, coroutines that hang, parts that raise."""

import asyncio
import itertools
import json
from pathlib import Path

from octopii.machines import (
    AsyncStateMachine,
    CompositeStateMachine,
    CounterStateMachine,
    DeferredWorkStateMachine,
    InstrumentedStateMachine,
    KvStateMachine,
)
from octopii.machines.deferred import work_while_leading
from octopii.state_machine import StateMachine
from octopii.wire.codec import ApplyFailedAnswer
from tests.machines.replicas import ThreeReplicas
from tests.machines.specimens import written
from tests.node.cluster import eventually, patience, running


class Names(StateMachine):
    """Version 1: names in a row."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def apply(self, command: bytes) -> bytes:
        self.names.append(command.decode())
        return b"%d" % len(self.names)

    def query(self, command: bytes) -> bytes:
        return b"%d" % len(self.names)

    def snapshot(self) -> bytes:
        return ",".join(self.names).encode()

    def restore(self, data: memoryview) -> None:
        self.names = bytes(data).decode().split(",") if len(data) else []


class NamesByLetter(Names):
    """Version 2 writes JSON, by first letter, and reads what version 1 wrote."""

    snapshot_version = 2

    def migrate(self, version: int, data: memoryview) -> bytes:
        assert version == 1
        return json.dumps(bytes(data).decode().split(",")).encode()

    def snapshot(self) -> bytes:
        return json.dumps(self.names).encode()

    def restore(self, data: memoryview) -> None:
        self.names = json.loads(bytes(data))


def test_a_rolling_restart_takes_snapshots_from_one_version_to_the_next() -> None:
    """Nodes restart one by one with the new program; nothing is lost, and calls are answered all the time."""
    cluster = ThreeReplicas(Names)
    expected = itertools.count(1)
    for node in cluster.nodes:
        for _ in range(30):  # more than stays in the log: each node restores a snapshot of version 1
            assert cluster.ask(b"name") == b"%d" % next(expected)
        cluster.come_to_rest()
        assert node.replica.snapshots.newest is not None
        assert node.replica.snapshots.newest.machine_version == 1
        cluster.restart(node, NamesByLetter)
        cluster.world.run(1.0)
        assert cluster.ask(b"after a restart") == b"%d" % next(expected)
    for _ in range(30):
        assert cluster.ask(b"name") == b"%d" % next(expected)
    cluster.come_to_rest()
    assert len({written(node.machine) for node in cluster.nodes}) == 1
    assert [node.machine.snapshot_version for node in cluster.nodes] == [2, 2, 2]
    newest = cluster.nodes[0].replica.snapshots.newest
    assert newest is not None
    assert newest.machine_version == 2


def test_a_program_that_is_too_old_for_a_snapshot_says_so() -> None:
    """Version 1 is started on a folder of version 2: it does not go on, and names both versions."""
    cluster = ThreeReplicas(NamesByLetter)
    for _ in range(30):
        cluster.ask(b"name")
    cluster.come_to_rest()
    node = cluster.nodes[2]
    cluster.restart(node, Names)
    cluster.world.run(2.0)
    failure = node.replica.applying.failure
    assert failure is not None
    assert "reads snapshots of version 1, this one has version 2" in failure.reason
    assert cluster.ask(b"the others go on") == b"31"


class Waits(AsyncStateMachine):
    """Waits for something that comes everywhere, or for what never comes on one replica."""

    apply_timeout = 0.05

    def __init__(self, *, hangs: bool) -> None:
        self.done: list[str] = []
        self._hangs = hangs

    async def apply(self, command: bytes) -> bytes:
        if self._hangs and command == b"hang":
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        self.done.append(command.decode())
        return b"%d" % len(self.done)

    def snapshot(self) -> bytes:
        return json.dumps(self.done).encode()

    def restore(self, data: memoryview) -> None:
        self.done = json.loads(bytes(data))


def test_a_coroutine_that_times_out_stops_its_replica_alone() -> None:
    """The replica stops applying and says so; the others answer; after a restart it has caught up."""
    cluster = ThreeReplicas(lambda: Waits(hangs=False))
    cluster.ask(b"one")
    stuck = cluster.nodes[1]
    cluster.restart(stuck, lambda: Waits(hangs=True))
    cluster.world.run(2.0)
    assert cluster.ask(b"hang") == b"2"
    assert cluster.ask(b"three") == b"3"
    cluster.world.run_until(lambda: stuck.replica.applying.failure is not None, what="it has stopped applying")
    failure = stuck.replica.applying.failure
    assert failure is not None
    assert failure.reason.startswith("TimeoutError")
    cluster.restart(stuck, lambda: Waits(hangs=False))
    cluster.come_to_rest()
    assert len({written(node.machine) for node in cluster.nodes}) == 1


class Raises(CounterStateMachine):
    """Raises for one command."""

    def apply(self, command: bytes) -> bytes:
        if command == b"raise":
            raise ZeroDivisionError
        return super().apply(command)


def measured_parts() -> StateMachine:
    """A composite with a part that raises, measured from outside."""
    parts = CompositeStateMachine({"kv": KvStateMachine, "bad": Raises})
    return InstrumentedStateMachine(parts, timer=itertools.count().__next__)


def test_a_part_that_raises_harms_no_other() -> None:
    """Its exception is the answer to its own command; other parts, later commands and all replicas go on."""
    cluster = ThreeReplicas(measured_parts)
    assert cluster.ask(b"kv:SET a 1") == b"OK"
    asked = cluster.client.propose(b"bad:raise")
    cluster.world.run_until(lambda: asked.done)
    assert asked.result == [ApplyFailedAnswer("ZeroDivisionError", "")]
    assert cluster.ask(b"bad:INC n") == b"1"
    assert cluster.ask(b"kv:GET a") == b"1"
    cluster.come_to_rest()
    for node in cluster.nodes:
        assert node.replica.applying.failure is None
        assert isinstance(node.machine, InstrumentedStateMachine)
        assert len(node.machine.apply_latency) == 4


def test_a_read_by_query_costs_no_log_entry() -> None:
    """The same read as a command is an entry in every log; as a query it is none."""
    cluster = ThreeReplicas(KvStateMachine)
    cluster.ask(b"SET a 1")
    cluster.come_to_rest()
    before = {node.applier.index for node in cluster.nodes}
    for _ in range(5):
        assert cluster.settled(cluster.client.query(command=b"GET a")) == b"1"
    assert {node.applier.index for node in cluster.nodes} == before
    assert cluster.ask(b"GET a") == b"1"
    cluster.come_to_rest()
    assert min(node.applier.index for node in cluster.nodes) > max(before)


async def _deferred_work(folder: Path) -> None:
    async with running(folder, machine=DeferredWorkStateMachine) as cluster:
        performed: list[tuple[int, int]] = []

        async def work(node_id: int) -> None:
            async def perform(request: int, payload: str) -> str:
                performed.append((node_id, request))
                return payload.upper()

            await work_while_leading(cluster.nodes[node_id], perform=perform, pause=lambda: asyncio.sleep(0.02))

        workers = [asyncio.create_task(work(node_id)) for node_id in cluster.nodes]
        first = await cluster.leader()

        async def finished(request: int) -> bool:
            answer = json.loads(await first.query(b"RESULT\t%d" % request))
            return bool(answer["status"] == "finished" and answer["result"] == f"MAIL {request}")

        for request in (1, 2):
            await first.propose(b"REQUEST\tmail %d" % request)
            await eventually(lambda request=request: finished(request), f"request {request} is finished")  # type: ignore[misc]
        second = next(node for node in cluster.nodes.values() if node is not first)
        await first.transfer_leader(second.id, timeout=patience)
        await first.propose(b"REQUEST\tmail 3")
        await eventually(lambda: finished(3), "request 3 is finished")
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert performed == [(first.id, 1), (first.id, 2), (second.id, 3)]


def test_the_leader_s_worker_does_deferred_work(tmp_path: Path) -> None:
    """Each request is worked on beside the node that leads, and when another one leads, beside that one."""
    asyncio.run(_deferred_work(tmp_path))
