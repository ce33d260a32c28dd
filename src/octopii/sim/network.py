"""The network of a simulated world: machines meet by the handshake's rules and talk in the wire's encoding.

A connection is a stream, as TCP gives it: what is said arrives in order, or the connection breaks and the rest is lost.
Raft has to bear more than that, so its own messages (and pulses) are also lost, repeated and reordered within a
connection that lives. A cut has a direction: what goes that way is lost. A link may be slow in one direction.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from octopii.errors import RefusedError
from octopii.raft import Message
from octopii.replica.founding import facts_of
from octopii.replica.work import PeerOutput
from octopii.wire.frames import FrameDecoder
from octopii.wire.handshake import Hello, error_of_refusal, judge
from octopii.wire.peer_frames import decode_peer_frame, encode_peer_frames
from octopii.wire.requests import Pulse

if TYPE_CHECKING:
    from octopii.sim.node import Node
    from octopii.sim.world import World

max_frame_bytes = 1 << 26
"""No message of a simulated cluster comes near it."""

notices_after = (0.05, 0.5)
"""Seconds after which both ends of a connection notice that nothing gets through."""


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


class Network:
    """All links between the machines of a world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._cut: set[tuple[int, int]] = set()
        self._slow: dict[tuple[int, int], float] = {}
        self._connections: dict[frozenset[int], Connection] = {}
        self._dialling: set[frozenset[int]] = set()
        self.injected = {"message lost": 0, "message repeated": 0, "message late": 0, "connection broken": 0}

    # --- trouble ------------------------------------------------------------------------------------------------

    def cut(self, one: int, other: int) -> None:
        """Break the link between two machines; both notice after a while."""
        self._cut |= {(one, other), (other, one)}
        connection = self.connection(one, other)
        if connection is not None:
            self._world.at(self._world.between(notices_after), connection.close)

    def cut_one_way(self, source: int, target: int) -> None:
        """Lose everything that goes from one machine to another; the way back stays open."""
        self._cut.add((source, target))

    def isolate(self, *group: int) -> None:
        """Cut a group off from all others."""
        for one in group:
            for other in self._world.nodes:
                if other not in group:
                    self.cut(one, other)

    def mend(self, one: int, other: int) -> None:
        """Mend one link, both ways."""
        self._cut -= {(one, other), (other, one)}
        self._slow.pop((one, other), None)
        self._slow.pop((other, one), None)

    def slow_down(self, source: int, target: int, seconds: float) -> None:
        """Delay what goes from one machine to another by so much more."""
        self._slow[source, target] = seconds

    def heal(self) -> None:
        """Mend all links."""
        self._cut.clear()
        self._slow.clear()

    def is_cut(self, source: int, target: int) -> bool:
        """Whether nothing gets through from one machine to another."""
        return (source, target) in self._cut

    def delay(self, source: int, target: int) -> float:
        """How long the next message takes."""
        return self._world.between(self._world.weather.delay) + self._slow.get((source, target), 0.0)

    # --- connections --------------------------------------------------------------------------------------------

    def dial(self, node: "Node", target: int, address: str) -> None:
        """A machine tries to reach another."""
        world = self._world
        pair = frozenset((node.id, target))
        if pair in self._connections or pair in self._dialling:
            return
        self._dialling.add(pair)
        hello = node.replica.hello(target=target)
        epoch = node.epoch

        def arrive() -> None:
            self._dialling.discard(pair)
            other = next((each for each in world.nodes.values() if each.address == address), None)
            if other is None or not other.up or other.paused or node.epoch != epoch or node.paused or other is node:
                return
            if self.is_cut(node.id, other.id) or self.is_cut(other.id, node.id):
                return
            if frozenset((node.id, other.id)) not in self._connections:
                self._shake_hands(node, hello, other)

        world.at(self.delay(node.id, target), arrive)

    def _shake_hands(self, node: "Node", hello: Hello, other: "Node") -> None:
        answer = other.replica.hello()
        refusal = judge(hello, other.replica.standing())
        refusal = refusal or judge(answer, node.replica.standing(), expected=hello.target)
        if refusal is not None:
            error = error_of_refusal(refusal)
            assert isinstance(error, RefusedError)
            if refusal.node_id == other.id:
                node.enter(lambda: node.replica.peer_refused(hello.target, error, other.address))
            else:
                other.enter(lambda: other.replica.peer_refused(node.id, error, node.address))
            return
        connection = Connection(self._world, node, other)
        self._connections[connection.pair] = connection
        node.enter(lambda: node.replica.peer_connected(facts_of(answer)))
        other.enter(lambda: other.replica.peer_connected(facts_of(hello)))

    def connection(self, one: int, other: int) -> "Connection | None":
        """The connection between two machines, if there is one."""
        return self._connections.get(frozenset((one, other)))

    def forget(self, connection: "Connection") -> None:
        """It is closed."""
        self._connections.pop(connection.pair, None)

    def connections_of(self, node_id: int) -> list["Connection"]:
        """All connections of a machine."""
        return [connection for pair, connection in self._connections.items() if node_id in pair]


class Connection:
    """Two machines that have met."""

    def __init__(self, world: "World", one: "Node", other: "Node") -> None:
        self.pair = frozenset((one.id, other.id))
        self.open = True
        self._world = world
        self._closing = False
        self._ends = {one.id: (one, one.epoch), other.id: (other, other.epoch)}
        self._last = {one.id: 0.0, other.id: 0.0}

    def send(self, sender: int, outputs: list[PeerOutput]) -> None:
        """Carry what one end says to the other."""
        world = self._world
        weather, network, rng = world.weather, world.network, world.rng
        if weather.breaks and rng.random() < weather.breaks:
            self._break_soon()
            return
        (target,) = self.pair - {sender}
        for output in outputs:
            bears_loss = isinstance(output, (Message, Pulse))
            if network.is_cut(sender, target):
                if not bears_loss:
                    self._break_soon()
                continue
            copies = 1
            if bears_loss and rng.random() < weather.loss:
                network.injected["message lost"] += 1
                continue
            if bears_loss and rng.random() < weather.repeat:
                network.injected["message repeated"] += 1
                copies = 2
            data = b"".join(encode_peer_frames([output]))
            is_told = not isinstance(output, Pulse)
            for _ in range(copies):
                delay = network.delay(sender, target)
                if bears_loss and rng.random() < weather.reorder:
                    network.injected["message late"] += 1
                    world.at(delay * rng.randint(1, 20), self._delivery(sender, target, data, is_told))
                else:
                    self._last[target] = max(self._last[target], world.now + delay)
                    world.at(self._last[target] - world.now, self._delivery(sender, target, data, is_told))

    def _delivery(self, sender: int, target: int, data: bytes, is_told: bool) -> Callable[[], None]:
        def deliver() -> None:
            node, epoch = self._ends[target]
            world = self._world
            if not self.open or node.epoch != epoch or world.network.is_cut(sender, target):
                return
            world.trace.note(world.now, target, f"hears {sender}", data, quiet=not is_told)
            for frame_type, payload in FrameDecoder(max_frame_bytes).feed(data):
                for message in decode_peer_frame(frame_type, memoryview(payload), sender=sender, to=target):
                    node.hear(sender, message)

        return deliver

    def _break_soon(self) -> None:
        if not self._closing:
            self._closing = True
            self._world.network.injected["connection broken"] += 1
            self._world.at(self._world.between(notices_after), self.close)

    def close(self) -> None:
        """Both ends notice that the other is gone."""
        if not self.open:
            return
        self.open = False
        self._world.network.forget(self)
        for node_id, (node, epoch) in self._ends.items():
            (peer,) = self.pair - {node_id}
            if node.epoch == epoch:
                node.enter(lambda node=node, peer=peer: node.replica.peer_disconnected(peer))  # type: ignore[misc]
