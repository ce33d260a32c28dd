"""What clients asked and were told: the input of the linearizability checker."""

from typing import Any

import msgspec


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One call of one client. Times are seconds of one clock that all clients share.

    `returned` is None when the outcome is not known: the call may have taken effect at any time after `invoked`, or
    never. Calls that certainly had no effect are left out of a history.
    """

    client: str | int
    invoked: float
    returned: float | None
    request: Any
    answer: Any = None
