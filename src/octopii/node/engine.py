"""What runs on a node's own thread: a replica, its connections, and the calls of this process.

One *turn* takes everything that has arrived (messages, requests, finished syncs and jobs, calls handed over from other
threads), lets the replica think once, and carries out what it wants: one write per connection, one wake-up per thread.
Turns are scheduled by whoever brings something; however much arrives before the turn runs, there is one turn.

Ticks are counted by the clock that goes on while the machine sleeps. A tick that comes late because this process was
stopped first lets the sockets be read, and counts once: silence that was our own is no reason for an election.
"""

import asyncio
import collections
import logging
import random
import secrets
import sys
import time
from collections.abc import Callable

import msgspec

from octopii.config import Config
from octopii.errors import OctopiiError, RefusedError, ShuttingDown
from octopii.node.gathering import Gatherer
from octopii.node.peers import PeerLinks
from octopii.node.security import client_context, server_context
from octopii.node.server import Server, encode_replies
from octopii.node.transport import Connection
from octopii.node.workers import ApplyThread, SyncThreads
from octopii.replica.applier import Applier
from octopii.replica.founding import facts_of
from octopii.replica.jobs import Result
from octopii.replica.replica import Replica
from octopii.replica.work import Origin, PeerOutput, Work
from octopii.state_machine import StateMachine
from octopii.walrus import SyncTicket
from octopii.walrus.vfs import RealFileSystem
from octopii.wire.call import CallLimits, CallMachine, Fail, Resolve
from octopii.wire.courier import Send
from octopii.wire.frames import WireError
from octopii.wire.handshake import Handshake, Hello, Refusal, Role, judge
from octopii.wire.links import Connect, Disconnect, LinkLimits
from octopii.wire.requests import Failure, LeaderHint, Reply, Request

logger = logging.getLogger("octopii.node")

LOCAL = "this node"
"""Where this process's own calls go: the replica beside them."""

slow_sync_seconds = 0.5
"""A sync that takes longer is logged."""

Handed = Callable[[CallMachine, float], None]
"""A call of this process, brought to the machine at the next turn."""


def clock() -> float:
    """Monotonic seconds that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class Engine:
    """See the module's text. Everything but `hand_over` belongs to the loop's thread."""

    def __init__(
        self, config: Config, machine: StateMachine, *, sync_threads: SyncThreads, skip: frozenset[int]
    ) -> None:
        self.config = config
        self._loop = asyncio.get_running_loop()
        self._rng = random.Random(secrets.randbits(128))
        self._tls_server, self._tls_client = server_context(config), client_context(config)
        now = clock()
        self.replica = Replica(
            config,
            vfs=RealFileSystem(),
            rng=self._rng,
            now=now,
            wall=time.time_ns(),
            random_id=secrets.token_bytes(16),
        )
        self.applier = Applier(machine, timer=time.perf_counter, skip_indexes=skip)
        self._apply = ApplyThread(
            self.applier,
            self.replica.snapshots,
            name=f"octopii-{config.node_id}",
            deliver=lambda results: self._from_thread(lambda: self._jobs_done(results)),
            died=lambda error: self._from_thread(lambda: self.fail(error)),
        )
        self._sync_threads = sync_threads
        self.calls = CallMachine([LOCAL], rng=self._rng, limits=_local_limits(config))
        self._inbox: collections.deque[Handed] = collections.deque()
        limits = _local_limits(config)
        self.gatherer = Gatherer(
            group_calls=limits.group_calls, group_bytes=limits.group_bytes, max_pending=config.max_pending_calls
        )
        self._resolve: dict[int, Callable[[object], None]] = {}
        self._turn_due = False
        self._in_turn = False
        self._clients: set[Connection] = set()
        self._told_leader = (0, "")
        self._introduced_empty = self.replica.identity.empty
        self.server = Server(
            config, self, tls=self._tls_server, handshake=lambda name: self._handshake(name, Role.NODE, 0)
        )
        self.links = PeerLinks(
            config,
            tls=self._tls_client,
            rng=self._rng,
            handshake=self._handshake_as_dialer,
            address_of=self._address_of,
            link_up=self._link_up,
            link_down=self._link_down,
            refused=self._refused,
        )
        self.address = config.advertised_addr
        self._seen_addresses: dict[int, str] = {}
        self._next_tick = now + config.tick_interval
        self._tick_timer: asyncio.TimerHandle | None = None
        self._wake_timer: asyncio.TimerHandle | None = None
        self._sync_began = 0.0
        self._syncing = False
        self._closing = False
        self.failed: BaseException | None = None
        self._changed = asyncio.Event()

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, restore what is on disk, and begin."""
        bound = await self.server.listen()
        if self.config.advertised_addr.endswith(":0"):
            self.address = bound
        self._tick_timer = self._loop.call_later(self.config.tick_interval, self._tick_due)
        self._keep_links()
        self.turn()

    async def stop(self, patience: float) -> None:
        """Hand leadership over, finish what is under way, close everything. Takes `patience` seconds at most."""
        self._closing = True
        deadline = clock() + patience
        leads = self.failed is None and self.replica.leadership.is_leader
        if leads and self.replica.upkeep.hand_over("it is shutting down"):
            self.turn()
            await self._until(lambda: not self.replica.leadership.is_leader, deadline)
        for timer in (self._tick_timer, self._wake_timer):
            if timer is not None:
                timer.cancel()
        self.calls.close()
        self._carry_out_calls()
        self.links.close()
        await self.server.close()
        await self._until(lambda: not self._syncing, deadline)
        await self._loop.run_in_executor(None, self._apply.stop)
        self._closing = True
        self.replica.close()

    async def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        """Wait for something that changes with turns; no longer than the deadline."""
        try:
            async with asyncio.timeout(max(0.0, deadline - clock())):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def fail(self, error: BaseException) -> None:
        """Something that must not happen has happened: the node stops taking part, and says so."""
        if self.failed is None:
            self.failed = error
            logger.critical("node %d has failed: %s: %s", self.config.node_id, type(error).__name__, error)
            failure = error if isinstance(error, OctopiiError) else ShuttingDown(f"the node has failed: {error}")
            for call_id in list(self._resolve):
                self._resolve.pop(call_id)(failure)
            self.links.close()
            self.server.shut()  # whoever waits here for an answer has to turn to another node
            self._notify()

    # --- from other threads -------------------------------------------------------------------------------------

    def hand_over(self, handed: Handed) -> None:
        """Bring a call from any thread; many that come before the next turn cost one wake-up."""
        self._inbox.append(handed)
        self.wake_from_thread()

    def wake_from_thread(self) -> None:
        """Have a turn soon, from any thread."""
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon_threadsafe(self.turn)

    def _from_thread(self, function: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def expect(self, call_id: int, resolve: Callable[[object], None]) -> None:
        """Have `resolve` called with the result, or the exception, of a call."""
        self._resolve[call_id] = resolve

    # --- turns --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have a turn soon."""
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self.turn)

    def turn(self) -> None:
        """Think once, and carry out what follows."""
        self._turn_due = False
        if self.failed is not None or self._in_turn:
            return
        self._in_turn = True
        try:
            now = clock()
            self.replica.advance_clock(now, time.time_ns())
            while self._inbox:
                self._inbox.popleft()(self.calls, now)
            self.gatherer.start(self.calls, now, self.expect)
            self._carry_out_calls()
            while work := self.replica.poll():
                self._carry_out(work, now)
                self._carry_out_calls()
            if self.gatherer.waiting:
                self.wake()
            self._schedule_wake(now)
            self._introduce_anew()
            self._tell_leader()
        except BaseException as error:
            logger.exception("node %d cannot go on", self.config.node_id)
            self.fail(error)
        finally:
            self._in_turn = False

    def _carry_out(self, work: Work, now: float) -> None:
        for peer, outputs in work.messages.items():
            self.links.send(peer, outputs, now)
        if work.jobs:
            self._apply.submit(work.jobs)
        if work.sync is not None:
            self._sync_began, self._syncing = now, True
            self._sync_threads.submit(
                work.sync, lambda ticket, error: self._from_thread(lambda: self._sync_done(ticket, error))
            )
        if work.replies:
            self._reply(work.replies, now)

    def _reply(self, replies: list[tuple[Origin, Reply]], now: float) -> None:
        remote: dict[Connection, list[Reply]] = {}
        for origin, reply in replies:
            if origin == LOCAL:
                if isinstance(reply, Failure) and reply.leader_address:
                    reply = msgspec.structs.replace(reply, leader_address="")
                self.calls.receive(LOCAL, reply, now)
            elif isinstance(origin, Connection):
                remote.setdefault(origin, []).append(reply)
        for connection, its_replies in remote.items():
            self._write_replies(connection, its_replies)

    def _write_replies(self, connection: Connection, replies: list[Reply]) -> None:
        connection.write(b"".join(encode_replies(replies)))
        if connection.unsent_bytes > self.config.client_queue_bytes:
            connection.pause_reading()
            self._loop.call_later(self.config.tick_interval, self._maybe_resume, connection)

    def _maybe_resume(self, connection: Connection) -> None:
        if connection.unsent_bytes <= self.config.client_queue_bytes // 2:
            connection.resume_reading()
        elif connection.is_open:
            self._loop.call_later(self.config.tick_interval, self._maybe_resume, connection)

    def _carry_out_calls(self) -> None:
        """Let this process's calls move: requests go to the replica at once, results to whoever waits."""
        now = clock()
        while actions := self.calls.poll(now):
            for action in actions:
                if isinstance(action, Send):
                    for request in action.requests:
                        self.replica.request(LOCAL, request)
                elif isinstance(action, Resolve):
                    for call_id, result in action.results:
                        self._answer(call_id, result)
                elif isinstance(action, Fail):
                    self._answer(action.call_id, action.error)
                elif isinstance(action, Connect):
                    self.calls.connected(LOCAL, node_id=self.config.node_id, now=now)
                else:
                    assert isinstance(action, Disconnect)

    def _answer(self, call_id: int, result: object) -> None:
        resolve = self._resolve.pop(call_id, None)
        if resolve is not None:
            resolve(result)

    def _schedule_wake(self, now: float) -> None:
        """Wake for this process's calls: deadlines, delays."""
        wake = self.calls.next_wake(now)
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None
        if wake is not None:
            self._wake_timer = self._loop.call_later(max(0.0, wake - now), self._wake_calls)

    def _wake_calls(self) -> None:
        self.calls.tick(clock())
        self.turn()

    # --- time ---------------------------------------------------------------------------------------------------

    def _tick_due(self) -> None:
        late = clock() - self._next_tick
        if late > self.config.tick_interval:
            # This process, or the machine, stood still: what has arrived meanwhile is read before time passes.
            self._tick_timer = self._loop.call_later(0.001, self._tick)
        else:
            self._tick()

    def _tick(self) -> None:
        now = clock()
        self._next_tick = max(self._next_tick + self.config.tick_interval, now + self.config.tick_interval / 2)
        self._tick_timer = self._loop.call_later(self._next_tick - now, self._tick_due)
        if self.failed is None:
            try:
                self.replica.tick(now, time.time_ns())
            except BaseException as error:
                logger.exception("node %d cannot go on", self.config.node_id)
                self.fail(error)
                return
            self.links.tick(now)
            self._keep_links()
            self.turn()

    # --- completions --------------------------------------------------------------------------------------------

    def _sync_done(self, ticket: SyncTicket, error: BaseException | None) -> None:
        took = clock() - self._sync_began
        self._syncing = False
        self._notify()
        if took > slow_sync_seconds:
            logger.warning("node %d: a sync of the log took %.1f s", self.config.node_id, took)
        try:
            self.replica.sync_done(ticket)
        except BaseException as raised:  # noqa: BLE001  (a failed sync poisons the log: the node cannot go on)
            self.fail(error or raised)
            return
        self.turn()

    def _jobs_done(self, results: list[Result]) -> None:
        if self.failed is None:
            try:
                for result in results:
                    self.replica.job_done(result)
            except BaseException as error:
                logger.exception("node %d cannot go on", self.config.node_id)
                self.fail(error)
                return
            self.turn()
            self._notify()

    # --- the server's service -----------------------------------------------------------------------------------

    def peer_said(self, peer: int, outputs: list[PeerOutput]) -> None:
        """Messages of another node. Only a `WireError` is the peer's fault; a log that fails, say, is this node's."""
        receive = self.replica.receive
        try:
            for output in outputs:
                receive(peer, output)
        except WireError:
            raise
        except BaseException as error:
            logger.exception("node %d cannot go on", self.config.node_id)
            self.fail(error)
        self.wake()

    def peer_arrived(self, hello: Hello) -> None:
        """Another node has connected: it is dialled as well, at the address that it names."""
        if hello.address:
            self._seen_addresses[hello.node_id] = hello.address
        self.replica.joining.met(facts_of(hello))
        self._keep_links()
        self.wake()

    def client_arrived(self, connection: Connection) -> None:
        """A client has connected."""
        self._clients.add(connection)
        leadership = self.replica.leadership
        self._write_replies(connection, [LeaderHint(leadership.leader, leadership.leader_address)])

    def client_asked(self, connection: Connection, requests: list[Request]) -> None:
        """Requests of a client."""
        for request in requests:
            self.replica.request(connection, request)
        self.wake()

    def client_left(self, connection: Connection) -> None:
        """A client is gone; what it asked for may still happen."""
        self._clients.discard(connection)

    def _introduce_anew(self) -> None:
        """Peers know this node as one without a cluster: once it has one, they have to hear of it."""
        if self._introduced_empty != self.replica.identity.empty:
            self._introduced_empty = self.replica.identity.empty
            self.links.introduce_anew()

    def _tell_leader(self) -> None:
        leadership = self.replica.leadership
        now_leads = (leadership.leader, leadership.leader_address)
        if now_leads != self._told_leader:
            self._told_leader = now_leads
            for connection in self._clients:
                self._write_replies(connection, [LeaderHint(*now_leads)])
            self._notify()

    # --- peers --------------------------------------------------------------------------------------------------

    def _handshake(self, certificate: str | None, role: Role, target: int, *, dialer: bool = False) -> Handshake:
        def rules(hello: Hello) -> Refusal | None:
            standing = self.replica.standing(secure=self.config.uses_tls)
            return judge(hello, standing, certificate_name=certificate, expected=target)

        hello = self.replica.hello(role, target=target, python_minor=sys.version_info.minor)
        hello = msgspec.structs.replace(hello, address=self.address)
        return Handshake(hello, rules, dialer=dialer, max_frame_bytes=self.config.max_frame_bytes)

    def _handshake_as_dialer(self, certificate: str | None, role: Role, target: int) -> Handshake:
        return self._handshake(certificate, role, target, dialer=True)

    def _address_of(self, peer: int, attempt: int) -> str:
        """Where to dial a peer: what the log says, what it says itself, and what the settings say, in turn."""
        known = [
            self.replica.peer_addresses.get(peer, ""),
            self._seen_addresses.get(peer, ""),
            self.config.peers.get(peer, ""),
        ]
        addresses = list(dict.fromkeys(address for address in known if address))
        return addresses[(attempt - 1) % len(addresses)] if addresses else ""

    def _keep_links(self) -> None:
        """Dial the members, and before there are any the configured peers, and whoever leads and dialled us."""
        if self._closing:
            return
        peers = set(self.replica.peer_addresses) | set(self.replica.raft.peers())
        if self.replica.identity.empty or self.config.node_id not in {
            *self.replica.conf_state.voters,
            *self.replica.conf_state.learners,
        }:
            peers |= self._seen_addresses.keys()
        self.links.keep(peers - {self.config.node_id})

    def _link_up(self, peer: int, hello: Hello) -> None:
        self.replica.peer_connected(facts_of(hello))
        self.wake()

    def _link_down(self, peer: int) -> None:
        self.replica.peer_disconnected(peer)
        self.wake()

    def _refused(self, peer: int, error: RefusedError) -> None:
        self.replica.peer_refused(peer, error)
        self.wake()


def _local_limits(config: Config) -> CallLimits:
    """Limits of this process's own calls: its link never breaks, and never goes elsewhere."""
    return CallLimits(
        max_waiting_calls=config.max_pending_calls,
        max_waiting_bytes=config.max_pending_bytes,
        window_calls=max(1, config.session_window_calls // 2),
        window_bytes=max(config.max_batch_bytes, config.session_window_bytes // 2),
        group_calls=min(4096, config.max_batch_commands),
        group_bytes=config.max_batch_bytes,
        session_ttl=config.session_ttl,
        try_timeout=max(1.0, 2 * config.election_timeout),
        links=LinkLimits(delay_min=0.01, delay_max=max(0.05, config.election_timeout / 4), follow_leader=False),
    )
