"""What users can ask of a cluster, once for asyncio and once for plain threads.

`AsyncOperations` is what `OctopiiNode` and `Client` have in common, `BlockingOperations` what `BlockingNode` and
`BlockingClient` have; the two have the same names and signatures. Each method makes an `Operation`, which says how the
call begins (`wire.call.CallMachine` carries it out) and how its result looks to the user.
"""

import asyncio
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

import msgspec

from octopii.errors import ApplyFailed, CommandError, OctopiiError, QueryNotSupported
from octopii.state_machine import as_bytes
from octopii.typed import ConsistencyName, Method
from octopii.wire import requests
from octopii.wire.call import CallMachine, unwrap
from octopii.wire.codec import Answer
from octopii.wire.requests import Consistency, Done, MemberChange, MemberOperation, Report, Request

T = TypeVar("T")
P = ParamSpec("P")

_CONSISTENCIES: dict[str, Consistency] = {
    "linearizable": Consistency.LINEARIZABLE,
    "lease": Consistency.LEASE,
    "stale": Consistency.STALE,
}


class Since(msgspec.Struct, frozen=True, gc=False):
    """A proposal that needs version `version` of the state machine."""

    version: int


Kind: TypeAlias = Consistency | Since | None
"""What a single command is: a query of some consistency, or a proposal (None: one that any version can apply)."""


class Operation(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """`start(machine, now, deadline)` returns the call's id; `convert` makes of its result what the user gets."""

    start: Callable[[CallMachine, float, float], int]
    convert: Callable[[Any], T]


def seconds_of(timeout: float) -> float:
    """A timeout, looked at: one that is no number would meet others' calls, too. Raises `TypeError`, `ValueError`."""
    if not isinstance(timeout, int | float) or isinstance(timeout, bool):
        raise TypeError(f"timeout is a number of seconds or None, not {timeout!r}")
    if math.isnan(timeout):
        raise ValueError("timeout is a number of seconds, not NaN")
    return timeout


def value_of(answer: Answer) -> bytes:
    """What a single call returns for an answer; raises what it raises."""
    if type(answer) is bytes:
        return answer
    found = unwrap(answer)
    if isinstance(found, bytes):
        return found
    raise found


def _fetch(index: int, position: int) -> requests.FetchSnapshot:
    return requests.FetchSnapshot(request_id=0, index=index, position=position)


def _part(part: requests.SnapshotPart) -> requests.SnapshotPart:
    return part


def _index(done: Done) -> int:
    return done.index


def _nothing(_done: Done) -> None:
    return None


def _facts(report: Report) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(report.body)
    return facts


def _unwrapped(answer: Answer) -> bytes | CommandError | ApplyFailed:
    found = unwrap(answer)
    assert not isinstance(found, QueryNotSupported)
    return found


@functools.cache
def kind_of_proposal(since: int) -> Since | None:
    """A proposal that needs a version; raises `ValueError`. One object each, so that equal kinds are told by `is`."""
    if type(since) is not int or since < 1:
        raise ValueError(f"since is a version of the state machine, from 1 on, not {since!r}")
    return Since(since) if since > 1 else None


def propose_batch(commands: Sequence[bytes | str], since: int) -> Operation[list[bytes | CommandError | ApplyFailed]]:
    """Replicate commands in one entry."""
    batch = [as_bytes(command) for command in commands]
    kind_of_proposal(since)
    return Operation(
        lambda machine, _now, deadline: machine.propose(batch, deadline=deadline, since=since),
        lambda answers: [_unwrapped(answer) for answer in answers],
    )


def kind_of_query(consistency: str) -> Consistency:
    """The level that a name stands for; raises `ValueError`."""
    level = _CONSISTENCIES.get(consistency)
    if level is None:
        raise ValueError(f"consistency is one of {', '.join(_CONSISTENCIES)}, not {consistency!r}")
    return level


def kind_of_call(method: Method[..., Any]) -> Kind:
    """How a call of a typed method travels."""
    if not isinstance(method, Method):
        raise TypeError(f"call takes a @command or a @query of a class, as in `Inventory.reserve`, not {method!r}")
    return kind_of_query(method.consistency) if method.is_query else kind_of_proposal(method.since)


def result_of(method: Method[..., T], answer: bytes) -> T:
    """The result that an answer holds; raises `OctopiiError` when it is another program's, with another type."""
    try:
        return method.decode(answer)
    except msgspec.DecodeError as error:
        did = "answered" if method.is_query else "was applied"
        raise OctopiiError(
            f"{method.name} {did}, and its answer does not fit the type of the result: {error}"
        ) from None


def ask(request: Request, convert: Callable[[Any], T]) -> Operation[T]:
    """Anything else."""
    return Operation(lambda machine, _now, deadline: machine.ask(request, deadline=deadline), convert)


def add_learner(node_id: int, address: str) -> MemberChange:
    """A step for `change_membership`: bring in a new member that does not vote yet."""
    return MemberChange(operation=MemberOperation.ADD_LEARNER, node_id=node_id, address=address)


def promote_learner(node_id: int) -> MemberChange:
    """A step for `change_membership`: let a learner vote."""
    return MemberChange(operation=MemberOperation.PROMOTE, node_id=node_id)


def remove_node(node_id: int) -> MemberChange:
    """A step for `change_membership`: remove a member."""
    return MemberChange(operation=MemberOperation.REMOVE, node_id=node_id)


class AsyncOperations:
    """Calls for asyncio. All take `timeout` in seconds (None: `call_timeout` of the settings)."""

    _begin_one: Callable[[Kind, bytes, float | None], "asyncio.Future[Answer]"]
    """Begins one proposal or query; those that come together share an entry, or a read."""

    async def _run(self, operation: Operation[T], timeout: float | None) -> T:
        raise NotImplementedError

    async def propose(self, command: bytes | str, *, since: int = 1, timeout: float | None = None) -> bytes:
        """Replicate one command and return what `apply` returned, applied exactly once.

        `since` is the `command_version` of the machine that the command needs: `VersionNotActive` until it is active.
        Raises `CommandError` or `ApplyFailed` (the machine's answer), a `NotApplied` (it will never count), or an
        `OutcomeUnknown` (it may count, at most once). Cancelling leaves the outcome unknown.
        """
        data = command if type(command) is bytes else as_bytes(command)
        answer = await self._begin_one(
            None if type(since) is int and since == 1 else kind_of_proposal(since), data, timeout
        )
        return answer if type(answer) is bytes else value_of(answer)

    async def propose_batch(
        self, commands: Sequence[bytes | str], *, since: int = 1, timeout: float | None = None
    ) -> list[bytes | CommandError | ApplyFailed]:
        """Replicate commands in one log entry: all or none, applied consecutively, one answer each. Raises likewise."""
        return await self._run(propose_batch(commands, since), timeout)

    async def query(
        self, command: bytes | str, *, consistency: ConsistencyName = "linearizable", timeout: float | None = None
    ) -> bytes:
        """Ask the state machine, from any node. Raises `QueryNotSupported`, `CommandError`, a `NotApplied`, ..."""
        data = command if type(command) is bytes else as_bytes(command)
        answer = await self._begin_one(kind_of_query(consistency), data, timeout)
        return answer if type(answer) is bytes else value_of(answer)

    async def call(self, method: Method[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a `@command` or a `@query` of a typed machine, taken from its class; returns the method's result.

        Raises `TypeError` for arguments that do not fit, and nothing has happened then; the errors that the class
        declares; `VersionNotActive`; else as `propose` and `query` do. Timeout and consistency: `method.options(...)`.
        """
        kind = kind_of_call(method)
        try:
            answer = value_of(await self._begin_one(kind, method.encode(*args, **kwargs), method.timeout))
        except CommandError as error:
            raise method.error(error) from None
        return result_of(method, answer)

    async def read_index(self, *, timeout: float | None = None) -> int:
        """A log index that covers every call acknowledged before, in the whole cluster (Raft thesis, section 6.4)."""
        return await self._run(ask(requests.ReadIndex(0), _index), timeout)

    async def transfer_leader(self, node_id: int, *, timeout: float | None = None) -> None:
        """Hand leadership to a voter; returns when it leads."""
        await self._run(ask(requests.TransferLeader(0, node_id), _nothing), timeout)

    async def add_learner(self, node_id: int, address: str, *, timeout: float | None = None) -> None:
        """Bring in a member that is sent the log and does not vote."""
        await self.change_membership([add_learner(node_id, address)], timeout=timeout)

    async def promote_learner(self, node_id: int, *, timeout: float | None = None) -> None:
        """Let a learner vote; see `is_learner_caught_up` first."""
        await self.change_membership([promote_learner(node_id)], timeout=timeout)

    async def remove_node(self, node_id: int, *, timeout: float | None = None) -> None:
        """Remove a member, the leader included; its id is never used again."""
        await self.change_membership([remove_node(node_id)], timeout=timeout)

    async def change_membership(self, changes: Sequence[MemberChange], *, timeout: float | None = None) -> None:
        """Change several members as one step, by joint consensus (Raft paper, section 6)."""
        await self._run(ask(requests.ChangeMembership(0, list(changes)), _nothing), timeout)

    async def update_peer_addr(self, node_id: int, address: str, *, timeout: float | None = None) -> None:
        """Say where a member listens from now on ("host:port")."""
        await self._run(ask(requests.ChangeAddress(request_id=0, node_id=node_id, address=address), _nothing), timeout)

    async def peer_progress(self, node_id: int, *, timeout: float | None = None) -> dict[str, Any]:
        """How far a member's log is, as the leader knows it: `match`, `last`, `lag` (entries), `caught_up`, ..."""
        return await self._run(ask(requests.PeerProgressRequest(0, node_id), _facts), timeout)

    async def is_learner_caught_up(self, node_id: int, *, timeout: float | None = None) -> bool:
        """Whether a learner has what was committed a moment ago, so that promoting it stalls nothing."""
        return bool((await self.peer_progress(node_id, timeout=timeout))["caught_up"])

    async def force_snapshot(self, *, timeout: float | None = None) -> int:
        """Take a snapshot on the node that is asked; returns its log index once it is durable."""
        return await self._run(ask(requests.ForceSnapshot(0), _index), timeout)

    async def fetch_snapshot(
        self, *, index: int = 0, position: int = 0, timeout: float | None = None
    ) -> requests.SnapshotPart:
        """A part of the node's snapshot at `index` (0: the newest) from byte `position`; `NotApplied` without one."""
        return await self._run(ask(_fetch(index, position), _part), timeout)

    async def force_snapshot_to_peer(self, node_id: int, *, timeout: float | None = None) -> None:
        """Have the leader send a member its newest snapshot."""
        await self._run(ask(requests.ForceSnapshotToPeer(0, node_id), _nothing), timeout)

    async def compact(self, *, timeout: float | None = None) -> int:
        """Run `compact` on every replica, through the log; returns the entry's index."""
        return await self._run(ask(requests.CompactRequest(0), _index), timeout)

    async def campaign(self, *, timeout: float | None = None) -> None:
        """Have the node that is asked stand for election."""
        await self._run(ask(requests.Campaign(0), _nothing), timeout)

    async def node_status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Status of the node that is asked: role, term, members, disk, warnings and so on."""
        return await self._run(ask(requests.StatusRequest(0), _facts), timeout)


class BlockingOperations:
    """The same calls for plain threads: each blocks until it has its answer."""

    def _run(self, operation: Operation[T], timeout: float | None) -> T:
        raise NotImplementedError

    def _run_one(self, kind: Kind, command: bytes, timeout: float | None) -> bytes:
        """See `AsyncOperations._run_one`."""
        raise NotImplementedError

    def propose(self, command: bytes | str, *, since: int = 1, timeout: float | None = None) -> bytes:
        """See `AsyncOperations.propose`."""
        return self._run_one(kind_of_proposal(since), as_bytes(command), timeout)

    def propose_batch(
        self, commands: Sequence[bytes | str], *, since: int = 1, timeout: float | None = None
    ) -> list[bytes | CommandError | ApplyFailed]:
        """See `AsyncOperations.propose_batch`."""
        return self._run(propose_batch(commands, since), timeout)

    def query(
        self, command: bytes | str, *, consistency: ConsistencyName = "linearizable", timeout: float | None = None
    ) -> bytes:
        """See `AsyncOperations.query`."""
        return self._run_one(kind_of_query(consistency), as_bytes(command), timeout)

    def call(self, method: Method[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """See `AsyncOperations.call`."""
        kind = kind_of_call(method)
        try:
            answer = self._run_one(kind, method.encode(*args, **kwargs), method.timeout)
        except CommandError as error:
            raise method.error(error) from None
        return result_of(method, answer)

    def read_index(self, *, timeout: float | None = None) -> int:
        """See `AsyncOperations.read_index`."""
        return self._run(ask(requests.ReadIndex(0), _index), timeout)

    def transfer_leader(self, node_id: int, *, timeout: float | None = None) -> None:
        """See `AsyncOperations.transfer_leader`."""
        self._run(ask(requests.TransferLeader(0, node_id), _nothing), timeout)

    def add_learner(self, node_id: int, address: str, *, timeout: float | None = None) -> None:
        """See `AsyncOperations.add_learner`."""
        self.change_membership([add_learner(node_id, address)], timeout=timeout)

    def promote_learner(self, node_id: int, *, timeout: float | None = None) -> None:
        """See `AsyncOperations.promote_learner`."""
        self.change_membership([promote_learner(node_id)], timeout=timeout)

    def remove_node(self, node_id: int, *, timeout: float | None = None) -> None:
        """See `AsyncOperations.remove_node`."""
        self.change_membership([remove_node(node_id)], timeout=timeout)

    def change_membership(self, changes: Sequence[MemberChange], *, timeout: float | None = None) -> None:
        """See `AsyncOperations.change_membership`."""
        self._run(ask(requests.ChangeMembership(0, list(changes)), _nothing), timeout)

    def update_peer_addr(self, node_id: int, address: str, *, timeout: float | None = None) -> None:
        """See `AsyncOperations.update_peer_addr`."""
        self._run(ask(requests.ChangeAddress(request_id=0, node_id=node_id, address=address), _nothing), timeout)

    def peer_progress(self, node_id: int, *, timeout: float | None = None) -> dict[str, Any]:
        """See `AsyncOperations.peer_progress`."""
        return self._run(ask(requests.PeerProgressRequest(0, node_id), _facts), timeout)

    def is_learner_caught_up(self, node_id: int, *, timeout: float | None = None) -> bool:
        """See `AsyncOperations.is_learner_caught_up`."""
        return bool(self.peer_progress(node_id, timeout=timeout)["caught_up"])

    def force_snapshot(self, *, timeout: float | None = None) -> int:
        """See `AsyncOperations.force_snapshot`."""
        return self._run(ask(requests.ForceSnapshot(0), _index), timeout)

    def fetch_snapshot(
        self, *, index: int = 0, position: int = 0, timeout: float | None = None
    ) -> requests.SnapshotPart:
        """See `AsyncOperations.fetch_snapshot`."""
        return self._run(ask(_fetch(index, position), _part), timeout)

    def force_snapshot_to_peer(self, node_id: int, *, timeout: float | None = None) -> None:
        """See `AsyncOperations.force_snapshot_to_peer`."""
        self._run(ask(requests.ForceSnapshotToPeer(0, node_id), _nothing), timeout)

    def compact(self, *, timeout: float | None = None) -> int:
        """See `AsyncOperations.compact`."""
        return self._run(ask(requests.CompactRequest(0), _index), timeout)

    def campaign(self, *, timeout: float | None = None) -> None:
        """See `AsyncOperations.campaign`."""
        self._run(ask(requests.Campaign(0), _nothing), timeout)

    def node_status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """See `AsyncOperations.node_status`."""
        return self._run(ask(requests.StatusRequest(0), _facts), timeout)
