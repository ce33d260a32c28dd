"""A cluster as clients see it, in one object: nodes that accept, forward, refuse, lose and die, over a lossy network.

It keeps sessions as the replicas do and notes what was really applied, so that a test can hold what a `CallMachine`
says against the truth. One seeded random generator decides everything; time is virtual.
"""

import functools
import heapq
import random
from collections import Counter
from collections.abc import Callable

from octopii.wire.call import Action, CallLimits, CallMachine, Fail, Resolve
from octopii.wire.codec import Answer, CallGroup
from octopii.wire.courier import Send
from octopii.wire.links import Connect, Disconnect, LinkLimits
from octopii.wire.requests import (
    Done,
    Failure,
    FailureKind,
    LeaderHint,
    Propose,
    ProposeAnswers,
    Query,
    QueryAnswers,
    Reply,
    Request,
    SessionOpened,
    SessionRequest,
)


class Faults:
    """How likely each trouble is, per event, from 0 to 1."""

    def __init__(self, **chances: float) -> None:
        self.refuse = self.swallow = self.lose = self.break_link = self.no_dial = self.expire = self.slow = 0.0
        for name, chance in chances.items():
            assert hasattr(self, name), name
            setattr(self, name, chance)


class ModelCluster:
    """Nodes 1..n at addresses "n1".."nn", and the events between them and one client."""

    def __init__(self, *, seed: int, nodes: int = 3) -> None:
        self.rng = random.Random(seed)
        self.faults = Faults()
        self.now = 0.0
        self.addresses = [f"n{number}" for number in range(1, nodes + 1)]
        self.leader = 1
        self.max_frame_bytes = 0
        self.applied: list[bytes] = []
        self.sent: list[tuple[str, Request]] = []
        self.outcomes: dict[int, object] = {}
        self.dials: Counter[str] = Counter()
        self.machine: CallMachine
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._links: dict[str, int] = {}  # address -> life of the connection
        self._lives = 0
        self._sessions: dict[int, dict[int, list[Answer]]] = {}
        self._acked: dict[int, int] = {}
        self._highest: dict[int, int] = {}
        self._by_nonce: dict[bytes, int] = {}
        self._index = 0

    # --- time ---------------------------------------------------------------------------------------------------

    def at(self, delay: float, event: Callable[[], None]) -> None:
        """Have something happen `delay` seconds from now."""
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))

    def run(self, until: float) -> None:
        """Let time pass, waking the machine when it asked for it."""
        turns = 0
        while True:
            turns += 1
            assert turns < 200_000, "the machine and the cluster keep each other busy for ever"
            self.carry_out(self.machine.poll(self.now))
            wake = self.machine.next_wake(self.now)
            assert wake is None or wake > self.now or wake <= self.now < until
            due = min([until, *([self._events[0][0]] if self._events else []), *([wake] if wake is not None else [])])
            if due >= until:
                self.now = until
                return
            self.now = max(self.now, due)
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            self.machine.tick(self.now)

    def carry_out(self, actions: list[Action]) -> None:
        """Do what the machine wants done."""
        for action in actions:
            if isinstance(action, Send):
                for request in action.requests:
                    self._sent(action.address, request)
            elif isinstance(action, Connect):
                self.dials[action.address] += 1
                self.at(self._delay(), functools.partial(self._dialled, action.address))
            elif isinstance(action, Disconnect):
                self._links.pop(action.address, None)
            elif isinstance(action, Resolve):
                for call_id, result in action.results:
                    assert call_id not in self.outcomes, "a call has one outcome"
                    self.outcomes[call_id] = result
            else:
                assert isinstance(action, Fail)
                assert action.call_id not in self.outcomes, "a call has one outcome"
                self.outcomes[action.call_id] = action.error

    def _delay(self) -> float:
        return self.rng.uniform(0.001, 0.02) * (200 if self._chance(self.faults.slow) else 1)

    def _chance(self, chance: float) -> bool:
        return self.rng.random() < chance

    # --- the network --------------------------------------------------------------------------------------------

    def _dialled(self, address: str) -> None:
        if self._chance(self.faults.no_dial):
            self.machine.disconnected(address, now=self.now)
            return
        self._lives += 1
        self._links[address] = self._lives
        self.machine.connected(
            address, node_id=self.node_of(address), now=self.now, max_frame_bytes=self.max_frame_bytes
        )
        self.reply(address, LeaderHint(self.leader, self.address_of(self.leader)))

    def node_of(self, address: str) -> int:
        """Number of the node that listens there."""
        return int(address[1:])

    def address_of(self, node: int) -> str:
        """Where a node listens; 0 is nobody."""
        return f"n{node}" if node else ""

    def break_link(self, address: str, life: int | None = None) -> None:
        """The connection (or the one of that `life`) breaks; nothing that is on its way arrives."""
        if address in self._links and life in (None, self._links[address]):
            del self._links[address]
            self.machine.disconnected(address, now=self.now)

    def reply(self, address: str, reply: Reply) -> None:
        """Send something to the client, if the connection lives on until it arrives."""
        life = self._links.get(address)

        def arrive() -> None:
            if life is not None and self._links.get(address) == life:
                self.machine.receive(address, reply, self.now)

        self.at(self._delay(), arrive)

    def _sent(self, address: str, request: Request) -> None:
        self.sent.append((address, request))
        life = self._links.get(address)
        assert life is not None, f"the machine wrote to {address} without a connection"
        if self._chance(self.faults.break_link):
            self.at(self._delay(), functools.partial(self.break_link, address, life))

        def arrive() -> None:
            if self._links.get(address) == life:
                self.serve(address, request)

        self.at(self._delay(), arrive)

    # --- a node -------------------------------------------------------------------------------------------------

    def serve(self, address: str, request: Request) -> None:
        """A node takes a request."""
        if self._chance(self.faults.refuse) or not self.leader:
            kind = FailureKind.NO_LEADER
            if self.leader:
                kinds = [kind, kind, FailureKind.OVERLOADED, FailureKind.SHUTTING_DOWN, FailureKind.DISK_FULL]
                kind = self.rng.choice(kinds)
            hint = self.rng.choice([0, self.leader])
            address_hint = self.address_of(hint)
            self.reply(
                address,
                Failure(request_id=request.request_id, kind=kind, leader=hint, leader_address=address_hint),
            )
            return
        if self._chance(self.faults.swallow):
            return
        if self._chance(self.faults.lose):
            failure = Failure(request_id=request.request_id, kind=FailureKind.CONNECTION_LOST)
            self.reply(address, failure)
            if self._chance(0.5):
                return
        self.at(self._delay(), lambda: self._committed(address, request))

    def _committed(self, address: str, request: Request) -> None:
        self._index += 1
        if self._chance(self.faults.expire):
            self._sessions.clear()
            self._by_nonce.clear()
        if isinstance(request, SessionRequest):
            session = self._by_nonce.setdefault(request.nonce, self._index)
            self._sessions.setdefault(session, {})
            self._acked.setdefault(session, 0)
            self._highest.setdefault(session, 0)
            self.reply(address, SessionOpened(request.request_id, session))
        elif isinstance(request, Propose):
            self.reply(address, self._apply(request.request_id, request.group))
        elif isinstance(request, Query):
            self.reply(address, QueryAnswers(request.request_id, [b"answer"] * len(request.commands)))
        else:
            self.reply(address, Done(request.request_id, self._index))

    def _apply(self, request_id: int, group: CallGroup) -> Reply:
        session = self._sessions.get(group.session)
        if session is None:
            return Failure(request_id=request_id, kind=FailureKind.SESSION_EXPIRED)
        if group.first in session:
            assert len(session[group.first]) == len(group.commands), "a retried group keeps its length"
            return ProposeAnswers(request_id, session[group.first])
        acked = self._acked[group.session] = max(self._acked[group.session], group.acked)
        for first in [first for first, answers in session.items() if first + len(answers) <= acked]:
            del session[first]
        if group.first < acked and group.first < self._highest[group.session]:
            return Failure(request_id=request_id, kind=FailureKind.OUTCOME_UNKNOWN)
        self._highest[group.session] = max(self._highest[group.session], group.first + len(group.commands))
        self.applied += group.commands
        answers: list[Answer] = [b"ok:" + command for command in group.commands]
        session[group.first] = answers
        return ProposeAnswers(request_id, answers)


class Silent(ModelCluster):
    """A cluster whose nodes answer only what the test says."""

    silent = True
    refuse_sessions: FailureKind | None = None

    def serve(self, address: str, request: Request) -> None:
        if isinstance(request, SessionRequest) and self.refuse_sessions is not None:
            self.reply(address, Failure(request_id=request.request_id, kind=self.refuse_sessions, text="no session"))
            return
        if not self.silent or isinstance(request, SessionRequest):
            super().serve(address, request)

    def fail(self, kind: FailureKind, *, leader: int = 0, **facts: str) -> None:
        """Answer the last request with a failure."""
        address, request = self.sent[-1]
        hint = self.address_of(leader)
        self.reply(
            address,
            Failure(request_id=request.request_id, kind=kind, leader=leader, leader_address=hint, **facts),  # type: ignore[arg-type]
        )

    def last(self) -> Propose:
        """The last request, which has to be a proposal."""
        request = self.sent[-1][1]
        assert isinstance(request, Propose)
        return request


LIMITS = CallLimits(try_timeout=1.0, session_ttl=100.0, links=LinkLimits(dial_timeout=0.5))


def cluster(
    *, limits: CallLimits = LIMITS, seed: int = 1, nodes: int = 3, addresses: list[str] | None = None
) -> ModelCluster:
    model = ModelCluster(seed=seed, nodes=nodes)
    model.machine = CallMachine(addresses or model.addresses, rng=random.Random(seed), limits=limits)
    return model


def silent(*, limits: CallLimits = LIMITS, nodes: int = 3) -> Silent:
    model = Silent(seed=1, nodes=nodes)
    model.machine = CallMachine(model.addresses, rng=random.Random(1), limits=limits)
    return model


def proposals(model: ModelCluster) -> list[Propose]:
    return [request for _, request in model.sent if isinstance(request, Propose)]
