"""Versions of the user's state machine: what each member's program can run, and what the cluster runs.

A program's `command_version` says which commands it understands. The *active* version is part of the replicated state:
it begins at 1 and is raised by a log entry alone. The leader writes that entry once every member, learners included,
is connected and has reported the higher version. From its index on all replicas follow the new commands, none before.

    a proposal that needs more than the active version    waits a moment, then is refused: VERSION_NOT_ACTIVE
    an entry, or a snapshot, above this program's version  this replica stops applying, says so, and answers nothing;
                                                           started with a newer program it goes on from there

The active version never falls, so what was accepted here finds it raised wherever the proposal's entry comes to lie.
A proposal waits because a node that has just started does not know yet what is active, and because a new cluster raises
its version in its first moments.
"""

import logging
from typing import TYPE_CHECKING

import msgspec

from octopii.errors import OctopiiError, VersionNotActive
from octopii.replica.work import Origin
from octopii.wire.codec import ActivateVersion
from octopii.wire.requests import Propose

if TYPE_CHECKING:
    from octopii.replica.replica import Replica

logger = logging.getLogger("octopii.replica")

max_patience_seconds = 1.0
"""Most seconds, and at most an election timeout, that a proposal waits for its version.

Well below the time after which a client sends it again: from then on it could not tell that nothing was applied.
"""

max_waiting_proposals = 1024
"""Proposals that wait for their version; beyond it they are refused at once."""

max_waiting_bytes = 4 << 20
"""Bytes of commands that wait for their version."""


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A proposal that needs version `since`, and how long (monotonic seconds) it waits for that."""

    since: int
    origin: Origin
    request: Propose
    size: int
    until: float


class Versions:
    """The versions part of one replica; see the module's text."""

    def __init__(self, replica: "Replica", own: int) -> None:
        self._replica = replica
        self.own = own
        self.active = 1
        self.reported: dict[int, int] = {}  # of the members that are connected
        self._proposed = 0
        self._waiting: list[Waiting] = []

    # --- members ------------------------------------------------------------------------------------------------

    def heard(self, peer: int, version: int) -> None:
        """A peer says what its program can run."""
        self.reported[peer] = version
        self._judge(peer)

    def lost(self, peer: int) -> None:
        """The peer is gone; what comes back in its place may be another program."""
        self.reported.pop(peer, None)

    def _judge(self, peer: int) -> None:
        version, replica = self.reported[peer], self._replica
        if version < self.active and peer in replica.applying.roster.members:
            text = (
                f"node {peer} runs version {version} of the state machine and cannot apply what the cluster runs, "
                f"version {self.active}: start a newer program there"
            )
            replica.warn(f"version-{peer}", text)
        else:
            replica.warnings.pop(f"version-{peer}", None)

    def leadership_changed(self) -> None:
        """Whether what the last leader proposed is in the log is for the new one to find out."""
        self._proposed = 0

    def tick(self, now: float) -> None:
        """As leader raise the version when all members are ready; refuse what has waited for it too long."""
        if self._replica.leadership.is_leader:
            self._maybe_raise(now)
        if self._waiting and self._waiting[0].until <= now:
            late = [waiting for waiting in self._waiting if waiting.until <= now]
            self._waiting = [waiting for waiting in self._waiting if waiting.until > now]
            for waiting in late:
                self._refuse(waiting.origin, waiting.request, self._not_active(waiting.since))

    def _maybe_raise(self, now: float) -> None:
        own_id = self._replica.config.node_id
        others = self._replica.applying.roster.members.keys() - {own_id}
        if not others <= self.reported.keys():
            return
        lowest = min([self.own, *(self.reported[peer] for peer in others)])
        if lowest > max(self.active, self._proposed):
            self._proposed = lowest
            logger.info("every member can run version %d of the state machine: node %d raises it", lowest, own_id)
            self._replica.calls.system(ActivateVersion(lowest), now)

    # --- proposals ----------------------------------------------------------------------------------------------

    def propose(self, origin: Origin, request: Propose, *, since: int, now: float) -> None:
        """Take a group of calls that needs a version."""
        size = sum(map(len, request.group.commands))
        if since <= self.active or self._replica.calls.refusal is not None:
            self._replica.calls.propose(origin, request, now)
        elif len(self._waiting) >= max_waiting_proposals or self._waiting_bytes + size > max_waiting_bytes:
            self._refuse(origin, request, self._not_active(since))
        else:
            until = now + min(self._replica.config.election_timeout, max_patience_seconds)
            self._waiting.append(Waiting(since, origin, request, size, until))

    @property
    def _waiting_bytes(self) -> int:
        return sum(waiting.size for waiting in self._waiting)

    def activated(self, version: int) -> None:
        """The applied state has this version."""
        if version <= self.active:
            return
        self.active = version
        for peer in self.reported:
            self._judge(peer)
        ready = [waiting for waiting in self._waiting if waiting.since <= version]
        self._waiting = [waiting for waiting in self._waiting if waiting.since > version]
        for waiting in ready:
            self._replica.calls.propose(waiting.origin, waiting.request, self._replica.now)

    def give_up(self, error: OctopiiError) -> None:
        """This node takes no calls any more: what waits was in nobody's log."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._refuse(each.origin, each.request, error)

    def _refuse(self, origin: Origin, request: Propose, error: OctopiiError) -> None:
        replica = self._replica
        replica.outbox.reply(origin, replica.leadership.failure(error, request.request_id))

    def _who_is_behind(self, version: int) -> str:
        """The members that keep a version from being raised, as far as this node knows."""
        own_id, behind = self._replica.config.node_id, []
        for member in sorted(self._replica.applying.roster.members):
            has = self.own if member == own_id else self.reported.get(member)
            if has is None:
                behind.append(f"node {member} is not connected to node {own_id}")
            elif has < version:
                behind.append(f"node {member} has version {has}")
        return f" ({', '.join(behind)})" if behind else ""

    def _not_active(self, since: int) -> VersionNotActive:
        text = (
            f"the command needs version {since} of the state machine; active is version {self.active}, "
            f"and it is raised when every member runs a program of version {since}{self._who_is_behind(since)}"
        )
        return VersionNotActive(text, needed=since, active=self.active)
