"""One machine of a simulated world: a disk that outlives crashes, and, while it is up, a replica with its apply thread.

This is the simulator's counterpart of `node/engine.py`, and as thin: it feeds the replica, carries its work out, and
brings results back, each after a time that the weather decides. A power loss may come at any operation of the disk.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from octopii.config import Config
from octopii.errors import OctopiiError
from octopii.replica.applier import Applier
from octopii.replica.replica import Replica
from octopii.replica.work import PeerOutput, Work
from octopii.sim.apply_thread import ApplyThread
from octopii.sim.disk import has_power
from octopii.sim.stopping import OrderlyStop
from octopii.sim.sync_thread import SyncThread
from octopii.state_machine import StateMachine
from octopii.walrus.faults import PowerLoss, Survives, survive_randomly
from octopii.walrus.memory_vfs import MemoryFileSystem
from octopii.wire.requests import Reply, Request, decode_reply, decode_request, encode_reply, encode_request

if TYPE_CHECKING:
    from octopii.sim.network import Connection
    from octopii.sim.world import World

MachineMaker = Callable[[], StateMachine]

START_WALL = 1_700_000_000 * 10**9
"""UTC nanoseconds that the machines' clocks show at time 0."""

block_bytes = 4096
segment_blocks = 64
"""Geometry of the logs: small, so that a short run crosses many blocks and segments."""

closes_after = (0.001, 0.01)
"""Seconds after which the peers of a machine that went down notice."""


class Node:
    """See the module's text. `machine` makes a new state machine at every boot."""

    def __init__(self, world: "World", config: Config, *, machine: MachineMaker) -> None:
        self.world = world
        self.config = config
        self.id = config.node_id
        self.address = config.advertised_addr
        self.machine_maker = machine
        self.vfs = MemoryFileSystem()
        self.epoch = 0
        self.up = False
        self.paused = False
        self.wall_offset = 0.0
        self.clock_rate = 1.0
        self.paused_sync = False
        self.slow_sync = self.slow_apply = 0.0  # seconds that each sync or job takes beyond what the weather says
        self.crash_after_messages = 0  # 0: it does not
        self.fails_apply = False  # the next command finds no memory
        self.rots: random.Random | None = None  # draws what rots when the process has stopped in good order
        self.stopped = False  # in good order
        self.survives: Survives | None = None  # what a crash keeps; None draws it
        self.broken: BaseException | None = None  # what ended the process since it last started
        self.start_error: Exception | None = None  # why the last start failed
        self.replica: Replica
        self.applier: Applier
        self.skip_indexes: frozenset[int] = frozenset()
        self.reply_to: dict[object, Callable[[Reply], None]] = {}
        self._clock_base = world.now, world.now
        self._apply = ApplyThread(self)
        self.syncs = SyncThread(self)
        self.stop_under_way: OrderlyStop | None = None
        self._backlog: list[Callable[[], None]] = []
        world.nodes[self.id] = self

    @property
    def stopping(self) -> bool:
        """Whether the machine is stopping in good order."""
        return self.stop_under_way is not None and self.stop_under_way.takes_nothing_in

    @property
    def machine(self) -> StateMachine:
        """The state machine."""
        return self.applier.machine

    # --- clocks -------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """This machine's monotonic clock, seconds; it may run fast or slow."""
        world_base, own_base = self._clock_base
        return own_base + (self.world.now - world_base) * self.clock_rate

    @property
    def wall(self) -> int:
        """This machine's wall clock, nanoseconds UTC."""
        return START_WALL + int((self.now + self.wall_offset) * 1e9)

    def set_clock_rate(self, rate: float) -> None:
        """Let the clocks run fast or slow from now on; 1.0 is right."""
        self._clock_base = self.world.now, self.now
        self.clock_rate = rate

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot; when that fails, `start_error` says why, and the machine stays down."""
        assert not self.up
        world = self.world
        self._forget()
        self.stopped = False
        self.broken = self.start_error = None
        machine = self.machine_maker()
        self.applier = Applier(
            machine,
            timer=lambda: world.now,
            skip_indexes=self.skip_indexes,
            apply=world.observer.on_apply(self, machine),
        )
        world.trace.note(world.now, self.id, "starts")
        try:
            self.replica = Replica(
                self.config,
                vfs=self.vfs,
                rng=random.Random(world.rng.random()),
                now=self.now,
                wall=self.wall,
                random_id=world.rng.randbytes(16),
                command_version=self.applier.command_version,
                block_bytes=block_bytes,
                segment_blocks=segment_blocks,
            )
        except PowerLoss:
            self.crash()
            return
        except Exception as error:
            if not has_power(self):
                self.crash()
                return
            if not isinstance(error, OctopiiError | OSError):
                raise
            world.trace.note(world.now, self.id, "does not start", f"{type(error).__name__}: {error}")
            self.start_error = error
            self.vfs.end_process()
            return
        self.up = True
        world.observer.booted(self)
        self.enter(lambda: None)
        self._tick_later()

    def crash(self, survives: Survives | None = None) -> None:
        """Lose power: memory is gone, and of what was not synced whatever the chooser does not let survive."""
        self.world.trace.note(self.world.now, self.id, "loses power")
        self.go_down()
        self.vfs.faults.before = self.vfs.faults.before_read = None
        self.vfs.crash(survives or self.survives or survive_randomly(self.world.rng))

    def stop(self) -> None:
        """Begin to stop in good order: hand leadership over, finish the sync under way, close the log."""
        assert self.up
        self.world.trace.note(self.world.now, self.id, "begins to stop")
        self.stop_under_way = OrderlyStop(self)
        self.stop_under_way.begin()

    def wipe(self) -> None:
        """Lose the disk."""
        assert not self.up
        self.world.trace.note(self.world.now, self.id, "is wiped")
        self.vfs = MemoryFileSystem()

    def pause(self) -> None:
        """Stand still, as a stopped process does: what arrives waits."""
        self.world.trace.note(self.world.now, self.id, "is paused")
        self.paused = True

    def resume(self) -> None:
        """Go on: take what has arrived meanwhile, and count one tick for all of the time that was missed."""
        if not self.paused:
            return
        self.world.trace.note(self.world.now, self.id, "goes on")
        self.paused = False
        backlog, self._backlog = self._backlog, []
        epoch = self.epoch
        for action in backlog:
            if self.epoch == epoch:
                action()
        if self.up and self.epoch == epoch:
            self._tick()

    def postpone(self, action: Callable[[], None]) -> None:
        """Do it when the machine, now paused, goes on."""
        self._backlog.append(action)

    def go_down(self) -> None:
        """What was in memory is gone, and connections break."""
        self._forget()
        self.up = False
        self.world.observer.went_down(self)
        for connection in self.world.network.connections_of(self.id):
            self.world.at(self.world.between(closes_after), connection.close)

    def _forget(self) -> None:
        """Lose all that is in memory."""
        self.epoch += 1
        self.paused = False
        self.crash_after_messages = 0
        self._apply = ApplyThread(self)
        self.syncs = SyncThread(self)
        self._wake_due = False
        self.stop_under_way = None
        self._backlog = []
        self.reply_to = {}

    def _tick_later(self) -> None:
        self.later(self.config.tick_interval / self.clock_rate, self._tick_due)

    def _tick_due(self) -> None:
        if not self.paused:  # else one tick comes at its end
            self._tick()

    def _tick(self) -> None:
        self._tick_later()
        self.enter(lambda: self.replica.tick(self.now, self.wall))
        if self.up:
            for peer, address in self.replica.peer_addresses.items():
                if peer not in self.replica.connected:
                    self.world.network.dial(self, peer, address)

    def later(self, delay: float, event: Callable[[], None]) -> None:
        """Have something happen on this machine, unless it goes down before."""
        epoch = self.epoch

        def happen() -> None:
            if self.up and self.epoch == epoch:
                event()

        self.world.at(delay, happen)

    # --- work ---------------------------------------------------------------------------------------------------

    def hear(self, peer: int, message: PeerOutput) -> None:
        """What another machine said has arrived."""
        self.enter(lambda: self.replica.receive(peer, message))

    def enter(self, action: Callable[[], None]) -> None:
        """Let the replica take something in, and do what it then wants done."""
        if not self.up or self.stopping:
            return
        if self.paused:
            self.postpone(lambda: self.enter(action))
            return
        replica, world = self.replica, self.world
        more = True
        while more:
            try:
                replica.advance_clock(self.now, self.wall)
                action()
                work = replica.poll()
            except PowerLoss:
                self.crash()
                return
            except (OctopiiError, OSError) as error:
                self.fail(error)
                return
            world.trace.note(world.now, self.id, "step", self.vfs.operations.to_bytes(8, "little"), quiet=True)
            if not work.more:  # before that, the log is behind what the Raft core says of it
                world.observer.stepped(self)
            if not self._carry_out(work):
                return
            action, more = _nothing, work.more
        if replica.wake_at is not None and not self._wake_due:
            self._wake_due = True
            self.later(max(0.0, replica.wake_at - self.now) / self.clock_rate, self._wake)

    def _carry_out(self, work: Work) -> bool:
        """Do what the replica wants done; False when the machine has lost power meanwhile."""
        world = self.world
        for peer, outputs in work.messages.items():
            world.observer.says(self, peer, outputs)
            connection = world.network.connection(self.id, peer)
            if connection is not None:
                if self.crash_after_messages and self._loses_power_after(connection, outputs):
                    return False
                connection.send(self.id, outputs)
        for origin, reply in work.replies:
            target = self.reply_to.get(origin)
            if target is not None:
                target(decode_reply(encode_reply(reply)))
        if work.jobs:
            self._apply.submit(work.jobs)
        if work.sync is not None:
            self.syncs.submit(work.sync)
        return self.up

    def _wake(self) -> None:
        self._wake_due = False
        self.enter(_nothing)

    def _loses_power_after(self, connection: "Connection", outputs: list[PeerOutput]) -> bool:
        """Whether the crash comes amidst these: then those before it have gone out."""
        left = self.crash_after_messages
        self.crash_after_messages = max(0, left - len(outputs))
        if left > len(outputs):
            return False
        connection.send(self.id, outputs[:left])
        self.crash()
        return True

    def fail(self, error: BaseException) -> None:
        """The process ends over an error, and the machine goes on."""
        self.world.trace.note(self.world.now, self.id, "ends", f"{type(error).__name__}: {error}")
        self.broken = error
        self.end_process()

    def kill(self) -> None:
        """Kill the process: memory is gone, and what it wrote is with the machine, synced or not."""
        self.world.trace.note(self.world.now, self.id, "is killed")
        self.end_process()

    def end_process(self) -> None:
        """The process is gone, and what it wrote is with the machine."""
        self.go_down()
        self.vfs.faults.before = self.vfs.faults.before_read = None
        self.vfs.end_process()

    def stall_disk(self, stalled: bool) -> None:
        """Let syncs take for ever, or go on."""
        self.paused_sync = stalled
        if not stalled:
            self.syncs.finish()

    # --- what clients do ----------------------------------------------------------------------------------------

    def take_request(self, origin: object, request: Request) -> None:
        """A client's request has arrived."""
        data = encode_request(request)
        self.world.trace.note(self.world.now, self.id, "is asked", data)
        decoded = decode_request(data)
        self.enter(lambda: self.replica.request(origin, decoded))


def _nothing() -> None:
    """Nothing has come in: only what is left is to be done."""
