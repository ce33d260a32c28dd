"""Carries a client's attempts to whichever node is in use, and notices when one will not be answered.

The courier knows requests by number and nothing of what they mean. Attempts that are lost, because their link broke or
stayed silent or just this answer never came, are handed back: what follows from that is for the layer above to say.
"""

import math
import random
from collections.abc import Sequence

import msgspec

from octopii.errors import RefusedError
from octopii.wire.attempts import Attempt
from octopii.wire.links import LinkAction, LinkLimits, Links
from octopii.wire.requests import LeaderHint, ProposeAnswers, QueryAnswers, Reply, Request


class Send(msgspec.Struct, frozen=True, gc=False):
    """Write these requests to this address, in order."""

    address: str
    requests: list[Request]


class Courier:
    """Requests and their numbers, on the links of one client."""

    def __init__(self, addresses: Sequence[str], *, rng: random.Random, limits: LinkLimits, try_timeout: float) -> None:
        """`try_timeout` is how long, in seconds, an answer may take before it is given up for lost."""
        self.links = Links(addresses, rng=rng, limits=limits)
        self._try_timeout = try_timeout
        self._leave_silent = limits.leave_silent
        self._unsent: dict[Attempt, None] = {}
        self._outstanding: dict[int, Attempt] = {}  # by request number, oldest first
        self._next_request = 1
        self._last_heard: dict[str, float] = {}
        self._sends: dict[str, list[Request]] = {}
        self._frame_bytes: dict[str, int] = {}  # of the nodes that have said how long a frame they read

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits for a link."""
        return bool(self._unsent)

    def submit(self, attempt: Attempt) -> None:
        """Send an attempt, again perhaps, as soon as there is a link."""
        self._unsent[attempt] = None

    def flush(self, now: float) -> list[Attempt]:
        """Send all that waits on the link in use; there has to be one. Returns what is too long for the node there."""
        limit = self.frame_bytes
        too_long = [attempt for attempt in self._unsent if not attempt.fits(limit)] if limit else []
        for attempt in too_long:
            del self._unsent[attempt]
        for attempt in self._unsent:
            self._send(attempt, now)
        self._unsent.clear()
        return too_long

    @property
    def frame_bytes(self) -> int:
        """Longest request that the node in use reads, 0 where it has not said or there is none."""
        return 0 if self.links.current is None else self._frame_bytes.get(self.links.current, 0)

    def drop(self, attempt: Attempt) -> None:
        """Nobody waits for it any more: an answer that still comes is ignored."""
        self._unsent.pop(attempt, None)
        if attempt.request_id:
            del self._outstanding[attempt.request_id]
            attempt.request_id = 0

    def _send(self, attempt: Attempt, now: float) -> None:
        address = self.links.current
        assert address is not None
        attempt.request_id = self.new_request_id()
        attempt.address = address
        attempt.sent_at = now
        self._outstanding[attempt.request_id] = attempt
        self.send_unanswered(attempt.request())

    def send_unanswered(self, request: Request) -> None:
        """Send a request on the link in use, without caring for the reply."""
        assert self.links.current is not None
        self._sends.setdefault(self.links.current, []).append(request)

    def new_request_id(self) -> int:
        """Return a number that no request has had."""
        number = self._next_request
        self._next_request += 1
        return number

    # --- what happens; the lost attempts are returned -----------------------------------------------------------

    def connected(self, address: str, node_id: int, now: float, *, max_frame_bytes: int) -> None:
        """A dialled node has admitted us."""
        self._last_heard[address] = now
        self._frame_bytes[address] = max_frame_bytes
        self.links.connected(address, node_id, now)

    def disconnected(self, address: str, now: float, *, why: str, refusal: RefusedError | None) -> list[Attempt]:
        """A connection broke, or could not be made."""
        self.links.disconnected(address, now, why=why, refusal=refusal)
        return self._lose(address)

    def leave(self, address: str, now: float) -> list[Attempt]:
        """Close a link that is silent, or cannot be trusted."""
        self.links.leave(address, now)
        return self._lose(address)

    def receive(self, address: str, reply: Reply, now: float) -> Attempt | None:
        """Take a reply; return the attempt that it answers, then no longer outstanding, or None while more follows."""
        self._last_heard[address] = now
        if isinstance(reply, LeaderHint):
            self.links.hint(reply.leader, reply.address, now)
            return None
        attempt = self._outstanding.get(reply.request_id)
        if attempt is None or attempt.address != address:
            return None
        del self._outstanding[reply.request_id]
        if isinstance(reply, ProposeAnswers | QueryAnswers) and reply.more and attempt.take_part(reply.answers):
            attempt.sent_at = now  # the rest has as long as an answer may take, and stands behind what was sent before
            self._outstanding[reply.request_id] = attempt
            return None
        attempt.request_id = 0
        return attempt

    def tick(self, now: float) -> list[Attempt]:
        """Give up answers that are overdue, and links on which nothing at all was heard since."""
        self.links.tick(now)
        lost: list[Attempt] = []
        for attempt in list(self._outstanding.values()):
            if now < attempt.sent_at + self._try_timeout:  # the sum that `next_wake` gave
                break
            if not attempt.request_id or not attempt.repeatable:
                continue  # lost with its link, a moment ago; or to be waited for: a snapshot may well take minutes
            silent = self._last_heard.get(attempt.address, -math.inf) + self._try_timeout <= now
            if silent and self._leave_silent:
                lost += self.leave(attempt.address, now)
            else:
                del self._outstanding[attempt.request_id]
                attempt.lose()
                lost.append(attempt)
        return lost

    def next_wake(self, now: float, *, wanted: bool) -> float:
        """When `tick` or a flush is due at the latest; infinite for never."""
        wake = self.links.wake(now, wanted=wanted)
        for attempt in self._outstanding.values():  # the oldest that may be given up
            if attempt.repeatable:
                return min(wake, attempt.sent_at + self._try_timeout)
        return wake

    def _lose(self, address: str) -> list[Attempt]:
        self._last_heard.pop(address, None)
        self._sends.pop(address, None)
        lost = [attempt for attempt in self._outstanding.values() if attempt.address == address]
        for attempt in lost:
            del self._outstanding[attempt.request_id]
            attempt.lose()
        return lost

    def take_actions(self) -> list[Send | LinkAction]:
        """Return what to write, dial and close, in this order of doing."""
        links = self.links
        if links.draining:
            links.close_drained({attempt.address for attempt in self._outstanding.values()})
        actions: list[Send | LinkAction] = []
        if self._sends:
            actions += [Send(address, requests) for address, requests in self._sends.items()]
            self._sends = {}
        if links.actions:
            actions += links.actions
            links.actions = []
        return actions
