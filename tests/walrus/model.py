"""What a log must look like after a crash: an in-memory model that knows every state that is allowed, and no other.

The model keeps, for each topic, three histories that a crash may cut independently of each other: the entries, the
trim point, and the cursors. A history is the list of values since the last one that is known to be durable. An
operation that has begun adds the value it leads to; an operation that was acknowledged as durable makes that value
the only one. `check` compares what a reopened log shows with all that is allowed.
"""

import random
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

import msgspec

Value = TypeVar("Value")

read_bytes = 1 << 30


class EntryLike(Protocol):
    """An entry as it is read."""

    @property
    def data(self) -> bytes:
        """The bytes that were appended."""
        ...

    @property
    def offset(self) -> int:
        """The number of the entry in its topic."""
        ...


# --- operations -----------------------------------------------------------------------------------------------------


class Append(msgspec.Struct, frozen=True, tag=True):
    """`append_for_topic`."""

    topic: str
    data: bytes


class Batch(msgspec.Struct, frozen=True, tag=True):
    """`batch_append_for_topic`."""

    topic: str
    batch: tuple[bytes, ...]


class Trim(msgspec.Struct, frozen=True, tag=True):
    """`trim`."""

    topic: str
    before_offset: int


class Truncate(msgspec.Struct, frozen=True, tag=True):
    """`truncate_from`."""

    topic: str
    offset: int


class Replace(msgspec.Struct, frozen=True, tag=True):
    """`replace_from`."""

    topic: str
    offset: int
    batch: tuple[bytes, ...]


class Reset(msgspec.Struct, frozen=True, tag=True):
    """`reset_topic`."""

    topic: str
    next_offset: int


class Delete(msgspec.Struct, frozen=True, tag=True):
    """`delete_topic`."""

    topic: str


class Read(msgspec.Struct, frozen=True, tag=True):
    """`read_next`, or `batch_read_for_topic` of about `max_bytes` when that is not 0; both move the cursor."""

    topic: str
    cursor: str
    max_bytes: int = 0


class Commit(msgspec.Struct, frozen=True, tag=True):
    """`commit`: the cursor goes to `offset`."""

    topic: str
    cursor: str
    offset: int


class Sync(msgspec.Struct, frozen=True, tag=True):
    """`sync`: all that went before is durable."""


Step = Append | Batch | Trim | Truncate | Replace | Reset | Delete | Read | Commit | Sync


# --- the model ------------------------------------------------------------------------------------------------------


class Entries(msgspec.Struct, frozen=True):
    """The entries of a topic, trimmed ones included: `base` is the offset of the first, `cuts` where it was cut."""

    base: int = 0
    items: tuple[bytes, ...] = ()
    cuts: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """The next offset."""
        return self.base + len(self.items)

    def cut(self, offset: int) -> "Entries":
        """Without the entries from `offset` on."""
        return Entries(self.base, self.items[: offset - self.base], (*self.cuts, offset))

    def plus(self, batch: Iterable[bytes]) -> "Entries":
        """With a batch at the end."""
        return Entries(self.base, (*self.items, *batch), self.cuts)


class Mark(msgspec.Struct, frozen=True):
    """A cursor's position, put there when the topic had been cut `cuts` times: later cuts set it back."""

    offset: int
    cuts: int

    def within(self, entries: Entries) -> int:
        """Where the cursor stands among these entries."""
        return min([self.offset, entries.end, *entries.cuts[self.cuts :]])


class History(Generic[Value]):
    """The values that a crash may leave: the newest is the last."""

    __slots__ = ("values",)

    def __init__(self, *values: Value) -> None:
        self.values = list(values)

    @property
    def newest(self) -> Value:
        """What the running log shows."""
        return self.values[-1]

    def push(self, value: Value) -> None:
        """A value that is on its way to the disk."""
        if value in self.values:
            self.values.remove(value)
        self.values.append(value)

    def settle(self) -> None:
        """The newest value is durable."""
        del self.values[:-1]

    def copy(self) -> "History[Value]":
        """An independent copy."""
        return History(*self.values)


class TopicModel:
    """The histories of one topic."""

    def __init__(self) -> None:
        self.entries = History(Entries())
        self.trims = History(0)
        self.cursors: dict[str, History[Mark]] = {}

    @property
    def first(self) -> int:
        """The first offset that can be read."""
        entries = self.entries.newest
        return max(entries.base, min(self.trims.newest, entries.end))

    def cursor(self, name: str) -> int:
        """Where a cursor stands in the running log."""
        history = self.cursors.get(name)
        return max(self.first, history.newest.within(self.entries.newest) if history else 0)

    def move_cursor(self, name: str, offset: int) -> None:
        """A cursor moves, durably once settled."""
        if name not in self.cursors:
            self.cursors[name] = History(Mark(0, 0))
        self.cursors[name].push(Mark(offset, len(self.entries.newest.cuts)))

    def histories(self) -> list[History[Entries] | History[int] | History[Mark]]:
        """All of them."""
        return [self.entries, self.trims, *self.cursors.values()]

    def copy(self) -> "TopicModel":
        """An independent copy."""
        twin = TopicModel()
        twin.entries = self.entries.copy()
        twin.trims = self.trims.copy()
        twin.cursors = {name: history.copy() for name, history in self.cursors.items()}
        return twin


class Seen(msgspec.Struct, frozen=True):
    """What a log shows of one topic."""

    first: int
    items: tuple[bytes, ...]
    cursors: dict[str, int]

    @property
    def end(self) -> int:
        """The next offset."""
        return self.first + len(self.items)


absent = Seen(0, (), {})
"""What an unknown topic shows."""


def is_absent(seen: Seen) -> bool:
    """Whether a topic is unknown, or empty and never trimmed: after a crash the two are alike."""
    return seen.end == 0


class Model:
    """The allowed states of a log. `lag` is the `persist_every` of `AtLeastOnce`, or 0 for `StrictlyAtOnce`."""

    def __init__(self, *, lag: int = 0) -> None:
        self.lag = lag
        self.topics: dict[str, TopicModel] = {}
        self._deleted: dict[str, list[TopicModel]] = {}  # by deletions that are not durable yet

    def topic(self, name: str) -> TopicModel:
        """The model of a topic, made when it is first spoken of."""
        return self.topics.setdefault(name, TopicModel())

    def begin(self, step: Step) -> None:
        """The step is about to be taken: a crash may leave its result or not."""
        match step:
            case Append(name, data):
                self._push_entries(name, self.topic(name).entries.newest.plus([data]))
            case Batch(name, batch):
                self._push_entries(name, self.topic(name).entries.newest.plus(batch))
            case Trim(name, before):
                topic = self.topic(name)
                topic.trims.push(max(topic.trims.newest, before))
            case Truncate(name, offset):
                self._push_entries(name, self.topic(name).entries.newest.cut(offset))
            case Replace(name, offset, batch):
                self._push_entries(name, self.topic(name).entries.newest.cut(offset).plus(batch))
            case Reset(name, offset):
                cuts = self.topic(name).entries.newest.cuts
                self._push_entries(name, Entries(offset, (), (*cuts, offset)))
                self.topic(name).trims.push(0)
            case Delete(name):
                self._deleted.setdefault(name, []).append(self.topics.pop(name, TopicModel()))
            case Read(name, cursor, max_bytes):
                topic = self.topic(name)
                position, end = topic.cursor(cursor), topic.entries.newest.end
                for after in range(position + 1, end + 1 if max_bytes else min(position + 1, end) + 1):
                    topic.move_cursor(cursor, after)
            case Commit(name, cursor, offset):
                self.topic(name).move_cursor(cursor, offset)
            case Sync():
                pass

    def finish_read(self, step: Read, position: int, items: list[bytes]) -> None:
        """A read that began with the cursor at `position` returned these entries."""
        topic = self.topic(step.topic)
        entries = topic.entries.newest
        start = position - entries.base
        assert items == list(entries.items[start : start + len(items)]), f"{step} at {position} read {items}"
        assert items or position == entries.end, f"{step} at {position} of {entries.end} read nothing"
        if step.max_bytes:
            assert len(items) <= 1 or sum(map(len, items)) <= step.max_bytes
        if items:
            topic.move_cursor(step.cursor, position + len(items))

    def settle(self) -> None:
        """All that has begun is durable."""
        self._deleted.clear()
        for topic in self.topics.values():
            for history in topic.histories():
                history.settle()

    def entry_after(self, name: str, offset: int) -> bytes | None:
        """The entry that the running log had at an offset, if it had one."""
        entries = self.topics[name].entries.newest if name in self.topics else Entries()
        index = offset - entries.base
        return entries.items[index] if 0 <= index < len(entries.items) else None

    def copy(self) -> "Model":
        """An independent copy, to judge a crash at this moment."""
        twin = Model(lag=self.lag)
        twin.topics = {name: topic.copy() for name, topic in self.topics.items()}
        twin._deleted = {name: [topic.copy() for topic in topics] for name, topics in self._deleted.items()}
        return twin

    def check(self, shown: dict[str, Seen]) -> None:
        """Every topic shows one of the states that are allowed; `AssertionError` tells which does not, and how."""
        for name in {*shown, *self.topics, *self._deleted}:
            seen = shown.get(name, absent)
            reasons = []
            present = [self.topics[name]] if name in self.topics else []
            for topic in [*present, *self._deleted.get(name, ())]:
                reason = _mismatch(topic, seen, self.lag)
                if reason is None:
                    break
                reasons.append(reason)
            else:
                if is_absent(seen) and (name in self._deleted or name not in self.topics):
                    continue
                raise AssertionError(f"topic {name!r} shows {_brief(seen)}: {'; '.join(reasons)}")

    def adopt(self, shown: dict[str, Seen]) -> None:
        """What a recovered log shows is from now on the only state allowed."""
        self.topics = {}
        self._deleted = {}
        for name, seen in shown.items():
            topic = self.topics[name] = TopicModel()
            topic.entries = History(Entries(seen.first, seen.items))
            topic.cursors = {cursor: History(Mark(position, 0)) for cursor, position in seen.cursors.items()}

    def _push_entries(self, name: str, entries: Entries) -> None:
        self.topic(name).entries.push(entries)


def _mismatch(topic: TopicModel, seen: Seen, lag: int) -> str | None:
    """Why no state of this topic looks like that, or None when one does."""
    fitting = [each for each in topic.entries.values if any(_fits(each, trim, seen) for trim in topic.trims.values)]
    if not fitting:
        newest = topic.entries.newest
        wanted = _brief(Seen(topic.first, newest.items[topic.first - newest.base :], {}))
        return f"none of {len(topic.entries.values)} states fits, the newest is {wanted}"
    reasons = [_cursor_mismatch(topic, entries, seen, lag) for entries in fitting]
    return None if None in reasons else reasons[-1]


def _cursor_mismatch(topic: TopicModel, entries: Entries, seen: Seen, lag: int) -> str | None:
    """Why a cursor can't stand there if these are the entries."""
    for name, history in topic.cursors.items():
        found = seen.cursors.get(name, seen.first)
        allowed = {max(seen.first, mark.within(entries)) for mark in history.values}
        if found in allowed or (lag and min(allowed) - lag <= found <= max(allowed)):
            continue
        return f"cursor {name!r} may be at {sorted(allowed)}{f' or {lag} before' if lag else ''}, not {found}"
    return None


def _fits(entries: Entries, trim: int, seen: Seen) -> bool:
    first = max(entries.base, min(trim, entries.end))
    return seen.first == first and seen.items == entries.items[first - entries.base :]


def _brief(seen: Seen) -> str:
    items = " ".join(f"{data[:12]!r}({len(data)})" for data in seen.items[-6:])
    return f"[{seen.first}:{seen.end}] ... {items} cursors {seen.cursors}"


# --- random steps ---------------------------------------------------------------------------------------------------


class Sizes(msgspec.Struct, frozen=True):
    """Sizes of random entries, in bytes: most are `small`, some up to `spanning`, which is more than a block."""

    small: int
    spanning: int


def random_step(rng: random.Random, model: Model, *, topics: tuple[str, ...], sizes: Sizes, tag: str) -> Step:
    """A step that is possible in the model's newest state. `tag` makes the entries of each step different."""
    name = rng.choice(topics)
    topic = model.topics.get(name) or TopicModel()
    first, end = topic.first, topic.entries.newest.end

    def entry() -> bytes:
        size = rng.randrange(sizes.small) if rng.random() < 0.85 else rng.randrange(sizes.spanning)
        text = f"{tag}:{name}:{rng.randrange(1 << 30)}|".encode()
        return (text * (size // len(text) + 1))[:size] if rng.random() < 0.9 else text

    def batch() -> tuple[bytes, ...]:
        return tuple(entry() for _ in range(rng.randrange(1, 12)))

    kind = rng.random()
    if kind < 0.35 or end == first:
        return Append(name, entry())
    if kind < 0.50:
        return Batch(name, batch())
    if kind < 0.60:
        return Trim(name, rng.randint(first, end))
    if kind < 0.67:
        return Truncate(name, rng.randint(first, end))
    if kind < 0.74:
        return Replace(name, rng.randint(max(first, end - 5), end), batch())
    if kind < 0.76:
        return Reset(name, rng.choice((end, end + rng.randrange(100), rng.randint(first, end))))
    if kind < 0.775:
        return Delete(name)
    if kind < 0.90:
        return Read(name, rng.choice(("a", "b")), rng.choice((0, 0, sizes.small, sizes.spanning)))
    if kind < 0.95:
        return Commit(name, rng.choice(("a", "b")), rng.randint(first, end))
    return Sync()
