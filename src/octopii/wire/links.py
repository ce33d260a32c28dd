"""Finding the node to talk to: which address a client dials, keeps, leaves, and how long it waits in between.

A client talks to one node at a time. Any node will do, because every node accepts every call; the leader is best,
because then nothing is forwarded. So:

    no link         dial the known addresses in turn, from a random one on, with a delay that doubles with each full
                    round of failures and is jittered, so that a cluster that comes back is not met by all at once
    a hint          dial the leader beside the link in use, and move over only when it answers: an address that the
                    leader announces but this client cannot reach costs nothing but a try now and then
    refusals        wait a little; after some refusals in a row move to the next address: the node may be cut off
    moved away      the old link is closed once nothing is outstanding on it

No I/O, no clock: the caller carries out `actions`, says what came of them, and passes the time in.
"""

import enum
import math
import random
from collections.abc import Collection, Sequence
from typing import TypeAlias

import msgspec

from octopii.errors import ConfigError, RefusedError

MAX_LEARNED_ADDRESSES = 16
"""Most addresses kept beside the ones given: leaders that nodes told of."""

REFUSALS_BEFORE_MOVING = 3
"""Refusals in a row, without a hint where to go, before another node is asked."""

REFUSALS_BEFORE_GIVING_UP = 3
"""Times in a row that each given address has to turn a client away. A node that stops may look as if it did so once."""

MAX_DOUBLINGS = 16


class LinkLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Times of a client's links, in seconds."""

    dial_timeout: float = 5.0
    """How long a dialled address may take, handshake included."""

    delay_min: float = 0.05
    """Delay after the first failure or refusal; doubles from there."""

    delay_max: float = 2.0
    """Longest delay."""

    shun: float = 5.0
    """How long hints to an address that could not be reached are ignored."""

    follow_leader: bool = True
    """Whether to move to the leader; no for a node's own calls, which only ever go to the node itself."""

    patient: bool = True
    """Whether addresses that cannot be reached are dialled again; no for whoever asks how one node is, now."""

    leave_silent: bool = True
    """Whether a link on which nothing is heard for a whole try counts as broken; no where there is no network."""


class Connect(msgspec.Struct, frozen=True, gc=False):
    """Dial this address and shake hands; then say `connected` or `disconnected`."""

    address: str


class Disconnect(msgspec.Struct, frozen=True, gc=False):
    """Close the connection to this address, or stop dialling it; nothing needs to be said of it any more."""

    address: str


LinkAction: TypeAlias = Connect | Disconnect


class _State(enum.Enum):
    DIALLING = "dialling"
    UP = "up"
    DRAINING = "draining"


class _Link(msgspec.Struct, eq=False):
    address: str
    state: _State
    since: float
    node_id: int = 0


class Links:
    """A client's links; see the module's text. At most three at a time: in use, being dialled, draining."""

    def __init__(self, addresses: Sequence[str], *, rng: random.Random, limits: LinkLimits) -> None:
        """Start without a link; raises `ConfigError` without an address."""
        self._given = list(dict.fromkeys(addresses))
        if not self._given:
            raise ConfigError("a client needs the address of at least one node", field="addresses")
        self._rng = rng
        self._limits = limits
        self._learned: dict[str, None] = {}
        self._turn = rng.randrange(len(self._given))
        self._links: dict[str, _Link] = {}
        self._dialling: _Link | None = None
        self._shunned: dict[str, float] = {}
        self._failures = 0
        self._refusals = 0
        self._refused: dict[str, tuple[RefusedError, int]] = {}  # by given address, with how often in a row
        self._next_move = 0.0
        self.unreachable: dict[str, str] = {}
        self.current: str | None = None
        self.hold_until = 0.0
        self.actions: list[LinkAction] = []

    # --- what the machine above asks ----------------------------------------------------------------------------

    @property
    def refusal(self) -> RefusedError | None:
        """Why the cluster wants nothing of this client, when that is what each given address has said last."""
        if not self._refused.keys() >= set(self._given):
            return None
        error, _ = next(reversed(self._refused.values()))
        return type(error)(str(error))

    @property
    def hopeless(self) -> bool:
        """Whether there is no point in waiting for a link."""
        refused = [self._refused.get(address, (None, 0))[1] for address in self._given]
        tried_all = self.current is None and self.unreachable.keys() >= set(self._given)
        return min(refused) >= REFUSALS_BEFORE_GIVING_UP or (not self._limits.patient and tried_all)

    def ready(self, now: float) -> bool:
        """Whether requests may be sent on `current` now."""
        return self.current is not None and now >= self.hold_until

    def ensure(self, now: float) -> None:
        """Dial the next address unless there is a link, or one is being dialled, or it is too early."""
        if self.current is None and self._dialling is None and now >= self.hold_until:
            self._dial(self._next_address(), now)

    def succeeded(self) -> None:
        """A request was answered: the node is a good one."""
        self._failures = 0
        self._refusals = 0

    def refused(self, now: float, *, elsewhere: bool) -> None:
        """A request was refused for the time being: wait, and ask another node if `elsewhere` or if it goes on so."""
        self._refusals += 1
        self._wait(self._refusals - 1, now)
        if (elsewhere or self._refusals % REFUSALS_BEFORE_MOVING == 0) and self._dialling is None:
            self._dial(self._next_address(), now)

    def hint(self, leader: int, address: str, now: float) -> None:
        """A node says who leads: stay, if that is the node in use, else go there; either way stop waiting."""
        if not leader:
            return
        link = self._links.get(self.current) if self.current is not None else None
        if link is not None and (link.node_id == leader or link.address == address or not self._limits.follow_leader):
            self.hold_until = now
            return
        if not address or self._shunned.get(address, 0.0) > now or self._dialling is not None:
            return
        if now < self._next_move:
            return
        self._next_move = now + self._limits.delay_min  # two nodes that take each other for the leader
        self._learn(address)
        self._dial(address, now)

    def leave(self, address: str, now: float) -> None:
        """Give up a link on which nothing is heard any more, and do not come back at the next hint."""
        if address in self._links:
            self.actions.append(Disconnect(address))
            self.disconnected(address, now, why="it does not answer")
            self._shunned[address] = now + self._limits.shun

    @property
    def draining(self) -> bool:
        """Whether there are links that were moved away from."""
        return len(self._links) > 1 and any(link.state is _State.DRAINING for link in self._links.values())

    def close_drained(self, busy: Collection[str]) -> None:
        """Close the links that were moved away from and on which nothing is outstanding."""
        for link in [link for link in self._links.values() if link.state is _State.DRAINING]:
            if link.address not in busy:
                del self._links[link.address]
                self.actions.append(Disconnect(link.address))

    def close(self) -> None:
        """Close everything."""
        self.actions += [Disconnect(address) for address in self._links]
        self._links.clear()
        self._dialling = None
        self.current = None

    def wake(self, now: float, *, wanted: bool) -> float:
        """When there is something to do again, infinite for never; `wanted`: whether there is anything to send."""
        wake = math.inf
        if self._dialling is not None:
            wake = self._dialling.since + self._limits.dial_timeout
        if wanted and self.hold_until > now and (self.current is not None or self._dialling is None):
            wake = min(wake, self.hold_until)
        return wake

    # --- what happens -------------------------------------------------------------------------------------------

    def connected(self, address: str, node_id: int, now: float) -> None:
        """A dialled address has shaken hands as `node_id`: use it from now on."""
        link = self._links.get(address)
        if link is None or link is not self._dialling:
            return
        self._dialling = None
        self._shunned.pop(address, None)
        self.unreachable.pop(address, None)
        self._refused.clear()
        link.node_id = node_id
        self._use(link, now)

    def disconnected(
        self, address: str, now: float, *, why: str = "the connection broke", refusal: RefusedError | None = None
    ) -> None:
        """A link broke, or an address could not be reached, or the node there wants nothing of this client."""
        link = self._links.pop(address, None)
        if link is None:
            return
        self.unreachable[address] = why
        if len(self.unreachable) > len(self._given) + MAX_LEARNED_ADDRESSES:
            del self.unreachable[next(iter(self.unreachable))]
        _, times = self._refused.pop(address, (None, 0))
        if refusal is not None and address in self._given:
            self._refused[address] = refusal, times + 1
        if link is self._dialling:
            self._dialling = None
            self._shunned[address] = now + self._limits.shun
        if self.current == address:
            self.current = None
        if self.current is None and self._dialling is None:
            self._failures += 1
            self._wait((self._failures - 1) // len(self._given), now)

    def tick(self, now: float) -> None:
        """Give up an address that takes too long, and forget old grudges."""
        if self._dialling is not None and now >= self._dialling.since + self._limits.dial_timeout:
            self.leave(self._dialling.address, now)
        for address in [address for address, until in self._shunned.items() if until <= now]:
            del self._shunned[address]

    # --- inside -------------------------------------------------------------------------------------------------

    def _wait(self, doublings: int, now: float) -> None:
        limits = self._limits
        delay = min(limits.delay_max, limits.delay_min * 2.0 ** min(doublings, MAX_DOUBLINGS))
        self.hold_until = now + delay * (0.5 + self._rng.random() / 2)

    def _next_address(self) -> str:
        addresses = self._given + list(self._learned)
        address = addresses[self._turn % len(addresses)]
        if address == self.current:
            self._turn += 1
            address = addresses[self._turn % len(addresses)]
        self._turn = (self._turn + 1) % len(addresses)
        return address

    def _learn(self, address: str) -> None:
        if address in self._given:
            return
        self._learned.pop(address, None)
        self._learned[address] = None
        if len(self._learned) > MAX_LEARNED_ADDRESSES:
            del self._learned[next(iter(self._learned))]

    def _dial(self, address: str, now: float) -> None:
        link = self._links.get(address)
        if link is not None:
            if link.state is _State.DRAINING:
                self._use(link, now)
            return
        self._dialling = self._links[address] = _Link(address, _State.DIALLING, now)
        self.actions.append(Connect(address))

    def _use(self, link: _Link, now: float) -> None:
        if self.current is not None:
            self._links[self.current].state = _State.DRAINING
        link.state = _State.UP
        link.since = now
        self.current = link.address
        if self._refusals <= 1:
            self.hold_until = now
