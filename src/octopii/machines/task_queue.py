r"""A replicated task queue, first in, first out. Parts are separated by tabs (shown as \t).

    SUBMIT\t<payload>     -> the task's id; ids count from 1, the payload is the rest of the command
    CLAIM\t<worker>       -> JSON of the oldest pending task, now assigned to that worker
    START\t<id>           -> OK; an assigned task is running
    COMPLETE\t<id>        -> OK; an assigned or running task is completed (a completed one: OK again)
    FAIL\t<id>            -> OK; an assigned or running task has failed for good
    RELEASE\t<id>         -> OK; an assigned or running task is pending again, first in line
    STATUS\t<id>          -> JSON of the task    (as a command or as a query)

A task is {"id", "payload", "status", "assigned_to", "created_at", "completed_at"}, times in whole UTC seconds of
replicated time. CLAIM of an empty queue, a task that does not exist and a step that its status does not allow are
refused by `CommandError`. Compaction drops tasks that were completed or failed more than 24 hours ago.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from octopii.blocks import MAX_BLOCK_ITEMS, frozen, read_blocks, spans, write_blocks
from octopii.errors import CommandError
from octopii.machines.parsing import text, unknown, whole_number
from octopii.state_machine import StateMachine

KEEP_FINISHED_SECONDS = 24 * 3600
"""How long finished tasks are kept, unless the constructor says otherwise: a day."""

MAX_ID = (1 << 63) - 1

Status = Literal["Pending", "Assigned", "Running", "Completed", "Failed"]

_STEPS: dict[bytes, tuple[frozenset[Status], Status]] = {
    b"START": (frozenset({"Assigned"}), "Running"),
    b"COMPLETE": (frozenset({"Assigned", "Running", "Completed"}), "Completed"),
    b"FAIL": (frozenset({"Assigned", "Running"}), "Failed"),
    b"RELEASE": (frozenset({"Assigned", "Running"}), "Pending"),
}
"""Per command: the statuses that allow it, and the one it leads to."""

_KIND = "task-queue/1"
_encoder = msgspec.json.Encoder()


class Task(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One task; times in UTC seconds."""

    id: int
    payload: str
    status: Status
    assigned_to: str | None
    created_at: int
    completed_at: int | None

    @property
    def size(self) -> int:
        """Characters of text, as a measure of what the task weighs."""
        return len(self.payload) + len(self.assigned_to or "") + 48


_SHAPE = msgspec.msgpack.Decoder(tuple[int, list[Task], list[int]])


class TaskQueueStateMachine(StateMachine):
    """Tasks by id and the queue of pending ids. `keep_finished_seconds` is the same on every node."""

    def __init__(self, *, keep_finished_seconds: float = KEEP_FINISHED_SECONDS) -> None:
        self._tasks: dict[int, Task] = {}
        self._pending: deque[int] = deque()
        self._next_id = 1
        self._keep_finished_seconds = keep_finished_seconds

    def apply(self, command: bytes) -> bytes:
        """Run one command; raises `CommandError` and changes nothing for one that does not fit."""
        verb, tab, rest = command.partition(b"\t")
        if verb == b"SUBMIT":
            return self._submit(_part(verb, tab, rest))
        if verb == b"CLAIM":
            return self._claim(_part(verb, tab, rest))
        if verb in _STEPS:
            return self._step(verb, self._task(_part(verb, tab, rest)))
        return self.query(command)

    def query(self, command: bytes) -> bytes:
        """Answer STATUS; raises `CommandError` for anything else."""
        verb, tab, rest = command.partition(b"\t")
        if verb != b"STATUS":
            raise unknown(verb)
        return _json(self._task(_part(verb, tab, rest)))

    def _submit(self, payload: str) -> bytes:
        task = Task(self._next_id, payload, "Pending", None, int(self.clock.now()), None)
        self._next_id += 1
        self._tasks[task.id] = task
        self._pending.append(task.id)
        return b"%d" % task.id

    def _claim(self, worker: str) -> bytes:
        if not worker:
            raise CommandError("CLAIM needs the worker's name")
        if not self._pending:
            raise CommandError("no task is pending")
        task = self._tasks[self._pending.popleft()]
        task = msgspec.structs.replace(task, status="Assigned", assigned_to=worker)
        self._tasks[task.id] = task
        return _json(task)

    def _step(self, verb: bytes, task: Task) -> bytes:
        allowed, status = _STEPS[verb]
        if task.status not in allowed:
            raise CommandError(f"task {task.id} is {task.status}: {verb.decode()} is not possible")
        if task.status == status:
            return b"OK"
        worker, completed_at = task.assigned_to, None
        if status == "Pending":
            worker = None
            self._pending.appendleft(task.id)
        elif status != "Running":
            completed_at = int(self.clock.now())
        self._tasks[task.id] = msgspec.structs.replace(
            task, status=status, assigned_to=worker, completed_at=completed_at
        )
        return b"OK"

    def _task(self, digits: str) -> Task:
        task = self._tasks.get(whole_number(digits, name="task id", least=1, most=MAX_ID))
        if task is None:
            raise CommandError(f"there is no task {digits}")
        return task

    def compact(self) -> None:
        """Drop tasks that were finished too long ago."""
        cutoff = self.clock.now() - self._keep_finished_seconds
        self._tasks = {
            task.id: task for task in self._tasks.values() if task.completed_at is None or task.completed_at >= cutoff
        }

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Return a frozen view: tasks are replaced, never changed."""
        tasks = frozen(self._tasks.values())
        pending = frozen(self._pending)
        next_id = self._next_id

        def size_of(start: int, end: int) -> int:
            return sum(task.size for task in tasks[start:end])

        def blocks() -> Iterator[tuple[int, list[Task], list[int]]]:
            yield next_id, [], []
            for start, end in spans(len(tasks), size_of):
                yield next_id, tasks[start:end], []
            for start in range(0, len(pending), MAX_BLOCK_ITEMS):
                yield next_id, [], pending[start : start + MAX_BLOCK_ITEMS]

        return lambda: write_blocks(_KIND, blocks())

    def restore(self, data: memoryview) -> None:
        """Replace all tasks; raises `ValueError` and changes nothing when the snapshot is not sound."""
        tasks: dict[int, Task] = {}
        pending: deque[int] = deque()
        next_ids: set[int] = set()
        count = 0
        for next_id, some_tasks, some_pending in read_blocks(_KIND, data, _SHAPE):
            next_ids.add(next_id)
            tasks.update((task.id, task) for task in some_tasks)
            count += len(some_tasks)
            pending.extend(some_pending)
        waiting = {task.id for task in tasks.values() if task.status == "Pending"}
        if len(tasks) != count or len(pending) != len(waiting) or waiting != set(pending):
            raise ValueError(f"{_KIND} snapshot has tasks twice, or a queue that does not match its tasks")
        if len(next_ids) != 1 or not all(1 <= task_id < min(next_ids) for task_id in tasks):
            raise ValueError(f"{_KIND} snapshot has ids that do not match its next id")
        self._tasks = tasks
        self._pending = pending
        self._next_id = next_ids.pop()


def _part(verb: bytes, tab: bytes, rest: bytes) -> str:
    if not tab:
        raise CommandError(f"{verb.decode()} needs an argument behind a tab")
    return text(rest)


def _json(task: Task) -> bytes:
    return _encoder.encode(msgspec.structs.asdict(task))
