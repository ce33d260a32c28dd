"""A simulated machine's process stops in good order, as `node/engine.py` does."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from octopii.errors import OctopiiError
from octopii.walrus.faults import PowerLoss

if TYPE_CHECKING:
    from octopii.sim.node import Node

stop_patience = 5
"""Election timeouts that a stop waits for a hand-over and for the disk."""


class OrderlyStop:
    """One stop, from its beginning to the end of the process."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._deadline = node.world.now + stop_patience * node.config.election_timeout
        self.takes_nothing_in = False

    def begin(self) -> None:
        """Hand leadership over first."""
        node = self._node
        if node.replica.leadership.is_leader and node.replica.upkeep.hand_over("it is shutting down"):
            node.enter(lambda: None)
        self._when_handed_over()

    def _when_handed_over(self) -> None:
        node = self._node
        if not node.up:
            return
        if node.replica.leadership.is_leader and node.replica.other_voters and node.world.now < self._deadline:
            node.later(node.config.tick_interval, self._when_handed_over)
            return
        self.takes_nothing_in = True  # or it might begin another sync
        if node.syncs.busy:
            node.later(max(0.0, self._deadline - node.world.now), self._at_once)
        else:
            self.last_sync_done(lambda: None)

    def last_sync_done(self, note: Callable[[], None]) -> None:
        """The disk stands still, so the log can be closed; `note` tells the replica so."""
        node = self._node
        try:
            note()
            node.replica.close()
        except PowerLoss:
            node.crash()
        except (OctopiiError, OSError) as error:
            node.fail(error)
        else:
            node.world.trace.note(node.world.now, node.id, "has stopped")
            node.stopped = True
            node.go_down()
            node.vfs.end_process()

    def _at_once(self) -> None:
        """The disk does not come to its end: the process ends, and the next start recovers as after a crash."""
        node = self._node
        node.world.trace.note(node.world.now, node.id, "stops with a sync under way")
        node.end_process()
