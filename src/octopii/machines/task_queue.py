r"""A replicated task queue. Parts are separated by tabs (shown as \t), which no part can hold.

    SUBMIT\t<payload>[\t<priority>[\t<attempts>]]    -> the task's id; ids count from 1
    CLAIM\t<worker>[\t<lease seconds>]               -> JSON of the next task, now assigned to that worker
    START\t<id>[\t<worker>]                          -> OK; the task is running
    EXTEND\t<id>[\t<worker>[\t<lease seconds>]]      -> OK; its lease begins anew
    COMPLETE\t<id>[\t<worker>]                       -> OK; the task is completed (a completed one: OK again)
    FAIL\t<id>[\t<worker>]                           -> RETRY when it will be given out again, FAILED when it will not
    RELEASE\t<id>[\t<worker>]                        -> OK; the task is pending again, and this attempt does not count
    STATUS\t<id>                                     -> JSON of the task                       (as a command or a query)
    DESCRIBE\t<id>                                   -> the same with priority, attempts and lease       (or as a query)

The next task is the one with the highest priority (0 unless given, may be negative), and of these the oldest. A claimed
task belongs to its worker until the lease has run out; then the next CLAIM may give it to another, which counts as one
more attempt. So the work is done at least once. A step that names its worker is refused when the task has gone to
another meanwhile: a worker that was slow learns of it, and changes nothing.

A task is {"id", "payload", "status", "assigned_to", "created_at", "completed_at"}, times in whole UTC seconds of
replicated time. CLAIM of an empty queue, a task that does not exist and a step that its status does not allow are
refused by `CommandError`. Compaction fails tasks whose last attempt's lease has run out, and drops tasks that were
completed or failed more than 24 hours ago.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from octopii.blocks import frozen, read_blocks, spans, write_blocks
from octopii.errors import CommandError
from octopii.machines.parsing import text, unknown, whole_number
from octopii.state_machine import StateMachine

LEASE_SECONDS = 300
"""How long a worker has for a task when CLAIM does not say, unless the constructor says otherwise: five minutes."""

MAX_LEASE_SECONDS = 30 * 24 * 3600
"""Longest lease that a worker may ask for: a longer one would keep a dead worker's task for months."""

ATTEMPTS = 3
"""How often a task is given out when SUBMIT does not say, unless the constructor says otherwise."""

MAX_ATTEMPTS = 1_000
MAX_PRIORITY = 1_000_000

KEEP_FINISHED_SECONDS = 24 * 3600
"""How long finished tasks are kept, unless the constructor says otherwise: a day."""

MAX_ID = (1 << 63) - 1

Status = Literal["Pending", "Assigned", "Running", "Completed", "Failed"]

_ALLOWED: dict[bytes, frozenset[Status]] = {
    b"START": frozenset({"Assigned"}),
    b"EXTEND": frozenset({"Assigned", "Running"}),
    b"COMPLETE": frozenset({"Assigned", "Running", "Completed"}),
    b"FAIL": frozenset({"Assigned", "Running"}),
    b"RELEASE": frozenset({"Assigned", "Running"}),
}
"""Per step: the statuses that allow it."""

_USAGE = {
    b"SUBMIT": r"SUBMIT\t<payload>[\t<priority>[\t<attempts>]]",
    b"CLAIM": r"CLAIM\t<worker>[\t<lease seconds>]",
    b"START": r"START\t<id>[\t<worker>]",
    b"EXTEND": r"EXTEND\t<id>[\t<worker>[\t<lease seconds>]]",
    b"COMPLETE": r"COMPLETE\t<id>[\t<worker>]",
    b"FAIL": r"FAIL\t<id>[\t<worker>]",
    b"RELEASE": r"RELEASE\t<id>[\t<worker>]",
    b"STATUS": r"STATUS\t<id>",
    b"DESCRIBE": r"DESCRIBE\t<id>",
}

_KIND = "task-queue/1"
_SPARE_LEASES = 64
_encoder = msgspec.json.Encoder()


class Task(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One task; times in UTC seconds, `lease_until` 0 while nobody holds it."""

    id: int
    payload: str
    status: Status
    assigned_to: str | None
    created_at: int
    completed_at: int | None
    priority: int
    attempts: int
    max_attempts: int
    lease_until: float

    @property
    def held(self) -> bool:
        """Whether a worker has it in hand."""
        return self.status == "Assigned" or self.status == "Running"

    @property
    def finished(self) -> bool:
        """Whether it will never be given out again."""
        return self.status == "Completed" or self.status == "Failed"

    @property
    def size(self) -> int:
        """Characters of text, as a measure of what the task weighs."""
        return len(self.payload) + len(self.assigned_to or "") + 80


_FIELDS = Task.__struct_fields__
_SHORT_FIELDS = _FIELDS[: _FIELDS.index("completed_at") + 1]
_SHAPE = msgspec.msgpack.Decoder(tuple[int, list[Task]])


class TaskQueueStateMachine(StateMachine):
    """Tasks by id. The constructor's settings belong to the replicated logic: the same on every node."""

    def __init__(
        self,
        *,
        lease_seconds: int = LEASE_SECONDS,
        attempts: int = ATTEMPTS,
        keep_finished_seconds: float = KEEP_FINISHED_SECONDS,
    ) -> None:
        """Start empty; raises `ValueError` for a lease or a number of attempts that a command could not ask for."""
        if not 1 <= lease_seconds <= MAX_LEASE_SECONDS or not 1 <= attempts <= MAX_ATTEMPTS:
            raise ValueError(f"a lease is 1 to {MAX_LEASE_SECONDS} s, attempts are 1 to {MAX_ATTEMPTS}")
        self._lease_seconds = lease_seconds
        self._attempts = attempts
        self._keep_finished_seconds = keep_finished_seconds
        self._tasks: dict[int, Task] = {}
        self._next_id = 1
        # What follows can be told from the tasks, and is in no snapshot.
        self._pending: list[tuple[int, int]] = []  # heap of (-priority, id), one for each pending task
        self._leases: list[tuple[float, int]] = []  # heap of (end, id); stale unless `_held` says the same
        self._held: dict[int, float] = {}

    def apply(self, command: bytes) -> bytes:
        """Run one command; raises `CommandError` and changes nothing for one that does not fit."""
        verb = command.partition(b"\t")[0]
        if verb in _ALLOWED:
            return self._step(verb, _parts(verb, command))
        if verb == b"SUBMIT":
            return self._submit(*_parts(verb, command))
        if verb == b"CLAIM":
            return self._claim(*_parts(verb, command))
        return self.query(command)

    def query(self, command: bytes) -> bytes:
        """Answer STATUS and DESCRIBE; raises `CommandError` for anything else."""
        verb = command.partition(b"\t")[0]
        if verb not in (b"STATUS", b"DESCRIBE"):
            raise unknown(verb)
        (number,) = _parts(verb, command)
        task = self._task(number)
        return _json(task, _SHORT_FIELDS if verb == b"STATUS" else _FIELDS)

    # --- commands -----------------------------------------------------------------------------------------------

    def _submit(self, payload: str, priority: str = "0", attempts: str = "") -> bytes:
        task = Task(
            id=self._next_id,
            payload=payload,
            status="Pending",
            assigned_to=None,
            created_at=int(self.clock.now()),
            completed_at=None,
            priority=whole_number(priority, name="priority", least=-MAX_PRIORITY, most=MAX_PRIORITY),
            attempts=0,
            max_attempts=whole_number(attempts, name="attempts", least=1, most=MAX_ATTEMPTS)
            if attempts
            else self._attempts,
            lease_until=0.0,
        )
        self._next_id += 1
        self._keep(task)
        return b"%d" % task.id

    def _claim(self, worker: str, lease: str = "") -> bytes:
        if not worker:
            raise CommandError("CLAIM needs the worker's name")
        until = self._lease_end(lease)
        self._take_back()
        if not self._pending:
            raise CommandError("no tasks available")
        task = self._tasks[heapq.heappop(self._pending)[1]]
        task = msgspec.structs.replace(
            task, status="Assigned", assigned_to=worker, attempts=task.attempts + 1, lease_until=until
        )
        self._keep(task)
        return _json(task, _SHORT_FIELDS)

    def _step(self, verb: bytes, parts: list[str]) -> bytes:
        number, worker, lease = (*parts, "", "")[:3]
        task = self._task(number)
        if task.status not in _ALLOWED[verb]:
            raise CommandError(f"task {task.id} is {task.status}: {verb.decode()} is not possible")
        if worker and worker != task.assigned_to:
            raise CommandError(f"task {task.id} is in the hands of {(task.assigned_to or '')[:64]!a}")
        if verb == b"START":
            self._keep(msgspec.structs.replace(task, status="Running"))
        elif verb == b"EXTEND":
            self._keep(msgspec.structs.replace(task, lease_until=self._lease_end(lease)))
        elif verb == b"COMPLETE":
            self._finish(task, "Completed")
        elif verb == b"RELEASE":
            self._put_back(msgspec.structs.replace(task, attempts=task.attempts - 1))
        elif task.attempts < task.max_attempts:
            self._put_back(task)
            return b"RETRY"
        else:
            self._finish(task, "Failed")
            return b"FAILED"
        return b"OK"

    def _lease_end(self, seconds: str) -> float:
        if not seconds:
            return self.clock.now() + self._lease_seconds
        return self.clock.now() + whole_number(seconds, name="lease seconds", least=1, most=MAX_LEASE_SECONDS)

    def _task(self, digits: str) -> Task:
        task = self._tasks.get(whole_number(digits, name="task id", least=1, most=MAX_ID))
        if task is None:
            raise CommandError("task not found")
        return task

    # --- where tasks stand --------------------------------------------------------------------------------------

    def _keep(self, task: Task) -> None:
        """Put a task in its place, which its status tells."""
        self._tasks[task.id] = task
        if task.held:
            if self._held.get(task.id) != task.lease_until:
                self._held[task.id] = task.lease_until
                heapq.heappush(self._leases, (task.lease_until, task.id))
                self._drop_stale_leases()
            return
        self._held.pop(task.id, None)
        if task.status == "Pending":
            heapq.heappush(self._pending, (-task.priority, task.id))

    def _put_back(self, task: Task) -> None:
        self._keep(msgspec.structs.replace(task, status="Pending", assigned_to=None, lease_until=0.0))

    def _finish(self, task: Task, status: Status) -> None:
        if task.status != status:
            now = int(self.clock.now())
            self._keep(msgspec.structs.replace(task, status=status, completed_at=now, lease_until=0.0))

    def _take_back(self) -> None:
        """Make tasks pending whose lease has run out, where an attempt is left: then there is one to claim."""
        now = self.clock.now()
        while self._leases and self._leases[0][0] <= now:
            until, task_id = heapq.heappop(self._leases)
            task = self._tasks.get(task_id)
            if task is not None and self._held.get(task_id) == until and task.attempts < task.max_attempts:
                self._put_back(task)

    def _drop_stale_leases(self) -> None:
        if len(self._leases) > 2 * len(self._held) + _SPARE_LEASES:
            self._leases = [(until, task_id) for task_id, until in self._held.items()]
            heapq.heapify(self._leases)

    def compact(self) -> None:
        """Give up or put back tasks whose lease has run out, and drop those that were finished too long ago."""
        now = self.clock.now()
        for task_id, until in list(self._held.items()):
            if until <= now:
                task = self._tasks[task_id]
                if task.attempts < task.max_attempts:
                    self._put_back(task)
                else:
                    self._finish(task, "Failed")
        cutoff = now - self._keep_finished_seconds
        self._tasks = {
            task.id: task for task in self._tasks.values() if task.completed_at is None or task.completed_at >= cutoff
        }

    # --- snapshots ----------------------------------------------------------------------------------------------

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Return a frozen view: tasks are replaced, never changed."""
        tasks = frozen(self._tasks.values())
        next_id = self._next_id

        def size_of(start: int, end: int) -> int:
            return sum(task.size for task in tasks[start:end])

        def blocks() -> Iterator[tuple[int, list[Task]]]:
            yield next_id, []
            for start, end in spans(len(tasks), size_of):
                yield next_id, tasks[start:end]

        return lambda: write_blocks(_KIND, blocks())

    def restore(self, data: memoryview) -> None:
        """Replace all tasks; raises `ValueError` and changes nothing when the snapshot is not sound."""
        tasks: dict[int, Task] = {}
        next_ids: set[int] = set()
        count = 0
        for next_id, some_tasks in read_blocks(_KIND, data, _SHAPE):
            next_ids.add(next_id)
            tasks.update((task.id, task) for task in some_tasks)
            count += len(some_tasks)
        if len(next_ids) != 1 or len(tasks) != count or not all(1 <= task_id < min(next_ids) for task_id in tasks):
            raise ValueError(f"{_KIND} snapshot has tasks twice, or ids that do not match its next id")
        if not all(_sound(task) for task in tasks.values()):
            raise ValueError(f"{_KIND} snapshot has a task whose status does not match its worker and times")
        self._tasks = tasks
        self._next_id = next_ids.pop()
        self._pending = [(-task.priority, task.id) for task in tasks.values() if task.status == "Pending"]
        self._held = {task.id: task.lease_until for task in tasks.values() if task.held}
        self._leases = [(until, task_id) for task_id, until in self._held.items()]
        heapq.heapify(self._pending)
        heapq.heapify(self._leases)


def _sound(task: Task) -> bool:
    return task.finished == (task.completed_at is not None) and (task.assigned_to is not None or not task.held)


def _parts(verb: bytes, command: bytes) -> list[str]:
    usage = _USAGE[verb]
    parts = command.split(b"\t")[1:]
    if not usage.count(r"\t") - usage.count("[") <= len(parts) <= usage.count(r"\t"):
        raise CommandError(f"usage: {usage}")
    return [text(part) for part in parts]


def _json(task: Task, fields: tuple[str, ...]) -> bytes:
    return _encoder.encode({field: getattr(task, field) for field in fields})
