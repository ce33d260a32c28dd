"""Deferred work: requests that are taken, finished and handed out again, and the leader's worker."""

import json
from collections.abc import Coroutine
from typing import Any

import pytest

from octopii.errors import ApplyFailed, CommandError
from octopii.machines import DeferredWorkStateMachine
from octopii.machines.deferred import KEEP_FINISHED_SECONDS, LEASE_SECONDS, work_once
from tests.machines.specimens import written


def take(machine: DeferredWorkStateMachine, worker: bytes) -> Any:
    answer = machine.apply(b"TAKE\t" + worker)
    return None if answer == b"NONE" else json.loads(answer)


def outcome(machine: DeferredWorkStateMachine, request_id: int) -> Any:
    return json.loads(machine.query(b"RESULT\t%d" % request_id))


def test_a_request_is_taken_and_finished() -> None:
    """Requests are handed out oldest first, each once, and the result can be asked for."""
    machine = DeferredWorkStateMachine()
    assert [machine.apply(b"REQUEST\tfetch\t%d" % n) for n in (1, 2)] == [b"1", b"2"]
    first, second = take(machine, b"w1"), take(machine, b"w2")
    assert first == {"id": 1, "payload": "fetch\t1", "token": 1}
    assert second["id"] == 2
    assert take(machine, b"w3") is None
    assert outcome(machine, 1) == {"id": 1, "status": "taken", "worker": "w1", "result": None}
    assert machine.apply(b"FINISH\t1\t1\tdone\tor so") == b"OK"
    assert machine.apply(b"FINISH\t1\t1\tagain") == b"LATE"
    assert outcome(machine, 1) == {"id": 1, "status": "finished", "worker": "w1", "result": "done\tor so"}


def test_a_request_whose_worker_is_silent_is_handed_out_again() -> None:
    """After the lease another worker gets it under a new token, and the first one comes too late."""
    machine = DeferredWorkStateMachine()
    for _ in range(2):
        machine.apply(b"REQUEST\tfetch")
    first = take(machine, b"w1")
    machine.clock.advance(LEASE_SECONDS / 2)
    other = take(machine, b"w2")
    machine.clock.advance(LEASE_SECONDS / 2)
    copy = DeferredWorkStateMachine()
    copy.restore(memoryview(written(machine)))
    copy.clock.set(machine.clock.now())
    for tested in (machine, copy):
        again = take(tested, b"w3")
        assert (again["id"], again["token"]) == (1, 3)
        assert take(tested, b"w3") is None
        assert tested.apply(b"FINISH\t1\t%d\tlate" % first["token"]) == b"LATE"
        assert tested.apply(b"FINISH\t1\t3\tgood") == b"OK"
        assert tested.apply(b"FINISH\t2\t%d\tgood" % other["token"]) == b"OK"
        assert outcome(tested, 1)["result"] == "good"


def test_results_are_dropped_after_a_day() -> None:
    """Compaction drops finished requests only, and ids are not used again."""
    machine = DeferredWorkStateMachine()
    for _ in range(2):
        machine.apply(b"REQUEST\tfetch")
    take(machine, b"w")
    machine.apply(b"FINISH\t1\t1\tdone")
    machine.clock.advance(KEEP_FINISHED_SECONDS + 1)
    machine.compact()
    with pytest.raises(CommandError, match="no such request"):
        outcome(machine, 1)
    assert outcome(machine, 2)["status"] == "waiting"
    assert machine.apply(b"REQUEST\tfetch") == b"3"


def run(coroutine: Coroutine[Any, Any, bool]) -> bool:
    """Run a coroutine that never waits for anything."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return bool(stopped.value.value)


def test_a_worker_takes_performs_and_finishes() -> None:
    """`work_once` hands the result in; with nothing to do it says so; a failing worker leaves the request taken."""
    machine = DeferredWorkStateMachine()
    machine.apply("REQUEST\tgrüß".encode())

    async def propose(command: bytes) -> bytes:
        return machine.apply(command)

    async def perform(request_id: int, payload: str) -> str:
        return f"{request_id}: {payload.upper()}"

    async def fail(request_id: int, payload: str) -> str:
        raise ApplyFailed("no", exception="Any")

    assert run(work_once(propose, worker="w", perform=perform))
    assert outcome(machine, 1)["result"] == "1: GRÜSS"
    assert not run(work_once(propose, worker="w", perform=perform))
    machine.apply(b"REQUEST\tx")
    with pytest.raises(ApplyFailed):
        work_once(propose, worker="w", perform=fail).send(None)
    assert outcome(machine, 2)["status"] == "taken"
