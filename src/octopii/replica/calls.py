"""Calls on their way into the log: queued, packed, forwarded, and answered when they come out at the other end.

A node accepts calls whether it leads or not. As leader it queues them and packs whatever has gathered into one entry;
as follower it forwards them to the leader in batches. Either way the answer comes from this node's own apply thread,
when it reaches the entry: so an answer needs no message of its own, and survives a change of leader if the entry does.

What a caller hears when there is no answer:

    refused before it was in any log            a NotApplied kind: this try will never count
    leadership changed while it was under way   CONNECTION_LOST: the outcome is unknown, the client tries the same
                                                numbers again and the session sorts it out
"""

import logging

import msgspec

from octopii.config import Config
from octopii.errors import DiskFull, NoLeader, NotApplied, OctopiiError, Overloaded, ShuttingDown, TooLarge
from octopii.replica.jobs import Applied, GroupAnswered, OpenedSession
from octopii.replica.sessions import Verdict
from octopii.replica.work import Origin, Outbox
from octopii.wire.codec import (
    CallGroup,
    CloseSession,
    Compact,
    EntryItem,
    EntryPayload,
    Found,
    OpenSession,
    encode_entry,
)
from octopii.wire.requests import (
    KEPT_ANSWERS,
    CompactRequest,
    Done,
    Failure,
    FailureKind,
    Forward,
    ForwardRefused,
    Propose,
    ProposeAnswers,
    SessionEnd,
    SessionOpened,
    SessionRequest,
    failure_of,
)

logger = logging.getLogger("octopii.replica")

item_overhead_bytes = 64
"""What an item of an entry is counted as beside its commands."""

command_overhead_bytes = 5
"""What each command is counted as beside its bytes."""

Key = tuple[int, int] | bytes
"""What a waiter waits for: (session, first call number), or the nonce of a session."""


max_waiters = 16
"""Who may wait for the same item: a client that tries again after a lost connection waits twice."""


max_compactions = 1024
"""Requests to compact that may wait; one entry answers all that came before it."""


class Waiter(msgspec.Struct, frozen=True, gc=False):
    """Someone who waits for an item to be applied."""

    origin: Origin
    request_id: int


class Awaited(msgspec.Struct):
    """An item that was accepted and not answered yet: who waits, its calls and bytes, its newest forward (0: none)."""

    waiters: list[Waiter]
    calls: int
    size: int
    forward: int = 0


class Leadership(msgspec.Struct):
    """Who leads, as far as this node knows; shared by all parts of a replica."""

    node_id: int
    leader: int = 0
    leader_address: str = ""
    term: int = 0
    outside: bool = False
    """Whether this node belongs to no cluster yet."""

    def no_leader(self, text: str = "the cluster has no leader at the moment") -> NoLeader:
        """What a call hears that waited for a leader in vain; `text` is for a node that has a cluster."""
        if self.outside:
            text = (
                f"node {self.node_id} belongs to no cluster yet: one node of a new cluster is started with "
                "--initial-leader (is_initial_leader when embedded)"
            )
        return NoLeader(text, leader=self.leader or None)

    @property
    def is_leader(self) -> bool:
        """Whether this node leads."""
        return self.leader == self.node_id

    def failure(self, error: OctopiiError, request_id: int) -> Failure:
        """Say an error on the wire, with a hint at the leader."""
        return failure_of(error, request_id, leader=self.leader, leader_address=self.leader_address)


class SessionRoom:
    """How many sessions there are, and how much each has under way.

    Looked at before a call or a session enters the log, so nodes may be set differently without harm. The limits that
    hold when an entry is applied are the session table's.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._sessions = 0  # that are open, as far as this node has applied the log
        self._waiting: dict[int, int] = {}  # bytes of calls that are not answered yet, by session
        self.openings = 0
        """Sessions whose opening is queued here, or, as leader, in the log and not applied yet."""
        self.crowded = False
        """Whether one was refused: those that have expired are to end soon."""

    def objection_to_opening(self) -> Overloaded | None:
        """Why no session may be opened now, or None."""
        most = self._config.max_sessions
        if self._sessions + self.openings < most:
            return None
        self.crowded = True
        return Overloaded(
            f"the cluster has {self._sessions} sessions and {self.openings} on their way, max_sessions is {most}: "
            "those that nobody uses any more end in time",
            limit="max_sessions",
        )

    def objection_to_calls(self, session: int, size: int) -> Overloaded | None:
        """Why a session may not have so many bytes more of calls under way, or None; one group may always go."""
        waiting, most = self._waiting.get(session, 0), self._config.session_window_bytes
        if not waiting or waiting + size <= most:
            return None
        text = f"the session has {waiting} bytes of calls that are not answered yet, session_window_bytes is {most}"
        return Overloaded(text, limit="session_window_bytes")

    def waits(self, session: int, size: int) -> None:
        """Calls of so many bytes wait for their answers (a negative number: no longer)."""
        waiting = self._waiting.get(session, 0) + size
        if waiting > 0:
            self._waiting[session] = waiting
        else:
            self._waiting.pop(session, None)

    def opened(self, count: int) -> None:
        """So many openings have been applied, or are nobody's business here any more."""
        self.openings = max(0, self.openings - count)

    def applied(self, result: Applied) -> None:
        """Follow the applied state."""
        self._sessions = result.sessions
        self.opened(len(result.opened))
        if result.compacted:
            self.crowded = False


class Calls:
    """The calls of one node; see the module's text."""

    def __init__(self, config: Config, outbox: Outbox, leadership: Leadership) -> None:
        self._config = config
        self._outbox = outbox
        self._leadership = leadership
        self._queue: list[tuple[EntryItem, int]] = []  # accepted and not yet in the log, nor forwarded; with its size
        self._queue_bytes = 0
        self._queued_since = 0.0
        self._waiting: dict[Key, Awaited] = {}
        self._waiting_calls = 0
        self._waiting_bytes = 0
        self.room = SessionRoom(config)
        self._forwards: dict[int, set[Key]] = {}  # what is not answered yet of each forward
        self._next_forward = 1
        self._compactions: list[Waiter] = []
        self._compactions_packed: list[Waiter] = []
        self.refusal: OctopiiError | None = None

    # --- accepting ----------------------------------------------------------------------------------------------

    def propose(self, origin: Origin, request: Propose, now: float) -> None:
        """Take a group of calls from a client."""
        group = request.group
        size = _size_of(group)
        error = self._objection(group, size)
        if error is not None:
            self._outbox.reply(origin, self._leadership.failure(error, request.request_id))
            return
        self._accept(group, (group.session, group.first), Waiter(origin, request.request_id), size, now)

    def open_session(self, origin: Origin, request: SessionRequest, now: float) -> None:
        """Open a session for a client."""
        item = OpenSession(nonce=request.nonce, ttl_ns=request.ttl_ns)
        error = self.refusal or self._overload(item_overhead_bytes)
        if request.nonce not in self._waiting:
            error = error or self.room.objection_to_opening()
        if error is not None:
            self._outbox.reply(origin, self._leadership.failure(error, request.request_id))
            return
        self._accept(item, request.nonce, Waiter(origin, request.request_id), item_overhead_bytes, now)

    def end_session(self, origin: Origin, request: SessionEnd, now: float) -> None:
        """Put the end of a session on its way; nothing waits for it to be applied."""
        if self.refusal is None and self._overload(item_overhead_bytes) is None:
            self._enqueue(CloseSession(request.session), item_overhead_bytes, now)
        self._outbox.reply(origin, Done(request.request_id))

    def compact(self, origin: Origin, request: CompactRequest, now: float) -> None:
        """Compact by request; only a leader is asked, others relay."""
        if self.refusal is not None:
            self._outbox.reply(origin, self._leadership.failure(self.refusal, request.request_id))
            return
        if len(self._compactions) + len(self._compactions_packed) >= max_compactions:
            error = Overloaded(f"{max_compactions} requests to compact wait already", limit="max_compactions")
            self._outbox.reply(origin, self._leadership.failure(error, request.request_id))
            return
        self._compactions.append(Waiter(origin, request.request_id))
        self._enqueue(Compact(), item_overhead_bytes, now)

    def system(self, item: EntryItem, now: float) -> None:
        """Queue something of Octopii's own; only a leader does."""
        self._enqueue(item, item_overhead_bytes, now)

    def _objection(self, group: CallGroup, size: int) -> OctopiiError | None:
        """Why a group may not enter the log, or None."""
        if self.refusal is not None:
            return self.refusal
        config = self._config
        error = _too_large(config, group, size)
        if error is not None:
            return error
        if group.first + len(group.commands) - group.acked > config.session_window_calls:
            return Overloaded(
                f"the session has more than {config.session_window_calls} unacknowledged calls",
                limit="session_window_calls",
            )
        if (group.session, group.first) in self._waiting:
            return self._overload(size)
        return self.room.objection_to_calls(group.session, size) or self._overload(size)

    def _overload(self, size: int) -> Overloaded | None:
        config = self._config
        pending = max(self._queue_bytes, self._waiting_bytes)
        if pending and pending + size > config.max_pending_bytes:
            return Overloaded(
                f"node {config.node_id} has {pending} bytes of calls waiting to be replicated and answered",
                limit="max_pending_bytes",
            )
        if self._waiting_calls >= config.max_pending_calls:
            return Overloaded(
                f"node {config.node_id} has {self._waiting_calls} calls waiting for their answers",
                limit="max_pending_calls",
            )
        return None

    def _accept(self, item: EntryItem, key: Key, waiter: Waiter, size: int, now: float) -> None:
        awaited = self._waiting.get(key)
        if awaited is None:
            calls = len(item.commands) if isinstance(item, CallGroup) else 1
            self._waiting[key] = Awaited([waiter], calls, size)
            self._waiting_calls += calls
            self._waiting_bytes += size
            if isinstance(item, CallGroup):
                self.room.waits(item.session, size)
        else:
            awaited.waiters = [*awaited.waiters[1 - max_waiters :], waiter]
            if any(_key_of(queued) == key for queued, _ in self._queue):
                return  # an impatient client: the same item is still here, one is enough
        self._enqueue(item, size, now)

    def _enqueue(self, item: EntryItem, size: int, now: float) -> None:
        if not self._queue:
            self._queued_since = now
        self._queue.append((item, size))
        self._queue_bytes += size
        if type(item) is OpenSession:
            self.room.openings += 1

    # --- into the log -------------------------------------------------------------------------------------------

    @property
    def has_queued(self) -> bool:
        """Whether anything waits to be packed or forwarded."""
        return bool(self._queue)

    def take_entry(self, stamp: int) -> bytes | None:
        """Pack what has gathered, up to an entry's limits, into the data of one entry; None when there is nothing."""
        if not self._queue:
            return None
        items = self._take_items()
        if self._compactions and any(type(item) is Compact for item in items):
            self._compactions_packed += self._compactions
            self._compactions = []
        return encode_entry(EntryPayload(stamp, items))

    def _take_items(self) -> list[EntryItem]:
        """Take items up to the limits of an entry; an `OpenSession` ends it: its id is the entry's index."""
        most_bytes, most_commands = self._config.max_batch_bytes + item_overhead_bytes, self._config.max_batch_commands
        items: list[EntryItem] = []
        taken, commands = 0, 0
        for item, size in self._queue:
            commands += len(item.commands) if isinstance(item, CallGroup) else 1
            if items and (taken + size > most_bytes or commands > most_commands):
                break
            items.append(item)
            taken += size
            if type(item) is OpenSession:
                break
        del self._queue[: len(items)]
        self._queue_bytes -= taken
        return items

    def forward(self) -> None:
        """As follower: send what has gathered to the leader; openings go alone, lest calls be refused with them."""
        while self._queue:
            items = self._take_items()
            if type(items[-1]) is OpenSession:
                self.room.opened(1)
                if len(items) > 1:
                    self._forward(items[:-1])
                    items = items[-1:]
            self._forward(items)

    def _forward(self, items: list[EntryItem]) -> None:
        number = self._next_forward
        self._next_forward += 1
        keys = {key for item in items if (key := _key_of(item)) in self._waiting and key is not None}
        for key in keys:
            self._forget_forward(key)
            self._waiting[key].forward = number
        if keys:
            self._forwards[number] = keys
        self._outbox.send(self._leadership.leader, Forward(number, items))

    def take_forwarded(self, peer: int, message: Forward, now: float) -> None:
        """As leader: take a follower's items, or refuse them all."""
        error = self.refusal
        sizes = [_size_of(item) for item in message.items]
        if not self._leadership.is_leader:
            error = self._leadership.no_leader(f"node {self._leadership.node_id} does not lead")
        elif error is None:
            opens = any(type(item) is OpenSession for item in message.items)
            error = (
                _unfit(self._config, message.items, sizes)
                or self._overload(sum(sizes))
                or (self.room.objection_to_opening() if opens else None)
            )
        if error is not None:
            self._outbox.send(peer, ForwardRefused(self._leadership.failure(error, message.forward_id)))
            return
        for item, size in zip(message.items, sizes, strict=True):
            self._enqueue(item, size, now)

    def forward_refused(self, message: ForwardRefused) -> None:
        """As follower: the leader took nothing of a forward."""
        for key in self._forwards.pop(message.failure.request_id, set()):
            self._waiting[key].forward = 0
            self._fail(key, message.failure)

    # --- answers ------------------------------------------------------------------------------------------------

    def applied(self, result: Applied) -> None:
        """Answer whoever waits for what was just applied here."""
        self.room.applied(result)
        for answered in result.answers:
            self._answer_group(answered)
        for opened in result.opened:
            self._answer_open(opened)
        if result.compacted and self._compactions_packed:
            waiters, self._compactions_packed = self._compactions_packed, []
            for waiter in waiters:
                self._outbox.reply(waiter.origin, Done(waiter.request_id, result.compacted[-1]))

    def _settle(self, key: Key | None) -> list[Waiter]:
        """Whoever waits for an item hears now: take them, and forget the item."""
        awaited = self._waiting.get(key) if key is not None else None
        if awaited is None or key is None:
            return []
        self._forget_forward(key)
        del self._waiting[key]
        self._waiting_calls -= awaited.calls
        self._waiting_bytes -= awaited.size
        if isinstance(key, tuple):
            self.room.waits(key[0], -awaited.size)
        return awaited.waiters

    def _forget_forward(self, key: Key) -> None:
        number, self._waiting[key].forward = self._waiting[key].forward, 0
        keys = self._forwards.get(number)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._forwards[number]

    def _answer_group(self, answered: GroupAnswered) -> None:
        for waiter in self._settle((answered.session, answered.first)):
            if answered.answers is not None:
                self._outbox.reply(waiter.origin, ProposeAnswers(waiter.request_id, answered.answers))
            elif answered.verdict is Verdict.EXPIRED:
                self._outbox.reply(waiter.origin, _expired(answered.session, waiter.request_id))
            elif answered.verdict is Verdict.FULL:
                error = Overloaded(
                    f"session {answered.session} keeps too many bytes of answers that were not acknowledged",
                    limit=KEPT_ANSWERS,
                )
                self._outbox.reply(waiter.origin, self._leadership.failure(error, waiter.request_id))
            else:
                text = "the session has already acknowledged these calls, or they overlap others"
                failure = Failure(request_id=waiter.request_id, kind=FailureKind.OUTCOME_UNKNOWN, text=text)
                self._outbox.reply(waiter.origin, failure)

    def _answer_open(self, opened: OpenedSession) -> None:
        for waiter in self._settle(opened.nonce):
            if opened.session is not None:
                self._outbox.reply(waiter.origin, SessionOpened(waiter.request_id, opened.session))
            else:
                error = Overloaded("the cluster has as many sessions as it may have", limit="max_sessions")
                self._outbox.reply(waiter.origin, self._leadership.failure(error, waiter.request_id))

    def _fail(self, key: Key | None, failure: Failure) -> None:
        for waiter in self._settle(key):
            self._outbox.reply(waiter.origin, msgspec.structs.replace(failure, request_id=waiter.request_id))

    # --- changes of leadership ----------------------------------------------------------------------------------

    def lost_track(self, why: str) -> None:
        """Leadership changed, or a snapshot took the place of entries: what is under way has no certain end here.

        What is still queued was in nobody's log: it stays queued for the leader that comes.
        """
        queued = {_key_of(item) for item, _ in self._queue}
        self.room.openings = sum(type(item) is OpenSession for item, _ in self._queue)
        unknown = Failure(request_id=0, kind=FailureKind.CONNECTION_LOST, text=why)
        for key in [key for key in self._waiting if key not in queued]:
            self._fail(key, unknown)
        for waiter in self._compactions + self._compactions_packed:
            self._outbox.reply(waiter.origin, msgspec.structs.replace(unknown, request_id=waiter.request_id))
        self._compactions, self._compactions_packed = [], []

    def lost_forwards(self) -> None:
        """The connection to the leader broke: what was forwarded may or may not have arrived."""
        if self._forwards:
            self.lost_track("the connection to the leader was lost while the call was under way")

    def give_up_queued(self, error: OctopiiError) -> None:
        """Refuse everything that is queued: it was in nobody's log and never will be."""
        queue, self._queue, self._queue_bytes = self._queue, [], 0
        self.room.opened(sum(type(item) is OpenSession for item, _ in queue))
        failure = self._leadership.failure(error, 0)
        for item, _ in queue:
            self._fail(_key_of(item), failure)

    def tick(self, now: float) -> None:
        """Refuse queued calls that waited longer for a leader than an election should take."""
        patience = 2 * self._config.election_timeout
        if self._queue and not self._leadership.leader and now - self._queued_since > patience:
            self.give_up_queued(self._leadership.no_leader())

    def close(self) -> None:
        """The node stops: nothing queued will be replicated, nothing under way will be answered here."""
        self.refusal = ShuttingDown(f"node {self._config.node_id} is shutting down")
        self.give_up_queued(self.refusal)
        self.lost_track(f"node {self._config.node_id} stopped while the call was under way")

    def refuse_for_disk(self, full: bool) -> None:
        """Begin or end refusing calls because no member has room on its disk."""
        if full and self.refusal is None:
            self.refusal = DiskFull(
                f"no member has room on its disk, and the volume of node {self._config.node_id} has less than "
                f"disk_low_water_bytes = {self._config.disk_low_water_bytes:,} bytes free: "
                "free some space on them, nothing else is needed"
            )
            logger.warning("node %d takes no writes: %s", self._config.node_id, self.refusal)
            self.give_up_queued(self.refusal)
        elif not full and isinstance(self.refusal, DiskFull):
            self.refusal = None


def _too_large(config: Config, group: CallGroup, size: int) -> TooLarge | None:
    """Why a group of this size may not stand in the log, or None."""
    commands = group.commands
    largest = max(map(len, commands), default=0) if size > config.max_command_bytes else 0
    if largest > config.max_command_bytes:
        return TooLarge(
            f"a command of {largest} bytes is over max_command_bytes = {config.max_command_bytes}",
            size=largest,
            limit=config.max_command_bytes,
        )
    own = size - _overhead(len(commands))
    if own > config.max_batch_bytes:
        return TooLarge(
            f"{len(commands)} commands of {own} bytes are over max_batch_bytes = {config.max_batch_bytes}",
            size=own,
            limit=config.max_batch_bytes,
        )
    return None


def _unfit(config: Config, items: list[EntryItem], sizes: list[int]) -> OctopiiError | None:
    """Why another node's items may not stand in the log, or None.

    That node has looked at them itself, but perhaps by other settings: more than a record can hold, or an entry
    that founds the cluster anew, would end every replica at every start.
    """
    for item, size in zip(items, sizes, strict=True):
        if isinstance(item, Found):
            return NotApplied("only entry 1 founds a cluster")
        if isinstance(item, CallGroup) and (error := _too_large(config, item, size)) is not None:
            return error
    return None


def _expired(session: int, request_id: int) -> Failure:
    text = f"session {session} is not open: it expired, or was never opened in this cluster"
    return Failure(request_id=request_id, kind=FailureKind.SESSION_EXPIRED, text=text)


def _overhead(commands: int) -> int:
    return item_overhead_bytes + command_overhead_bytes * commands


def _size_of(item: EntryItem) -> int:
    """What an item counts as, in bytes; it takes long for many commands, so it is worked out once."""
    if isinstance(item, CallGroup):
        return _overhead(len(item.commands)) + sum(map(len, item.commands))
    return item_overhead_bytes


def _key_of(item: EntryItem) -> Key | None:
    if isinstance(item, CallGroup):
        return item.session, item.first
    return item.nonce if isinstance(item, OpenSession) else None
