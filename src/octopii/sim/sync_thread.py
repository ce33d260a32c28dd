"""The thread of a simulated machine that waits for its disk: one sync at a time."""

from typing import TYPE_CHECKING

from octopii.walrus.ticket import SyncTicket

if TYPE_CHECKING:
    from octopii.sim.node import Node


class SyncThread:
    """The syncs of one machine, from boot to crash."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._ticket: SyncTicket | None = None

    @property
    def busy(self) -> bool:
        """Whether a sync is under way."""
        return self._ticket is not None

    def submit(self, ticket: SyncTicket) -> None:
        """Begin a sync."""
        node = self._node
        self._ticket = ticket
        if not node.paused_sync:
            node.later(node.world.between(node.world.weather.sync_time) + node.slow_sync, self.finish)

    def finish(self) -> None:
        """The disk has done its work, if it does any."""
        node, ticket = self._node, self._ticket
        if ticket is None or node.paused_sync or not node.up:
            return
        if node.paused:
            node.postpone(self.finish)
            return
        self._ticket = None
        if node.stop_under_way is not None and node.stopping:
            node.stop_under_way.last_sync_done(lambda: self._done(ticket))
        else:
            node.enter(lambda: self._done(ticket))

    def _done(self, ticket: SyncTicket) -> None:
        ticket.run()
        self._node.replica.sync_done(ticket)
