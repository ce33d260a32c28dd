"""What clients asked and were told: the input of the linearizability checker."""

from typing import Any

import msgspec


class Query(bytes):
    """A request that was asked as a query: it changed nothing. Models that make no difference see its bytes."""

    __slots__ = ()


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One call of one client. Times are seconds of one clock that all clients share.

    Two calls of which one returned before the other was invoked are ordered, all others are concurrent. `returned` is
    None when the outcome is not known: the call may have taken effect at any time after `invoked`, or never. Calls that
    certainly had no effect are left out of a history.

    `request` is the command or the `Query` of a replicated machine, or what else the model of the history reads.
    `answer` is what came back; for a call that the machine refused, the `CommandError` that the client raised.
    """

    client: str | int
    invoked: float
    returned: float | None
    request: Any
    answer: Any = None
