"""The apply side alone, without log or network: the key-value store, a typed machine, and what replicas add to them."""

import time
from collections.abc import Callable, Iterator

from bench import measure
from bench.measure import Effort, Limit, Row
from octopii import StateMachine, TypedStateMachine, command
from octopii.machines import KvStateMachine
from octopii.raft import Entry, EntryKind
from octopii.replica.applier import Applier
from octopii.replica.jobs import ApplyJob
from octopii.wire.codec import Answer, CallGroup, EntryItem, EntryPayload, OpenSession, encode_entry

KEYS = 10_000
GROUP = 256
"""Commands in one entry, as when that many calls are in flight."""

_full_count = 200_000


class TypedKv(TypedStateMachine):
    """The key-value store's SET, as a typed command."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    @command
    def put(self, key: str, value: str) -> bool:
        """Set a key; whether it is new."""
        new = key not in self.values
        self.values[key] = value
        return new


class WithoutDigest(Applier):
    """An applier that keeps no digest of its answers."""

    def _fold(self, answers: list[Answer]) -> None:
        """Nothing."""


def rows(effort: Effort) -> Iterator[Row]:
    """Bare loops; what it costs to dispatch a typed command; the applier's loop with and without the digest."""
    count = effort.count(_full_count)
    pairs = [(f"key-{n % KEYS}", "v" * 80) for n in range(count)]
    texts = [f"SET {key} {value}".encode() for key, value in pairs]
    calls = [TypedKv.put.encode(key, value) for key, value in pairs]

    def applying(machine: Callable[[], StateMachine], commands: list[bytes]) -> Callable[[], float]:
        def run() -> float:
            apply = machine().apply
            return _micros(lambda: [apply(each) for each in commands], count)

        return run

    def directly() -> float:
        put = TypedKv().put
        return _micros(lambda: [put(key, value) for key, value in pairs], count)

    figures = measure.take_turns(
        {
            "KvStateMachine, SET": applying(KvStateMachine, texts),
            "typed machine": applying(TypedKv, calls),
            "its method, called directly": directly,
        },
        rounds=effort.rounds,
    )
    yield Row(title="apply, bare loop, 100 B", unit="us", digits=2, figures=figures)
    dispatch = [
        typed - bare
        for typed, bare in zip(figures["typed machine"], figures["its method, called directly"], strict=True)
    ]
    yield Row(
        title="dispatch of a typed command",
        unit="us",
        digits=2,
        figures={"typed machine": dispatch},
        promises=(Limit(ours="typed machine", value=2.0),),
        note="decoding the call, checking its arguments, encoding the answer",
    )
    entries = _entries(texts)
    yield Row(
        title=f"applier, {GROUP} SETs an entry",
        unit="us",
        digits=2,
        figures=measure.take_turns(
            {
                "with digest": lambda: _apply_all(Applier, entries, count),
                "without digest": lambda: _apply_all(WithoutDigest, entries, count),
            },
            rounds=effort.rounds,
        ),
        note="a command, with clock, session and answer; the digest is what replicas are compared by",
    )


def _entries(commands: list[bytes]) -> list[Entry]:
    """A log of one session that sends commands in groups, and acknowledges each group with the next."""
    items: list[EntryItem] = [OpenSession(nonce=b"n" * 16, ttl_ns=1 << 60)]
    for first in range(0, len(commands), GROUP):
        group = commands[first : first + GROUP]
        items.append(CallGroup(session=2, first=first, acked=first, commands=group))
    return [
        Entry(term=1, index=index, kind=EntryKind.NORMAL, data=encode_entry(EntryPayload(index, [item])))
        for index, item in enumerate(items, start=2)
    ]


def _apply_all(kind: type[Applier], entries: list[Entry], count: int) -> float:
    applier = kind(KvStateMachine(), timer=time.perf_counter)
    taken = _micros(lambda: [applier.run(ApplyJob([entry], {})) for entry in entries], count)
    assert applier.index == entries[-1].index
    assert len(applier.sessions) == 1
    return taken


def _micros(work: Callable[[], object], count: int) -> float:
    return 1e6 / measure.rate(count, work)
