"""Is a history linearizable: can its operations be put in one order that the model explains?

The order has to keep real time (an operation that returned before another was invoked comes before it), and each answer
has to be the one that the model gives at that place. An operation of unknown outcome may stand anywhere behind its
invocation, or be left out.

The search is that of Wing and Gong (Testing and verifying concurrent objects, 1993) with Lowe's memory of what was
tried (Testing for linearizability, 2017). It walks forward through configurations: which operations have been put in
order so far, and the state that this led to. A configuration that was seen before is not tried again. Four things keep
that small:

- Parts. Requests that touch different parts of the state (`Model.part_of`) are judged apart: a history is linearizable
  if and only if each of its parts is (Herlihy and Wing, 1990).
- Operations of unknown outcome are put in order as late as possible: only directly before a completed one that they
  cannot be moved behind, fewest first, and of several that ask the same the one that was invoked first. And of two
  configurations with the same completed operations and state, the one that used up more unknown ones is not tried: all
  that it can do, the other can.
- An operation that changes nothing is put in order as soon as it fits, and nothing else is tried there.
- Completed operations are tried in the order in which they returned, which is nearly always right.

In the worst case the search is exponential, so it ends at `MAX_STEPS`; the verdict is then *unknown*.

A violation is explained by as few operations as possible: the shortest beginning of the history that has no order; and
of its operations each one is made one of unknown outcome, as long as the rest cannot be ordered even then. What remains
is a core: these operations cannot be ordered, whatever became of all others.
"""

import enum
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import msgspec

from octopii.sim.history import Operation
from octopii.sim.models import IMPOSSIBLE, Model

MAX_STEPS = 2_000_000
"""Requests that the search asks a model to apply, for each part: about ten seconds for a simple model."""

MAX_EXPLAINING_STEPS = 1_000_000
"""Requests that are spent on finding the core of a violation, in all: some seconds."""

MAX_ATTEMPT_STEPS = MAX_EXPLAINING_STEPS // 20
"""Requests that are spent on one attempt to spare operations."""

MAX_SHOWN_OPERATIONS = 40
"""Operations that the text of a violation shows: the last ones, where its core has more."""

MAX_SHOWN_BYTES = 80
"""Bytes of a request or an answer that the text of a verdict shows."""


class Outcome(enum.Enum):
    """What the checker found."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "not linearizable"
    UNKNOWN = "unknown"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the checker found, and on what ground.

    `operations` and `parts` count what the history holds, `ordered` the operations that were put in order, and `steps`
    the requests that models applied on the way. `explanation` is text for people; for a violation `core` holds the
    operations that cannot be ordered.
    """

    outcome: Outcome
    operations: int
    parts: int
    ordered: int
    steps: int
    explanation: str
    core: tuple[Operation, ...] = ()

    @property
    def is_linearizable(self) -> bool:
        """Whether the history was found to be linearizable; neither a violation nor an unknown verdict is."""
        return self.outcome is Outcome.LINEARIZABLE

    def __str__(self) -> str:
        return self.explanation


def check_history(history: Sequence[Operation], model: Model, *, max_steps: int = MAX_STEPS) -> Verdict:
    """Judge a history. Raises `ValueError` for an operation that returned before it was invoked.

    All parts are judged, also behind one that reached `max_steps`; the first violation ends the check.
    """
    parts: dict[Hashable, list[Operation]] = {}
    for operation in history:
        if operation.returned is not None and operation.returned < operation.invoked:
            raise ValueError(f"an operation returned before it was invoked: {operation}")
        parts.setdefault(model.part_of(operation.request), []).append(operation)
    steps = ordered = 0
    unfinished: list[str] = []
    for part, operations in sorted(parts.items(), key=lambda item: len(item[1])):
        search = _Search(operations, model, max_steps)
        outcome = search.run()
        steps += search.steps
        ordered += search.deepest if outcome is not Outcome.LINEARIZABLE else len(operations)
        if outcome is Outcome.VIOLATION:
            found = _Explaining(search, model)
            return Verdict(
                outcome=outcome,
                operations=len(history),
                parts=len(parts),
                ordered=ordered,
                steps=steps,
                explanation=_explain(part, search, found),
                core=found.core,
            )
        if outcome is Outcome.UNKNOWN:
            unfinished.append(
                f"{_named(part)}the first {search.deepest} of {len(search.completed)} completed operations, in the "
                f"order of their return, can be ordered; the search ended after {search.steps} steps"
            )
    if unfinished:
        sound = f"{len(parts) - len(unfinished)} of {len(parts)} parts are linearizable; "
        explanation = "unknown: " + (sound if len(parts) > 1 else "") + "; ".join(unfinished)
    else:
        explanation = f"linearizable: {len(history)} operations in {len(parts)} parts"
    outcome = Outcome.UNKNOWN if unfinished else Outcome.LINEARIZABLE
    return Verdict(
        outcome=outcome,
        operations=len(history),
        parts=len(parts),
        ordered=ordered,
        steps=steps,
        explanation=explanation,
    )


class _Configuration(msgspec.Struct, frozen=True, gc=False):
    """How far an order has come: completed operations before `base` (by return) are in it, and those that `mask` says.

    Bit `i` of `mask` stands for completed operation `base + i`, bit `i` of `used` for the unknown operation `i`.
    """

    base: int
    mask: int
    used: int
    state: Any


class _Tail(msgspec.Struct, frozen=True, gc=False):
    """Unknown operations put in order: which, the state they lead to, that before the last of them, and its request."""

    used: int
    state: Any
    before: Any = None
    last: Any = None


class _LimitReached(Exception):
    """The search has taken all its steps."""


class _Search:
    """The search through the orders of one part's operations."""

    def __init__(self, operations: Sequence[Operation], model: Model, max_steps: int) -> None:
        self.completed = sorted(
            (one for one in operations if one.returned is not None),
            key=lambda one: (one.returned, one.invoked),
        )
        # A read of unknown outcome explains nothing: it has no answer, and nothing depends on it.
        self.unknown = sorted(
            (one for one in operations if one.returned is None and not model.changes_nothing(one.request, None)),
            key=lambda one: one.invoked,
        )
        self._harmless = [model.changes_nothing(one.request, one.answer) for one in self.completed]
        self.steps = 0
        self.deepest = 0
        self._model = model.informed_by(operations)
        self._max_steps = max_steps
        self._candidates = _candidates(self.completed)
        self._unknown_from = [one.invoked for one in self.unknown]
        self._twin_before = _twins_before(self.unknown)

    def run(self) -> Outcome:
        """Search, depth first."""
        try:
            return Outcome.LINEARIZABLE if self._find() else Outcome.VIOLATION
        except _LimitReached:
            return Outcome.UNKNOWN

    def _find(self) -> bool:
        end = len(self.completed)
        if end == 0:
            return True
        seen: dict[tuple[int, int, Hashable], list[int]] = {}
        stack = [self._next(_Configuration(0, 0, 0, self._model.initial()))]
        while stack:
            configuration = next(stack[-1], None)
            if configuration is None:
                stack.pop()
                continue
            self.deepest = max(self.deepest, configuration.base)
            if configuration.base == end:
                return True
            tried = seen.setdefault((configuration.base, configuration.mask, configuration.state), [])
            if _add_minimal(tried, configuration.used):
                stack.append(self._next(configuration))
        return False

    def _next(self, at: _Configuration) -> Iterator[_Configuration]:
        """All configurations with one more completed operation: first those that need no unknown one, then one more."""
        limit = self.completed[at.base].returned
        assert limit is not None
        available = bisect_right(self._unknown_from, limit)
        reached: dict[Hashable, list[int]] = {at.state: [at.used]}
        level = [_Tail(at.used, at.state)]
        while level:
            open_ends: list[_Tail] = []
            for tail in level:
                mask = self._with_harmless(at, tail.state)
                if mask != at.mask:
                    yield _advanced(at, mask, tail.used, tail.state)
                    continue
                open_ends.append(tail)
                for index in self._candidates[at.base]:
                    bit = 1 << (index - at.base)
                    if mask & bit or self._harmless[index]:
                        continue
                    after, fits = self._fits(tail.state, index)
                    if fits and not self._can_wait(tail, index, after):
                        yield _advanced(at, mask | bit, tail.used, after)
            level = self._with_one_more_unknown(open_ends, reached, available)

    def _fits(self, state: Any, index: int) -> tuple[Any, bool]:
        operation = self.completed[index]
        after, expected = self._apply(state, operation.request)
        return after, expected is not IMPOSSIBLE and self._model.accepts(expected, operation.answer)

    def _can_wait(self, tail: "_Tail", index: int, after: Any) -> bool:
        """Tell whether the tail's last unknown operation might as well come behind a completed one."""
        if tail.last is None:
            return False
        without, fits = self._fits(tail.before, index)
        return fits and bool(self._apply(without, tail.last)[0] == after or without == after)

    def _with_harmless(self, at: _Configuration, state: Any) -> int:
        """Return the mask with every operation in order that fits here and changes nothing."""
        mask = at.mask
        for index in self._candidates[at.base]:
            bit = 1 << (index - at.base)
            if self._harmless[index] and not mask & bit:
                mask |= bit if self._fits(state, index)[1] else 0
        return mask

    def _with_one_more_unknown(
        self, level: list["_Tail"], reached: dict[Hashable, list[int]], available: int
    ) -> list["_Tail"]:
        more: list[_Tail] = []
        for tail in level:
            for index in range(available):
                twin = self._twin_before[index]
                if tail.used >> index & 1 or (twin is not None and not tail.used >> twin & 1):
                    continue
                used, request = tail.used | 1 << index, self.unknown[index].request
                after, expected = self._apply(tail.state, request)
                if expected is not IMPOSSIBLE and _add_minimal(reached.setdefault(after, []), used):
                    more.append(_Tail(used, after, tail.state, request))
        return more

    def _apply(self, state: Any, request: Any) -> tuple[Any, Any]:
        if self.steps >= self._max_steps:
            raise _LimitReached
        self.steps += 1
        return self._model.apply(state, request)


def _advanced(at: _Configuration, mask: int, used: int, state: Any) -> _Configuration:
    """Return the configuration with `mask` in order; `base` moves over all that are in a row."""
    run = (~mask & (mask + 1)).bit_length() - 1
    return _Configuration(at.base + run, mask >> run, used, state)


def _add_minimal(sets: list[int], added: int) -> bool:
    """Add a set (of bits) to those that were tried; return False, adding nothing, when it holds one of them."""
    if any(one & ~added == 0 for one in sets):
        return False
    sets[:] = [one for one in sets if added & ~one]
    sets.append(added)
    return True


def _candidates(completed: Sequence[Operation]) -> list[list[int]]:
    """For each base: the operations from there on that may come next, being invoked before the one at base returned."""
    by_invocation = sorted(range(len(completed)), key=lambda index: completed[index].invoked)
    active: list[int] = []
    found: list[list[int]] = []
    entered = 0
    for base, operation in enumerate(completed):
        assert operation.returned is not None
        while entered < len(by_invocation) and completed[by_invocation[entered]].invoked <= operation.returned:
            active.append(by_invocation[entered])
            entered += 1
        active = [index for index in active if index >= base]
        found.append(sorted(active))
    return found


def _twins_before(unknown: Sequence[Operation]) -> list[int | None]:
    """For each operation of unknown outcome the last one before it that asked the same, if any."""
    last: dict[Hashable, int] = {}
    twins: list[int | None] = []
    for index, operation in enumerate(unknown):
        twins.append(last.get(operation.request))
        last[operation.request] = index
    return twins


# --- explaining a violation -------------------------------------------------------------------------------------


class _Explaining:
    """Finds as few completed operations as it can that have no order, whatever became of all the others."""

    def __init__(self, search: _Search, model: Model) -> None:
        self._model = model
        self._completed = search.completed
        self._unknown = search.unknown
        self._budget = MAX_EXPLAINING_STEPS
        self.end = self._first_that_does_not_fit(search.deepest)
        self.core = self._least(self._completed[: self.end])

    def _first_that_does_not_fit(self, start: int) -> int:
        """Return how long a beginning of the history is (by return) that has no order, what is later being unknown."""
        for end in range(start + 1, len(self._completed)):
            if self._has_no_order(self._completed[:end]):
                return end
        return len(self._completed)

    def _least(self, known: list[Operation]) -> tuple[Operation, ...]:
        """Spare halves, then quarters and so on down to single operations, except the last one."""
        size = max(1, (len(known) - 1) // 2)
        while size:
            start = 0
            while start < len(known) - 1:
                kept = known[:start] + known[min(start + size, len(known) - 1) :]
                if self._has_no_order(kept):
                    known = kept
                else:
                    start += size
            size //= 2
        return tuple(known)

    def _has_no_order(self, known: Sequence[Operation]) -> bool:
        """Tell whether these cannot be ordered with everything else unknown; False also where that takes too long."""
        last = known[-1].returned
        assert last is not None
        kept = set(map(id, known))
        others = [_weakened(one) for one in self._completed if id(one) not in kept and one.invoked <= last]
        attempt = _Search([*known, *others, *self._unknown], self._model, min(self._budget, MAX_ATTEMPT_STEPS))
        outcome = attempt.run()
        self._budget -= attempt.steps
        return outcome is Outcome.VIOLATION


def _weakened(operation: Operation) -> Operation:
    """The same operation as if its outcome were unknown: whatever could be ordered with it still can."""
    return msgspec.structs.replace(operation, returned=None, answer=None)


def _explain(part: Hashable, search: _Search, found: _Explaining) -> str:
    everything = [*search.completed, *search.unknown]
    start = min(one.invoked for one in everything)
    core = sorted(found.core, key=lambda one: (one.invoked, one.returned))
    rows = [
        (
            f"client {one.client}",
            f"{one.invoked - start:.6f} s",
            f"{(one.returned or 0.0) - start:.6f} s",
            _shown(one.request),
            _shown(one.answer),
        )
        for one in core[-MAX_SHOWN_OPERATIONS:]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"not linearizable: {_named(part)}no order explains what these {len(core)} operations answered,"]
    lines.append(f"whatever became of the other {len(everything) - len(core)}:")
    if len(core) > len(rows):
        lines.append(f"  ({len(core) - len(rows)} earlier ones are not shown)")
    for who, invoked, returned, request, answer in rows:
        lines.append(
            f"  {who:<{widths[0]}}  {invoked:>{widths[1]}} to {returned:>{widths[2]}}  "
            f"{request:<{widths[3]}} -> {answer}"
        )
    return "\n".join(lines)


def _named(part: Hashable) -> str:
    return "" if part is None else f"part {_shown(part)}: "


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        text = value[:MAX_SHOWN_BYTES].decode("utf-8", "backslashreplace")
        printable = text if text.isprintable() else repr(text)[1:-1]
        return printable + ("..." if len(value) > MAX_SHOWN_BYTES else "")
    return str(value) if isinstance(value, str) else repr(value)
