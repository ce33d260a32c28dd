"""The thread that a node lives on, and how calls get there from any event loop or thread, and back.

Both ways are batched: calls handed over while the node is busy cost one wake-up together, and so do the answers that
go back to one event loop.
"""

import asyncio
import concurrent.futures
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

import uvloop

from octopii.config import Config
from octopii.errors import CallTimeout, ShuttingDown
from octopii.node.engine import Engine
from octopii.node.gathering import Sink, check_size
from octopii.node.local_calls import Handed
from octopii.node.operations import Kind, Operation, seconds_of, value_of
from octopii.node.workers import SyncThreads
from octopii.state_machine import StateMachine, require_machine
from octopii.wire.call import CallMachine
from octopii.wire.codec import Answer

logger = logging.getLogger("octopii.node")

T = TypeVar("T")

shutdown_seconds = 5.0
"""How long an orderly shutdown may take to hand over leadership and finish what is under way."""


def settle(futures: Sequence[object], results: Sequence[object]) -> None:
    """Give futures of the loop that this runs on their results; those that were cancelled meanwhile stay so."""
    for future, result in zip(cast("Sequence[asyncio.Future[object]]", futures), results, strict=True):
        if not future.done():
            future.set_result(result)


def settle_failed(futures: Sequence[object], errors: Sequence[BaseException]) -> None:
    """Have futures of the loop that this runs on raise; those that were cancelled meanwhile stay so."""
    for future, error in zip(cast("Sequence[asyncio.Future[object]]", futures), errors, strict=True):
        if not future.done():
            future.set_exception(error)


class LoopSink:
    """Brings results back to the futures of one event loop, many at a time."""

    # Weak on both sides: what waits in a sink holds futures, and these their loop.
    _sinks: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[LoopSink]]" = weakref.WeakKeyDictionary()
    _lock = threading.Lock()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._settlements: list[Callable[[], None]] = []
        self._due = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "LoopSink":
        """The one sink of a loop."""
        with cls._lock:
            known = cls._sinks.get(loop)
            sink = known() if known is not None else None
            if sink is None:
                sink = cls(loop)
                cls._sinks[loop] = weakref.ref(sink)
            return sink

    def put(self, waiters: Sequence[object], results: Sequence[object]) -> None:
        """From the node's thread: have the futures resolved soon."""
        self._soon(partial(settle, waiters, results))

    def fail(self, waiters: Sequence[object], errors: Sequence[BaseException]) -> None:
        """From the node's thread: have the futures raise soon."""
        self._soon(partial(settle_failed, waiters, errors))

    def _soon(self, settlement: Callable[[], None]) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed():
            self._settlements.clear()  # nobody waits any more
            return
        self._settlements.append(settlement)
        if not self._due:
            self._due = True
            try:
                loop.call_soon_threadsafe(self._flush)
            except RuntimeError:  # closed between the look and the call
                self._settlements.clear()

    def _flush(self) -> None:
        self._due = False
        settlements, self._settlements = self._settlements, []
        for settlement in settlements:
            settlement()


class ThreadSink:
    """Brings results back to the futures of plain threads."""

    def put(self, waiters: Sequence[object], results: Sequence[object]) -> None:
        """From the node's thread: resolve the futures."""
        for future, result in zip(cast("Sequence[_ThreadFuture]", waiters), results, strict=True):
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    def fail(self, waiters: Sequence[object], errors: Sequence[BaseException]) -> None:
        """From the node's thread: have the futures raise."""
        for future, error in zip(cast("Sequence[_ThreadFuture]", waiters), errors, strict=True):
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


_ThreadFuture = concurrent.futures.Future[object]


def settle_one(sink: Sink, waiter: object, result: object) -> None:
    """Give one waiter its result, or have it raise."""
    if isinstance(result, BaseException):
        sink.fail([waiter], [result])
    else:
        sink.put([waiter], [result])


class Host:
    """A node's thread, from start to end. Methods may be called from any other thread."""

    def __init__(
        self, config: Config, machine: StateMachine, *, sync_threads: SyncThreads | None, skip: frozenset[int]
    ) -> None:
        if not isinstance(config, Config):
            raise TypeError(f"config is an octopii.Config, not {config!r}")
        require_machine(machine)
        self.config = config
        self._machine = machine
        self._own_threads = sync_threads is None
        self._sync_threads = sync_threads
        self._skip = skip
        self._thread: threading.Thread | None = None
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended = threading.Event()
        self._max_command_bytes = config.max_command_bytes
        self._call_timeout: float = config.call_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._engine: Engine | None = None
        self._taking: Engine | None = None  # the engine while it takes calls
        # The loop that called last, and its sink: one tuple, because several threads look at it.
        self._last: tuple[weakref.ref[asyncio.AbstractEventLoop] | None, Sink] = (None, ThreadSink())
        self._thread_sink = ThreadSink()

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> "concurrent.futures.Future[None]":
        """Start the thread; the future is done when the node listens, or has the reason why it does not."""
        if self._thread is None:
            name = f"octopii-{self.config.node_id}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        return self._started

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            else:
                logger.exception("the thread of node %d has died", self.config.node_id)
        finally:
            self._taking = None
            self._ended.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        threads = self._sync_threads or SyncThreads(1, name=f"octopii-{self.config.node_id}")
        try:
            engine = Engine(self.config, self._machine, sync_threads=threads, skip=self._skip)
            try:
                await engine.start()
            except BaseException:
                await engine.stop(0)
                raise
            self._engine = self._taking = engine
            self._started.set_result(None)
            await self._stop.wait()
            await engine.stop(shutdown_seconds)
        finally:
            if self._own_threads:
                threads.close()

    def request_stop(self) -> None:
        """Begin an orderly shutdown."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and not self._ended.is_set():
            try:
                loop.call_soon_threadsafe(stop.set)
            except RuntimeError:  # it has ended meanwhile
                return

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of the thread; False when it is not there in time."""
        return self._thread is None or self._ended.wait(timeout)

    # --- calls --------------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The running engine; raises `ShuttingDown` before the start and after the end."""
        engine = self._engine
        if engine is None or self._ended.is_set():
            raise ShuttingDown(f"node {self.config.node_id} is not running")
        if engine.failed is not None:
            raise ShuttingDown(f"node {self.config.node_id} has failed: {engine.failed}")
        return engine

    @property
    def failure(self) -> BaseException | None:
        """Why the node stopped by itself, if it did."""
        engine = self._engine
        return None if engine is None else engine.failed

    def _hand_over(
        self, operation: Operation[T], timeout: float | None, resolve: Callable[[object], None]
    ) -> list[int]:
        """Begin a call on the node's thread; the list gets its id, for cancelling."""
        seconds = self.config.call_timeout if timeout is None else seconds_of(timeout)
        started, start = list[int](), operation.start

        def begin(machine: CallMachine, now: float) -> int:
            started.append(start(machine, now, now + seconds))
            return started[0]

        self._bring(Handed(begin, resolve))
        return started

    def _bring(self, handed: Handed) -> None:
        engine = self.engine
        engine.calls.hand_over(handed)
        engine.wake_from_thread()

    async def run(self, operation: Operation[T], timeout: float | None) -> T:
        """Carry out an operation for a coroutine on any event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        sink = LoopSink.of(loop)
        started = self._hand_over(operation, timeout, partial(settle_one, sink, future))
        try:
            return operation.convert(await future)
        except asyncio.CancelledError:
            self._cancel(started)
            raise

    def begin_one(self, kind: Kind, command: bytes, timeout: float | None) -> "asyncio.Future[Answer]":
        """Begin one command for a coroutine on any event loop."""
        loop = asyncio.get_running_loop()
        last, sink = self._last
        if last is None or last() is not loop:
            sink = LoopSink.of(loop)
            self._last = (weakref.ref(loop), sink)
        future: asyncio.Future[Answer] = loop.create_future()
        self._push(kind, command, timeout, future, sink)
        return future

    def run_one_blocking(self, kind: Kind, command: bytes, timeout: float | None) -> bytes:
        """Carry out one command for a plain thread."""
        future: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        self._push(kind, command, timeout, future, self._thread_sink)
        seconds = self.config.call_timeout if timeout is None else seconds_of(timeout)
        try:
            return value_of(future.result(seconds + shutdown_seconds))
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the call's own `CallTimeout`, which is a `TimeoutError` too
            future.cancel()
            raise CallTimeout(f"node {self.config.node_id} did not answer within {seconds:g} s") from None

    def _push(self, kind: Kind, command: bytes, timeout: float | None, waiter: object, sink: Sink) -> None:
        # What the functions below look at again is looked at here first: a call less for each command can be measured.
        engine = self._taking
        if engine is None or engine.failed is not None:
            engine = self.engine  # raises what is the matter
        if len(command) > self._max_command_bytes:
            check_size(command, self._max_command_bytes)
        engine.calls.push((kind, self._call_timeout if timeout is None else seconds_of(timeout), sink, command, waiter))
        if not engine.turn_due:
            engine.wake_from_thread()

    def run_blocking(self, operation: Operation[T], timeout: float | None) -> T:
        """Carry out an operation for a plain thread."""
        future: concurrent.futures.Future[object] = concurrent.futures.Future()
        started = self._hand_over(operation, timeout, partial(settle_one, self._thread_sink, future))
        seconds = self.config.call_timeout if timeout is None else seconds_of(timeout)
        try:
            # The node answers at the deadline; should its thread have died, this is the way out.
            return operation.convert(future.result(seconds + shutdown_seconds))
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the call's own `CallTimeout`, which is a `TimeoutError` too
            self._cancel(started)
            raise CallTimeout(f"node {self.config.node_id} did not answer within {seconds:g} s") from None

    def _cancel(self, started: list[int]) -> None:
        def cancel(machine: CallMachine, _now: float) -> None:
            for call_id in started:
                machine.cancel(call_id)

        try:
            self._bring(Handed(cancel, lambda _error: None))
        except ShuttingDown:
            return

    def ask_engine(self, question: Callable[[Engine], T]) -> T:
        """Ask something of the engine, on its own thread; for facts, which take no time."""
        engine = self.engine
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def answer(_machine: CallMachine, _now: float) -> None:
            try:
                future.set_result(question(engine))
            except BaseException as error:  # noqa: BLE001  (whoever asked is told, and the node goes on)
                future.set_exception(error)

        def end(error: object) -> None:
            assert isinstance(error, BaseException)
            future.set_exception(error)

        self._bring(Handed(answer, end))
        return future.result(shutdown_seconds)
