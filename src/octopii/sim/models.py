"""What a replicated machine should do, one call at a time: the specifications that histories are judged by.

A `Model` is a pure function from state and request to state and answer. The built-in ones speak the requests of the
machines in `octopii.machines`, written down a second time and on purpose in another way, so that a bug of a machine is
not a bug of its model. `MachineModel` makes a model of any deterministic machine, for users who have no second one.

Replicated time is not modelled: times in answers are not compared, and what compaction drops by age (tasks after a day,
services after an hour) is expected to be there. Histories have to be shorter than that.
"""

# ruff: noqa: D102  (what the methods of a model are for is said once, on Model)

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from octopii.errors import CommandError
from octopii.machines.parsing import MAX_NUMBER_LENGTH
from octopii.machines.registry import MAX_METADATA
from octopii.machines.task_queue import ATTEMPTS, MAX_ATTEMPTS, MAX_ID, MAX_LEASE_SECONDS, MAX_PRIORITY
from octopii.sim.history import Operation, Query
from octopii.state_machine import SnapshotSource, StateMachine, restore_snapshot


class Refused:
    """The expected answer of a request that the machine refuses with a `CommandError`."""

    def __repr__(self) -> str:
        return "refused"


REFUSED = Refused()


class Impossible:
    """The expected answer of a request that cannot have been applied there, as the rest of the history shows."""

    def __repr__(self) -> str:
        return "impossible"


IMPOSSIBLE = Impossible()


class Model(Protocol):
    """A sequential specification. Derive from it: all but `initial` and `apply` have a default."""

    def part_of(self, request: Any) -> Hashable:
        """Name the part of the state that the request touches, a key say; requests of different parts are independent.

        By default all requests belong to one part. Smaller parts are judged faster, by orders of magnitude.
        """
        return None

    def informed_by(self, operations: Sequence[Operation]) -> "Model":
        """Return a model for just these operations, all of one part. By default the model itself.

        A model that looks ahead, at what the operations answered, can say `IMPOSSIBLE` early where an operation of
        unknown outcome would lead to a state that a later answer contradicts, and can leave out of its states what no
        answer shows. It must not let that change the verdict.
        """
        return self

    def initial(self) -> Hashable:
        """Return the state of a part before the first request."""
        ...

    def apply(self, state: Any, request: Any) -> tuple[Hashable, Any]:
        """Return the state after the request, and the answer (`REFUSED` for a `CommandError`). Change nothing.

        Requests and states are hashable.
        """
        ...

    def changes_nothing(self, request: Any, answer: Any) -> bool:
        """Tell whether a request that is answered so leaves every state as it was (`answer` is None where unknown).

        False is always right; True spares the search much. By default only a `Query` is known to change nothing.
        """
        return isinstance(request, Query)

    def accepts(self, expected: Any, answer: Any) -> bool:
        """Compare the answer that `apply` returned with the one that a client got. By default they are equal."""
        if expected is REFUSED:
            return isinstance(answer, CommandError)
        return bool(expected == answer)


class _TextModel(Model):
    """Requests that begin with a verb; some only read, and one that is refused changes nothing."""

    readers: tuple[bytes, ...] = ()

    def changes_nothing(self, request: bytes, answer: Any) -> bool:
        return isinstance(request, Query) or isinstance(answer, CommandError) or request.startswith(self.readers)


class RegisterModel(_TextModel):
    """One value: `READ` answers it (empty at first), `WRITE <value>` answers OK, `CAS <old> <new>` OK or FAILED."""

    readers = (b"READ",)

    def initial(self) -> bytes:
        return b""

    def apply(self, state: bytes, request: bytes) -> tuple[bytes, Any]:
        verb, _, rest = request.partition(b" ")
        if verb == b"READ":
            return state, state
        if verb == b"WRITE":
            return rest, b"OK"
        old, blank, new = rest.partition(b" ")
        if verb == b"CAS" and blank:
            return (new, b"OK") if state == old else (state, b"FAILED")
        return state, REFUSED


class KvModel(_TextModel):
    """`KvStateMachine`, a part for each key; a state is the key's value, or None."""

    readers = (b"GET ",)

    def part_of(self, request: bytes) -> Hashable:
        parts = request.split(b" ", 2)
        return parts[1] if len(parts) > 1 else b""

    def initial(self) -> Hashable:
        return None

    def apply(self, state: bytes | None, request: bytes) -> tuple[Hashable, Any]:
        match request.split(b" ", 2):
            case [b"SET", key, value] if key:
                return value, b"OK"
            case [b"GET", key] if key:
                return state, b"NOT_FOUND" if state is None else state
            case [b"DELETE", key] if key:
                return None, b"NOT_FOUND" if state is None else b"OK"
        return state, REFUSED


class CounterModel(_TextModel):
    """`CounterStateMachine`, a part for each counter; a state is the counter's value."""

    readers = (b"GET ",)

    def part_of(self, request: bytes) -> Hashable:
        parts = request.split(None, 2)
        return parts[1] if len(parts) > 1 else b""

    def initial(self) -> Hashable:
        return 0

    def apply(self, state: int, request: bytes) -> tuple[Hashable, Any]:
        match request.split():
            case [b"GET", _]:
                return state, b"%d" % state
            case [b"INC", _]:
                return self._add(state, 1)
            case [b"INC", _, delta] if _is_number(delta):
                return self._add(state, int(delta))
        return state, REFUSED

    def _add(self, state: int, delta: int) -> tuple[Hashable, Any]:
        value = state + delta
        if any(number.bit_length() > 63 and number != -(1 << 63) for number in (delta, value)):
            return state, REFUSED
        return value, b"%d" % value


class RegistryModel(_TextModel):
    """`RegistryStateMachine`, a part for each service; a state is (address, port, metadata as text), or None."""

    readers = (b"LOOKUP ", b"DESCRIBE ")

    def part_of(self, request: bytes) -> Hashable:
        parts = request.split(None, 2)
        return parts[1] if len(parts) > 1 else b""

    def initial(self) -> Hashable:
        return None

    def apply(self, state: tuple[str, str, str] | None, request: bytes) -> tuple[Hashable, Any]:
        try:
            words = [word.decode() for word in request.split()]
        except UnicodeDecodeError:
            return state, REFUSED
        match words:
            case ["REGISTER", _, address, port, *pairs] if _is_whole(port, 0, 65_535) and _are_pairs(pairs):
                return (address, str(int(port)), _canonical(dict(pair.split("=", 1) for pair in pairs))), b"REGISTERED"
            case ["HEARTBEAT", _]:
                return state, b"NOT_REGISTERED" if state is None else b"OK"
            case ["DEREGISTER", _]:
                return None, b"NOT_REGISTERED" if state is None else b"OK"
            case ["LOOKUP", _]:
                return state, b"NOT_FOUND" if state is None else f"{state[0]}:{state[1]}".encode()
            case ["DESCRIBE", name]:
                return state, b"NOT_FOUND" if state is None else (name, *state)
        return state, REFUSED

    def accepts(self, expected: Any, answer: Any) -> bool:
        if not isinstance(expected, tuple):
            return super().accepts(expected, answer)
        found = _json_of(answer)
        described = (found.get("name"), found.get("address"), str(found.get("port")), _canonical(found.get("metadata")))
        return described == expected


class QueuedTask(msgspec.Struct, frozen=True, gc=False):
    """A task as the model of a queue knows it."""

    payload: str
    priority: int
    max_attempts: int
    status: str = "Pending"
    worker: str | None = None
    attempts: int = 0


class QueueState(msgspec.Struct, frozen=True):
    """The state of a queue: tasks by id, and (-priority, id) of those that are pending, sorted.

    Its hash is kept up to date by each change (the sum of the tasks' own), so that it costs nothing to remember.
    """

    tasks: dict[int, QueuedTask]
    pending: tuple[tuple[int, int], ...]
    digest: int

    def __hash__(self) -> int:
        return hash((self.digest, self.pending))

    def changed(self, task_id: int, task: QueuedTask) -> "QueueState":
        """Return the state with one task added or replaced."""
        digest = self.digest + hash((task_id, task))
        pending, place = self.pending, (-task.priority, task_id)
        before = self.tasks.get(task_id)
        if before is not None:
            digest -= hash((task_id, before))
            if before.status == "Pending":
                pending = tuple(other for other in pending if other != place)
        if task.status == "Pending":
            pending = tuple(sorted((*pending, place)))
        return QueueState({**self.tasks, task_id: task}, pending, digest)


class QueueModel(_TextModel):
    """`TaskQueueStateMachine` with its default settings, all of it one part. No lease runs out.

    Which task an unknown SUBMIT or CLAIM concerned shows only later, so the model looks ahead: a task that some answer
    shows has the payload and worker shown there. What no answer shows is left out of the states.
    """

    readers = (b"STATUS\t", b"DESCRIBE\t")

    _ARGUMENTS = {
        b"SUBMIT": (1, 3), b"CLAIM": (1, 2), b"START": (1, 2), b"EXTEND": (1, 3), b"COMPLETE": (1, 2), b"FAIL": (1, 2),
        b"RELEASE": (1, 2), b"STATUS": (1, 1), b"DESCRIBE": (1, 1),
    }  # fmt: skip

    def __init__(self, operations: Sequence[Operation] | None = None) -> None:
        self._shown = None if operations is None else _ShownTasks(operations)

    def informed_by(self, operations: Sequence[Operation]) -> "QueueModel":
        return QueueModel(operations)

    def initial(self) -> QueueState:
        return QueueState({}, (), 0)

    def apply(self, state: QueueState, request: bytes) -> tuple[QueueState, Any]:
        verb, *rest = request.split(b"\t")
        least, most = self._ARGUMENTS.get(verb, (1, 0))
        if not least <= len(rest) <= most or not _is_text(request):
            return state, REFUSED
        words = [word.decode() for word in rest]
        if verb == b"SUBMIT":
            return self._submit(state, *words)
        if verb == b"CLAIM":
            return self._claim(state, *words)
        if not _is_whole(words[0], 1, MAX_ID) or int(words[0]) not in state.tasks:
            return state, REFUSED
        task_id = int(words[0])
        if verb in (b"STATUS", b"DESCRIBE"):
            return state, (verb, task_id, state.tasks[task_id])
        after, answer = self._step(verb, state.tasks[task_id], *words[1:])
        return (state, REFUSED) if after is None else (state.changed(task_id, after), answer)

    def _submit(
        self, state: QueueState, payload: str, priority: str = "0", attempts: str = ""
    ) -> tuple[QueueState, Any]:
        attempts = attempts or str(ATTEMPTS)
        if not _is_whole(priority, -MAX_PRIORITY, MAX_PRIORITY) or not _is_whole(attempts, 1, MAX_ATTEMPTS):
            return state, REFUSED
        task_id = len(state.tasks) + 1
        if self._shown is not None:
            shown = self._shown.payloads.get(task_id, ())
            if shown and payload not in shown:
                return state, IMPOSSIBLE
            payload = payload if shown else ""
        return state.changed(task_id, QueuedTask(payload, int(priority), int(attempts))), b"%d" % task_id

    def _claim(self, state: QueueState, worker: str, lease: str = "") -> tuple[QueueState, Any]:
        if not worker or not _is_lease(lease) or not state.pending:
            return state, REFUSED
        task_id = state.pending[0][1]
        if self._shown is not None and not self._shown.may_have(task_id, worker):
            return state, IMPOSSIBLE
        task = state.tasks[task_id]
        task = msgspec.structs.replace(task, status="Assigned", worker=worker, attempts=task.attempts + 1)
        return state.changed(task_id, task), (b"CLAIM", task_id, task)

    def _step(self, verb: bytes, task: QueuedTask, worker: str = "", lease: str = "") -> tuple[QueuedTask | None, Any]:
        held = task.status in ("Assigned", "Running")
        again = verb == b"COMPLETE" and task.status == "Completed"
        if not (held or again) or (verb == b"START" and task.status != "Assigned"):
            return None, REFUSED
        if (worker and worker != task.worker) or (verb == b"EXTEND" and not _is_lease(lease)):
            return None, REFUSED
        if verb == b"START":
            return msgspec.structs.replace(task, status="Running"), b"OK"
        if verb == b"COMPLETE":
            return msgspec.structs.replace(task, status="Completed"), b"OK"
        if verb == b"RELEASE":
            return msgspec.structs.replace(task, status="Pending", worker=None, attempts=task.attempts - 1), b"OK"
        if verb == b"FAIL" and task.attempts < task.max_attempts:
            return msgspec.structs.replace(task, status="Pending", worker=None), b"RETRY"
        if verb == b"FAIL":
            return msgspec.structs.replace(task, status="Failed"), b"FAILED"
        return task, b"OK"

    def accepts(self, expected: Any, answer: Any) -> bool:
        if not isinstance(expected, tuple):
            return super().accepts(expected, answer)
        verb, task_id, task = expected
        wanted = {"id": task_id, "payload": task.payload, "status": task.status, "assigned_to": task.worker}
        if verb == b"DESCRIBE":
            wanted |= {"priority": task.priority, "attempts": task.attempts, "max_attempts": task.max_attempts}
        found = _json_of(answer)
        return all(name in found and found[name] == value for name, value in wanted.items())


class _ShownTasks:
    """What answers show of tasks: their payloads and workers, by id; and the tasks that may have been given back."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.payloads: dict[int, set[str]] = {}
        self._workers: dict[int, set[str]] = {}
        self._given_back: set[int] = set()
        for one in operations:
            verb, *rest = one.request.split(b"\t")
            if verb in (b"RELEASE", b"FAIL") and rest and _is_number(rest[0]):
                self._given_back.add(int(rest[0]))
            if one.returned is None or not isinstance(one.answer, bytes):
                continue
            if verb == b"SUBMIT" and _is_number(one.answer) and rest and _is_text(rest[0]):
                self.payloads.setdefault(int(one.answer), set()).add(rest[0].decode())
            elif verb in (b"CLAIM", b"STATUS", b"DESCRIBE"):
                self._add(_json_of(one.answer))

    def _add(self, task: dict[str, Any]) -> None:
        task_id, payload, worker = task.get("id"), task.get("payload"), task.get("assigned_to")
        if isinstance(task_id, int) and isinstance(payload, str):
            self.payloads.setdefault(task_id, set()).add(payload)
            if isinstance(worker, str):
                self._workers.setdefault(task_id, set()).add(worker)

    def may_have(self, task_id: int, worker: str) -> bool:
        """Tell whether a worker may have got a task: nobody else did, as far as answers show, or it went round."""
        shown = self._workers.get(task_id, ())
        return not shown or worker in shown or task_id in self._given_back


class CompositeModel(Model):
    """`CompositeStateMachine`: a model for each name, requests begin with the name and a colon."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = {name.encode(): model for name, model in models.items()}

    def part_of(self, request: bytes) -> Hashable:
        name, _, rest = request.partition(b":")
        model = self._models.get(name)
        return (name, None if model is None else model.part_of(rest))

    def informed_by(self, operations: Sequence[Operation]) -> "CompositeModel":
        name = operations[0].request.partition(b":")[0]
        if name not in self._models:
            return self
        inner = [msgspec.structs.replace(one, request=_inner(one.request)) for one in operations]
        return CompositeModel({name.decode(): self._models[name].informed_by(inner)})

    def initial(self) -> Hashable:
        return None

    def apply(self, state: Any, request: bytes) -> tuple[Hashable, Any]:
        name, colon, _ = request.partition(b":")
        model = self._models.get(name)
        if model is None or not colon:
            return state, REFUSED
        after, expected = model.apply(model.initial() if state is None else state[0], _inner(request))
        return (after,), expected if expected is IMPOSSIBLE else _Expected(model, expected)

    def changes_nothing(self, request: bytes, answer: Any) -> bool:
        model = self._models.get(request.partition(b":")[0])
        return model is None or model.changes_nothing(_inner(request), answer)

    def accepts(self, expected: Any, answer: Any) -> bool:
        if isinstance(expected, _Expected):
            return expected.model.accepts(expected.answer, answer)
        return super().accepts(expected, answer)


def _inner(request: bytes) -> bytes:
    rest = request.partition(b":")[2]
    return Query(rest) if isinstance(request, Query) else rest


class _Expected(msgspec.Struct, frozen=True, gc=False):
    """An expected answer, and the model that can compare it."""

    model: Model
    answer: Any


class MachineModel(Model):
    """Any deterministic machine as its own model: what the cluster did must be what one machine alone would have done.

    A state is a snapshot; requests that were asked as queries are `Query`. `part_of` names the part of a request (see
    `Model.part_of`). It finds what replication does wrong and not what the machine itself does wrong; a machine whose
    answers hold times needs a model of its own.
    """

    def __init__(self, factory: Callable[[], StateMachine], part_of: Callable[[bytes], Hashable] | None = None) -> None:
        self._factory = factory
        self._part_of = part_of
        self._initial = _snapshot(factory())

    def part_of(self, request: bytes) -> Hashable:
        return None if self._part_of is None else self._part_of(request)

    def initial(self) -> Hashable:
        return self._initial

    def apply(self, state: bytes, request: bytes) -> tuple[Hashable, Any]:
        machine = self._factory()
        restore_snapshot(machine, version=machine.snapshot_version, data=memoryview(state))
        try:
            if isinstance(request, Query):
                return state, machine.query(request)
            answer = machine.apply(request)
        except CommandError:
            return state, REFUSED
        return _snapshot(machine), answer


def _snapshot(machine: StateMachine) -> bytes:
    return b"".join(SnapshotSource(machine.snapshot()))


def _is_number(digits: bytes) -> bool:
    unsigned = digits[1:] if digits[:1] in (b"+", b"-") else digits
    return unsigned.isdigit() and len(digits) <= MAX_NUMBER_LENGTH


def _is_whole(digits: str, least: int, most: int) -> bool:
    return digits.isascii() and _is_number(digits.encode()) and least <= int(digits) <= most


def _is_lease(seconds: str) -> bool:
    return not seconds or _is_whole(seconds, 1, MAX_LEASE_SECONDS)


def _are_pairs(pairs: list[str]) -> bool:
    keys = [pair.partition("=")[0] for pair in pairs if "=" in pair]
    return all(keys) and len(set(keys)) == len(pairs) <= MAX_METADATA


def _canonical(metadata: object) -> str:
    return repr(sorted(metadata.items())) if isinstance(metadata, dict) else ""


def _is_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_of(answer: object) -> dict[str, Any]:
    """Read an answer that should be JSON of an object; an empty object where it is not."""
    try:
        found = msgspec.json.decode(answer) if isinstance(answer, bytes) else {}
    except msgspec.DecodeError:
        found = {}
    return found if isinstance(found, dict) else {}
