"""`octopii sim`: many seeds of the simulator, on several processes, with a summary; or one seed again.

Standard output has the summary table and, when a seed fails, its story. Progress is shown on standard error, where that
is a terminal.
"""

import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from octopii.cli.exits import EXIT_FAILED, one_line_errors
from octopii.cli.loading import load_class
from octopii.errors import ConfigError
from octopii.machines import KvStateMachine
from octopii.sim.plan import profile_of
from octopii.sim.profiles import GROUPS, PROFILES
from octopii.sim.shrink import shrink
from octopii.sim.simulation import Report, Simulation, SimulationFailed
from octopii.sim.story import counted
from octopii.sim.workload import Workload
from octopii.state_machine import StateMachine

stories_shown = 3
"""Failed seeds that are told in full; all are listed."""

table_columns = 110
"""Width of the tables where standard output is no terminal."""

seeds_ahead = 4
"""Seeds per process that are handed out at one time."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one process has to know to run a seed."""

    machine: str
    upgrade: str
    workload: str
    seed: int
    profile: str
    members: int | None = None
    seconds: float | None = None
    faults: frozenset[int] | None = None

    def simulation(self) -> Simulation:
        """The simulation; raises `ConfigError`."""
        machine = load_class(self.machine, option="--machine", base=StateMachine) if self.machine else KvStateMachine
        upgrade = load_class(self.upgrade, option="--upgrade", base=StateMachine) if self.upgrade else None
        workload = load_class(self.workload, option="--workload", base=Workload) if self.workload else None
        return Simulation(
            machine,
            workload=workload,
            seed=self.seed,
            profile=self.profile,
            upgrade=upgrade,
            members=self.members,
            seconds=self.seconds,
            faults=self.faults,
        )

    def check(self) -> None:
        """Make one of each; raises `ConfigError` where that fails."""
        for option, kind in (("--machine", StateMachine), ("--upgrade", StateMachine), ("--workload", Workload)):
            name = getattr(self, option.removeprefix("--"))
            if not name:
                continue
            made: type[object] = load_class(name, option=option, base=kind)
            try:
                made()
            except Exception as error:
                text = f"{name} of {option} cannot be made: {made.__name__}() raised {type(error).__name__}: {error}"
                raise ConfigError(text, field=option.removeprefix("--")) from error
        self.simulation()


class Failure(msgspec.Struct, frozen=True):
    """A seed that failed, in text."""

    seed: int
    profile: str
    headline: str
    command: str
    text: str


def run_job(job: Job) -> Report | Failure:
    """Run one seed; the log of the simulated nodes is not shown."""
    logging.disable(logging.CRITICAL)
    try:
        return job.simulation().run()
    except SimulationFailed as failure:
        return told(failure)


def told(failure: SimulationFailed) -> Failure:
    """The failure in text."""
    story, plan = failure.story, failure.plan
    return Failure(plan.seed, plan.profile, story.headline, story.command, story.text)


class Summary:
    """What all seeds came to."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[Report]] = {}
        self.failures: list[Failure] = []
        self.faults: Counter[str] = Counter()
        self.steps = 0
        self.began = time.monotonic()

    def add(self, result: Report | Failure) -> None:
        """One seed more."""
        if isinstance(result, Failure):
            self.failures.append(result)
            return
        self.outcomes.setdefault(result.profile, []).append(result)
        self.faults.update(result.faults)
        self.steps += result.steps

    @property
    def steps_per_second(self) -> float:
        """Steps of all seeds together, by the clock on the wall."""
        return self.steps / max(1e-9, time.monotonic() - self.began)

    def print(self, console: Console) -> None:
        """The tables, and what failed."""
        console.print(self._profiles())
        console.print(self._faults())
        for failure in self.failures[:stories_shown]:
            console.print(failure.text, markup=False, highlight=False, soft_wrap=True)
        if self.failures:
            console.print(f"{counted(len(self.failures), 'seed')} failed:")
            for failure in self.failures:
                line = f"  {failure.headline.splitlines()[0]}\n    {failure.command}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _profiles(self) -> Table:
        table = Table(title="Runs", title_justify="left")
        for heading in (
            "profile",
            "seeds",
            "failed",
            "simulated hours",
            "steps",
            "calls",
            "not judged",
            "lost by design",
        ):
            table.add_column(heading, justify="left" if heading == "profile" else "right")
        failed = Counter(failure.profile for failure in self.failures)
        for name in PROFILES:
            runs = self.outcomes.get(name, [])
            if runs or failed[name]:
                table.add_row(name, *_row(runs, failed[name]))
        every = [run for runs in self.outcomes.values() for run in runs]
        table.add_section()
        table.add_row("all", *_row(every, len(self.failures)))
        table.caption = f"{self.steps_per_second:,.0f} steps/s"
        return table

    def _faults(self) -> Table:
        table = Table(title="Faults", title_justify="left")
        table.add_column("kind")
        table.add_column("times", justify="right")
        for kind, times in self.faults.most_common():
            table.add_row(kind, f"{times:,}")
        return table


def _row(runs: list[Report], failed: int) -> list[str]:
    return [
        f"{len(runs) + failed:,}",
        f"{failed:,}",
        f"{sum(run.seconds for run in runs) / 3600:,.2f}",
        f"{sum(run.steps for run in runs):,}",
        f"{sum(run.calls for run in runs):,}",
        f"{sum(run.verdict != 'linearizable' for run in runs if run.shown is None):,}",
        f"{sum(run.shown is not None for run in runs):,}",
    ]


def run_all(jobs: Iterator[Job], count: int, processes: int, summary: Summary) -> None:
    """Run all jobs on so many processes."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("seeds", total=count)

        def note(result: Report | Failure) -> None:
            summary.add(result)
            failed = f", {len(summary.failures)} failed" if summary.failures else ""
            progress.update(bar, advance=1, description=f"{summary.steps_per_second:,.0f} steps/s{failed}")

        if processes == 1:
            for job in jobs:
                note(run_job(job))
            return
        # A fresh interpreter for each: a fork would copy the threads' locks of this one, in whatever state they are.
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            under_way: set[Future[Report | Failure]] = set()
            while True:
                room = seeds_ahead * processes - len(under_way)
                under_way |= {pool.submit(run_job, job) for job in islice(jobs, room)}
                if not under_way:
                    return
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    note(future.result())


def sim(
    machine: Annotated[
        str, typer.Option(help="The state machine, package.module:Class; the key-value store if none.")
    ] = "",
    workload: Annotated[
        str, typer.Option(help="What its clients do: package.module:Class, a subclass of octopii.sim.Workload.")
    ] = "",
    upgrade: Annotated[
        str, typer.Option(help="The machine's next version, for profiles that upgrade: package.module:Class.")
    ] = "",
    profile: Annotated[
        str, typer.Option(help=f"What may go wrong: {', '.join([*PROFILES, *GROUPS])}. Seeds of all go round them.")
    ] = "chaos",
    seeds: Annotated[int, typer.Option(help="How many seeds to run.", min=1)] = 100,
    first: Annotated[int, typer.Option(help="The first of them.", min=0)] = 0,
    jobs: Annotated[int, typer.Option(help="Processes that run them.", min=1)] = 1,
    seed: Annotated[int | None, typer.Option(help="Run this seed alone, and tell what it came to.")] = None,
    members: Annotated[int | None, typer.Option(help="So many nodes instead of what a seed draws.")] = None,
    seconds: Annotated[float | None, typer.Option(help="So many seconds of faults at most.")] = None,
    faults: Annotated[
        str, typer.Option(help="With --seed: these faults alone, by number: 3,7,9; none for none.", metavar="NUMBERS")
    ] = "",
    shrink_it: Annotated[bool, typer.Option("--shrink", help="Cut the first failure down before it is told.")] = False,
) -> None:
    """Run clusters of a state machine in a simulated world that goes wrong, from seeds.

    Each seed is one run, always the same. Status 1 when a seed fails; the command that shows it again is printed.
    """
    with one_line_errors():
        profile_of(profile, 0)
        numbers = fault_numbers(faults)
        if numbers is not None and seed is None:
            raise ConfigError("--faults goes with --seed: each seed numbers faults of its own")
        job = Job(
            machine=machine,
            workload=workload,
            upgrade=upgrade,
            seed=first if seed is None else seed,
            profile=profile,
            members=members,
            seconds=seconds,
            faults=numbers,
        )
        job.check()  # what is wrong with the names is said before anything runs
        summary = Summary()
        if seed is not None:
            run_all(iter([job]), 1, 1, summary)
        else:
            work = (msgspec.structs.replace(job, seed=number) for number in range(first, first + seeds))
            run_all(work, seeds, jobs, summary)
        if shrink_it and summary.failures:
            summary.failures[0] = _shrunk(job, summary.failures[0])
        console = Console()
        summary.print(console if console.is_terminal else Console(width=max(console.width, table_columns)))
        if summary.failures:
            raise typer.Exit(EXIT_FAILED)


def fault_numbers(text: str) -> frozenset[int] | None:
    """What --faults says; raises `ConfigError`."""
    if not text:
        return None
    try:
        return frozenset(int(number) for number in text.split(",") if number != "none")
    except ValueError:
        raise ConfigError(f"--faults is a list of numbers with commas, or none, not {text!r}", field="faults") from None


def _shrunk(job: Job, failure: Failure) -> Failure:
    """The same failure with less of everything."""
    job = msgspec.structs.replace(job, seed=failure.seed, profile=failure.profile)
    logging.disable(logging.CRITICAL)
    simulation = job.simulation()
    try:
        simulation.run()
    except SimulationFailed as found:
        return told(shrink(simulation, found))
    return failure
