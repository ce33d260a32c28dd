"""Single commands that come together, gathered into one call each.

Per-command work is what decides the speed: so a command is one tuple on its way to the node's thread, one element of a
list in the call, one slot in the answer. Commands of one kind and one timeout that wait at the same moment become one
call of `CallMachine`, up to the limits of a group; each is answered by itself.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from octopii.errors import OctopiiError, TooLarge
from octopii.node.operations import Kind, Since
from octopii.wire.call import CallMachine


class Sink(Protocol):
    """Where the results of some commands go."""

    def put(self, waiters: list[object], results: list[object]) -> None:
        """Give each waiter its result: an answer, or an exception."""
        ...


class Command(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One command on its way: what it is, how long it may take (seconds), who waits and where."""

    kind: Kind
    seconds: float
    data: bytes
    waiter: object
    sink: Sink


class Gatherer:
    """Turns waiting commands into calls. `push` may be called from any thread, all else from one."""

    def __init__(self, *, group_calls: int, group_bytes: int, max_pending: int) -> None:
        self._inbox: deque[Command] = deque()
        self._group_calls = group_calls
        self._group_bytes = group_bytes
        self._max_pending = max_pending
        self._pending = 0
        self.push = self._inbox.append

    def give_up(self, error: OctopiiError) -> None:
        """Fail whatever waits; from any thread."""
        while self._inbox:
            try:
                command = self._inbox.popleft()
            except IndexError:  # another thread was faster
                return
            deliver([command], error)

    @property
    def waiting(self) -> bool:
        """Whether commands wait to be gathered, and may be."""
        return bool(self._inbox) and self._pending < self._max_pending

    def start(self, machine: CallMachine, now: float, expect: Callable[[int, Callable[[object], None]], None]) -> None:
        """Begin calls for what waits; at the limit on pending commands the rest goes on waiting."""
        inbox = self._inbox
        while inbox and self._pending < self._max_pending:
            group = [inbox.popleft()]
            kind, seconds, size = group[0].kind, group[0].seconds, len(group[0].data)
            room = min(self._group_calls, self._max_pending - self._pending)
            while inbox and len(group) < room:
                command = inbox[0]
                size += len(command.data)
                if command.kind is not kind or command.seconds != seconds or size > self._group_bytes:
                    break
                group.append(inbox.popleft())
            self._begin(machine, group, now, expect)

    def _begin(
        self,
        machine: CallMachine,
        group: list[Command],
        now: float,
        expect: Callable[[int, Callable[[object], None]], None],
    ) -> None:
        kind, deadline = group[0].kind, now + group[0].seconds
        commands = [command.data for command in group]
        try:
            if kind is None:
                call_id = machine.propose(commands, deadline=deadline)
            elif isinstance(kind, Since):
                call_id = machine.propose(commands, deadline=deadline, since=kind.version)
            else:
                call_id = machine.query(commands, consistency=kind, deadline=deadline, now=now)
        except OctopiiError as error:
            deliver(group, error)
            return
        self._pending += len(group)
        expect(call_id, lambda result: self._finished(group, result))

    def _finished(self, group: list[Command], result: object) -> None:
        self._pending -= len(group)
        deliver(group, result)


def deliver(group: list[Command], result: object) -> None:
    """Give each command of a group its part of a list of answers, or the exception that all of them share."""
    if isinstance(result, list):
        results: list[object] = result
    else:
        assert isinstance(result, BaseException)
        results = [_again(result) for _ in group]
    sink = group[0].sink
    if all(command.sink is sink for command in group):
        sink.put([command.waiter for command in group], results)
        return
    for command, one in zip(group, results, strict=True):
        command.sink.put([command.waiter], [one])


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
