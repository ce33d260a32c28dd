"""The task queue."""

import json
from typing import Any

import pytest

from octopii.blocks import write_blocks
from octopii.errors import CommandError
from octopii.machines import TaskQueueStateMachine
from octopii.machines.task_queue import KEEP_FINISHED_SECONDS, Task
from tests.machines.specimens import written


def submitted(count: int) -> TaskQueueStateMachine:
    machine = TaskQueueStateMachine()
    machine.clock.set(1_700_000_000.0)
    for n in range(1, count + 1):
        assert machine.apply(b"SUBMIT\tjob %d" % n) == b"%d" % n
    return machine


def status(machine: TaskQueueStateMachine, task_id: int) -> Any:
    return json.loads(machine.query(b"STATUS\t%d" % task_id))


def test_a_task_from_submission_to_completion() -> None:
    """A task is claimed, started and completed; its JSON shows who and when, in replicated time."""
    machine = submitted(1)
    machine.clock.advance(5.5)
    claimed = json.loads(machine.apply(b"CLAIM\tworker-1"))
    assert claimed == {
        "id": 1,
        "payload": "job 1",
        "status": "Assigned",
        "assigned_to": "worker-1",
        "created_at": 1_700_000_000,
        "completed_at": None,
    }
    assert machine.apply(b"START\t1") == b"OK"
    assert status(machine, 1)["status"] == "Running"
    assert machine.apply(b"COMPLETE\t1") == b"OK"
    assert status(machine, 1) == claimed | {"status": "Completed", "completed_at": 1_700_000_005}
    machine.clock.advance(5)
    assert machine.apply(b"COMPLETE\t1") == b"OK"
    assert status(machine, 1)["completed_at"] == 1_700_000_005


def test_tasks_are_claimed_in_order_and_released_to_the_front() -> None:
    """The oldest pending task is next; a released one comes before it; an empty queue refuses."""
    machine = submitted(3)
    order = [json.loads(machine.apply(b"CLAIM\tw"))["id"] for _ in range(2)]
    assert machine.apply(b"RELEASE\t1") == b"OK"
    assert status(machine, 1)["assigned_to"] is None
    copy = TaskQueueStateMachine()
    copy.restore(memoryview(written(machine)))
    order += [json.loads(copy.apply(b"CLAIM\tw"))["id"] for _ in range(2)]
    assert order == [1, 2, 1, 3]
    with pytest.raises(CommandError, match="no task is pending"):
        copy.apply(b"CLAIM\tw")
    assert copy.apply(b"SUBMIT\tone more") == b"4"


@pytest.mark.parametrize(
    ("before", "command"),
    [
        ([], b"COMPLETE\t1"),
        ([], b"START\t1"),
        ([], b"RELEASE\t1"),
        ([], b"FAIL\t1"),
        ([b"CLAIM\tw", b"COMPLETE\t1"], b"FAIL\t1"),
        ([b"CLAIM\tw", b"FAIL\t1"], b"COMPLETE\t1"),
        ([b"CLAIM\tw", b"START\t1"], b"START\t1"),
        ([], b"STATUS\t2"),
        ([], b"STATUS\t0"),
        ([], b"STATUS\tx"),
        ([], b"CLAIM\t"),
        ([], b"CLAIM"),
        ([], b"SUBMIT"),
        ([], b"SUBMIT\t\xff"),
        ([], b""),
    ],
)
def test_steps_that_do_not_fit_are_refused(before: list[bytes], command: bytes) -> None:
    """A pending task cannot be completed, a finished one not changed, and malformed commands change nothing."""
    machine = submitted(1)
    for step in before:
        machine.apply(step)
    state = written(machine)
    with pytest.raises(CommandError):
        machine.apply(command)
    assert written(machine) == state


@pytest.mark.parametrize("pending", [[], [2], [1, 2], [1, 1], [3]])
def test_a_snapshot_whose_queue_does_not_match_its_tasks_is_refused(pending: list[int]) -> None:
    """The queue holds exactly the pending tasks, each once; anything else is no snapshot."""
    tasks = [Task(1, "a", "Pending", None, 0, None), Task(2, "b", "Assigned", "w", 0, None)]
    data = b"".join(write_blocks("task-queue/1", [(3, tasks, []), (3, [], pending)]))
    machine = submitted(1)
    with pytest.raises(ValueError, match="does not match its tasks"):
        machine.restore(memoryview(data))
    machine.restore(memoryview(b"".join(write_blocks("task-queue/1", [(3, tasks, [1])]))))
    assert status(machine, 2)["assigned_to"] == "w"


def test_finished_tasks_go_after_a_day() -> None:
    """Compaction drops completed and failed tasks older than 24 hours; others stay; ids are never used again."""
    machine = submitted(4)
    for step in (b"CLAIM\tw", b"CLAIM\tw", b"CLAIM\tw", b"COMPLETE\t1", b"FAIL\t2"):
        machine.apply(step)
    machine.clock.advance(KEEP_FINISHED_SECONDS)
    machine.compact()
    assert status(machine, 1)["status"] == "Completed"
    machine.clock.advance(1)
    machine.compact()
    for gone in (1, 2):
        with pytest.raises(CommandError, match=f"no task {gone}"):
            machine.query(b"STATUS\t%d" % gone)
    assert status(machine, 3)["status"] == "Assigned"
    assert status(machine, 4)["status"] == "Pending"
    assert machine.apply(b"SUBMIT\tnew") == b"5"
