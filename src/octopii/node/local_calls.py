"""The calls of the process that a node lives in: from any thread to the replica beside them, and back.

They take the same way as a client's calls, through a `CallMachine` with one session, only that its single connection is
a function call. Whoever brings a call while the node is busy finds it gathered with all others into one turn.
"""

import random
from collections import deque
from collections.abc import Callable

import msgspec

from octopii.config import Config
from octopii.errors import NotApplied, OctopiiError
from octopii.node.gathering import Command, Gatherer
from octopii.wire.call import CallLimits, CallMachine, Fail, Resolve
from octopii.wire.courier import Send
from octopii.wire.links import Connect, LinkLimits
from octopii.wire.requests import Failure, Reply, Request

LOCAL = "this node"
"""Where this process's own calls go, and who they are for the replica."""


class Handed(msgspec.Struct, frozen=True, gc=False):
    """An operation on its way to the node's thread: `start` begins it, `resolve` gets its result or exception."""

    start: Callable[[CallMachine, float], int | None]
    resolve: Callable[[object], None]


class LocalCalls:
    """See the module's text. `push` and `hand_over` may be called from any thread, all else from the node's."""

    def __init__(self, config: Config, *, rng: random.Random, request: Callable[[Request], None]) -> None:
        self._node_id = config.node_id
        self._request = request
        limits = _limits(config)
        self._machine = CallMachine([LOCAL], rng=rng, limits=limits)
        self._gatherer = Gatherer(
            group_calls=limits.group_calls, group_bytes=limits.group_bytes, max_pending=config.max_pending_calls
        )
        self._inbox: deque[Handed] = deque()
        self._resolve: dict[int, Callable[[object], None]] = {}
        self._end: NotApplied | None = None
        self.restless = False
        """Whether something has happened that `move` may lead on from."""
        self.wake_at: float | None = None
        """When `tick` and `move` are due at the latest, as of the last `move`."""

    # --- from any thread ----------------------------------------------------------------------------------------

    def push(self, command: Command) -> None:
        """Bring a single command; it is begun at the next turn."""
        self._gatherer.push(command)
        if self._end is not None:
            self._gatherer.give_up(self._end)

    def hand_over(self, handed: Handed) -> None:
        """Bring any other operation; it is begun at the next turn."""
        self._inbox.append(handed)
        if self._end is not None:
            self._give_up_inbox(self._end)

    # --- on the node's thread -----------------------------------------------------------------------------------

    @property
    def brought(self) -> bool:
        """Whether there is anything to begin."""
        return bool(self._inbox) or self._gatherer.waiting

    @property
    def waiting(self) -> bool:
        """Whether another turn would begin more."""
        return self._gatherer.waiting

    def begin(self, now: float) -> None:
        """Begin what was brought."""
        while self._inbox:
            handed = self._inbox.popleft()
            try:
                call_id = handed.start(self._machine, now)
            except OctopiiError as error:
                handed.resolve(error)
                continue
            if call_id is not None:
                self._resolve[call_id] = handed.resolve
        self._gatherer.start(self._machine, now, self._expect)

    def move(self, now: float) -> bool:
        """Let calls move: requests go to the replica at once, results to whoever waits. False when nothing moved."""
        machine, moved, again = self._machine, False, True
        while again and (actions := machine.poll(now)):
            moved, again = True, False
            for action in actions:
                if isinstance(action, Send):
                    for request in action.requests:
                        self._request(request)
                elif isinstance(action, Resolve):
                    for call_id, result in action.results:
                        self._answer(call_id, result)
                elif isinstance(action, Fail):
                    self._answer(action.call_id, action.error)
                elif isinstance(action, Connect):
                    machine.connected(LOCAL, node_id=self._node_id, now=now)
                    again = True  # what waited for the link can go now
        self.restless = False
        self.wake_at = machine.next_wake(now)
        return moved

    def receive(self, reply: Reply, now: float) -> None:
        """Take a reply of the replica. Hints at the leader are not for us: the replica forwards."""
        if isinstance(reply, Failure) and reply.leader_address:
            reply = msgspec.structs.replace(reply, leader_address="")
        self._machine.receive(LOCAL, reply, now)
        self.restless = True

    def tick(self, now: float) -> None:
        """Let time pass: deadlines, delays."""
        self._machine.tick(now)

    def close(self, now: float) -> None:
        """End all calls under way; `give_up` follows when the thread is about to end."""
        self._machine.close(f"node {self._node_id} is stopping")
        self.move(now)

    def give_up(self, error: NotApplied) -> None:
        """Nothing more will happen here: fail whatever waits, and whatever is brought from now on.

        What was begun may be in the log: it gets the error that its fate deserves.
        """
        self._end = error
        self._machine.close(str(error))
        for action in self._machine.poll(0.0):
            if isinstance(action, Resolve):
                for call_id, result in action.results:
                    self._answer(call_id, result)
            elif isinstance(action, Fail):
                self._answer(action.call_id, action.error)
        self._gatherer.give_up(error)
        self._give_up_inbox(error)

    def _give_up_inbox(self, error: OctopiiError) -> None:
        while self._inbox:
            try:
                handed = self._inbox.popleft()
            except IndexError:  # another thread was faster
                return
            handed.resolve(error)

    def _expect(self, call_id: int, resolve: Callable[[object], None]) -> None:
        self._resolve[call_id] = resolve

    def _answer(self, call_id: int, result: object) -> None:
        resolve = self._resolve.pop(call_id, None)
        if resolve is not None:
            resolve(result)


def _limits(config: Config) -> CallLimits:
    """Limits of this process's own calls: its link never breaks, and never goes elsewhere."""
    return CallLimits(
        max_waiting_calls=config.max_pending_calls,
        max_waiting_bytes=config.max_pending_bytes,
        window_calls=max(1, config.session_window_calls // 2),
        window_bytes=max(config.max_batch_bytes, config.session_window_bytes // 2),
        group_calls=min(4096, config.max_batch_commands),
        group_bytes=config.max_batch_bytes,
        session_ttl=config.session_ttl,
        try_timeout=max(1.0, 2 * config.election_timeout),
        links=LinkLimits(
            delay_min=0.01,
            delay_max=max(0.05, config.election_timeout / 4),
            follow_leader=False,
            leave_silent=False,
        ),
    )
