r"""Deferred work: what needs the outside world, or takes long, is asked for and answered through the log.

`apply` runs on every replica and again after a restart, so it must not talk to the outside: each call would be made
several times, each with another answer. Instead the state holds requests; workers outside take them, do the work as
slowly and asynchronously as they like, and hand the results in as commands. A worker beside each node that works only
while its node leads (`work_while_leading`) needs no coordination: when the leader dies, the next one's worker goes on.
Parts are separated by tabs (shown as \t).

    REQUEST\t<payload>               -> the request's id; ids count from 1
    TAKE\t<worker>                   -> JSON {"id", "payload", "token"} of a request to work on, or NONE
    FINISH\t<id>\t<token>\t<result>  -> OK, or LATE when another worker has taken or finished it since
    RESULT\t<id>                     -> JSON {"id", "status", "worker", "result"}    (as a command or as a query)

A taken request belongs to its worker for the lease time; then the next TAKE hands it out again under a new token, and
the first worker's FINISH comes too late. So the work is done at least once and its result counts once: whoever calls an
outside service should pass the id on, for it to recognise a repetition. Compaction drops requests finished more than a
day ago.

    task = asyncio.create_task(work_while_leading(node, perform=fetch, pause=lambda: asyncio.sleep(0.2)))
"""

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal, Protocol

import msgspec

from octopii.blocks import frozen, read_blocks, spans, write_blocks
from octopii.errors import CommandError, NotApplied, OutcomeUnknown
from octopii.machines.parsing import text, unknown, whole_number
from octopii.state_machine import StateMachine

LEASE_SECONDS = 30.0
"""How long a worker has for a request, unless the constructor says otherwise."""

KEEP_FINISHED_SECONDS = 24 * 3600
"""How long results are kept, unless the constructor says otherwise: a day."""

MAX_NUMBER = (1 << 63) - 1

_KIND = "deferred-work/1"
_encoder = msgspec.json.Encoder()


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request. `token` numbers the taking that holds it, 0 before the first; times in UTC seconds."""

    id: int
    payload: str
    token: int = 0
    worker: str | None = None
    taken_until: float = 0.0
    result: str | None = None
    finished_at: float | None = None

    @property
    def status(self) -> Literal["waiting", "taken", "finished"]:
        """Where the request stands; one whose lease ran out is still "taken" until it is taken again."""
        if self.finished_at is not None:
            return "finished"
        return "taken" if self.token else "waiting"

    @property
    def size(self) -> int:
        """Characters of text, as a measure of what the request weighs."""
        return len(self.payload) + len(self.worker or "") + len(self.result or "") + 64


_SHAPE = msgspec.msgpack.Decoder(tuple[int, int, list[Request]])


class Assignment(msgspec.Struct, frozen=True):
    """What TAKE answers."""

    id: int
    payload: str
    token: int


class Outcome(msgspec.Struct, frozen=True):
    """What RESULT answers."""

    id: int
    status: Literal["waiting", "taken", "finished"]
    worker: str | None
    result: str | None


class DeferredWorkStateMachine(StateMachine):
    """Requests and results by id. The two times belong to the replicated logic: the same on every node."""

    def __init__(
        self, *, lease_seconds: float = LEASE_SECONDS, keep_finished_seconds: float = KEEP_FINISHED_SECONDS
    ) -> None:
        self._lease_seconds = lease_seconds
        self._keep_finished_seconds = keep_finished_seconds
        self._requests: dict[int, Request] = {}
        self._next_id = 1
        self._tokens = 0
        self._waiting: deque[int] = deque()
        # In the order in which they were taken, which is the order in which the leases run out.
        self._taken: OrderedDict[int, None] = OrderedDict()

    def apply(self, command: bytes) -> bytes:
        """Run one command; raises `CommandError` and changes nothing for one that does not fit."""
        verb, tab, rest = command.partition(b"\t")
        if verb == b"REQUEST":
            if not tab:
                raise CommandError(r"usage: REQUEST\t<payload>")
            return self._request(text(rest))
        if verb == b"TAKE":
            if not rest:
                raise CommandError(r"usage: TAKE\t<worker>")
            return self._take(text(rest))
        if verb == b"FINISH":
            parts = rest.split(b"\t", 2)
            if len(parts) != 3:
                raise CommandError(r"usage: FINISH\t<id>\t<token>\t<result>")
            token = whole_number(text(parts[1]), name="token", least=1, most=MAX_NUMBER)
            return self._finish(self._known(parts[0]), token, text(parts[2]))
        return self.query(command)

    def query(self, command: bytes) -> bytes:
        """Answer RESULT; raises `CommandError` for anything else."""
        verb, tab, rest = command.partition(b"\t")
        if verb != b"RESULT":
            raise unknown(verb)
        if not tab:
            raise CommandError(r"usage: RESULT\t<id>")
        request = self._known(rest)
        return _encoder.encode(Outcome(request.id, request.status, request.worker, request.result))

    def _known(self, digits: bytes) -> Request:
        request = self._requests.get(whole_number(text(digits), name="id", least=1, most=MAX_NUMBER))
        if request is None:
            raise CommandError("there is no such request")
        return request

    def _request(self, payload: str) -> bytes:
        request = Request(self._next_id, payload)
        self._next_id += 1
        self._requests[request.id] = request
        self._waiting.append(request.id)
        return b"%d" % request.id

    def _take(self, worker: str) -> bytes:
        now = self.clock.now()
        oldest = next(iter(self._taken), None)
        if oldest is not None and self._requests[oldest].taken_until <= now:
            request_id = oldest
            del self._taken[request_id]
        elif self._waiting:
            request_id = self._waiting.popleft()
        else:
            return b"NONE"
        self._tokens += 1
        request = msgspec.structs.replace(
            self._requests[request_id], token=self._tokens, worker=worker, taken_until=now + self._lease_seconds
        )
        self._requests[request_id] = request
        self._taken[request_id] = None
        return _encoder.encode(Assignment(request.id, request.payload, request.token))

    def _finish(self, request: Request, token: int, result: str) -> bytes:
        if request.token != token or request.finished_at is not None:
            return b"LATE"
        del self._taken[request.id]
        self._requests[request.id] = msgspec.structs.replace(request, result=result, finished_at=self.clock.now())
        return b"OK"

    def compact(self) -> None:
        """Drop requests that were finished too long ago."""
        cutoff = self.clock.now() - self._keep_finished_seconds
        kept = (item for item in self._requests.values() if item.finished_at is None or item.finished_at >= cutoff)
        self._requests = {request.id: request for request in kept}

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Return a frozen view: requests are replaced, never changed."""
        requests = frozen(self._requests.values())
        next_id, tokens = self._next_id, self._tokens

        def size_of(start: int, end: int) -> int:
            return sum(request.size for request in requests[start:end])

        def blocks() -> Iterator[tuple[int, int, list[Request]]]:
            yield next_id, tokens, []
            for start, end in spans(len(requests), size_of):
                yield next_id, tokens, requests[start:end]

        return lambda: write_blocks(_KIND, blocks())

    def restore(self, data: memoryview) -> None:
        """Replace all requests; raises `ValueError` and changes nothing when the snapshot is not sound."""
        requests: dict[int, Request] = {}
        heads: set[tuple[int, int]] = set()
        last_id = 0
        for next_id, tokens, block in read_blocks(_KIND, data, _SHAPE):
            heads.add((next_id, tokens))
            for request in block:
                if not last_id < request.id < next_id or not 0 <= request.token <= tokens:
                    raise ValueError(f"{_KIND} snapshot has request {request.id} out of order")
                last_id = request.id
                requests[request.id] = request
        if len(heads) != 1:
            raise ValueError(f"{_KIND} snapshot has blocks that do not belong together")
        taken = sorted((item.token, item.id) for item in requests.values() if item.status == "taken")
        self._requests = requests
        self._waiting = deque(item.id for item in requests.values() if item.status == "waiting")
        self._taken = OrderedDict((request_id, None) for _, request_id in taken)
        self._next_id, self._tokens = heads.pop()


class LeadingNode(Protocol):
    """What `work_while_leading` needs of a node; `OctopiiNode` has it."""

    @property
    def id(self) -> int:
        """The node's number, which names its worker."""

    @property
    def is_leader(self) -> bool:
        """Whether the node leads."""

    async def propose(self, command: bytes) -> bytes:
        """Have a command applied."""


async def work_while_leading(
    node: LeadingNode, *, perform: Callable[[int, str], Awaitable[str]], pause: Callable[[], Awaitable[object]]
) -> None:
    """Work on requests, one after the other, whenever `node` leads, until cancelled; await `pause()` between looks.

    A call that found no leader, or whose outcome is unknown, is left to the lease. What `perform` raises goes through:
    whoever wants to go on after a failure handles it there, or hands in the failure as a result.
    """
    while True:
        worked = False
        if node.is_leader:
            try:
                worked = await work_once(node.propose, worker=f"node-{node.id}", perform=perform)
            except (NotApplied, OutcomeUnknown):
                worked = False
        if not worked:
            await pause()


async def work_once(
    propose: Callable[[bytes], Awaitable[bytes]], *, worker: str, perform: Callable[[int, str], Awaitable[str]]
) -> bool:
    """Take one request, await `perform(id, payload)`, hand in its result; False when there was nothing to do.

    `propose` is a node's or a client's. When `perform` raises, the exception goes through and the request is handed out
    again after its lease.
    """
    answer = await propose(b"TAKE\t" + worker.encode())
    if answer == b"NONE":
        return False
    assignment = msgspec.json.decode(answer, type=Assignment)
    result = await perform(assignment.id, assignment.payload)
    await propose(b"FINISH\t%d\t%d\t%b" % (assignment.id, assignment.token, result.encode()))
    return True
