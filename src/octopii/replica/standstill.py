"""Whether anybody still applies, in the eyes of a replica that has stopped.

A member that stopped applying says so in each `Pulse`. Leadership goes to members that have not; while there is none it
stays where it is, because each hand-over would only find another that has stopped. A standstill is that: this replica
has stopped, so have all voters that it is connected with, and those are a majority. A call is then refused for good: no
other node would take it. It ends when a voter that applies is there again, mostly one that was started anew.
"""

import logging
from typing import TYPE_CHECKING

from octopii.errors import NotApplied, ShuttingDown
from octopii.replica.jobs import LocalFailure

if TYPE_CHECKING:
    from octopii.replica.replica import Replica

logger = logging.getLogger("octopii.replica")


class Standstill:
    """See the module's text."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica
        self.text = ""
        """What to say of the standstill, empty while there is none."""

    def tick(self) -> None:
        """Look whether it has begun or ended."""
        replica = self._replica
        failure, voters = replica.applying.failure, replica.other_voters
        there = [peer for peer in voters if peer in replica.connected]
        if failure is None or not all(replica.vitals.stopped_at(peer) for peer in there):
            self._end()
        elif not self.text and replica.refused is None:
            own = int(replica.raft.is_voter)
            if 2 * (len(there) + own) > len(voters) + own:
                self._begin(failure)

    def _begin(self, failure: LocalFailure) -> None:
        replica = self._replica
        self.text = (
            f"node {replica.config.node_id} takes no calls, because no member applies any more: this one stopped at "
            f"entry {failure.index}: {failure.reason}; {failure.remedy}"
        )
        logger.error("%s", self.text)
        replica.applying.refuse(NotApplied(self.text))

    def _end(self) -> None:
        if not self.text:
            return
        self.text = ""
        replica = self._replica
        logger.warning("node %d no longer says that no member applies", replica.config.node_id)
        if replica.applying.failure is not None:
            replica.applying.refuse(ShuttingDown(replica.warnings["apply"]))
