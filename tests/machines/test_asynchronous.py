"""Commands as coroutines: order, completion, and what stops a replica."""

import asyncio
import gc

import pytest

from octopii.errors import CommandError, QueryNotSupported
from octopii.machines import AsyncStateMachine
from octopii.state_machine import StateMachine


class Steps(AsyncStateMachine):
    """Notes every step that its coroutines take."""

    apply_timeout = 0.05

    def __init__(self) -> None:
        self.steps: list[str] = []

    async def apply(self, command: bytes) -> bytes:
        word = command.decode()
        if word == "stuck":
            await asyncio.Event().wait()
        if word == "cancelled":
            raise asyncio.CancelledError
        if word == "refused":
            raise CommandError("no")
        if word == "crowd":
            for each in range(3):
                self.keep = asyncio.ensure_future(self.step(f"{word}{each}"))
            return b"left them running"
        await asyncio.gather(self.step(word), self.step(word.upper()))
        return b"%d" % len(self.steps)

    async def step(self, word: str) -> None:
        self.steps.append(f"{word} begins")
        await asyncio.sleep(0)
        self.steps.append(f"{word} ends")

    def snapshot(self) -> bytes:
        return "\n".join(self.steps).encode()

    def restore(self, data: memoryview) -> None:
        self.steps = bytes(data).decode().splitlines()


class Deeper(Steps):
    """Overrides a coroutine by one that awaits it."""

    async def apply(self, command: bytes) -> bytes:
        return b"deeper " + await super().apply(command)


def test_coroutines_run_to_completion_one_by_one() -> None:
    """The answer is there when `apply` returns, and nothing of a command runs beside the next."""
    steps = Steps()
    machine: StateMachine = steps
    assert machine.apply(b"a") == b"4"
    assert machine.apply(b"b") == b"8"
    assert steps.steps == [
        *("a begins", "A begins", "a ends", "A ends"),
        *("b begins", "B begins", "b ends", "B ends"),
    ]


def test_tasks_that_a_command_leaves_behind_are_waited_for() -> None:
    """A command ends when all that it started has ended."""
    steps = Steps()
    machine: StateMachine = steps
    assert machine.apply(b"crowd") == b"left them running"
    assert [step for step in steps.steps if step.endswith("ends")] == ["crowd0 ends", "crowd1 ends", "crowd2 ends"]


def test_a_subclass_awaits_what_it_overrides() -> None:
    """Within a coroutine `super().apply` is a coroutine."""
    machine: StateMachine = Deeper()
    assert machine.apply(b"a") == b"deeper 4"


def test_refusals_come_through() -> None:
    """`CommandError` is an answer as everywhere, and queries are refused unless there are some."""
    machine: StateMachine = Steps()
    with pytest.raises(CommandError, match="no"):
        machine.apply(b"refused")
    with pytest.raises(QueryNotSupported):
        machine.query(b"?")
    machine.compact()
    assert machine.apply(b"a") == b"4"


def test_a_command_that_takes_too_long_is_this_replica_s_trouble() -> None:
    """A timeout is an `OSError`, a cancellation no `Exception`: both stop the replica instead of being answers."""
    machine: StateMachine = Steps()
    with pytest.raises(TimeoutError) as stuck:
        machine.apply(b"stuck")
    assert isinstance(stuck.value, OSError)
    with pytest.raises(asyncio.CancelledError):
        machine.apply(b"cancelled")


def test_the_loop_goes_with_its_machine() -> None:
    """No event loop is left open behind a machine that is no longer used."""
    steps = Steps()
    as_others_see_it: StateMachine = steps
    as_others_see_it.apply(b"a")
    loop = steps._own_loop
    assert loop is not None
    del steps, as_others_see_it
    gc.collect()
    assert loop.is_closed()
