"""The thread that a node lives on, and how calls get there from any event loop or thread, and back.

Both ways are batched: calls handed over while the node is busy cost one wake-up together, and so do the answers that
go back to one event loop.
"""

import asyncio
import concurrent.futures
import logging
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

import uvloop

from octopii.config import Config
from octopii.errors import CallTimeout, OctopiiError, ShuttingDown
from octopii.node.engine import Engine
from octopii.node.operations import Operation
from octopii.node.workers import SyncThreads
from octopii.state_machine import StateMachine
from octopii.wire.call import CallMachine

logger = logging.getLogger("octopii.node")

T = TypeVar("T")

shutdown_seconds = 5.0
"""How long an orderly shutdown may take to hand over leadership and finish what is under way."""


class LoopSink:
    """Brings results back to the futures of one event loop, many at a time."""

    _sinks: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopSink]" = weakref.WeakKeyDictionary()
    _lock = threading.Lock()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._results: list[tuple[asyncio.Future[object], object]] = []
        self._due = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "LoopSink":
        """The one sink of a loop."""
        sink = cls._sinks.get(loop)
        if sink is None:
            with cls._lock:
                sink = cls._sinks.setdefault(loop, cls(loop))
        return sink

    def put(self, future: "asyncio.Future[object]", result: object) -> None:
        """From the node's thread: have the future resolved soon."""
        self._results.append((future, result))
        if not self._due:
            self._due = True
            loop = self._loop()
            if loop is not None and not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(self._flush)
                except RuntimeError:  # closed between the look and the call: nobody waits any more
                    self._results.clear()

    def _flush(self) -> None:
        self._due = False
        results, self._results = self._results, []
        for future, result in results:
            if not future.done():
                if isinstance(result, BaseException):
                    future.set_exception(result)
                else:
                    future.set_result(result)


class Host:
    """A node's thread, from start to end. Methods may be called from any other thread."""

    def __init__(
        self, config: Config, machine: StateMachine, *, sync_threads: SyncThreads | None, skip: frozenset[int]
    ) -> None:
        self.config = config
        self._machine = machine
        self._own_threads = sync_threads is None
        self._sync_threads = sync_threads
        self._skip = skip
        self._thread: threading.Thread | None = None
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._engine: Engine | None = None

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
            self._engine = engine
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
        seconds = self.config.call_timeout if timeout is None else timeout
        engine, started, start = self.engine, list[int](), operation.start

        def begin(machine: CallMachine, now: float) -> None:
            try:
                call_id = start(machine, now, now + seconds)
            except OctopiiError as error:
                resolve(error)
                return
            started.append(call_id)
            engine.expect(call_id, resolve)

        engine.hand_over(begin)
        return started

    async def run(self, operation: Operation[T], timeout: float | None) -> T:
        """Carry out an operation for a coroutine on any event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        sink = LoopSink.of(loop)
        started = self._hand_over(operation, timeout, lambda result: sink.put(future, result))
        try:
            return operation.convert(await future)
        except asyncio.CancelledError:
            self._cancel(started)
            raise

    def run_blocking(self, operation: Operation[T], timeout: float | None) -> T:
        """Carry out an operation for a plain thread."""
        future: concurrent.futures.Future[object] = concurrent.futures.Future()

        def resolve(result: object) -> None:
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        started = self._hand_over(operation, timeout, resolve)
        seconds = self.config.call_timeout if timeout is None else timeout
        try:
            # The node answers at the deadline; should its thread have died, this is the way out.
            return operation.convert(future.result(seconds + shutdown_seconds))
        except concurrent.futures.TimeoutError:
            self._cancel(started)
            raise CallTimeout(f"node {self.config.node_id} did not answer within {seconds:g} s") from None

    def _cancel(self, started: list[int]) -> None:
        def cancel(machine: CallMachine, _now: float) -> None:
            for call_id in started:
                machine.cancel(call_id)

        try:
            self.engine.hand_over(cancel)
        except ShuttingDown:
            return

    def ask_engine(self, question: Callable[[Engine], T]) -> T:
        """Ask something of the engine, on its own thread; for facts, which take no time."""
        engine = self.engine
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def answer(_machine: CallMachine, _now: float) -> None:
            future.set_result(question(engine))

        engine.hand_over(answer)
        return future.result(shutdown_seconds)
