"""What the network between nodes can be made to do, whichever way it is built."""

from typing import Protocol


class Network(Protocol):
    """Links between nodes by id, each with two directions. Clients reach every node at all times."""

    name: str
    can_slow: bool
    """Whether `slow` works here."""

    async def attach(self, node_id: int) -> None:
        """Give a node its place. It stays when the node's process ends."""

    def bind_address(self, node_id: int) -> str:
        """Where the node itself listens."""

    def address(self, node_id: int) -> str:
        """Where others reach it."""

    def prefix(self, node_id: int) -> list[str]:
        """What the node's command line begins with."""

    async def cut(self, source: int, target: int) -> None:
        """Lose all that `source` sends to `target`, and nothing of what comes back."""

    async def slow(self, node_id: int, *, delay: float, loss: float) -> None:
        """Delay all that a node sends to other nodes by about `delay` seconds; lose each packet with chance `loss`."""

    async def heal(self) -> None:
        """End all cuts and slowness."""

    async def close(self) -> None:
        """Take the network away, whatever state it is in."""
