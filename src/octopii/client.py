"""`Client` and `BlockingClient`: calls from other processes, over the port and the TLS that nodes use.

The thinking is in `wire.call.CallMachine`; this module dials, moves bytes and wakes callers. A client needs one address
that answers; it learns the leader's and talks to that. It keeps one session, opened with its first command.
"""

import asyncio
import concurrent.futures
import json
import logging
import math
import random
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import uvloop

from octopii.config import parse_address
from octopii.errors import CallTimeout, ConfigError, OctopiiError, RefusedError, ShuttingDown
from octopii.node.gathering import Command, Gatherer
from octopii.node.host import ThreadSink, settle, settle_failed, settle_one
from octopii.node.operations import AsyncOperations, BlockingOperations, Kind, Operation, ask, seconds_of, value_of
from octopii.node.security import make_context
from octopii.node.transport import Connection, Frames, dial, explained, reason_of, unexpected
from octopii.wire import requests
from octopii.wire.call import CallLimits, CallMachine, Fail, Resolve
from octopii.wire.codec import Answer
from octopii.wire.courier import Send
from octopii.wire.frames import FrameType, encode_frame
from octopii.wire.handshake import Handshake, Hello, Refusal, Role, Standing, judge
from octopii.wire.links import Connect, Disconnect
from octopii.wire.requests import Report, decode_reply, encode_request

logger = logging.getLogger("octopii.client")

T = TypeVar("T")

default_timeout = 10.0
"""Seconds that a call may take when it names no timeout."""

dial_seconds = 5.0
"""How long connecting to a node may take."""

close_seconds = 1.0
"""How long closing waits for what is being sent."""


class ClientSettings:
    """Addresses, TLS and timeouts of a client, checked."""

    def __init__(
        self,
        addresses: Sequence[str] | str,
        *,
        tls_ca_file: str | None,
        tls_certificate_file: str | None,
        tls_key_file: str | None,
        timeout: float,
        limits: CallLimits | None,
    ) -> None:
        self.addresses = _addresses(addresses)
        files = (tls_ca_file, tls_certificate_file, tls_key_file)
        self.tls: ssl.SSLContext | None = None
        if any(files):
            if tls_ca_file is None or tls_certificate_file is None or tls_key_file is None:
                raise ConfigError("TLS needs all three files: CA, certificate and key", field="tls_ca_file")
            self.tls = make_context(
                ssl.PROTOCOL_TLS_CLIENT, ca=tls_ca_file, certificate=tls_certificate_file, key=tls_key_file
            )
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise ConfigError(f"timeout has to be a number of seconds above 0, not {timeout!r}", field="timeout")
        if limits is not None and not isinstance(limits, CallLimits):
            raise ConfigError(f"limits has to be CallLimits(...), not {limits!r}", field="limits")
        self.timeout = timeout
        self.limits = limits


def _addresses(given: Sequence[str] | str) -> list[str]:
    """The addresses one by one; raises `ConfigError` for what is none."""
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray):
        text = f'addresses has to be "host:port", or several of these (a list, or commas between), not {given!r}'
        raise ConfigError(text, field="addresses")
    addresses = given.split(",") if isinstance(given, str) else list(given)
    if not addresses:
        raise ConfigError("a client needs at least one node's address", field="addresses")
    for address in addresses:
        try:
            if not isinstance(address, str):
                raise ValueError(f'an address is "host:port", not {address!r}')
            parse_address(address)
        except ValueError as error:
            raise ConfigError(f"addresses: {error}", field="addresses") from None
    return addresses


class _Line:
    """One connection of a client to one node."""

    def __init__(self, core: "ClientCore", address: str) -> None:
        self._core = core
        self.address = address
        self.gone = asyncio.Event()
        self.connection = Connection(self, self._handshake)

    def _handshake(self, certificate: str | None) -> Handshake:
        standing = Standing(secure=self._core.settings.tls is not None, cluster_id=self._core.cluster_id)

        def rules(hello: Hello) -> Refusal | None:
            return judge(hello, standing, certificate_name=certificate)

        return Handshake(Hello(role=Role.CLIENT), rules, dialer=True)

    def opened(self, connection: Connection) -> None:
        """Nothing to do until the handshake is done."""

    def admitted(self, connection: Connection, peer: Hello) -> None:
        """The node has let us in."""
        self._core.cluster_id = self._core.cluster_id or peer.cluster_id
        self._core.connected(self, peer)

    def frames_arrived(self, connection: Connection, frames: Frames) -> None:
        """Replies."""
        replies = []
        for frame_type, payload in frames:
            if frame_type != FrameType.REPLY:
                raise unexpected(frame_type, "a client's connection")
            replies.append(decode_reply(payload))
        self._core.replied(self, replies)

    def closed(self, connection: Connection, error: BaseException | None) -> None:
        """The connection is gone."""
        self.gone.set()
        self._core.disconnected(self, error)


class ClientCore:
    """A client on one event loop."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._loop = asyncio.get_running_loop()
        self.machine = CallMachine(settings.addresses, rng=random.Random(secrets.randbits(128)), limits=settings.limits)
        self._lines: dict[str, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resolve: dict[int, Callable[[object], None]] = {}
        limits = settings.limits or CallLimits()
        self._gatherer = Gatherer(
            group_calls=limits.group_calls, group_bytes=limits.group_bytes, max_pending=limits.max_waiting_calls
        )
        self._turn_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.cluster_id = b""
        """The cluster of the first node that let this client in: it never goes on with another one."""

    # --- calls --------------------------------------------------------------------------------------------------

    def begin(self, operation: Operation[Any], seconds: float, resolve: Callable[[object], None]) -> int | None:
        """Begin a call; `resolve` gets its result or exception."""
        now = time.monotonic()
        try:
            call_id = operation.start(self.machine, now, now + seconds)
        except OctopiiError as error:
            resolve(error)
            return None
        self._resolve[call_id] = resolve
        self._wake()
        return call_id

    def push(self, command: Command) -> None:
        """Bring a single command, on this loop; those that come before the next turn go out together."""
        self._gatherer.push(command)
        self._wake()

    def cancel(self, call_id: int) -> None:
        """Nobody waits any more."""
        if self._resolve.pop(call_id, None) is not None:
            self.machine.cancel(call_id)

    def _wake(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        now = time.monotonic()
        self._gatherer.start(self.machine, now, self._expect)
        while actions := self.machine.poll(now):
            for action in actions:
                self._carry_out(action)
        if self._gatherer.waiting:
            self._wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake = self.machine.next_wake(now)
        if wake is not None:
            self._timer = self._loop.call_later(max(0.0, wake - now), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.machine.tick(time.monotonic())
        self._turn()

    def _carry_out(self, action: Connect | Disconnect | Send | Resolve | Fail) -> None:
        if isinstance(action, Send):
            line = self._lines.get(action.address)
            if line is not None:
                frames = [encode_frame(FrameType.REQUEST, encode_request(request)) for request in action.requests]
                line.connection.write(b"".join(frames))
        elif isinstance(action, Resolve):
            for call_id, result in action.results:
                self._answer(call_id, result)
        elif isinstance(action, Fail):
            self._answer(action.call_id, action.error)
        elif isinstance(action, Connect):
            task = self._loop.create_task(self._dial(action.address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            line = self._lines.pop(action.address, None)
            if line is not None:
                line.connection.close()

    def _expect(self, call_id: int, resolve: Callable[[object], None]) -> None:
        self._resolve[call_id] = resolve

    def _answer(self, call_id: int, result: object) -> None:
        resolve = self._resolve.pop(call_id, None)
        if resolve is not None:
            resolve(result)

    # --- connections --------------------------------------------------------------------------------------------

    async def _dial(self, address: str) -> None:
        line = _Line(self, address)
        self._lines[address] = line
        try:
            await dial(address, line.connection, tls=self.settings.tls, seconds=dial_seconds)
        except (OSError, ValueError) as error:
            self.disconnected(line, explained(error))

    def connected(self, line: _Line, node: Hello) -> None:
        """A node has admitted us."""
        if self._lines.get(line.address) is line:
            self.machine.connected(
                line.address, node_id=node.node_id, now=time.monotonic(), max_frame_bytes=node.max_frame_bytes
            )
            self._wake()

    def disconnected(self, line: _Line, error: BaseException | None) -> None:
        """A connection broke, was refused, or could not be made."""
        if self._lines.get(line.address) is line:
            del self._lines[line.address]
            why = reason_of(error)
            refusal = error if isinstance(error, RefusedError) else None
            self.machine.disconnected(line.address, now=time.monotonic(), why=why, refusal=refusal)
            self._wake()

    def replied(self, line: _Line, replies: list[requests.Reply]) -> None:
        """Replies of a node."""
        now = time.monotonic()
        for reply in replies:
            self.machine.receive(line.address, reply, now)
        self._wake()

    async def close(self) -> None:
        """End all calls, the session and the connections."""
        if self._closed:
            return
        self._closed = True
        self.machine.close()
        lines = list(self._lines.values())
        self._turn()
        for task in list(self._tasks):
            task.cancel()
        for line in lines:
            line.connection.close()
        leaving = [self._loop.create_task(line.gone.wait()) for line in lines]
        if leaving:
            _, late = await asyncio.wait(leaving, timeout=close_seconds)
            for waiting in late:
                waiting.cancel()
        if self._timer is not None:
            self._timer.cancel()


class _HereSink:
    """Resolves futures of the loop that the client runs on."""

    def put(self, waiters: Sequence[object], results: Sequence[object]) -> None:
        """Resolve them now."""
        settle(waiters, results)

    def fail(self, waiters: Sequence[object], errors: Sequence[BaseException]) -> None:
        """Have them raise now."""
        settle_failed(waiters, errors)


_here = _HereSink()
_threads = ThreadSink()


class Client(AsyncOperations):
    """A client for asyncio, on the event loop that first uses it.

    `addresses`: "host:port" of some nodes, or one string with commas between them. `timeout`: seconds that a call may
    take when it names none. With TLS, all three files. Raises `ConfigError`.
    """

    def __init__(
        self,
        addresses: Sequence[str] | str,
        *,
        tls_ca_file: str | None = None,
        tls_certificate_file: str | None = None,
        tls_key_file: str | None = None,
        timeout: float = default_timeout,
        limits: CallLimits | None = None,
    ) -> None:
        self._settings = ClientSettings(
            addresses,
            tls_ca_file=tls_ca_file,
            tls_certificate_file=tls_certificate_file,
            tls_key_file=tls_key_file,
            timeout=timeout,
            limits=limits,
        )
        self._core: ClientCore | None = None
        self._closed = False

    def _started(self) -> ClientCore:
        if self._closed:
            raise ShuttingDown("the client is closed")
        if self._core is None:
            self._core = ClientCore(self._settings)
        return self._core

    def _begin_one(self, kind: Kind, command: bytes, timeout: float | None) -> "asyncio.Future[Answer]":
        core = self._started()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        core.push((kind, self._settings.timeout if timeout is None else seconds_of(timeout), _here, command, future))
        return future

    async def _run(self, operation: Operation[T], timeout: float | None) -> T:
        core, future = self._started(), asyncio.get_running_loop().create_future()

        call_id = core.begin(
            operation,
            self._settings.timeout if timeout is None else seconds_of(timeout),
            partial(settle_one, _here, future),
        )
        try:
            return operation.convert(await future)
        except asyncio.CancelledError:
            if call_id is not None:
                core.cancel(call_id)
            raise

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Status of the node that this client talks to; see `node_status`."""
        return await self._run(ask(requests.StatusRequest(0), _facts), timeout)

    async def close(self) -> None:
        """End calls under way, the session and the connections."""
        self._closed = True
        if self._core is not None:
            await self._core.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class BlockingClient(BlockingOperations):
    """A client for plain threads; its connections live on a thread of their own. Arguments as for `Client`."""

    def __init__(
        self,
        addresses: Sequence[str] | str,
        *,
        tls_ca_file: str | None = None,
        tls_certificate_file: str | None = None,
        tls_key_file: str | None = None,
        timeout: float = default_timeout,
        limits: CallLimits | None = None,
    ) -> None:
        self._settings = ClientSettings(
            addresses,
            tls_ca_file=tls_ca_file,
            tls_certificate_file=tls_certificate_file,
            tls_key_file=tls_key_file,
            timeout=timeout,
            limits=limits,
        )
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._core: ClientCore | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def _start(self) -> tuple[asyncio.AbstractEventLoop, ClientCore]:
        with self._lock:
            if self._closed:
                raise ShuttingDown("the client is closed")
            if self._loop is None or self._core is None:
                ready: concurrent.futures.Future[ClientCore] = concurrent.futures.Future()
                self._loop = loop = uvloop.new_event_loop()

                def run() -> None:
                    asyncio.set_event_loop(loop)
                    loop.call_soon(begin)
                    loop.run_forever()
                    loop.close()

                def begin() -> None:
                    ready.set_result(ClientCore(self._settings))

                self._thread = threading.Thread(target=run, name="octopii-client", daemon=True)
                self._thread.start()
                self._core = ready.result()
            return self._loop, self._core

    def _run(self, operation: Operation[T], timeout: float | None) -> T:
        loop, core = self._start()
        seconds = self._settings.timeout if timeout is None else seconds_of(timeout)
        future: concurrent.futures.Future[object] = concurrent.futures.Future()
        loop.call_soon_threadsafe(core.begin, operation, seconds, partial(settle_one, _threads, future))
        try:
            return operation.convert(future.result(seconds + close_seconds))
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the call's own `CallTimeout`, which is a `TimeoutError` too
            raise CallTimeout(f"the client's thread did not answer within {seconds:g} s") from None

    def _run_one(self, kind: Kind, command: bytes, timeout: float | None) -> bytes:
        loop, core = self._start()
        seconds = self._settings.timeout if timeout is None else seconds_of(timeout)
        future: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        loop.call_soon_threadsafe(core.push, (kind, seconds, _threads, command, future))
        try:
            return value_of(future.result(seconds + close_seconds))
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the call's own `CallTimeout`, which is a `TimeoutError` too
            future.cancel()
            raise CallTimeout(f"the client's thread did not answer within {seconds:g} s") from None

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Status of the node that this client talks to; see `node_status`."""
        return self._run(ask(requests.StatusRequest(0), _facts), timeout)

    def close(self) -> None:
        """End calls under way, the session and the connections."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            loop, core, thread = self._loop, self._core, self._thread
        if loop is not None and core is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(core.close(), loop).result(2 * close_seconds)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def __enter__(self) -> "BlockingClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _facts(report: Report) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(report.body)
    return facts
