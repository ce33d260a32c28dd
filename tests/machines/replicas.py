"""A simulated cluster of any state machine: three replicas and a client."""

import random
from collections.abc import Callable

from octopii.sim import Asked, Node, SimulatedClient, World
from octopii.sim.cluster import config_of
from octopii.state_machine import StateMachine
from octopii.wire.codec import CommandErrorAnswer


class ThreeReplicas:
    """A simulated cluster of one machine, and a client of it."""

    def __init__(self, factory: Callable[[], StateMachine], *, seed: int = 1) -> None:
        self.world = World(seed)
        settings = {
            "compact_interval": 600.0,
            "snapshot_every_entries": 20,
            "log_keep_entries": 5,
            "snapshot_lag_threshold": 10,
        }
        self.nodes = [Node(self.world, config_of(node_id, 3, **settings), machine=factory) for node_id in (1, 2, 3)]
        for node in self.nodes:
            node.start()
        self.client = SimulatedClient(self.world, "client")

    def settled(self, asked: Asked) -> bytes | None:
        """The answer, once it is there; None for a refusal."""
        self.world.run_until(lambda: asked.done, what=f"{asked.commands} is answered")
        assert asked.error is None
        assert isinstance(asked.result, list)
        (answer,) = asked.result
        assert isinstance(answer, bytes | CommandErrorAnswer)
        return answer if isinstance(answer, bytes) else None

    def crash_one(self, rng: random.Random) -> None:
        """One of the three loses power, and comes back after a while; the one before has come back by then."""
        node = rng.choice(self.nodes)
        self.world.run_until(lambda: all(each.up for each in self.nodes), what="all are up")
        node.crash()
        self.world.at(rng.uniform(0.1, 1.0), node.start)

    def come_to_rest(self) -> None:
        """Wait until all have applied the same."""

        def same() -> bool:
            return all(node.up for node in self.nodes) and len({node.applier.index for node in self.nodes}) == 1

        self.world.run(2.0)
        self.world.run_until(same, what="all have applied the same")

    def ask(self, command: bytes) -> bytes | None:
        """Have a command applied and return its answer."""
        return self.settled(self.client.propose(command, timeout=60.0))

    def restart(self, node: Node, factory: Callable[[], StateMachine]) -> None:
        """Stop a node in good order and start it again with another program."""
        node.stop()
        self.world.run_until(lambda: not node.up, what=f"node {node.id} has stopped")
        node.machine_maker = factory
        node.start()
