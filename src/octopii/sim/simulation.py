"""One run: a cluster from a seed, rounds of faults, quiet after each, and everything that has to hold.

    Simulation(MyMachine, workload=MyWorkload(), seed=7, profile="chaos").run()

Each round: clients work while the plan's faults come and go. Then comes the quiet: faults end, the network is mended,
the operator starts what is down and replaces what is lost. In the quiet the cluster has to take a write within a bound,
end every call that is under way, bring all members to the same state, and have everything that was acknowledged.
"""

import copy
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from octopii.errors import ConfigError
from octopii.machines import KvStateMachine
from octopii.sim.client import Asked, SimulatedClient
from octopii.sim.cluster import Cluster
from octopii.sim.faults import KINDS
from octopii.sim.history import Operation
from octopii.sim.invariants import Checker, Violation
from octopii.sim.linearizability import Outcome, check_history
from octopii.sim.plan import Fault, Plan, draw
from octopii.sim.story import Names, Story, name_of, tell
from octopii.sim.victims import NOT_NOW
from octopii.sim.workload import User, Workload
from octopii.sim.workloads import NextKvStateMachine, default_workload
from octopii.sim.world import World
from octopii.state_machine import StateMachine, as_bytes
from octopii.wire.requests import Consistency

MachineFactory = Callable[[], StateMachine]

available_within = 20.0
"""Seconds of quiet after which a cluster takes writes: 50 election timeouts, for whoever has much to recover."""

settles_within = 60.0
"""Seconds of quiet for all else: calls to end, errands to be run, members to catch up."""

write_timeout = 5.0

max_judging_steps = 200_000
"""Steps of the linearizability checker for each part of the history; beyond it the verdict is unknown, and counted."""


class Report(msgspec.Struct, kw_only=True):
    """What a run came to. `faults` counts what went wrong on purpose, by kind.

    `verdict` is the linearizability checker's; `shown` is a loss that the profile is there to show, None for none.
    """

    seed: int
    profile: str
    members: int
    seconds: float
    steps: int
    calls: int
    digest: str
    verdict: str
    faults: dict[str, int]
    shown: str | None = None


class SimulationFailed(AssertionError):
    """A run broke something that must hold; `story` tells it, `rule` names it, `plan` replays it.

    `elapsed` is how many simulated seconds it took to get there.
    """

    def __init__(self, story: Story, plan: Plan, elapsed: float) -> None:
        super().__init__(story.text)
        self.elapsed = elapsed
        self.story = story
        self.rule = story.rule
        self.plan = plan


class Simulation:
    """One run of a cluster of `machine`s (a class, or any function that makes one).

    `workload` makes what says what clients do, a class most often; the machines of the package have one already.
    `upgrade` is the next version of the machine, to which profiles with upgrades restart the nodes. `members`,
    `seconds` and `faults` cut the plan of the seed down: how many nodes, how long the faults go on, which by number.

    Raises `ConfigError` for a profile that does not exist and for a machine without a workload.
    """

    def __init__(
        self,
        machine: MachineFactory = KvStateMachine,
        *,
        workload: Callable[[], Workload] | None = None,
        seed: int = 0,
        profile: str = "chaos",
        upgrade: MachineFactory | None = None,
        members: int | None = None,
        seconds: float | None = None,
        faults: frozenset[int] | None = None,
    ) -> None:
        self.plan = draw(seed, profile, members=members, seconds=seconds, faults=faults)
        given = workload if workload is not None else default_workload(machine)
        if given is None:
            name = getattr(machine, "__name__", repr(machine))
            raise ConfigError(f"say what the clients of {name} do: workload=..., a subclass of octopii.sim.Workload")
        self.workload: Callable[[], Workload] = given
        if upgrade is None and machine is KvStateMachine:
            upgrade = NextKvStateMachine
        self.names = Names(
            machine="" if machine is KvStateMachine else name_of(machine),
            workload=name_of(workload),
            upgrade="" if upgrade is NextKvStateMachine else name_of(upgrade),
        )
        self.factories = (machine,) if upgrade is None else (machine, upgrade)

    def run(self) -> Report:
        """Run it; raises `SimulationFailed`.

        What the nodes log is of a world that is none, and is dropped, unless the logger `octopii` was given a level.
        """
        run = Run(self.plan, self.workload(), self.factories)
        try:
            with _without_log():
                run.play()
        except Exception as error:
            story = tell(error, run.world.trace, self.plan, run.world.now, self.names)
            if story.rule not in self.plan.rules.may_break:
                raise SimulationFailed(story, self.plan, run.world.elapsed) from error
            return run.outcome(shown=story.headline)
        return run.outcome()

    def replay(self, plan: Plan) -> "Simulation":
        """The same with another plan."""
        other = copy.copy(self)
        other.plan = plan
        return other


@contextmanager
def _without_log() -> Iterator[None]:
    """Nothing is logged by simulated nodes, unless somebody has said from which level on it is to be."""
    logger = logging.getLogger("octopii")
    if logger.level != logging.NOTSET:
        yield
        return
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(logging.NOTSET)


class Run:
    """The parts of one run."""

    def __init__(self, plan: Plan, workload: Workload, factories: tuple[MachineFactory, ...]) -> None:
        self.plan = plan
        self.workload = workload
        self.checker = Checker(factories)
        self.world = World(plan.seed, observer=self.checker)
        self.cluster = Cluster(self.world, plan, factories)
        self.checker.cluster = self.cluster
        self.checker.rotten = self.cluster.rotten
        self.users: list[User] = []
        self.injected: Counter[str] = Counter()
        self.verdict = "not judged"

    # --- the whole ----------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Found the cluster, go through the rounds, judge the history."""
        plan, world, cluster = self.plan, self.world, self.cluster
        rng = random.Random(f"users {plan.seed}")
        for number in range(plan.clients):
            client = SimulatedClient(world, f"client-{number}")
            cluster.clients.append(client)
            user_rng = random.Random(rng.random())
            user = User(world, number, client, workload=self.workload, pause=plan.pause, rng=user_rng)
            self.users.append(user)
        self._set_weather(bad=True)
        cluster.start()
        for number, seconds in enumerate(plan.rounds):
            self._set_weather(bad=True)
            for user in self.users:
                user.begin()
            self._run_faults(number, seconds)
            for user in self.users:
                user.end()
            self._quiet()
        self._ask_final_queries()
        self._judge()

    def outcome(self, *, shown: str | None = None) -> Report:
        """What the run came to."""
        world, network = self.world, self.world.network
        faults = self.injected + Counter(network.injected)
        return Report(
            seed=self.plan.seed,
            profile=self.plan.profile,
            members=self.plan.members,
            seconds=world.elapsed,
            steps=world.steps,
            calls=sum(user.calls for user in self.users),
            digest=world.trace.digest,
            verdict=self.verdict,
            faults=dict(sorted(faults.items())),
            shown=shown,
        )

    def history(self) -> list[Operation]:
        """What all clients asked and were told."""
        return [operation for user in self.users for operation in user.history]

    # --- faults -------------------------------------------------------------------------------------------------

    def _set_weather(self, *, bad: bool) -> None:
        weather, plan = self.world.weather, self.plan
        weather.loss, weather.repeat = (plan.loss, plan.repeat) if bad else (0.0, 0.0)
        weather.reorder, weather.breaks = (plan.reorder, plan.breaks) if bad else (0.0, 0.0)
        weather.delay = (0.0002, plan.delay if bad else 0.002)

    def _run_faults(self, number: int, seconds: float) -> None:
        world = self.world
        end = world.now + seconds
        ends: dict[int, Callable[[], None]] = {}
        for fault in self.plan.faults:
            if fault.round == number:
                world.at(fault.at, lambda fault=fault: self._begin(fault, ends))  # type: ignore[misc]
        while world.now < end:
            world.run(min(0.1, end - world.now))
            for node in list(self.cluster.nodes.values()):
                if node.up and not node.paused:
                    self.cluster.look_after(node)
        for finish in list(ends.values()):
            finish()

    def _begin(self, fault: Fault, ends: dict[int, Callable[[], None]]) -> None:
        world = self.world
        finish = KINDS[fault.kind](self.cluster, fault)
        if finish is NOT_NOW:
            return
        self.injected[fault.kind] += 1
        world.trace.note(world.now, 0, "fault", f"{fault.kind} (number {fault.number}, for {fault.lasts:.2f} s)")

        def over() -> None:
            if ends.pop(fault.number, None) is not None:
                finish()

        ends[fault.number] = finish
        world.at(fault.lasts, over)

    # --- the quiet ----------------------------------------------------------------------------------------------

    def _quiet(self) -> None:
        world, cluster = self.world, self.cluster
        world.trace.note(world.now, 0, "the quiet begins")
        self._set_weather(bad=False)
        world.network.heal()
        cluster.calm_down()
        self._write_within(available_within)
        self._until(lambda: all(user.idle for user in self.users), "liveness", "all calls have ended")
        self._until(lambda: cluster.errands == 0, "liveness", "what was lost is replaced")
        self._until(self._converged, "liveness", "all members have applied the same entries")
        present = cluster.present()
        self.checker.compare_states(present)
        for node in present:
            self.checker.check_fully(node)
        self.workload.check([node.machine for node in present])

    def _write_within(self, bound: float) -> None:
        """The cluster takes a write soon, by any client."""
        client = SimulatedClient(self.world, f"quiet-{self.world.steps}")
        user_rng = random.Random(self.world.rng.random())
        user = User(self.world, len(self.users), client, workload=self.workload, pause=1.0, rng=user_rng)
        self.users.append(user)
        deadline = self.world.now + bound
        while True:
            asked = user.propose(timeout=write_timeout)
            self._until(lambda asked=asked: asked.done, "liveness", "a call has ended")  # type: ignore[misc]
            if asked.error is None:
                return
            if self.world.now >= deadline:
                detail = f"no write succeeded within {bound:g} s of quiet: {asked.error!r}"
                raise Violation("liveness", detail)

    def _until(self, condition: Callable[[], bool], rule: str, what: str) -> None:
        world, end = self.world, self.world.now + settles_within
        while not condition():
            if world.now >= end:
                raise Violation(rule, f"{settles_within:g} s into the quiet it is not so that {what}")
            world.run(0.05)
            for node in list(self.cluster.nodes.values()):
                if node.up:
                    self.cluster.look_after(node)

    def _converged(self) -> bool:
        leader = self.cluster.leader
        if leader is None:
            return False
        goal = leader.replica.raft.committed
        present = self.cluster.present()
        return bool(present) and all(node.up and node.applier.index == goal for node in present)

    # --- the end ------------------------------------------------------------------------------------------------

    def _ask_final_queries(self) -> None:
        user = self.users[-1]
        for query in self.workload.final_queries():
            user.ask(as_bytes(query), Consistency.LINEARIZABLE, timeout=settles_within)
        self._until(lambda: user.idle, "liveness", "the last queries are answered")
        unanswered = [each for each in user.client.calls if each.error is not None and _is_final(each)]
        if unanswered:
            raise Violation("liveness", f"a query in the quiet failed: {unanswered[0].error!r}")

    def _judge(self) -> None:
        """The history of all clients is linearizable, and fits what the workload knows of it."""
        history = self.history()
        model = self.workload.model
        if model is not None:
            verdict = check_history(history, model, max_steps=max_judging_steps)
            if verdict.outcome is Outcome.VIOLATION:
                raise Violation("linearizability", str(verdict))
            self.verdict = verdict.outcome.value
        self.workload.judge(history, [node.machine for node in self.cluster.present()])


def _is_final(asked: Asked) -> bool:
    return asked.consistency is not None
