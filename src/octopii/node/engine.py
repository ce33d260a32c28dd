"""What runs on a node's own thread: a replica, its connections, and the calls of this process.

One *turn* takes everything that has arrived (messages, requests, finished syncs and jobs, calls handed over from other
threads), lets the replica think once, and carries out what it wants: one write per connection, one wake-up per thread.
Turns are scheduled by whoever brings something; however much arrives before the turn runs, there is one turn.

Ticks are counted by the clock that goes on while the machine sleeps. A tick that comes late because this process was
stopped first lets the sockets be read, and counts once: silence that was our own is no reason for an election.
"""

import asyncio
import logging
import random
import secrets
import sys
import time
from collections.abc import Callable

from octopii.config import Config
from octopii.errors import ConfigError, ShuttingDown
from octopii.node.local_calls import LOCAL, LocalCalls
from octopii.node.switchboard import Switchboard
from octopii.node.transport import Connection
from octopii.node.watchdog import Watchdog
from octopii.node.workers import ApplyThread, SyncThreads
from octopii.replica.applier import Applier
from octopii.replica.jobs import Cause, Result
from octopii.replica.replica import Replica
from octopii.replica.work import Origin, Work
from octopii.state_machine import StateMachine
from octopii.walrus import SyncTicket
from octopii.walrus.vfs import RealFileSystem
from octopii.wire.requests import Reply

logger = logging.getLogger("octopii.node")

slow_sync_seconds = 0.5
"""A sync that takes longer is logged."""


def clock() -> float:
    """Monotonic seconds that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class Engine:
    """See the module's text. Everything but `wake_from_thread` belongs to the loop's thread."""

    def __init__(
        self, config: Config, machine: StateMachine, *, sync_threads: SyncThreads, skip: frozenset[int]
    ) -> None:
        self.config = config
        self._loop = asyncio.get_running_loop()
        rng, now = random.Random(secrets.randbits(128)), clock()
        applier = Applier(machine, timer=time.perf_counter, skip_indexes=skip, slow_seconds=config.slow_apply_threshold)
        self.replica = Replica(
            config,
            vfs=RealFileSystem(),
            rng=rng,
            now=now,
            wall=time.time_ns(),
            random_id=secrets.token_bytes(16),
            command_version=applier.command_version,
            machine=type(machine).__qualname__,
        )
        self.calls = LocalCalls(config, rng=rng, request=lambda request: self.replica.request(LOCAL, request))
        self.board = Switchboard(config, self.replica, rng=rng, wake=self.wake, fail=self._broken)
        self._apply = ApplyThread(
            applier,
            self.replica.snapshots,
            name=f"octopii-{config.node_id}",
            deliver=lambda results: self._from_thread(lambda: self._jobs_done(results)),
            died=lambda error: self._from_thread(lambda: self.fail(error)),
        )
        self._sync_threads = sync_threads
        self.turn_due = False
        self._in_turn = False
        self._next_tick = now + config.tick_interval
        self._watchdog = Watchdog(config.node_id, election_timeout=config.election_timeout)
        self._tick_timer: asyncio.TimerHandle | None = None
        self._wake_timer: asyncio.TimerHandle | None = None
        self._wake_at = 0.0
        self._sync_began = 0.0
        self._syncing = False
        self._stopped = False
        self._changed = asyncio.Event()
        self.failed: BaseException | None = None

    @property
    def address(self) -> str:
        """ "host:port" under which others reach this node."""
        return self.board.address

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, begin, and wait until the machine has the newest snapshot on disk.

        Raises `ConfigError` when the machine does not take it, and what opening raises.
        """
        await self.board.open()
        self._tick_timer = self._loop.call_later(self.config.tick_interval, self._tick_due)
        self.turn()
        while self.replica.applying.restoring and self.failed is None:
            await self._changed.wait()
        failure = self.replica.applying.failure
        if failure is not None and failure.cause is Cause.SNAPSHOT:
            raise ConfigError(
                f"the state machine of node {self.config.node_id} does not take the snapshot at entry {failure.index} "
                f"in {self.config.wal_path}: {failure.reason}. Is it the machine, and the version, that wrote it?"
            )

    async def stop(self, patience: float) -> None:
        """Hand leadership over, finish what is under way, close everything. Takes `patience` seconds at most."""
        deadline = clock() + patience
        leads = self.failed is None and self.replica.leadership.is_leader
        if leads and self.replica.upkeep.hand_over("it is shutting down"):
            self.turn()
            await self._until(lambda: not self.replica.leadership.is_leader, deadline)
        for timer in (self._tick_timer, self._wake_timer):
            if timer is not None:
                timer.cancel()
        self.calls.close(clock())
        await self.board.close()
        self._stopped = True  # no turn from here on, or it might begin another sync
        await self._until(lambda: not self._syncing, deadline)
        await self._loop.run_in_executor(None, self._apply.stop)
        self.calls.give_up(ShuttingDown(f"node {self.config.node_id} has stopped"))
        if self._syncing:
            # The disk stands still. What was acknowledged is on it; the next start recovers as after a crash.
            logger.error("node %d stops with a sync of its log still under way", self.config.node_id)
            return
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
            self.calls.give_up(ShuttingDown(f"node {self.config.node_id} has failed ({error})"))
            self.board.shut()
            self._notify()

    def _broken(self, error: BaseException) -> None:
        """What was just raised is no one else's fault: a node that goes on after it might harm its data."""
        logger.error("node %d cannot go on", self.config.node_id, exc_info=error)
        self.fail(error)

    # --- turns --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have a turn soon."""
        if not self.turn_due:
            self.turn_due = True
            self._loop.call_soon(self.turn)

    def wake_from_thread(self) -> None:
        """Have a turn soon, from any thread; many that ask before it comes cost one wake-up."""
        if not self.turn_due:
            self.turn_due = True
            self._from_thread(self.turn)

    def _from_thread(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop has ended: nothing waits there any more
            return

    def turn(self) -> None:
        """Think once, and carry out what follows."""
        self.turn_due = False
        if self.failed is not None or self._stopped or self._in_turn:
            return
        self._in_turn = True
        try:
            now = clock()
            self.replica.advance_clock(now, time.time_ns())
            if self.calls.brought:
                self.calls.begin(now)
                self.calls.move(now)
            while work := self.replica.poll():
                self._carry_out(work, now)
                moved = self.calls.restless and self.calls.move(now)
                if not (moved or work.more):
                    break
            if self.calls.waiting:
                self.wake()
            self._schedule_wake(now)
            if self.board.follow():
                self._notify()
        except BaseException as error:  # noqa: BLE001
            self._broken(error)
        finally:
            self._in_turn = False

    def _carry_out(self, work: Work, now: float) -> None:
        for peer, outputs in work.messages.items():
            self.board.send(peer, outputs, now)
        # The sync comes before the jobs: its thread needs the interpreter for a moment, that of the jobs for long.
        if work.sync is not None:
            self._sync_began, self._syncing = now, True
            self._sync_threads.submit(
                work.sync, lambda ticket, error: self._from_thread(lambda: self._sync_done(ticket, error))
            )
        if work.jobs:
            self._apply.submit(work.jobs)
        if work.replies:
            self._reply(work.replies, now)

    def _reply(self, replies: list[tuple[Origin, Reply]], now: float) -> None:
        remote: dict[Connection, list[Reply]] = {}
        for origin, reply in replies:
            if origin == LOCAL:
                self.calls.receive(reply, now)
            elif isinstance(origin, Connection):
                remote.setdefault(origin, []).append(reply)
        for connection, its_replies in remote.items():
            self.board.reply(connection, its_replies)

    def _schedule_wake(self, now: float) -> None:
        """Wake for what is due without anything happening: deadlines and delays of calls, news of a commit.

        A timer that is due earlier than needed stays: it then finds nothing to do and is set anew, which costs less
        than a timer for each turn.
        """
        wake = self.calls.wake_at
        news = self.replica.wake_at
        if news is not None and (wake is None or news < wake):
            wake = news
        if wake is None or (self._wake_timer is not None and self._wake_at <= wake):
            return
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        self._wake_at = wake
        self._wake_timer = self._loop.call_later(max(0.0, wake - now), self._wake_due)

    def _wake_due(self) -> None:
        self._wake_timer = None
        now = clock()
        self.calls.tick(now)
        self.calls.move(now)
        self.turn()

    # --- time ---------------------------------------------------------------------------------------------------

    def _tick_due(self) -> None:
        now = clock()
        late = now - self._next_tick
        self._watchdog.ticked(late, now)
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
            except BaseException as error:  # noqa: BLE001
                self._broken(error)
                return
            self.board.tick(now)
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
        if self.failed is not None:
            return
        try:
            for result in results:
                self.replica.job_done(result)
        except BaseException as error:  # noqa: BLE001
            self._broken(error)
            return
        self.turn()
        self._notify()
