"""Single commands that come together, gathered into one call each.

Per-command work is what decides the speed: so a command is one tuple on its way to the node's thread, one element of a
list in the call, one slot in the answer. Commands of one kind and one timeout that wait at the same moment become one
call of `CallMachine`, up to the limits of a group; each is answered by itself.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import msgspec

from octopii.errors import OctopiiError, TooLarge
from octopii.node.operations import Kind, Since
from octopii.wire.call import CallMachine


class Sink(Protocol):
    """Where the results of some commands go."""

    def put(self, waiters: Sequence[object], results: Sequence[object]) -> None:
        """Give each waiter its result."""
        ...

    def fail(self, waiters: Sequence[object], errors: Sequence[BaseException]) -> None:
        """Have each waiter raise its exception."""
        ...


Command: TypeAlias = tuple[Kind, float, Sink, bytes, object]
"""One command on its way: what it is, how long it may take (seconds), where its result goes, its bytes, who waits.

A plain tuple, because each command costs one, and nothing is made faster.
"""

Expect = Callable[[int, Callable[[object], None]], None]
"""Notes who gets the result of a call, by its id."""


class Gatherer:
    """Turns waiting commands into calls. `push` may be called from any thread, all else from one."""

    def __init__(self, *, group_calls: int, group_bytes: int, max_pending: int) -> None:
        self._inbox: deque[Command] = deque()
        self._group_calls = group_calls
        self._group_bytes = group_bytes
        self._max_pending = max_pending
        self._pending = 0
        self._apart: deque[tuple[_Group, Kind, float]] = deque()  # what was too large together, with its deadline
        self.push = self._inbox.append

    def give_up(self, error: OctopiiError) -> None:
        """Fail whatever waits; from any thread."""
        while self._inbox:
            try:
                _, _, sink, _, waiter = self._inbox.popleft()
            except IndexError:  # another thread was faster
                return
            deliver(sink, [waiter], error)
        while self._apart:
            try:
                group, _, _ = self._apart.popleft()
            except IndexError:
                return
            deliver(group.sink, group.waiters, error)

    @property
    def waiting(self) -> bool:
        """Whether commands wait to be gathered, and may be."""
        return bool(self._apart) or (bool(self._inbox) and self._pending < self._max_pending)

    def start(self, machine: CallMachine, now: float, expect: Expect) -> None:
        """Begin calls for what waits; at the limit on pending commands the rest goes on waiting."""
        while self._apart:
            group, kind, deadline = self._apart.popleft()
            self._begin(machine, group, kind, deadline, now, expect)
        inbox = self._inbox
        while inbox and self._pending < self._max_pending:
            count = min(len(inbox), self._group_calls, self._max_pending - self._pending)
            taken = [inbox.popleft() for _ in range(count)]
            kinds, timeouts, sinks, commands, waiters = zip(*taken, strict=True)
            start = 0
            for end in self._cuts(kinds, timeouts, sinks, commands):
                group = _Group(sinks[start], list(commands[start:end]), waiters[start:end])
                try:
                    self._begin(machine, group, kinds[start], now + timeouts[start], now, expect)
                except BaseException as error:
                    inbox.extendleft(reversed(taken[end:]))  # whatever is wrong with these, nobody else is to wait
                    group.sink.fail(group.waiters, [error] * len(group.waiters))
                    raise
                start = end

    def _cuts(
        self,
        kinds: Sequence[Kind],
        timeouts: Sequence[float],
        sinks: Sequence[Sink],
        commands: Sequence[bytes],
    ) -> list[int]:
        """Where commands are cut into groups: each goes one way and has at most the bytes of a group."""
        if _alike(kinds) and _alike(timeouts) and _alike(sinks) and sum(map(len, commands)) <= self._group_bytes:
            return [len(commands)]
        cuts: list[int] = []
        size, way = 0, (kinds[0], timeouts[0], sinks[0])
        for at, (command, *rest) in enumerate(zip(commands, kinds, timeouts, sinks, strict=True)):
            size += len(command)
            if at and (size > self._group_bytes or tuple(rest) != way):
                cuts.append(at)
                size, way = len(command), (kinds[at], timeouts[at], sinks[at])
        return [*cuts, len(commands)]

    def _begin(
        self, machine: CallMachine, group: "_Group", kind: Kind, deadline: float, now: float, expect: Expect
    ) -> None:
        try:
            if kind is None:
                call_id = machine.propose(group.commands, deadline=deadline)
            elif isinstance(kind, Since):
                call_id = machine.propose(group.commands, deadline=deadline, since=kind.version)
            else:
                call_id = machine.query(group.commands, consistency=kind, deadline=deadline, now=now)
        except OctopiiError as error:
            deliver(group.sink, group.waiters, error)
            return
        count = len(group.waiters)
        self._pending += count

        def finished(result: object) -> None:
            self._pending -= count
            if isinstance(result, TooLarge) and count > 1:
                self._take_apart(group, kind, deadline, result)
            else:
                deliver(group.sink, group.waiters, result)

        expect(call_id, finished)

    def _take_apart(self, group: "_Group", kind: Kind, deadline: float, refusal: TooLarge) -> None:
        """Have a group go in halves: its commands are nobody's batch, so only one that is too large alone may fail."""
        if max(map(len, group.commands)) <= refusal.limit:  # else one of them is what was refused
            self._group_bytes = min(self._group_bytes, refusal.limit)
        half = len(group.commands) // 2
        for part in (slice(half), slice(half, None)):
            self._apart.append((_Group(group.sink, group.commands[part], group.waiters[part]), kind, deadline))


class _Group(msgspec.Struct, frozen=True):
    """Commands that travel as one call, and who waits for each."""

    sink: Sink
    commands: list[bytes]
    waiters: Sequence[object]


def _alike(column: Sequence[object]) -> bool:
    return column.count(column[0]) == len(column)


def deliver(sink: Sink, waiters: Sequence[object], result: object) -> None:
    """Give each of some waiters its part of a list of answers, or the exception that all of them share."""
    if isinstance(result, list):
        sink.put(waiters, result)
    else:
        assert isinstance(result, BaseException)
        sink.fail(waiters, [_again(result) for _ in waiters])


def _again(error: BaseException) -> BaseException:
    """A copy of an exception, so that each caller raises one of its own."""
    copy = type(error).__new__(type(error), *error.args)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    return copy


def check_size(command: bytes, limit: int) -> None:
    """Refuse a command that no node takes, before it is put together with others; raises `TooLarge`."""
    if len(command) > limit:
        raise TooLarge(
            f"a command of {len(command)} bytes is over max_command_bytes = {limit}", size=len(command), limit=limit
        )
