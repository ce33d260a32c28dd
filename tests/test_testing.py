"""`check_determinism` finds each way in which a state machine can depend on more than its commands."""

import os
import random
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from octopii import TypedStateMachine, command, query
from octopii.machines import KvStateMachine
from octopii.state_machine import StateMachine
from octopii.testing import Cause, ManualClock, NotDeterministic, check_determinism, command_sequences
from tests.faulty_machines import (
    Address,
    Calendar,
    Dice,
    Forgetful,
    ForgetfulInSnapshotOnly,
    Good,
    HashOrder,
    HashOrderInSnapshot,
    ImportedCalendar,
    ImportedWallClock,
    KeepsView,
    KeptGenerator,
    LeakyView,
    LiveDictView,
    OwnGenerator,
    ProcessNumber,
    SecretlyWritingQuery,
    SharedList,
    Today,
    UniqueIds,
    WallClock,
    WritingQuery,
)

COMMANDS = [b"%d" % (n % 40) for n in range(120)]


def check(factory: Callable[[], StateMachine], **settings: Any) -> None:
    check_determinism(factory, COMMANDS, queries=[b"3", b"13"], **settings)


def test_a_sound_machine_passes() -> None:
    """Replicated time, `rng`, errors of both kinds, compaction and queries are no cause for alarm."""
    check(Good)
    check_determinism(KvStateMachine, [b"SET a 1", b"DELETE a", b"bad", b"GET a"], queries=[b"GET a"])
    check_determinism(Good, [])


@pytest.mark.parametrize(
    ("machine", "cause"),
    [
        (WallClock, Cause.WALL_CLOCK),
        (ImportedWallClock, Cause.WALL_CLOCK),
        (Calendar, Cause.WALL_CLOCK),
        (ImportedCalendar, Cause.WALL_CLOCK),
        (Today, Cause.WALL_CLOCK),
        (HashOrder, Cause.HASH_ORDER),
        (HashOrderInSnapshot, Cause.HASH_ORDER),
        (ProcessNumber, Cause.PROCESS),
        (Address, Cause.PROCESS),
        (Dice, Cause.RANDOM),
        (UniqueIds, Cause.RANDOM),
        (OwnGenerator, Cause.RANDOM),
        (SharedList, Cause.SHARED_STATE),
        (KeptGenerator, Cause.SNAPSHOT),
        (Forgetful, Cause.SNAPSHOT),
        (ForgetfulInSnapshotOnly, Cause.SNAPSHOT),
        (LeakyView, Cause.FROZEN_VIEW),
        (LiveDictView, Cause.FROZEN_VIEW),
        (WritingQuery, Cause.QUERY),
        (SecretlyWritingQuery, Cause.QUERY),
    ],
)
def test_the_cause_of_each_fault_is_named(machine: type[StateMachine], cause: Cause) -> None:
    """Every faulty machine fails, and the error names the likely cause and what to do about it."""
    with pytest.raises(NotDeterministic) as caught:
        check(machine)
    assert caught.value.cause is cause
    assert f"likely cause: {cause}: {cause.advice}" in str(caught.value)


def test_a_sound_machine_may_keep_what_it_was_restored_from() -> None:
    """The bytes given to `restore` stay what they are for as long as they are referred to."""
    check(KeepsView)


def test_commands_and_queries_may_be_text() -> None:
    """Text is taken as UTF-8; what is no command, and a text in place of the list, is an error that says so."""
    check_determinism(KvStateMachine, ["SET name Zoë", b"GET name"], queries=["GET name"], other_processes=False)
    with pytest.raises(TypeError, match=r"a command is bytes .*, not int"):
        check_determinism(KvStateMachine, [7], other_processes=False)  # type: ignore[list-item]
    for alone in ("SET a b", b"SET a b"):
        with pytest.raises(TypeError, match="commands is a list of commands"):
            check_determinism(KvStateMachine, alone, other_processes=False)  # type: ignore[arg-type]


def test_a_check_of_which_every_command_was_refused_warns() -> None:
    """Nothing was compared then: the warning has the first command and what the machine said to it."""
    with pytest.warns(UserWarning, match=r"refused every command.*'PUT a'.*it said: .") as caught:
        check_determinism(KvStateMachine, ["PUT a", "PUT b"], other_processes=False)
    assert caught[0].filename == __file__
    check_determinism(KvStateMachine, ["PUT a", "SET a b"], other_processes=False)
    check_determinism(KvStateMachine, [], other_processes=False)


@settings(max_examples=3, deadline=None)
@given(st.lists(st.just(b"PUT a"), min_size=1, max_size=2))
def test_random_commands_that_are_all_refused_are_no_cause_for_a_warning(commands: list[bytes]) -> None:
    """Among the lists that hypothesis draws some are refused whole."""
    check_determinism(KvStateMachine, commands, other_processes=False)


class FifthIsLucky(Good):
    """The fifth command is answered by chance; the state goes another way from the third on."""

    def apply(self, command: bytes) -> bytes:
        if len(self.words) == 4:
            return b"%f" % random.random()
        return super().apply(command)


class ThirdIsForgotten(Good):
    """What the third command wrote is in no snapshot, and no answer shows it before the sixth."""

    third = b"nothing"

    def apply(self, command: bytes) -> bytes:
        if len(self.words) == 2:
            self.third = command
        self.words.append(command)
        return self.third if len(self.words) == 6 else b"OK"


class QueryThatApplies(KvStateMachine):
    """Its query runs commands, so that a write sent that way changes one replica only."""

    def query(self, command: bytes) -> bytes:
        return self.apply(command)


class Shop(TypedStateMachine):
    """Counts how often each article was looked at, in a query."""

    def __init__(self) -> None:
        self.stock: dict[str, int] = {}
        self.looks: dict[str, int] = {}

    @command
    def add(self, article: str, count: int) -> int:
        self.stock[article] = self.stock.get(article, 0) + count
        return self.stock[article]

    @query
    def is_open(self) -> bool:
        return True

    @query
    def never_asked(self, password: str) -> None:
        raise AssertionError("no command has a password")

    @query
    def available(self, article: str, reserve: int = 0) -> int:
        self.looks[article] = self.looks.get(article, 0) + 1
        return self.stock.get(article, 0) - reserve


def test_a_query_that_writes_is_found_without_being_named() -> None:
    """With commands alone, a machine of bytes is asked its commands, a typed one its queries with their values."""
    with pytest.raises(NotDeterministic) as caught:
        check_determinism(QueryThatApplies, [b"SET a 1", b"GET a", b"DELETE a"], other_processes=False)
    assert caught.value.cause is Cause.QUERY
    with pytest.raises(NotDeterministic) as caught:
        check_determinism(Shop, [Shop.add.encode("apple", 1)], other_processes=False)
    assert (caught.value.cause, caught.value.command) == (Cause.QUERY, Shop.available.encode("apple"))
    check_determinism(Shop, [Shop.add.encode("apple", 1)], queries=[], other_processes=False)


def test_the_first_difference_is_reported() -> None:
    """The error tells the command, its position and both answers."""
    for machine, position in ((FifthIsLucky, 4), (ThirdIsForgotten, 5)):
        with pytest.raises(NotDeterministic) as caught:
            check_determinism(machine, [b"a", b"b", b"c", b"d", b"e", b"f", b"g"])
        error = caught.value
        assert (error.position, error.command) == (position, b"abcdefg"[position : position + 1])
        assert isinstance(error.expected, tuple)
        assert isinstance(error.found, tuple)
        assert error.expected[0] == error.found[0] == "answer"
        assert f"command {position} (b'{chr(ord('a') + position)}')" in str(error)


def test_a_state_that_no_answer_shows_is_compared_after_each_command() -> None:
    """The first command that led to another state is named, with the bytes that differ."""
    with pytest.raises(NotDeterministic, match=r"after command 1 .* restored machine has another snapshot") as caught:
        check_determinism(Forgetful, [b"a", b"b", b"c", b"d"], snapshot_every=2)
    assert (caught.value.position, caught.value.expected, caught.value.found) == (1, b"a,b", b"a")
    with pytest.raises(NotDeterministic, match="led to another state") as caught:
        check(HashOrderInSnapshot)
    assert caught.value.position is not None
    assert caught.value.position < 5


def test_snapshots_without_a_fixed_order_can_be_allowed() -> None:
    """With compare_snapshots=False only answers count."""
    with pytest.raises(NotDeterministic):
        check(ForgetfulInSnapshotOnly)
    check(ForgetfulInSnapshotOnly, compare_snapshots=False)


def test_snapshots_can_be_rarer() -> None:
    """With a larger distance the same faults are found, later."""
    check(Good, snapshot_every=9)
    with pytest.raises(NotDeterministic) as caught:
        check(Forgetful, snapshot_every=9)
    assert caught.value.cause is Cause.SNAPSHOT
    with pytest.raises(ValueError, match="at least 1"):
        check(Good, snapshot_every=0)


def test_without_other_processes_causes_are_told_as_well_as_can_be() -> None:
    """Chance is told from state outside of the machine even then."""
    for machine, cause in ((Dice, Cause.RANDOM), (SharedList, Cause.SHARED_STATE), (Forgetful, Cause.SNAPSHOT)):
        with pytest.raises(NotDeterministic) as caught:
            check(machine, other_processes=False)
        assert caught.value.cause is cause


def test_a_factory_has_to_be_importable_or_stay_at_home() -> None:
    """A lambda is refused with the way out, which works."""
    with pytest.raises(ValueError, match="other_processes=False"):
        check(lambda: Good())
    check(lambda: Good(), other_processes=False)


class BrokenElsewhere(Good):
    def __init__(self) -> None:
        super().__init__()
        if os.environ.get("PYTHONHASHSEED") == "1":
            raise RuntimeError("not here")


def test_trouble_in_another_process_is_shown() -> None:
    """When the other process fails, its traceback is in the error."""
    if os.environ.get("PYTHONHASHSEED") == "1":
        pytest.skip("this process has the hash seed of the other one")
    with pytest.raises(RuntimeError, match="not here"):
        check(BrokenElsewhere)


# --- the manual clock -------------------------------------------------------------------------------------------


def test_a_manual_clock_moves_only_by_hand() -> None:
    """Time, index and with them the random numbers are the test's to choose."""
    machine, other = Good(), Good()
    clock, other_clock = ManualClock(time=50.0), ManualClock(time=50.0)
    machine.use_clock(clock)
    other.use_clock(other_clock)
    first = machine.apply(b"a")
    assert first == other.apply(b"a")
    assert first.split()[1] == b"50.000000"
    clock.next_entry(seconds=1.5)
    assert (clock.now(), clock.index, clock.term) == (51.5, 2, 1)
    assert machine.apply(b"a").split()[2] != other.apply(b"a").split()[2]
    clock.next_entry(term=3)
    assert (clock.now(), clock.index, clock.term) == (51.5, 3, 3)
    with pytest.raises(ValueError, match="never goes back"):
        clock.set(1.0)


# --- random commands of typed machines --------------------------------------------------------------------------


class Size(msgspec.Struct):
    """A parameter with fields."""

    width: Annotated[int, msgspec.Meta(ge=1, le=4)]
    unit: Literal["cm", "m"] = "cm"


class Warehouse(TypedStateMachine):
    """Takes parameters of many types, and keeps what it was given."""

    seen: dict[str, int]
    shelves: dict[str, list[int]]

    @command
    def store(
        self,
        sku: str,
        count: Annotated[int, msgspec.Meta(gt=0, multiple_of=3)] = 3,
        *,
        size: Size | None = None,
        tags: frozenset[str] = frozenset(),
        limits: tuple[int, float] = (0, 0.5),
    ) -> int:
        assert count > 0
        assert count % 3 == 0
        assert size is None or 1 <= size.width <= 4
        self.seen[sku] = self.seen.get(sku, 0) + 1
        return self.seen[sku]

    @command
    def arrange(self, shelf: Annotated[str, msgspec.Meta(min_length=1, max_length=2)], order: list[int]) -> None:
        assert 1 <= len(shelf) <= 2
        self.shelves[shelf] = order

    @query
    def count(self, sku: str) -> int:
        return self.seen.get(sku, 0)


@given(commands=command_sequences(Warehouse))
def test_random_commands_fit_their_parameters(commands: list[bytes]) -> None:
    """Every generated command is taken by the machine: types and constraints are kept."""
    machine = Warehouse()
    for each in commands:
        machine.apply(each)


@given(commands=command_sequences(Warehouse, values={"sku": st.just("bolt"), "arrange.order": st.just([1])}))
def test_values_can_be_narrowed_down(commands: list[bytes]) -> None:
    """A parameter's values can be given, for all commands that have one of that name or for one command."""
    machine = Warehouse()
    for each in commands:
        machine.apply(each)
    assert machine.seen.keys() <= {"bolt"}
    assert all(order == [1] for order in machine.shelves.values())
    check_determinism(Warehouse, commands[:20], other_processes=False)


def test_random_commands_meet() -> None:
    """Among a few hundred sequences there is one that uses the same key twice."""
    assert find(command_sequences(Warehouse), _uses_a_key_twice) is not None


def _uses_a_key_twice(commands: list[bytes]) -> bool:
    machine = Warehouse()
    for each in commands:
        machine.apply(each)
    return any(count > 1 for count in machine.seen.values())


def test_what_has_no_values_is_named() -> None:
    """A wrong name, a machine without commands, and a type without values are errors that say so."""

    class Mute(TypedStateMachine):
        """No commands."""

    class Vague(TypedStateMachine):
        """One parameter may be anything."""

        @command
        def take(self, thing: Any) -> None:
            """Take it."""

    with pytest.raises(ValueError, match=r"no command of Warehouse has a parameter \['colour'\]"):
        command_sequences(Warehouse, values={"colour": st.none()})
    with pytest.raises(TypeError, match="Mute has no commands"):
        command_sequences(Mute)
    with pytest.raises(TypeError, match=r"take\(\): give values for thing"):
        command_sequences(Vague)
    command_sequences(Vague, values={"thing": st.integers()})
