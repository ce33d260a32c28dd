"""`check_determinism`: the same commands, played in ways that must not matter.

    again       a second instance, in the same process
    elsewhere   in other processes, each with another hash seed, other random numbers, and a wall clock years away
    asked       with queries in between, which must change nothing
    viewed      frozen views are read while later commands are applied
    restored    after every command the state goes through snapshot and restore into a new instance

The first difference is reported with its likely cause. Where plays in different processes differ, the cause is found by
changing one thing at a time.
"""

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from octopii.state_machine import as_bytes
from octopii.testing.elsewhere import Surroundings, importable_name, play_elsewhere
from octopii.testing.plays import (
    Cause,
    Factory,
    Found,
    Play,
    differing_bytes,
    play,
    play_asked,
    play_restored,
    play_with_views,
    shown,
)
from octopii.testing.questions import made_up_queries

YEAR_SECONDS = 365.25 * 86_400

OTHER_PROCESSES = (
    Surroundings(1, 7 * YEAR_SECONDS + 12_345.678, 1),
    Surroundings(2, 14 * YEAR_SECONDS + 54_321.987, 2),
)
"""Everything is different here: no fault hides."""

ONE_AT_A_TIME = (
    (Cause.WALL_CLOCK, Surroundings(clock_shift=7 * YEAR_SECONDS + 12_345.678)),
    (Cause.RANDOM, Surroundings(random_seed=1)),
    (Cause.HASH_ORDER, Surroundings(hash_seed=1)),
    (Cause.HASH_ORDER, Surroundings(hash_seed=2)),
)
"""Each differs from `Surroundings()` in one thing, and that is the cause."""

Run = Callable[[Sequence[bytes]], Play]


class NotDeterministic(AssertionError):
    """Two plays of the same commands differed.

    `cause` is the likely cause. `position` is that of the first command that differed, from 0, or None where only a
    query after the last command did; `command` is that command, or query. `play` names the play that differed from the
    straight one; `expected` and `found` are the two outcomes, or the bytes around the first difference of two states.
    """

    def __init__(
        self,
        cause: Cause,
        what: str,
        *,
        play: str,
        position: int | None,
        command: bytes | None,
        expected: object,
        found: object,
    ) -> None:
        super().__init__(
            f"{what}\n  likely cause: {cause}: {cause.advice}\n  straight: {shown(expected)}\n  {play}: {shown(found)}"
        )
        self.cause = cause
        self.play = play
        self.position = position
        self.command = command
        self.expected = expected
        self.found = found


def check_determinism(
    factory: Factory,
    commands: Sequence[bytes | str],
    *,
    queries: Sequence[bytes | str] | None = None,
    snapshot_every: int = 1,
    compare_snapshots: bool = True,
    other_processes: bool = True,
) -> None:
    """Play `commands`, then `queries`, on machines made by `factory`, and raise `NotDeterministic` if plays differ.

    Commands and queries that are text are taken as UTF-8, as the cluster takes them. Where the machine refuses every
    command, a warning says so: then there was nothing to compare.

    Without `queries`, some are made up: the commands themselves, or a typed machine's queries with values of commands.
    `snapshot_every` is in commands: with a large state, a larger number saves time. `compare_snapshots=False` allows
    equal states to have different snapshots, as when their order is not fixed; then only answers tell.
    `other_processes=False` skips the plays in other processes, which need a `factory` that can be imported by name (a
    class or a function at the top of a module); hash order then goes unnoticed, and causes are told less exactly.

    Raises `ValueError` for a factory that cannot be imported, `TypeError` for a command that is none, `RuntimeError`
    when another process fails, and whatever the machine raises in `snapshot`, `restore` or `compact`.
    """
    if snapshot_every < 1:
        raise ValueError(f"snapshot_every has to be at least 1, not {snapshot_every!r}")
    if other_processes:
        importable_name(factory)
    if isinstance(commands, str | bytes):
        raise TypeError(f"commands is a list of commands, not one alone: {shown(commands)}")
    played = [as_bytes(command) for command in commands]
    asked = made_up_queries(factory(), played) if queries is None else [as_bytes(query) for query in queries]
    check = _Check(factory, played, asked, every=snapshot_every, compare_snapshots=compare_snapshots)
    if (refusal := check.refused_all()) and not _among_random_ones():
        warnings.warn(f"little was checked: {refusal}", stacklevel=2)
    check.again(other_processes=other_processes)
    if other_processes:
        check.elsewhere()
    check.asked()
    check.viewed()
    check.restored()


class _Check:
    """The straight play, and what others are compared with it."""

    def __init__(
        self,
        factory: Factory,
        commands: Sequence[bytes],
        queries: Sequence[bytes],
        *,
        every: int,
        compare_snapshots: bool,
    ) -> None:
        self._factory = factory
        self._commands = commands
        self._queries = queries
        self._every = every
        self._compare_snapshots = compare_snapshots
        self._straight = self._play(commands)

    def refused_all(self) -> str:
        """What the machine said to the first command, where it refused all; else nothing."""
        answers = self._straight.answers
        if not answers or any(kind != "CommandError" for kind, _ in answers):
            return ""
        said, first = answers[0][1].decode(errors="replace"), shown(self._commands[0])
        return f"the machine refused every command; to the first, {first}, it said: {said}"

    def _play(self, commands: Sequence[bytes]) -> Play:
        return play(self._factory, commands, self._queries, every=self._every)

    def again(self, *, other_processes: bool) -> None:
        """A second instance in this process does the same."""
        difference = self._difference(Cause.SHARED_STATE, self._straight, self._play, self._play, "second instance")
        if difference is None:
            return
        if other_processes:
            self._find_cause()
        else:
            with _seeded():
                first = self._play(self._commands)
            with _seeded():
                second = self._play(self._commands)
            if self._first_difference(first, second) is None:
                difference = self._difference(
                    Cause.RANDOM, self._straight, self._play, self._play, "second instance"
                ) or difference  # fmt: skip
        raise difference

    def elsewhere(self) -> None:
        """Processes in which everything is different do the same."""
        for surroundings in OTHER_PROCESSES:
            run = self._run_in(surroundings)
            difference = self._difference(Cause.PROCESS, self._straight, self._play, run, str(surroundings))
            if difference is not None:
                self._find_cause()
                raise difference

    def _run_in(self, surroundings: Surroundings) -> Run:
        return lambda commands: play_elsewhere(self._factory, commands, self._queries, surroundings, every=self._every)

    def _find_cause(self) -> None:
        """Change one thing at a time and raise what is then different, if it is."""
        plain = self._run_in(Surroundings())
        base = plain(self._commands)
        cases = [(Cause.PROCESS, Surroundings()), *ONE_AT_A_TIME]
        for cause, surroundings in cases:
            difference = self._difference(cause, base, plain, self._run_in(surroundings), str(surroundings))
            if difference is not None:
                raise difference

    def asked(self) -> None:
        """Queries in between change nothing."""
        if self._queries:
            self._compare(
                Cause.QUERY,
                lambda commands: play_asked(self._factory, commands, self._queries, every=self._every),
                "with queries in between",
            )

    def viewed(self) -> None:
        """Frozen views stay as they were."""
        with _reported("read later"):
            play_with_views(self._factory, self._commands, every=self._every)

    def restored(self) -> None:
        """A state that went through snapshots goes on as before."""
        self._compare(
            Cause.SNAPSHOT,
            lambda commands: play_restored(
                self._factory, commands, self._queries, every=self._every, same_bytes=self._compare_snapshots
            ),
            "restored",
        )

    def _compare(self, cause: Cause, run: Run, name: str) -> None:
        with _reported(name):
            difference = self._difference(cause, self._straight, self._play, run, name)
        if difference is not None:
            raise difference

    # --- comparing ----------------------------------------------------------------------------------------------

    def _first_difference(self, one: Play, other: Play) -> int | None:
        """Position of the first command after which answers or states differ."""
        for position in range(len(self._commands)):
            if one.answers[position] != other.answers[position]:
                return position
            states = one.states[position], other.states[position]
            if self._compare_snapshots and None not in states and states[0] != states[1]:
                return position
        return None

    def _difference(self, cause: Cause, base: Play, run_base: Run, run: Run, name: str) -> NotDeterministic | None:
        """Play by `run`, and return how that differs from `base`, which `run_base` gave."""
        other = run(self._commands)
        position = self._first_difference(base, other)
        if position is None:
            return self._difference_at_the_end(cause, base, other, name)
        command = self._commands[position]
        expected: object = base.answers[position]
        found: object = other.answers[position]
        what = f"command {position} ({shown(command)}) was answered differently"
        if expected == found:
            what = f"command {position} ({shown(command)}) led to another state"
            until = self._commands[: position + 1]
            expected, found = differing_bytes(run_base(until).snapshot, run(until).snapshot)
        return NotDeterministic(
            cause, what, play=name, position=position, command=command, expected=expected, found=found
        )

    def _difference_at_the_end(self, cause: Cause, base: Play, other: Play, name: str) -> NotDeterministic | None:
        for query, expected, found in zip(self._queries, base.queries, other.queries):
            if expected != found:
                what = f"after the last command, query {shown(query)} was answered differently"
                return NotDeterministic(
                    cause, what, play=name, position=None, command=query, expected=expected, found=found
                )
        if self._compare_snapshots and base.snapshot != other.snapshot:
            before, after = differing_bytes(base.snapshot, other.snapshot)
            last = len(self._commands) - 1
            return NotDeterministic(
                cause,
                f"after command {last}, the last one, the states differ",
                play=name,
                position=last if last >= 0 else None,
                command=self._commands[last] if last >= 0 else None,
                expected=before,
                found=after,
            )
        return None


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turn what a play found in itself into the error that users see."""
    try:
        yield
    except Found as fault:
        raise NotDeterministic(
            fault.cause,
            fault.what,
            play=name,
            position=fault.position,
            command=fault.command,
            expected=fault.expected,
            found=fault.found,
        ) from fault.__cause__


def _among_random_ones() -> bool:
    """Whether hypothesis draws the commands: among many lists some are refused whole, and that means nothing."""
    hypothesis = sys.modules.get("hypothesis")
    return hypothesis is not None and bool(hypothesis.currently_in_test_context())


@contextmanager
def _seeded() -> Iterator[None]:
    """Give the process's random numbers a known start, and put them back afterwards."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
