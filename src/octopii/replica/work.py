"""What a replica wants done: collected while it thinks, taken by its driver after each step.

The driver (threads and sockets in production, events in the simulator) sends `messages` and `replies`, runs `jobs` in
order on the apply thread, and runs the `sync` ticket on a disk thread. It reports back with `Replica.job_done` and
`Replica.sync_done`.
"""

from typing import TypeAlias

import msgspec

from octopii.replica.jobs import Job
from octopii.walrus import SyncTicket
from octopii.wire.peer_frames import PeerOutput
from octopii.wire.requests import Relayed, Reply

__all__ = ["Origin", "Outbox", "PeerOrigin", "PeerOutput", "Work"]

Origin: TypeAlias = object
"""Who asked: whatever hashable value the driver gave with the request; replies carry it back."""


class PeerOrigin(msgspec.Struct, frozen=True):
    """A request that another node relays for a client of its own."""

    peer: int


class Work(msgspec.Struct):
    """One step's worth of work; see the module's text."""

    messages: dict[int, list[PeerOutput]] = msgspec.field(default_factory=dict)
    replies: list[tuple[Origin, Reply]] = msgspec.field(default_factory=list)
    jobs: list[Job] = msgspec.field(default_factory=list)
    sync: SyncTicket | None = None
    more: bool = False
    """Whether to poll again once this is done: the messages go out before the disk's part of the step begins."""

    def __bool__(self) -> bool:
        return bool(self.messages or self.replies or self.jobs or self.sync is not None)


class Outbox:
    """Collects work until the driver takes it."""

    def __init__(self) -> None:
        self._work = Work()

    def send(self, peer: int, message: PeerOutput) -> None:
        """Queue a message for a peer; order per peer is kept."""
        self._work.messages.setdefault(peer, []).append(message)

    def reply(self, origin: Origin, reply: Reply) -> None:
        """Queue a reply to whoever asked."""
        if isinstance(origin, PeerOrigin):
            self.send(origin.peer, Relayed(reply))
        else:
            self._work.replies.append((origin, reply))

    def job(self, job: Job) -> None:
        """Queue a job for the apply thread."""
        self._work.jobs.append(job)

    @property
    def has_messages(self) -> bool:
        """Whether a peer is to be told something."""
        return bool(self._work.messages)

    def take(self, sync: SyncTicket | None, *, more: bool = False) -> Work:
        """Hand everything over and start anew."""
        work, self._work = self._work, Work()
        work.sync, work.more = sync, more
        return work
