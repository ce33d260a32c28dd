"""Whole clusters in one thread and from one seed: replicas, disks that lose what was not synced, a network, clients.

Everything happens as an event at a time of a simulated clock. A `Node` is one machine: its disk outlives crashes, its
replica does not. Peers meet by the handshake's rules; what they say goes through the wire's encoding. The network
loses, repeats and reorders what Raft has to bear (a connection that breaks loses the rest), and can be cut in two.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable

from octopii.config import Config
from octopii.errors import LogFull, OctopiiError, RefusedError
from octopii.raft import Message
from octopii.replica.applier import Applier
from octopii.replica.founding import facts_of
from octopii.replica.jobs import Job, Result, SnapshotView
from octopii.replica.replica import Replica
from octopii.replica.work import PeerOutput
from octopii.walrus.faults import PowerLoss, Survives, survive_randomly
from octopii.walrus.memory_vfs import MemoryFileSystem
from octopii.walrus.ticket import SyncTicket
from octopii.wire.frames import FrameDecoder
from octopii.wire.handshake import Hello, error_of_refusal, judge
from octopii.wire.peer_frames import decode_peer_frame, encode_peer_frames
from octopii.wire.requests import Pulse, Reply, Request, decode_reply, decode_request, encode_reply, encode_request
from tests.replica.journal import Journal, Ledger

START_WALL = 1_700_000_000 * 10**9

MachineMaker = Callable[[Ledger], Journal]


class Weather:
    """How the world behaves; change it at any time. Times are seconds, the rest shares of messages."""

    def __init__(self) -> None:
        self.delay = (0.0002, 0.002)
        self.job_time = (0.0, 0.001)
        self.sync_time = (0.0005, 0.002)
        self.loss = 0.0
        self.repeat = 0.0
        self.reorder = 0.0
        self.breaks = 0.0


class World:
    """The clock, the events to come, and everybody there is."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.now = 100.0
        self.weather = Weather()
        self.ledger = Ledger()
        self.nodes: dict[int, Node] = {}
        self.failures: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._cut: set[frozenset[int]] = set()
        self._connections: dict[frozenset[int], Connection] = {}
        self._dialling: set[frozenset[int]] = set()

    # --- time ---------------------------------------------------------------------------------------------------

    def at(self, delay: float, event: Callable[[], None]) -> None:
        """Have something happen after a delay."""
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))

    def between(self, span: tuple[float, float]) -> float:
        """A random time of a span."""
        return self.rng.uniform(*span)

    def step(self) -> None:
        """Let the next event happen."""
        time, _, event = heapq.heappop(self._events)
        self.now = max(self.now, time)
        event()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.step()
        self.now = end

    def run_until(self, condition: Callable[[], bool], *, limit: float = 60.0, what: str = "") -> None:
        """Let time pass until something is true; raises `AssertionError` when it takes too long."""
        end = self.now + limit
        while not condition():
            assert self._events, "nothing happens any more"
            assert self._events[0][0] <= end, f"seed {self.seed}: {what or condition} is not so after {limit} s"
            self.step()

    # --- network ------------------------------------------------------------------------------------------------

    def cut(self, one: int, other: int) -> None:
        """Break the link between two nodes; both notice after a while."""
        pair = frozenset((one, other))
        self._cut.add(pair)
        connection = self._connections.get(pair)
        if connection is not None:
            self.at(self.between((0.05, 0.5)), connection.close)

    def isolate(self, *group: int) -> None:
        """Cut a group off from all others."""
        for one in group:
            for other in self.nodes:
                if other not in group:
                    self.cut(one, other)

    def heal(self) -> None:
        """Mend all links."""
        self._cut.clear()

    def is_cut(self, one: int, other: int) -> bool:
        """Whether nothing gets through between two nodes."""
        return frozenset((one, other)) in self._cut

    def dial(self, node: "Node", target: int, address: str) -> None:
        """A node tries to reach another."""
        pair = frozenset((node.id, target))
        if pair in self._connections or pair in self._dialling:
            return
        self._dialling.add(pair)
        hello = node.replica.hello(target=target)
        epoch = node.epoch

        def arrive() -> None:
            self._dialling.discard(pair)
            other = next((each for each in self.nodes.values() if each.address == address), None)
            if self.is_cut(*pair) or other is None or not other.up or node.epoch != epoch or other is node:
                return
            if pair not in self._connections:
                self._shake_hands(node, hello, other)

        self.at(self.between(self.weather.delay), arrive)

    def _shake_hands(self, node: "Node", hello: Hello, other: "Node") -> None:
        answer = other.replica.hello()
        refusal = judge(hello, other.replica.standing())
        refusal = refusal or judge(answer, node.replica.standing(), expected=hello.target)
        if refusal is not None:
            error = error_of_refusal(refusal)
            assert isinstance(error, RefusedError)
            refused, refuser = (node, other) if refusal.node_id == other.id else (other, node)
            refused.enter(lambda: refused.replica.peer_refused(refuser.id, error))
            return
        connection = Connection(self, node, other)
        self._connections[connection.pair] = connection
        node.enter(lambda: node.replica.peer_connected(facts_of(answer)))
        other.enter(lambda: other.replica.peer_connected(facts_of(hello)))

    def connection(self, one: int, other: int) -> "Connection | None":
        """The connection between two nodes, if there is one."""
        return self._connections.get(frozenset((one, other)))

    def forget_connection(self, connection: "Connection") -> None:
        """It is closed."""
        self._connections.pop(connection.pair, None)

    def connections_of(self, node_id: int) -> list["Connection"]:
        """All connections of a node."""
        return [connection for pair, connection in self._connections.items() if node_id in pair]


class Connection:
    """Two nodes that have met."""

    def __init__(self, world: World, one: "Node", other: "Node") -> None:
        self.pair = frozenset((one.id, other.id))
        self.open = True
        self._world = world
        self._ends = {one.id: (one, one.epoch), other.id: (other, other.epoch)}
        self._last = {one.id: 0.0, other.id: 0.0}

    def send(self, sender: int, outputs: list[PeerOutput]) -> None:
        """Carry what one end says to the other."""
        world, weather = self._world, self._world.weather
        if world.is_cut(*self.pair) or (weather.breaks and world.rng.random() < weather.breaks):
            world.at(world.between(weather.delay), self.close)
            return
        (target,) = self.pair - {sender}
        for output in outputs:
            copies = 1
            unordered = isinstance(output, (Message, Pulse))
            if unordered:
                copies = 0 if world.rng.random() < weather.loss else 1 + (world.rng.random() < weather.repeat)
            data = b"".join(encode_peer_frames([output]))
            for _ in range(copies):
                delay = world.between(weather.delay)
                if unordered and world.rng.random() < weather.reorder:
                    world.at(delay * world.rng.randint(1, 20), self._delivery(sender, target, data))
                else:
                    self._last[target] = max(self._last[target], world.now + delay)
                    world.at(self._last[target] - world.now, self._delivery(sender, target, data))

    def _delivery(self, sender: int, target: int, data: bytes) -> Callable[[], None]:
        def deliver() -> None:
            node, epoch = self._ends[target]
            if not self.open or node.epoch != epoch or self._world.is_cut(*self.pair):
                return
            for frame_type, payload in FrameDecoder(1 << 26).feed(data):
                for message in decode_peer_frame(frame_type, memoryview(payload), sender=sender, to=target):
                    node.enter(lambda message=message: node.replica.receive(sender, message))  # type: ignore[misc]

        return deliver

    def close(self) -> None:
        """Both ends notice that the other is gone."""
        if not self.open:
            return
        self.open = False
        self._world.forget_connection(self)
        for node_id, (node, epoch) in self._ends.items():
            (peer,) = self.pair - {node_id}
            if node.epoch == epoch:
                node.enter(lambda node=node, peer=peer: node.replica.peer_disconnected(peer))  # type: ignore[misc]


class Node:
    """One machine: a disk, and, while it is up, a replica with its apply thread."""

    def __init__(self, world: World, config: Config, *, machine: MachineMaker = Journal) -> None:
        self.world = world
        self.config = config
        self.id = config.node_id
        self.address = config.advertised_addr
        self.vfs = MemoryFileSystem()
        self.epoch = 0
        self.up = False
        self.wall_offset = 0.0
        self.paused_sync = False
        self.survives: Survives | None = None  # what a crash keeps; None draws it
        self.broken: BaseException | None = None
        self.replica: Replica
        self.applier: Applier
        self.skip_indexes: frozenset[int] = frozenset()
        self.reply_to: dict[object, Callable[[Reply], None]] = {}
        self._machine_maker = machine
        self._jobs: deque[Job] = deque()
        self._busy = False
        self._waiting_sync: SyncTicket | None = None
        world.nodes[self.id] = self

    @property
    def machine(self) -> Journal:
        """The state machine."""
        assert isinstance(self.applier.machine, Journal)
        return self.applier.machine

    @property
    def wall(self) -> int:
        """This machine's wall clock, nanoseconds UTC."""
        return START_WALL + int((self.world.now + self.wall_offset) * 1e9)

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot."""
        assert not self.up
        world = self.world
        self.epoch += 1
        self.broken = None
        self._jobs.clear()
        self._busy = False
        self._waiting_sync = None
        self.reply_to = {}
        machine = self._machine_maker(world.ledger)
        self.applier = Applier(machine, timer=lambda: world.now, skip_indexes=self.skip_indexes)
        try:
            self.replica = Replica(
                self.config,
                vfs=self.vfs,
                rng=random.Random(world.rng.random()),
                now=world.now,
                wall=self.wall,
                random_id=world.rng.randbytes(16),
                block_bytes=4096,
                segment_blocks=64,
            )
        except PowerLoss:
            self.crash()
            return
        except (LogFull, OSError):
            assert self.vfs.faults.capacity is not None, "only a full disk excuses a node that does not start"
            return
        self.up = True
        self.enter(lambda: None)
        self._tick_later()

    def crash(self, survives: Survives | None = None) -> None:
        """Lose power: memory is gone, and of what was not synced whatever the chooser does not let survive."""
        self._down()
        self.vfs.faults.before = None
        self.vfs.crash(survives or self.survives or survive_randomly(self.world.rng))

    def stop(self) -> None:
        """Stop in good order, once the sync and the jobs under way are done."""
        while self._waiting_sync is not None or self._jobs or self._busy:
            self.world.step()
            if not self.up:
                return
        try:
            self.replica.close()
        except PowerLoss:
            self.crash()
        else:
            self._down()

    def wipe(self) -> None:
        """Lose the disk."""
        self.vfs = MemoryFileSystem()

    def _down(self) -> None:
        self.epoch += 1
        self.up = False
        for connection in self.world.connections_of(self.id):
            self.world.at(self.world.between((0.001, 0.01)), connection.close)

    def _tick_later(self) -> None:
        self._later(self.config.tick_interval, self._tick)

    def _tick(self) -> None:
        self._tick_later()
        self.enter(lambda: self.replica.tick(self.world.now, self.wall))
        if self.up:
            for peer, address in self.replica.peer_addresses.items():
                if peer not in self.replica.connected:
                    self.world.dial(self, peer, address)

    def _later(self, delay: float, event: Callable[[], None]) -> None:
        epoch = self.epoch

        def happen() -> None:
            if self.up and self.epoch == epoch:
                event()

        self.world.at(delay, happen)

    # --- work ---------------------------------------------------------------------------------------------------

    def enter(self, action: Callable[[], None]) -> None:
        """Let the replica take something in, and do what it then wants done."""
        if not self.up:
            return
        try:
            self.replica.advance_clock(self.world.now, self.wall)
            action()
            work = self.replica.poll()
        except PowerLoss:
            self.crash()
            return
        except (OctopiiError, OSError) as error:
            self.broken = error
            self._down()
            self.vfs.crash(lambda _: True)
            return
        for peer, outputs in work.messages.items():
            connection = self.world.connection(self.id, peer)
            if connection is not None:
                connection.send(self.id, outputs)
        for origin, reply in work.replies:
            target = self.reply_to.get(origin)
            if target is not None:
                target(decode_reply(encode_reply(reply)))
        self._jobs += work.jobs
        self._next_job()
        if work.sync is not None:
            self._waiting_sync = work.sync
            if not self.paused_sync:
                self._later(self.world.between(self.world.weather.sync_time), self.finish_sync)

    def finish_sync(self) -> None:
        """The disk has done its work."""
        ticket = self._waiting_sync
        if ticket is None or self.paused_sync or not self.up:
            return
        self._waiting_sync = None

        def done() -> None:
            ticket.run()
            self.replica.sync_done(ticket)

        self.enter(done)

    def stall_disk(self, stalled: bool) -> None:
        """Let syncs take for ever, or go on."""
        self.paused_sync = stalled
        if not stalled:
            self.finish_sync()

    def _next_job(self) -> None:
        if self._busy or not self._jobs or not self.up:
            return
        self._busy = True
        job = self._jobs.popleft()
        self._later(self.world.between(self.world.weather.job_time), lambda: self._run_job(job))

    def _run_job(self, job: Job) -> None:
        try:
            result: Result = self.applier.run(job)
            if isinstance(result, SnapshotView):
                view = result
                if view.source.frozen:
                    self._later(self.world.between((0.001, 0.02)), lambda: self._write_view(view))
                    self._busy = False
                    self._next_job()
                    return
                result = self.replica.snapshots.write(view)
        except PowerLoss:
            self.crash()
            return
        self._busy = False
        self.enter(lambda: self.replica.job_done(result))
        self._next_job()

    def _write_view(self, view: SnapshotView) -> None:
        try:
            result = self.replica.snapshots.write(view)
        except PowerLoss:
            self.crash()
            return
        self.enter(lambda: self.replica.job_done(result))

    # --- what clients do ----------------------------------------------------------------------------------------

    def take_request(self, origin: object, request: Request) -> None:
        """A client's request has arrived."""
        decoded = decode_request(encode_request(request))
        self.enter(lambda: self.replica.request(origin, decoded))
