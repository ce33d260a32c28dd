"""What makes a state machine fast in Python, each strategy beside what it replaces.

One thread, no cluster. Figures of one row compare; those of different rows do not. docs/machine-performance.md explains
them; its names are the ones here.
"""

import functools
import itertools
import json
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import msgspec

from bench import measure
from bench.measure import Contestant, Effort, Row
from octopii import StateMachine
from octopii.machines import ImmutableStateMachine, KvStateMachine, PersistentMap
from octopii.state_machine import SnapshotSource

KEYS = 10_000
COMMANDS = [b"SET key%d some value of %d" % (n * 7919 % KEYS, n) for n in range(20_000)]
POINTS = [(1_700_000_000 + n, n / 4) for n in range(50_000)]
WINDOW = (1_700_040_000, 1_700_040_009)
STATE = {b"key%d" % n: b"a value of some thirty bytes %d" % n for n in range(200_000)}
TEXT_STATE = {key.decode(): value.decode() for key, value in STATE.items()}
NUMBERS = list(range(1_000_000))


# --- locks ------------------------------------------------------------------------------------------------------


class LockedKv(KvStateMachine):
    """Guards every command, as if several threads came."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    def apply(self, command: bytes) -> bytes:
        with self._lock:
            return super().apply(command)


class ShardLockedKv(KvStateMachine):
    """Guards every command by one of sixteen locks, chosen by the key."""

    def __init__(self) -> None:
        super().__init__()
        self._locks = [threading.RLock() for _ in range(16)]

    def apply(self, command: bytes) -> bytes:
        with self._locks[hash(command.split(b" ", 2)[1]) % 16]:
            return super().apply(command)


class BareKv(KvStateMachine):
    """As `LockedKv`, with one more call and without the lock."""

    def apply(self, command: bytes) -> bytes:
        return super().apply(command)


# --- data structures --------------------------------------------------------------------------------------------


class PairsKv(KvStateMachine):
    """Keeps pairs in a list, and looks through it."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs: list[tuple[bytes, bytes]] = []

    def apply(self, command: bytes) -> bytes:
        _, key, value = command.split(b" ", 2)
        for at, (found, _) in enumerate(self._pairs):
            if found == key:
                self._pairs[at] = (key, value)
                return b"OK"
        self._pairs.append((key, value))
        return b"OK"


def range_by_looking_at_all(first: int, last: int) -> list[tuple[int, float]]:
    """Look at every point."""
    return [point for point in POINTS if first <= point[0] <= last]


def range_by_bisection(first: int, last: int) -> list[tuple[int, float]]:
    """Points are sorted: find both ends."""
    at = itemgetter(0)
    return POINTS[bisect_left(POINTS, first, key=at) : bisect_right(POINTS, last, key=at)]


@functools.cache
def filled_map() -> PersistentMap[bytes, bytes]:
    """Values of all keys."""
    return PersistentMap({b"key%d" % n: b"a value" for n in range(KEYS)})


class CopiedDict(ImmutableStateMachine[dict[bytes, bytes]]):
    """An immutable state that is a dict of 10,000 keys, copied by each command."""

    def initial(self) -> dict[bytes, bytes]:
        return dict(filled_map())

    def transition(self, state: dict[bytes, bytes], command: bytes) -> tuple[dict[bytes, bytes], bytes]:
        _, key, value = command.split(b" ", 2)
        return {**state, key: value}, b"OK"

    def encode(self, state: dict[bytes, bytes]) -> bytes:
        return msgspec.msgpack.encode(state)

    def decode(self, data: memoryview) -> dict[bytes, bytes]:
        return msgspec.msgpack.decode(data, type=dict[bytes, bytes])


class Shared(ImmutableStateMachine[PersistentMap[bytes, bytes]]):
    """The same with a map that shares what did not change."""

    def initial(self) -> PersistentMap[bytes, bytes]:
        return filled_map()

    def transition(self, state: PersistentMap[bytes, bytes], command: bytes) -> tuple[Any, bytes]:
        _, key, value = command.split(b" ", 2)
        return state.set(key, value), b"OK"

    def encode(self, state: PersistentMap[bytes, bytes]) -> bytes:
        return msgspec.msgpack.encode(dict(state))

    def decode(self, data: memoryview) -> PersistentMap[bytes, bytes]:
        return PersistentMap(msgspec.msgpack.decode(data, type=dict[bytes, bytes]))


# --- parsing ----------------------------------------------------------------------------------------------------


class Order(msgspec.Struct):
    """A command with fields."""

    customer: str
    article: str
    count: int
    price: float


ORDERS = [Order(f"customer {n % 100}", f"article {n % 1000}", n % 9 + 1, n / 100) for n in range(5_000)]
AS_JSON = [msgspec.json.encode(order) for order in ORDERS]
AS_MSGPACK = [msgspec.msgpack.encode(order) for order in ORDERS]


class Tokens(KvStateMachine):
    """Copies the command, decodes all of it, and puts the value together again."""

    def apply(self, command: bytes) -> bytes:
        words = bytes(bytearray(command)).decode().split()
        if words[0] != "SET" or len(words) < 3:
            raise ValueError(words[0])
        self._values[words[1].encode()] = " ".join(words[2:]).encode()
        return b"OK"


def parse_json() -> int:
    """Read the orders with the standard library, and check the types by hand."""
    total = 0
    for data in AS_JSON:
        order = json.loads(data)
        if not (isinstance(order["customer"], str) and isinstance(order["count"], int)):
            raise TypeError(order)
        total += order["count"]
    return total


def parse_typed(decoder: Any, encoded: list[bytes]) -> int:
    """Read the orders into structs, checked while decoding."""
    total = 0
    for data in encoded:
        total += decoder.decode(data).count
    return total


# --- snapshots --------------------------------------------------------------------------------------------------


def kv_of_the_state() -> KvStateMachine:
    """The key-value store, filled."""
    machine = KvStateMachine()
    machine._values = dict(STATE)
    return machine


def longest_hold(work: Callable[[], object]) -> float:
    """Milliseconds for which another thread was kept waiting at most, while `work` ran."""
    stop, gaps = threading.Event(), [0.0]

    def watch() -> None:
        before = time.perf_counter()
        while not stop.is_set():
            time.sleep(0)
            now = time.perf_counter()
            gaps[0] = max(gaps[0], now - before)
            before = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        stop.set()
        watcher.join()
    return gaps[0] * 1e3


def drain(snapshot: object) -> int:
    """Encode a snapshot, piece by piece, as a replica does; returns its bytes."""
    return sum(len(piece) for piece in SnapshotSource(snapshot))


# --- the table --------------------------------------------------------------------------------------------------


def applies(factory: Callable[[], StateMachine], commands: list[bytes]) -> Contestant:
    """Commands per second of a new machine."""

    def work() -> float:
        machine = factory()
        apply = machine.apply

        def loop() -> None:
            for command in commands:
                apply(command)

        return measure.rate(len(commands), loop)

    return work


def seconds(work: Callable[[], object]) -> Contestant:
    """Milliseconds of one piece of work."""

    def timed() -> float:
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) * 1e3

    return timed


def rows(effort: Effort) -> Iterator[Row]:
    """Each strategy, what it replaces beside it."""
    commands = COMMANDS[: effort.count(len(COMMANDS))]
    few = commands[: effort.count(2_000)]

    def row(title: str, unit: str, contestants: dict[str, Contestant], digits: int = 0) -> Row:
        return Row(title=title, unit=unit, digits=digits, figures=measure.take_turns(contestants, rounds=effort.rounds))

    yield row(
        "locks",
        "commands/s",
        {
            "no lock": applies(BareKv, commands),
            "one lock": applies(LockedKv, commands),
            "sixteen locks by key": applies(ShardLockedKv, commands),
        },
    )
    yield row(
        "lookups", "commands/s", {"a dict": applies(KvStateMachine, few), "a list of pairs": applies(PairsKv, few)}
    )
    looks = effort.count(200)
    yield row(
        "ranges",
        "queries/s",
        {
            "bisection": lambda: measure.rate(looks, lambda: [range_by_bisection(*WINDOW) for _ in range(looks)]),
            "looking at all": lambda: measure.rate(
                looks, lambda: [range_by_looking_at_all(*WINDOW) for _ in range(looks)]
            ),
        },
    )
    yield row(
        "immutable state",
        "commands/s",
        {"a persistent map": applies(Shared, few), "a copied dict": applies(CopiedDict, few)},
    )
    yield row(
        "parsing bytes",
        "commands/s",
        {"split once, keep bytes": applies(KvStateMachine, commands), "decode and join": applies(Tokens, commands)},
    )
    packed, texts = msgspec.msgpack.Decoder(Order), msgspec.json.Decoder(Order)
    yield row(
        "parsing fields",
        "commands/s",
        {
            "msgspec, MessagePack": lambda: measure.rate(len(ORDERS), lambda: parse_typed(packed, AS_MSGPACK)),
            "msgspec, JSON": lambda: measure.rate(len(ORDERS), lambda: parse_typed(texts, AS_JSON)),
            "json and checks": lambda: measure.rate(len(ORDERS), parse_json),
        },
    )
    yield from snapshot_rows(row)


def snapshot_rows(row: Callable[..., Row]) -> Iterator[Row]:
    """What a snapshot of 200,000 pairs costs, and whom it holds up."""
    machine = kv_of_the_state()
    yield row(
        "snapshot format",
        "ms",
        {
            "MessagePack, in blocks": seconds(lambda: drain(machine.snapshot())),
            "MessagePack, in one call": seconds(lambda: msgspec.msgpack.encode(STATE)),
            "json": seconds(lambda: json.dumps(TEXT_STATE).encode()),
        },
        1,
    )
    view = machine.snapshot()
    yield row(
        "commands held up by a snapshot",
        "ms",
        {
            "a frozen view": seconds(machine.snapshot),
            "encoded at once": seconds(lambda: b"".join(view())),
        },
        2,
    )
    yield row(
        "other threads held up by a snapshot",
        "ms",
        {
            "in blocks": lambda: longest_hold(lambda: drain(machine.snapshot())),
            "in one call": lambda: longest_hold(lambda: json.dumps(TEXT_STATE)),
        },
        1,
    )
    yield from array_row(row)


def array_row(row: Callable[..., Row]) -> Iterator[Row]:
    """Restoring a million numbers; without NumPy there is no such row."""
    try:
        import numpy as np
    except ModuleNotFoundError:
        return
    as_array = memoryview(np.array(NUMBERS, dtype="<i8").tobytes())
    as_msgpack, as_json = msgspec.msgpack.encode(NUMBERS), json.dumps(NUMBERS)
    yield row(
        "restoring a million numbers",
        "ms",
        {
            "NumPy, no copy": seconds(lambda: np.frombuffer(as_array, dtype="<i8")),
            "NumPy, one copy": seconds(lambda: np.frombuffer(as_array, dtype="<i8").copy()),
            "MessagePack": seconds(lambda: msgspec.msgpack.decode(as_msgpack, type=list[int])),
            "json": seconds(lambda: json.loads(as_json)),
        },
        3,
    )


def agreeing() -> Iterator[tuple[str, list[object]]]:
    """Results of each row's contestants, to show that they do the same."""
    commands = COMMANDS[:500]
    stores = (BareKv, LockedKv, ShardLockedKv, Tokens)
    yield "locks and parsing", [written_after(factory, commands) for factory in stores]
    yield "lookups", [answers_of(factory, commands) for factory in (KvStateMachine, PairsKv)]
    yield "ranges", [range_by_bisection(*WINDOW), range_by_looking_at_all(*WINDOW)]
    yield "immutable state", [sorted(dict(state_after(factory, commands)).items()) for factory in (Shared, CopiedDict)]
    packed, texts = msgspec.msgpack.Decoder(Order), msgspec.json.Decoder(Order)
    yield "parsing fields", [parse_json(), parse_typed(packed, AS_MSGPACK), parse_typed(texts, AS_JSON)]
    restored = KvStateMachine()
    restored.restore(memoryview(b"".join(kv_of_the_state().snapshot()())))
    yield (
        "snapshot format",
        [restored._values, msgspec.msgpack.decode(msgspec.msgpack.encode(STATE), type=dict[bytes, bytes])],
    )


def written_after(factory: Callable[[], StateMachine], commands: list[bytes]) -> bytes:
    """A machine's snapshot after some commands."""
    machine = factory()
    for command in commands:
        machine.apply(command)
    return b"".join(SnapshotSource(machine.snapshot()))


def answers_of(factory: Callable[[], StateMachine], commands: list[bytes]) -> list[bytes]:
    """A machine's answers."""
    machine = factory()
    return [machine.apply(command) for command in itertools.chain(commands, commands)]


def state_after(factory: Callable[[], ImmutableStateMachine[Any]], commands: list[bytes]) -> Any:
    """An immutable machine's state after some commands."""
    machine = factory()
    for command in commands:
        machine.apply(command)
    return machine.state
