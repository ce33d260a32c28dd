"""A program of a simulated world that calls the cluster: `wire/call.py`'s machine on links that break."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from octopii.errors import OctopiiError
from octopii.wire.call import CallLimits, CallMachine, Fail, Resolve, Result
from octopii.wire.courier import Send
from octopii.wire.links import Connect, Disconnect, LinkLimits
from octopii.wire.requests import Consistency, LeaderHint, Reply, Request

if TYPE_CHECKING:
    from octopii.sim.node import Node
    from octopii.sim.world import World

LIMITS = CallLimits(try_timeout=0.6, links=LinkLimits(dial_timeout=0.3, delay_min=0.02, delay_max=0.3, shun=0.3))
"""Short, as the clusters' own timeouts are."""


class Asked(msgspec.Struct, eq=False):
    """A call, and how it ended: a result, an error, or neither yet."""

    commands: list[bytes]
    asked_at: float
    consistency: Consistency | None = None
    """None for calls that are no queries."""
    ended_at: float = 0.0
    result: Result | None = None
    error: OctopiiError | None = None
    on_end: Callable[["Asked"], None] | None = None

    @property
    def done(self) -> bool:
        """Whether the caller has heard."""
        return self.result is not None or self.error is not None


class SimulatedClient:
    """One program, with a session of its own."""

    def __init__(
        self, world: "World", name: str, *, addresses: list[str] | None = None, limits: CallLimits = LIMITS
    ) -> None:
        self.world = world
        self.name = name
        self.calls: list[Asked] = []
        addresses = addresses or [node.address for node in world.nodes.values()]
        self.machine = CallMachine(addresses, rng=random.Random(world.rng.random()), limits=limits)
        self.ever_broken = 0
        self._by_id: dict[int, Asked] = {}
        self._links: dict[str, tuple[Node, int, object]] = {}
        self._count = 0
        self._woken_at: float | None = None

    # --- calls --------------------------------------------------------------------------------------------------

    def propose(self, *commands: bytes, since: int = 1, timeout: float = 10.0) -> Asked:
        """Have commands applied, which need a version of the state machine."""
        call = self.machine.propose(list(commands), deadline=self.world.now + timeout, since=since)
        return self._began(call, list(commands))

    def query(
        self,
        consistency: Consistency = Consistency.LINEARIZABLE,
        *,
        command: bytes = b"",
        timeout: float = 10.0,
    ) -> Asked:
        """Ask the state machine."""
        now = self.world.now
        call = self.machine.query([command], consistency=consistency, deadline=now + timeout, now=now)
        return self._began(call, [command], consistency)

    def ask(self, request: Request, *, timeout: float = 10.0) -> Asked:
        """Ask anything else."""
        return self._began(self.machine.ask(request, deadline=self.world.now + timeout), [])

    def _began(self, call: int, commands: list[bytes], consistency: Consistency | None = None) -> Asked:
        asked = Asked(commands, self.world.now, consistency)
        self.calls.append(asked)
        self._by_id[call] = asked
        self.pump()
        return asked

    # --- the driver's loop --------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Do what the machine wants done."""
        world = self.world
        for action in self.machine.poll(world.now):
            if isinstance(action, Connect):
                self._dial(action.address)
            elif isinstance(action, Disconnect):
                self._hang_up(action.address)
            elif isinstance(action, Send):
                self._send(action.address, action.requests)
            elif isinstance(action, Resolve):
                for call, result in action.results:
                    self._ended(call, result=result)
            elif isinstance(action, Fail):
                self._ended(action.call_id, error=action.error)
        wake = self.machine.next_wake(world.now)
        if wake is not None and (self._woken_at is None or wake < self._woken_at or self._woken_at <= world.now):
            self._woken_at = wake
            world.at(max(0.0, wake - world.now), self._wake)

    def _wake(self) -> None:
        self._woken_at = None
        self.machine.tick(self.world.now)
        self.pump()

    def _ended(self, call: int, *, result: Result | None = None, error: OctopiiError | None = None) -> None:
        asked = self._by_id.pop(call)
        assert not asked.done
        asked.result, asked.error, asked.ended_at = result, error, self.world.now
        if asked.on_end is not None:
            asked.on_end(asked)

    # --- links --------------------------------------------------------------------------------------------------

    def _dial(self, address: str) -> None:
        world = self.world

        def arrive() -> None:
            node = next((each for each in world.nodes.values() if each.address == address), None)
            if node is None or not node.up:
                self.machine.disconnected(address, now=world.now)
            else:
                self._count += 1
                origin = (self.name, self._count)
                self._links[address] = (node, node.epoch, origin)
                node.reply_to[origin] = self._reply_path(address, origin)
                self.machine.connected(address, node_id=node.id, now=world.now)
                leadership = node.replica.leadership
                node.reply_to[origin](LeaderHint(leadership.leader, leadership.leader_address))
            self.pump()

        world.at(world.between(world.weather.delay), arrive)

    def _reply_path(self, address: str, origin: object) -> Callable[[Reply], None]:
        def carry(reply: Reply) -> None:
            def deliver() -> None:
                link = self._links.get(address)
                if link is not None and link[2] == origin:
                    self.machine.receive(address, reply, self.world.now)
                    self.pump()

            self.world.at(self.world.between(self.world.weather.delay), deliver)

        return carry

    def _hang_up(self, address: str) -> None:
        link = self._links.pop(address, None)
        if link is not None and link[0].epoch == link[1]:
            link[0].reply_to.pop(link[2], None)

    def break_link(self) -> None:
        """The connection in use is lost, with whatever is on its way."""
        for address in list(self._links):
            self._hang_up(address)
            self.machine.disconnected(address, now=self.world.now)
            self.ever_broken += 1
        self.pump()

    def _send(self, address: str, requests: list[Request]) -> None:
        world = self.world
        link = self._links.get(address)

        def arrive() -> None:
            if link is None or self._links.get(address) is not link:
                return
            node, epoch, origin = link
            if not node.up or node.epoch != epoch:
                self._links.pop(address, None)
                self.machine.disconnected(address, now=world.now)
                self.pump()
                return
            for request in requests:
                node.take_request(origin, request)

        world.at(world.between(world.weather.delay), arrive)
