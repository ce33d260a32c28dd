"""Single commands that come together: cut into calls, in order and within limits, each answered for itself."""

import gc
import itertools
import random
import weakref
from collections.abc import Sequence

import pytest
import uvloop

from octopii.errors import NotApplied, OctopiiError, ShuttingDown, TooLarge
from octopii.node.gathering import Command, Gatherer
from octopii.node.host import LoopSink
from octopii.node.operations import Kind, kind_of_proposal, kind_of_query
from octopii.wire.call import CallLimits, CallMachine, Fail, Resolve
from octopii.wire.courier import Send
from octopii.wire.links import Connect
from octopii.wire.requests import (
    Failure,
    FailureKind,
    Propose,
    ProposeAnswers,
    ProposeSince,
    Query,
    QueryAnswers,
    Request,
    SessionOpened,
)

KINDS: list[Kind] = [None, kind_of_proposal(2), kind_of_query("linearizable"), kind_of_query("stale")]


class Heard:
    """A sink that remembers what each waiter got."""

    def __init__(self) -> None:
        self.results: dict[object, object] = {}

    def put(self, waiters: Sequence[object], results: Sequence[object]) -> None:
        """Note the results."""
        self.results.update(zip(waiters, results, strict=True))

    def fail(self, waiters: Sequence[object], errors: Sequence[BaseException]) -> None:
        """Note the exceptions."""
        self.put(waiters, errors)


class Bench:
    """A gatherer before a machine whose one node answers each command with itself."""

    def __init__(self, *, group_calls: int = 100, group_bytes: int = 1 << 20, max_pending: int = 1000) -> None:
        self.gatherer = Gatherer(group_calls=group_calls, group_bytes=group_bytes, max_pending=max_pending)
        self.machine = CallMachine(["node"], rng=random.Random(1), limits=CallLimits(group_calls=group_calls))
        self.max_command = self.max_batch = 1 << 30
        self.calls: dict[int, object] = {}
        self.requests: list[Request] = []

    def start(self) -> list[int]:
        """Begin what waits; how many commands each call has, in order."""
        before = set(self.calls)
        self.gatherer.start(self.machine, 0.0, self.calls.__setitem__)
        begun = [self.machine._calls[call_id] for call_id in self.calls if call_id not in before]
        return [len(call.commands) or len(call.carrier.template.commands) for call in begun]  # type: ignore[union-attr]

    def finish(self) -> None:
        """Have everything answered."""
        while actions := self.machine.poll(0.0):
            for action in actions:
                if isinstance(action, Connect):
                    self.machine.connected("node", node_id=1, now=0.0)
                elif isinstance(action, Send):
                    for request in action.requests:
                        self._answer(request)
                elif isinstance(action, Resolve):
                    for call_id, result in action.results:
                        self.calls.pop(call_id)(result)  # type: ignore[operator]
                elif isinstance(action, Fail):
                    self.calls.pop(action.call_id)(action.error)  # type: ignore[operator]

    def _answer(self, request: Request) -> None:
        self.requests.append(request)
        number = request.request_id
        commands = request.group.commands if isinstance(request, Propose | ProposeSince) else []
        largest, size = max(map(len, commands), default=0), sum(map(len, commands))
        if largest > self.max_command or size > self.max_batch:
            found, limit = (largest, self.max_command) if largest > self.max_command else (size, self.max_batch)
            refusal = Failure(request_id=number, kind=FailureKind.TOO_LARGE, size=found, limit=limit)
            self.machine.receive("node", refusal, 0.0)
        elif isinstance(request, Propose | ProposeSince):
            self.machine.receive("node", ProposeAnswers(number, [*request.group.commands]), 0.0)
        elif isinstance(request, Query):
            self.machine.receive("node", QueryAnswers(number, [*request.commands]), 0.0)
        else:
            self.machine.receive("node", SessionOpened(number, 7), 0.0)


def _commands(ways: Sequence[tuple[Kind, float]], sink: Heard) -> list[Command]:
    return [(kind, seconds, sink, b"command %d" % number, number) for number, (kind, seconds) in enumerate(ways)]


def test_alike_commands_are_one_call() -> None:
    """What waits at the same moment and goes one way is one call."""
    bench, sink = Bench(), Heard()
    for command in _commands([(None, 1.0)] * 50, sink):
        bench.gatherer.push(command)
    assert bench.start() == [50]
    bench.finish()
    assert sink.results == {number: b"command %d" % number for number in range(50)}


@pytest.mark.parametrize("seed", range(5))
def test_mixed_commands_are_cut_where_they_differ(seed: int) -> None:
    """Kinds and timeouts that alternate make a call of each run, in order, and everybody gets their own answer."""
    rng = random.Random(seed)
    ways = [(rng.choice(KINDS), rng.choice([1.0, 2.0])) for _ in range(200)]
    bench, sink = Bench(group_calls=200), Heard()
    for command in _commands(ways, sink):
        bench.gatherer.push(command)
    assert bench.start() == [len(list(run)) for _, run in itertools.groupby(ways)]
    bench.finish()
    assert sink.results == {number: b"command %d" % number for number in range(200)}


def test_each_sink_gets_its_own() -> None:
    """Commands of several event loops do not share a call."""
    bench, sinks = Bench(), [Heard(), Heard()]
    for number in range(6):
        bench.gatherer.push((None, 1.0, sinks[number // 3], b"%d" % number, number))
    assert bench.start() == [3, 3]
    bench.finish()
    assert [sink.results for sink in sinks] == [{n: b"%d" % n for n in half} for half in (range(3), range(3, 6))]


def test_calls_keep_to_the_bytes_of_a_group() -> None:
    """A call has at most the bytes of a group, and one command always goes."""
    bench, sink = Bench(group_bytes=100), Heard()
    for number, size in enumerate([40, 60, 1, 99, 300, 50, 50, 50]):
        bench.gatherer.push((None, 1.0, sink, bytes(size), number))
    assert bench.start() == [2, 2, 1, 2, 1]


def test_calls_keep_to_the_count_of_a_group() -> None:
    """A call has at most so many commands."""
    bench, sink = Bench(group_calls=8), Heard()
    for command in _commands([(None, 1.0)] * 20, sink):
        bench.gatherer.push(command)
    assert bench.start() == [8, 8, 4]


def test_commands_that_are_too_large_together_are_taken_apart() -> None:
    """They are nobody's batch: each is answered, and later ones are gathered to what the node takes."""
    bench, sink = Bench(), Heard()
    bench.max_batch = 1000
    for number in range(20):
        bench.gatherer.push((None, 1.0, sink, bytes(300), number))
    begun = [bench.start()]
    bench.finish()
    while bench.gatherer.waiting:
        begun.append(bench.start())
        bench.finish()
    assert begun == [[20], [10, 10], [5, 5, 5, 5], [2, 3, 2, 3, 2, 3, 2, 3]]
    assert sink.results == dict.fromkeys(range(20), bytes(300))
    for number in range(20, 26):
        bench.gatherer.push((None, 1.0, sink, bytes(300), number))
    assert bench.start() == [3, 3]


def test_only_the_command_that_is_too_large_fails() -> None:
    """Those that happened to be gathered with it are applied, and go on being gathered."""
    bench, sink = Bench(), Heard()
    bench.max_command = 100
    for number in range(8):
        bench.gatherer.push((None, 1.0, sink, bytes(200 if number == 5 else 10), number))
    bench.start()
    bench.finish()
    while bench.gatherer.waiting:
        bench.start()
        bench.finish()
    error = sink.results.pop(5)
    assert isinstance(error, TooLarge)
    assert (error.size, error.limit) == (200, 100)
    assert sink.results == {number: bytes(10) for number in range(8) if number != 5}
    for number in range(50):
        bench.gatherer.push((None, 1.0, sink, bytes(10), number))
    assert bench.start() == [50]


def test_what_was_taken_apart_fails_with_the_rest() -> None:
    """A node that stops leaves nobody waiting."""
    bench, sink = Bench(), Heard()
    bench.max_batch = 1000
    for number in range(4):
        bench.gatherer.push((None, 1.0, sink, bytes(300), number))
    bench.start()
    bench.finish()
    bench.gatherer.give_up(ShuttingDown("it stops"))
    assert [type(result) for result in sink.results.values()] == [ShuttingDown] * 4
    assert not bench.gatherer.waiting


def test_at_the_limit_on_pending_commands_the_rest_waits() -> None:
    """Beyond the limit commands wait where they are, and go when others are answered."""
    bench, sink = Bench(max_pending=30), Heard()
    for command in _commands([(None, 1.0)] * 50, sink):
        bench.gatherer.push(command)
    assert bench.start() == [30]
    assert not bench.gatherer.waiting
    assert bench.start() == []
    bench.finish()
    assert bench.gatherer.waiting
    assert bench.start() == [20]
    bench.finish()
    assert len(sink.results) == 50


def test_an_error_of_a_call_reaches_each_as_its_own() -> None:
    """Each waiter gets an exception that nobody else has, with the same fields."""
    bench, sink = Bench(), Heard()
    for command in _commands([(None, 1.0)] * 3, sink):
        bench.gatherer.push(command)
    bench.start()
    bench.machine.close("it ends")
    bench.finish()
    errors = list(sink.results.values())
    assert all(isinstance(error, ShuttingDown) and "it ends" in str(error) for error in errors)
    assert len(set(map(id, errors))) == 3


def test_a_call_that_cannot_begin_fails_at_once() -> None:
    """What the machine refuses is not pending: its waiters hear, and the room is there for others."""
    bench, sink = Bench(max_pending=3), Heard()
    bench.machine.close("it is closed")
    for command in _commands([(None, 1.0)] * 6, sink):
        bench.gatherer.push(command)
    assert bench.start() == []
    assert len(sink.results) == 6
    assert all(isinstance(error, NotApplied) for error in sink.results.values())


def test_what_waits_can_be_given_up() -> None:
    """Nothing that was pushed is left without an answer."""
    bench, sink = Bench(), Heard()
    for command in _commands([(None, 1.0), (KINDS[2], 1.0)], sink):
        bench.gatherer.push(command)
    error: OctopiiError = ShuttingDown("the node has stopped")
    bench.gatherer.give_up(error)
    assert [str(result) for result in sink.results.values()] == [str(error)] * 2
    assert not bench.gatherer.waiting


def test_what_is_wrong_with_one_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody expected reaches the commands that met it, and those behind them wait on."""
    bench, sink = Bench(), Heard()
    for command in _commands([(None, 1.0), (None, 1.0), (KINDS[2], 1.0), (None, 1.0)], sink):
        bench.gatherer.push(command)

    def refuse(*_arguments: object, **_more: object) -> int:
        raise ValueError("a fault of our own")

    with monkeypatch.context() as patch:
        patch.setattr(bench.machine, "query", refuse)
        with pytest.raises(ValueError, match="a fault of our own"):
            bench.start()
    assert isinstance(sink.results[2], ValueError)
    assert bench.start() == [1]
    bench.finish()
    assert [sink.results[number] for number in (0, 1, 3)] == [b"command 0", b"command 1", b"command 3"]


def test_a_closed_loop_is_let_go_with_what_was_to_come() -> None:
    """Results that come for a loop that has ended keep neither it nor its futures in memory."""
    loop = uvloop.new_event_loop()
    sink = LoopSink.of(loop)
    sink.put([loop.create_future()], [b"never read"])
    loop.close()
    sink.put([loop.create_future()], [b"too late"])
    gone = weakref.ref(loop)
    del loop, sink
    gc.collect()
    assert gone() is None
