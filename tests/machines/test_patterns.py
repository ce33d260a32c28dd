"""The pattern machines: what each one adds to the machines that it holds or to the store that it is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.blocks import TARGET_BLOCK_BYTES
from octopii.errors import CommandError
from octopii.machines import (
    CompositeStateMachine,
    CounterStateMachine,
    ImmutableStateMachine,
    IncrementalStateMachine,
    KvStateMachine,
    ShardedStateMachine,
    VersionedStateMachine,
)
from octopii.state_machine import ClockDriver, SnapshotSource, StateMachine
from tests.machines.specimens import written


class Dice(StateMachine):
    """Answers time and chance, keeps what it answered, and raises for "break" after a change."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def apply(self, command: bytes) -> bytes:
        self.seen.append(f"{self.clock.now()} {self.clock.index} {self.rng.random()}")
        if command == b"break":
            raise ZeroDivisionError
        return self.seen[-1].encode()

    def snapshot(self) -> bytes:
        return json.dumps(self.seen).encode()

    def restore(self, data: memoryview) -> None:
        self.seen = json.loads(bytes(data))

    def compact(self) -> None:
        self.seen.append(f"compacted at {self.clock.now()}")


def dice_and_counter() -> CompositeStateMachine:
    return CompositeStateMachine({"dice": Dice, "counter": CounterStateMachine})


# --- composite --------------------------------------------------------------------------------------------------


def test_a_composite_routes_by_name() -> None:
    """Each part gets what follows its name and a colon; unknown names are refused."""
    machine = CompositeStateMachine({"kv": KvStateMachine, "hits": CounterStateMachine})
    assert machine.apply(b"kv:SET a b:c") == b"OK"
    assert machine.apply(b"hits:INC a") == b"1"
    assert machine.query(b"kv:GET a") == b"b:c"
    assert machine["hits"].query(b"GET a") == b"1"
    for command in (b"other:GET a", b"kv", b"", b":GET a", b"\xff:GET"):
        with pytest.raises(CommandError, match="no part is named"):
            machine.apply(command)


def test_parts_share_the_clock_and_the_random_numbers() -> None:
    """A part sees the composite's time and index, and draws what a machine by itself would draw there."""
    machine, alone = CompositeStateMachine({"deep": dice_and_counter}), Dice()
    for driver in (ClockDriver(machine, cluster_id=b"c"), ClockDriver(alone, cluster_id=b"c")):
        driver.enter(7, 2, 1_000.0)
        driver.at(3)
    assert machine.apply(b"deep:dice:roll") == alone.apply(b"roll")
    machine.restore(memoryview(written(machine)))
    assert machine.apply(b"deep:dice:roll") == alone.apply(b"roll")


def test_a_composite_restores_all_parts_or_none() -> None:
    """When the last part's snapshot is refused, the parts before it keep their state too."""

    class Picky(CounterStateMachine):
        def restore(self, data: memoryview) -> None:
            raise ValueError("no")

    def build(last: type[CounterStateMachine]) -> CompositeStateMachine:
        return CompositeStateMachine({"kv": KvStateMachine, "last": last})

    source, target = build(CounterStateMachine), build(Picky)
    source.apply(b"kv:SET a new")
    target.apply(b"kv:SET a old")
    with pytest.raises(ValueError, match="no"):
        target.restore(memoryview(written(source)))
    assert target.query(b"kv:GET a") == b"old"


def test_a_part_may_be_added_but_not_lost() -> None:
    """A later program with one more part starts it empty; one that lacks a part refuses the snapshot."""
    small, large = CompositeStateMachine({"kv": KvStateMachine}), dice_and_counter()
    small.apply(b"kv:SET a 1")
    grown = CompositeStateMachine({"kv": KvStateMachine, "counter": CounterStateMachine})
    grown.apply(b"counter:INC a 5")
    grown.restore(memoryview(written(small)))
    assert (grown.query(b"kv:GET a"), grown.query(b"counter:GET a")) == (b"1", b"0")
    with pytest.raises(ValueError, match="'kv', which is not here"):
        large.restore(memoryview(written(small)))


def test_a_composite_is_frozen_only_when_all_parts_are() -> None:
    """One part whose snapshot has to be read at once makes the whole one so."""

    class Live(KvStateMachine):
        def snapshot(self) -> Any:
            return super().snapshot()()

    assert SnapshotSource(CompositeStateMachine({"a": KvStateMachine}).snapshot()).frozen
    assert not SnapshotSource(CompositeStateMachine({"a": KvStateMachine, "b": Live}).snapshot()).frozen


def test_older_parts_are_migrated() -> None:
    """Each part's version is in the snapshot, and a part of an earlier version goes through its `migrate`."""

    class Newer(CounterStateMachine):
        snapshot_version = 2

        def migrate(self, version: int, data: memoryview) -> bytes:
            assert version == 1
            return bytes(data)

    old = CompositeStateMachine({"n": CounterStateMachine})
    old.apply(b"n:INC a 3")
    new = CompositeStateMachine({"n": Newer})
    new.restore(memoryview(written(old)))
    assert new.query(b"n:GET a") == b"3"
    with pytest.raises(ValueError, match="no migrate"):
        old.restore(memoryview(written(new)))


def test_a_gap_between_parts_is_refused() -> None:
    """Parts fill the snapshot up to its directory: bytes that belong to none of them are damage."""
    whole = written(CompositeStateMachine({"kv": KvStateMachine}))
    directory = whole.index(b"\x91\x93\xa2kv")
    machine = CompositeStateMachine({"kv": KvStateMachine})
    machine.restore(memoryview(whole))
    with pytest.raises(ValueError, match="parts have"):
        machine.restore(memoryview(whole[:directory] + b"\x00" + whole[directory:]))


@pytest.mark.parametrize("name", ["", "a:b", "grün"])
def test_part_names_are_checked(name: str) -> None:
    """A name that could not be routed to is refused at construction."""
    with pytest.raises(ValueError, match="without a colon"):
        CompositeStateMachine({name: KvStateMachine})


# --- sharded ----------------------------------------------------------------------------------------------------


def test_a_key_always_has_the_same_shard() -> None:
    """The shard is fixed by the key's XXH3 hash; changing that would lose keys on upgrade."""
    machine = ShardedStateMachine(shards=16)
    assert [machine.shard_of(key) for key in (b"", b"a", b"key", b"another key")] == KNOWN_SHARDS


KNOWN_SHARDS = [2, 15, 3, 9]


def test_shards_hold_different_keys_and_all_are_found() -> None:
    """Keys spread over the shards, and each command finds its own again."""
    machine = ShardedStateMachine(shards=4)
    for n in range(100):
        assert machine.apply(b"SET key%d value %d" % (n, n)) == b"OK"
    assert {machine.shard_of(b"key%d" % n) for n in range(100)} == {0, 1, 2, 3}
    assert all(machine.query(b"GET key%d" % n) == b"value %d" % n for n in range(100))
    for command in (b"GET", b"GET ", b""):
        with pytest.raises(CommandError, match="names no key"):
            machine.query(command)


def test_a_snapshot_with_another_number_of_shards_is_refused() -> None:
    """Keys would be looked for in the wrong shard, so it is an error, and nothing changes."""
    machine, other = ShardedStateMachine(shards=2), ShardedStateMachine(shards=3)
    other.apply(b"SET a kept")
    with pytest.raises(ValueError, match="2 shards, this machine 3"):
        other.restore(memoryview(written(machine)))
    assert other.query(b"GET a") == b"kept"
    for shards in (0, 5_000):
        with pytest.raises(ValueError, match="from 1 to"):
            ShardedStateMachine(shards=shards)


def test_shards_can_be_of_any_machine() -> None:
    """Counters are sharded by their name."""
    machine = ShardedStateMachine(shards=3, factory=CounterStateMachine)
    assert [machine.apply(b"INC n%d" % (n % 2)) for n in range(4)] == [b"1", b"1", b"2", b"2"]


# --- versioned --------------------------------------------------------------------------------------------------


def test_every_version_can_be_asked() -> None:
    """Each write answers its version; GET_AT shows the store as it was then, deletions included."""
    machine = VersionedStateMachine()
    assert machine.apply(b"SET a 1") == b"1"
    assert machine.apply(b"SET b two words") == b"2"
    assert machine.apply(b"DELETE a") == b"3"
    assert machine.apply(b"DELETE a") == b"NOT_FOUND"
    assert machine.apply(b"SET a 4") == b"4"
    assert [machine.query(b"GET_AT %d a" % v) for v in range(5)] == [b"NOT_FOUND", b"1", b"1", b"NOT_FOUND", b"4"]
    assert machine.query(b"GET_AT 3 b") == machine.query(b"GET b") == b"two words"
    assert machine.query(b"VERSION") == b"4"
    with pytest.raises(CommandError, match="0 to 4 are kept"):
        machine.query(b"GET_AT 5 a")


def test_a_write_forgets_the_oldest_version_but_no_current_value() -> None:
    """The newest versions stay exact; older ones are refused; keys deleted before them are gone."""
    machine = VersionedStateMachine(keep_versions=2)
    for command in (b"SET old 1", b"SET a 2", b"SET gone 3", b"DELETE gone", b"SET a 5", b"SET a 6"):
        machine.apply(command)
    assert machine.query(b"GET_AT 5 a") == b"5"
    assert machine.query(b"GET_AT 5 old") == b"1"
    assert machine.query(b"GET_AT 6 gone") == b"NOT_FOUND"
    with pytest.raises(CommandError, match="5 to 6 are kept"):
        machine.query(b"GET_AT 4 a")
    assert b"gone" not in written(machine)
    assert machine.apply(b"SET gone 7") == b"7"


def test_one_key_that_is_written_for_ever_takes_bounded_memory() -> None:
    """What is forgotten of a history is freed, in pieces of about the kept length."""
    machine = VersionedStateMachine(keep_versions=10)
    for n in range(1_000):
        machine.apply(b"SET hot %d" % n)
        assert len(machine._histories[b"hot"].versions) <= 22
    assert machine.query(b"GET_AT 991 hot") == b"990"


def test_the_whole_store_can_be_looked_at_in_any_kept_version() -> None:
    """`query_at_version` is a mapping of the store as it was; for a version that is not kept it raises."""
    machine = VersionedStateMachine(keep_versions=3)
    for command in (b"SET a 1", b"SET b 2", b"DELETE a", b"SET a 4"):
        machine.apply(command)
    assert [dict(machine.query_at_version(version)) for version in (2, 3, 4)] == [
        {b"a": b"1", b"b": b"2"},
        {b"b": b"2"},
        {b"a": b"4", b"b": b"2"},
    ]
    for version in (1, 5):
        with pytest.raises(CommandError, match="2 to 4 are kept"):
            machine.query_at_version(version)


@given(
    steps=st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([b"1", b"2", None])), max_size=60),
    keep=st.integers(1, 12),
)
def test_versions_are_what_copies_would_be(steps: list[tuple[bytes, bytes | None]], keep: int) -> None:
    """Every kept version equals a copy of the store made at its time, before and after a snapshot."""
    machine = VersionedStateMachine(keep_versions=keep)
    copies: list[dict[bytes, bytes]] = [{}]
    for key, value in steps:
        changed = dict(copies[-1])
        if value is not None:
            changed[key] = value
        elif changed.pop(key, None) is None:
            assert machine.apply(b"DELETE " + key) == b"NOT_FOUND"
            continue
        copies.append(changed)
        command = b"DELETE " + key if value is None else b"SET %b %b" % (key, value)
        assert machine.apply(command) == b"%d" % (len(copies) - 1)
    restored = VersionedStateMachine(keep_versions=keep)
    restored.restore(memoryview(written(machine)))
    for tested in (machine, restored):
        kept = {version: dict(tested.query_at_version(version)) for version in range(len(copies))[-keep:]}
        assert kept == {version: copies[version] for version in range(len(copies))[-keep:]}
        assert sum(len(history.versions) - history.first for history in tested._histories.values()) <= keep + 2
    assert written(restored) == written(machine)


def test_a_young_store_survives_compaction_and_a_snapshot() -> None:
    """With fewer versions than are kept, compaction forgets nothing, and version 0 can still be asked."""
    machine, copy = VersionedStateMachine(keep_versions=10), VersionedStateMachine(keep_versions=10)
    machine.apply(b"SET a 1")
    machine.compact()
    copy.restore(memoryview(written(machine)))
    assert copy.query(b"GET_AT 0 a") == b"NOT_FOUND"
    assert copy.query(b"GET_AT 1 a") == b"1"


def test_long_histories_span_blocks() -> None:
    """One key with many large versions is written in small blocks and comes back whole."""
    machine = VersionedStateMachine()
    for n in range(300):
        machine.apply(b"SET a %d %b" % (n, b"x" * 5_000))
    assert max(map(len, machine.snapshot()())) < 2 * TARGET_BLOCK_BYTES
    copy = VersionedStateMachine()
    copy.restore(memoryview(written(machine)))
    assert copy.query(b"GET_AT 7 a").startswith(b"6 x")
    assert written(copy) == written(machine)


# --- immutable --------------------------------------------------------------------------------------------------


class Ledger(ImmutableStateMachine[tuple[int, ...]]):
    def initial(self) -> tuple[int, ...]:
        return ()

    def transition(self, state: tuple[int, ...], command: bytes) -> tuple[tuple[int, ...], bytes]:
        new = (*state, len(command))
        if command == b"break":
            raise ZeroDivisionError
        return new, b"%d" % sum(new)

    def encode(self, state: tuple[int, ...]) -> bytes:
        return bytes(state)

    def decode(self, data: memoryview) -> tuple[int, ...]:
        return tuple(data)


def test_a_command_that_raises_leaves_an_immutable_state() -> None:
    """Whatever is raised, and however late, the state is the one before."""
    machine = Ledger()
    assert machine.apply(b"abc") == b"3"
    with pytest.raises(ZeroDivisionError):
        machine.apply(b"break")
    assert machine.state == (3,)
    machine.restore(memoryview(b"\x01\x02"))
    assert machine.apply(b"abc") == b"6"


# --- incremental ------------------------------------------------------------------------------------------------


def roll(machine: StateMachine, driver: ClockDriver, entries: range) -> list[bytes]:
    answers = []
    for index in entries:
        driver.enter(index, 1, index * 10.0)
        for position, command in enumerate((b"roll", b"break", b"roll")):
            driver.at(position)
            try:
                answers.append(machine.apply(command))
            except ZeroDivisionError:
                answers.append(b"ZeroDivisionError")
        machine.compact()
    return answers


def test_an_incremental_snapshot_repeats_its_base_and_replays_the_rest() -> None:
    """A second snapshot starts with the base of the first; what came since is replayed with its time and chance."""
    machine = IncrementalStateMachine(Dice)
    driver = ClockDriver(machine, cluster_id=b"c")
    roll(machine, driver, range(1, 4))
    base = written(machine.inner)
    assert written(machine).startswith(base)
    roll(machine, driver, range(4, 6))
    second = written(machine)
    assert second.startswith(base)
    assert not second.startswith(written(machine.inner))
    copy = IncrementalStateMachine(Dice)
    copy_driver = ClockDriver(copy)
    copy.restore(memoryview(second))
    assert written(copy.inner) == written(machine.inner)
    copy_driver.found(b"c")
    copy_driver.restore(index=5, term=1, time=driver.time)
    assert roll(copy, copy_driver, range(6, 8)) == roll(machine, driver, range(6, 8))


def test_a_new_base_is_taken_when_the_commands_since_outgrow_their_limit() -> None:
    """Beyond the limit of commands or of bytes nothing more is kept, and the next snapshot is a whole one."""
    for limits, size in (({"max_deltas": 10}, 1), ({"max_delta_bytes": 1_000}, 200)):
        machine = IncrementalStateMachine(KvStateMachine, **limits)
        written(machine)
        for n in range(12):
            machine.apply(b"SET k%d %b" % (n, b"x" * size))
        assert written(machine).startswith(written(machine.inner))


def test_an_incremental_snapshot_without_its_parts_is_refused() -> None:
    """A snapshot of several machines that is not one of base and commands is refused, and nothing changes."""
    machine = IncrementalStateMachine(KvStateMachine)
    machine.apply(b"SET a 1")
    with pytest.raises(ValueError, match="not a snapshot with a base"):
        machine.restore(memoryview(written(dice_and_counter())))
    assert machine.query(b"GET a") == b"1"
