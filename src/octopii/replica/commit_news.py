"""When followers hear what has been committed: with the next entries, or a moment later.

The Raft core tells of each new commit index at once, in an append without entries. Under load that doubles messages,
wake-ups and turns, for a number that the next append brings along anyway. So such a message is held for a moment, and
forgotten when entries go to the same follower before it is over. Dropping it, like all of Raft's messages, costs at
most time: heartbeats say the same. A follower that has forwarded calls waits for exactly this, and hears at once.
"""

from octopii.raft import Message
from octopii.replica.work import Outbox

hold_seconds = 0.005
"""How long the news may wait: what a follower's stale read may miss at most, beside the network's delay."""

eager_seconds = 1.0
"""How long after its last forwarded calls a follower is told at once."""


class CommitNews:
    """Holds a leader's appends without entries; see the module's text."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._held: dict[int, Message] = {}
        self._eager_until: dict[int, float] = {}
        self.wake_at: float | None = None
        """When `tell_due` has something to do, in monotonic seconds; None when nothing is held."""

    def take(self, message: Message, now: float) -> None:
        """Send an append to a follower, or hold it when it has no entries."""
        peer = message.to
        if message.entries:
            self._held.pop(peer, None)
            self._outbox.send(peer, message)
        elif self._eager_until.get(peer, 0.0) >= now:
            self._outbox.send(peer, message)
        else:
            self._held[peer] = message
            if self.wake_at is None:
                self.wake_at = now + hold_seconds

    def follower_waits(self, peer: int, now: float) -> None:
        """A follower has forwarded calls: it answers them when it hears that they are committed."""
        self._eager_until[peer] = now + eager_seconds
        held = self._held.pop(peer, None)
        if held is not None:
            self._outbox.send(peer, held)

    def tell_due(self, now: float) -> None:
        """Send what was held for long enough."""
        if self.wake_at is None or now < self.wake_at:
            return
        self.wake_at = None
        for peer, message in self._held.items():
            self._outbox.send(peer, message)
        self._held.clear()

    def forget(self) -> None:
        """Leadership has changed: what is held says nothing any more."""
        self._held.clear()
        self._eager_until.clear()
        self.wake_at = None
