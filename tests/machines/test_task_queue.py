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


def describe(machine: TaskQueueStateMachine, task_id: int) -> Any:
    return json.loads(machine.query(b"DESCRIBE\t%d" % task_id))


def claim(machine: TaskQueueStateMachine, worker: bytes = b"w") -> int:
    return int(json.loads(machine.apply(b"CLAIM\t" + worker))["id"])


def test_tasks_are_claimed_in_order_and_released_to_the_front() -> None:
    """The oldest pending task is next; a released one comes before it; an empty queue refuses."""
    machine = submitted(3)
    order = [claim(machine) for _ in range(2)]
    assert machine.apply(b"RELEASE\t1") == b"OK"
    assert status(machine, 1)["assigned_to"] is None
    assert describe(machine, 1)["attempts"] == 0
    copy = TaskQueueStateMachine()
    copy.restore(memoryview(written(machine)))
    order += [claim(copy) for _ in range(2)]
    assert order == [1, 2, 1, 3]
    with pytest.raises(CommandError, match="no tasks available"):
        copy.apply(b"CLAIM\tw")
    assert copy.apply(b"SUBMIT\tone more") == b"4"


def test_a_higher_priority_comes_first_and_the_older_of_equals() -> None:
    """Priorities may be negative, the default is 0, and within one the order is that of submission."""
    machine = TaskQueueStateMachine()
    for priority in (b"", b"\t-1", b"\t7", b"\t0", b"\t7"):
        machine.apply(b"SUBMIT\tx" + priority)
    assert [claim(machine) for _ in range(5)] == [3, 5, 1, 4, 2]


def test_a_dead_worker_s_task_is_claimed_again_after_its_lease() -> None:
    """Until the lease has run out nobody else gets the task; then the next one who claims does, before later tasks."""
    machine = submitted(2)
    machine.clock.set(machine.clock.now(), index=1)
    assert claim(machine, b"dead\t10") == 1
    machine.clock.advance(9.5)
    assert claim(machine, b"alive") == 2
    machine.clock.advance(0.5)
    copy = TaskQueueStateMachine()
    copy.restore(memoryview(written(machine)))
    copy.clock.set(machine.clock.now())
    for tested in (machine, copy):
        assert claim(tested, b"alive") == 1
        assert describe(tested, 1)["attempts"] == 2
        with pytest.raises(CommandError, match="in the hands of 'alive'"):
            tested.apply(b"COMPLETE\t1\tdead")
        assert tested.apply(b"COMPLETE\t1\talive") == b"OK"


def test_a_lease_can_be_extended() -> None:
    """EXTEND begins the lease anew, with the default length or a given one."""
    machine = TaskQueueStateMachine(lease_seconds=10)
    machine.apply(b"SUBMIT\tx")
    claim(machine)
    for extension, seconds in ((b"EXTEND\t1", 10), (b"EXTEND\t1\tw\t60", 60), (b"EXTEND\t1\t\t5", 5)):
        machine.clock.advance(5)
        assert machine.apply(extension) == b"OK"
        assert describe(machine, 1)["lease_until"] == machine.clock.now() + seconds
    machine.clock.advance(4.9)
    with pytest.raises(CommandError, match="no tasks available"):
        claim(machine)
    machine.clock.advance(0.1)
    assert claim(machine) == 1


def test_a_task_fails_for_good_after_its_last_attempt() -> None:
    """FAIL answers RETRY while attempts are left, and the task is given out again; then FAILED, and it is not."""
    machine = TaskQueueStateMachine()
    machine.apply(b"SUBMIT\tx\t0\t2")
    claim(machine)
    assert machine.apply(b"FAIL\t1") == b"RETRY"
    assert (status(machine, 1)["status"], status(machine, 1)["assigned_to"]) == ("Pending", None)
    claim(machine)
    machine.apply(b"START\t1")
    assert machine.apply(b"FAIL\t1\tw") == b"FAILED"
    assert (status(machine, 1)["status"], describe(machine, 1)["attempts"]) == ("Failed", 2)
    with pytest.raises(CommandError, match="no tasks available"):
        claim(machine)


def test_a_lease_that_runs_out_on_the_last_attempt_fails_the_task_at_compaction() -> None:
    """Until then its worker may still complete it; compaction puts others back where an attempt is left."""
    machine = TaskQueueStateMachine(lease_seconds=10, attempts=1)
    for attempts in (b"", b"\t0\t2", b""):
        machine.apply(b"SUBMIT\tx" + attempts)
    assert [claim(machine) for _ in range(3)] == [1, 2, 3]
    machine.clock.advance(10)
    assert claim(machine) == 2
    with pytest.raises(CommandError, match="no tasks available"):
        claim(machine)
    assert machine.apply(b"COMPLETE\t3") == b"OK"
    machine.clock.advance(10)
    machine.compact()
    assert [status(machine, task_id)["status"] for task_id in (1, 2, 3)] == ["Failed", "Failed", "Completed"]
    machine.apply(b"SUBMIT\tx\t0\t2")
    claim(machine)
    machine.clock.advance(10)
    machine.compact()
    assert status(machine, 4)["status"] == "Pending"


def test_extending_for_ever_costs_no_memory() -> None:
    """What is remembered of old leases is bounded by the tasks that are held."""
    machine = submitted(1)
    claim(machine)
    for _ in range(1000):
        machine.clock.advance(0.01)
        machine.apply(b"EXTEND\t1")
    assert len(machine._leases) < 100


@pytest.mark.parametrize("settings", [{"lease_seconds": 0}, {"attempts": 0}, {"attempts": 1001}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    """A lease or a number of attempts that no command could ask for is refused at construction."""
    with pytest.raises(ValueError, match="a lease is"):
        TaskQueueStateMachine(**settings)


@pytest.mark.parametrize(
    ("before", "command"),
    [
        ([], b"COMPLETE\t1"),
        ([], b"START\t1"),
        ([], b"RELEASE\t1"),
        ([], b"FAIL\t1"),
        ([b"CLAIM\tw", b"COMPLETE\t1"], b"FAIL\t1"),
        ([b"CLAIM\tw", b"RELEASE\t1"], b"COMPLETE\t1"),
        ([b"CLAIM\tw"], b"COMPLETE\t1\tother"),
        ([b"CLAIM\tw"], b"START\t1\tw\textra"),
        ([b"CLAIM\tw"], b"EXTEND\t1\tw\t0"),
        ([], b"EXTEND\t1"),
        ([], b"CLAIM\tw\tsoon"),
        ([], b"CLAIM\tw\t99999999"),
        ([], b"SUBMIT\tx\thigh"),
        ([], b"SUBMIT\tx\t0\t0"),
        ([], b"SUBMIT\tx\t0\t1\tand more"),
        ([], b"STATUS\t1\t2"),
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


def task(task_id: int, status: Any, worker: str | None, completed_at: int | None = None) -> Task:
    return Task(task_id, "a", status, worker, 0, completed_at, 0, 1, 3, 9.0)


@pytest.mark.parametrize(
    "tasks",
    [
        [task(3, "Pending", None)],
        [task(0, "Pending", None)],
        [task(1, "Pending", None), task(1, "Pending", None)],
        [task(1, "Assigned", None)],
        [task(1, "Running", "w", 5)],
        [task(1, "Completed", "w")],
    ],
)
def test_a_snapshot_that_contradicts_itself_is_refused(tasks: list[Task]) -> None:
    """Ids are unique and below the next one, and a task's status fits its worker and its times."""
    machine = submitted(1)
    before = written(machine)
    with pytest.raises(ValueError, match="snapshot has"):
        machine.restore(memoryview(b"".join(write_blocks("task-queue/1", [(3, tasks)]))))
    assert written(machine) == before
    machine.restore(memoryview(b"".join(write_blocks("task-queue/1", [(3, [task(2, "Assigned", "w")])]))))
    assert status(machine, 2)["assigned_to"] == "w"


def test_finished_tasks_go_after_a_day() -> None:
    """Compaction drops completed and failed tasks older than 24 hours; others stay; ids are never used again."""
    machine = TaskQueueStateMachine(attempts=1, lease_seconds=7 * 24 * 3600)
    for step in [b"SUBMIT\tx"] * 4 + [b"CLAIM\tw"] * 3 + [b"COMPLETE\t1", b"FAIL\t2"]:
        machine.apply(step)
    machine.clock.advance(KEEP_FINISHED_SECONDS)
    machine.compact()
    assert status(machine, 1)["status"] == "Completed"
    machine.clock.advance(1)
    machine.compact()
    for gone in (1, 2):
        with pytest.raises(CommandError, match="task not found"):
            machine.query(b"STATUS\t%d" % gone)
    assert status(machine, 3)["status"] == "Assigned"
    assert status(machine, 4)["status"] == "Pending"
    assert machine.apply(b"SUBMIT\tnew") == b"5"
