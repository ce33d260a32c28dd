"""Histories for tests: written by hand, or made by clients of a machine that answers at one moment of each call."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any

from octopii.errors import CommandError
from octopii.sim import Model, Operation
from octopii.sim.models import REFUSED
from octopii.state_machine import StateMachine


def operation(
    client: str | int, invoked: float, returned: float | None, request: bytes, answer: Any = None
) -> Operation:
    """An operation, in few words."""
    return Operation(client=client, invoked=invoked, returned=returned, request=request, answer=answer)


def answer_of(machine: StateMachine, request: bytes) -> Any:
    """What a client gets that asks the machine: bytes, or the error of a refusal."""
    try:
        return machine.apply(request)
    except CommandError as error:
        return error


def live(
    machine: StateMachine,
    request: Callable[[random.Random], bytes],
    rng: random.Random,
    *,
    operations: int,
    clients: int,
    unknown: float = 0.0,
) -> list[Operation]:
    """Clients that call one machine, each call applied at a random moment between invocation and return.

    With the chance `unknown` a call's outcome is not known: half of these are applied at some time later, or never. The
    history is linearizable by its making.
    """
    events: list[tuple[float, int, float, float | None, bytes]] = []
    free_at = [rng.random() for _ in range(clients)]
    for _ in range(operations):
        client = min(range(clients), key=free_at.__getitem__)
        invoked = free_at[client]
        takes = rng.expovariate(1.0)
        returned: float | None = invoked + takes
        applied = invoked + takes * rng.random()
        free_at[client] = invoked + takes + rng.expovariate(4.0)
        if rng.random() < unknown:
            returned = None
            applied = invoked + rng.expovariate(0.2) if rng.random() < 0.5 else float("inf")
        events.append((applied, client, invoked, returned, request(rng)))
    history = []
    for applied, client, invoked, returned, asked in sorted(events):
        answer = answer_of(machine, asked) if applied < float("inf") else None
        history.append(operation(client, invoked, returned, asked, None if returned is None else answer))
    return history


def brute_force(history: Sequence[Operation], model: Model) -> bool:
    """Whether some order of the operations, with any of the unknown ones left out, is explained: by trying them all."""
    unknown = [one for one in history if one.returned is None]
    completed = [one for one in history if one.returned is not None]
    return any(
        _keeps_time(order) and _is_explained(order, model)
        for chosen in _subsets(unknown)
        for order in permutations([*completed, *chosen])
    )


def _subsets(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    for bits in range(1 << len(operations)):
        yield [one for index, one in enumerate(operations) if bits >> index & 1]


def _keeps_time(order: Sequence[Operation]) -> bool:
    return not any(
        later.returned is not None and later.returned < earlier.invoked
        for index, earlier in enumerate(order)
        for later in order[index + 1 :]
    )


def _is_explained(order: Sequence[Operation], model: Model) -> bool:
    states: dict[Any, Any] = {}
    for one in order:
        part = model.part_of(one.request)
        after, expected = model.apply(states.get(part, model.initial()), one.request)
        states[part] = after
        if one.returned is None:
            continue
        if expected is REFUSED and not isinstance(one.answer, CommandError):
            return False
        if not model.accepts(expected, one.answer):
            return False
    return True
