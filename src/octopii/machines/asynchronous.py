"""Commands as coroutines: `async def apply`, for state machines whose code, or the libraries it calls, is async.

    class Prices(AsyncStateMachine):
        async def apply(self, command: bytes) -> bytes:
            return await self.convert(command)

Commands still come one at a time: each coroutine runs to completion, with every task that it started, on an event loop
of the machine's own and on the apply thread, before the next command begins. So awaiting saves no time here, and what
a coroutine waits for, all later commands wait for.

Beware of the outside world. `apply` runs on every replica and again whenever a log is replayed: a request that it sends
is sent several times, each may be answered differently, and then the replicas differ. Await what is deterministic, and
leave all else to a worker outside (`DeferredWorkStateMachine`).

A coroutine that takes longer than `apply_timeout`, that is cancelled, or that raises a `TimeoutError` stops this
replica (it hands leadership over, says so in its status, and tries again after a restart): whether it finished in time
is no fact that replicas could agree on.
"""

import asyncio
import functools
import inspect
import random
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar

from octopii.state_machine import Clock, StateMachine

APPLY_TIMEOUT = 30.0
"""Seconds that one command may take, unless the class says otherwise: its caller has given up by then."""


if TYPE_CHECKING:
    # To type checkers the base is anything: else no subclass could override `apply` by `async def`.
    _Base: Any = object
else:
    _Base = StateMachine


class AsyncStateMachine(_Base):  # type: ignore[misc]
    """Base class: override `apply`, and `query` and `compact` where wanted, by `async def`, the rest as usual.

    To everybody else the machine is an ordinary `StateMachine`, whose `apply(command)` returns the answer. Inside its
    own coroutines `await super().apply(command)` works as expected.
    """

    apply_timeout: ClassVar[float] = APPLY_TIMEOUT
    """Seconds after which a command, a query or a compaction counts as stuck, and raises `TimeoutError`."""

    if TYPE_CHECKING:
        clock: Clock
        rng: random.Random

    _own_loop: asyncio.AbstractEventLoop | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("apply", "query", "compact"):
            written = cls.__dict__.get(name)
            if inspect.iscoroutinefunction(written):
                setattr(cls, name, _run_to_completion(written))

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        loop = self._own_loop
        if loop is None:
            loop = self.__dict__["_own_loop"] = asyncio.new_event_loop()
            weakref.finalize(self, loop.close)
        return loop.run_until_complete(_with_all_its_tasks(coroutine, self.apply_timeout))


def _run_to_completion(written: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    @functools.wraps(written)
    def run(self: AsyncStateMachine, *args: Any) -> Any:
        coroutine = written(self, *args)
        if self._own_loop is not None and self._own_loop.is_running():
            return coroutine  # called from one of its own coroutines, which awaits it
        return self._run(coroutine)

    # The wrapper is an ordinary function; without this, `inspect` would look through it.
    del run.__wrapped__
    return run


async def _with_all_its_tasks(coroutine: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """Await the coroutine and whatever it left running, so that nothing of one command runs beside the next."""
    current = asyncio.current_task()
    try:
        async with asyncio.timeout(seconds):
            answer = await coroutine
            while others := asyncio.all_tasks() - {current}:
                await asyncio.gather(*others)
            return answer
    finally:
        left = asyncio.all_tasks() - {current}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
