"""What one seed has in store: the cluster, its settings, and every fault with its time, drawn before the run begins.

A plan is data, so a failing one can be cut down: fewer machines, fewer faults, less time. A fault does not name its
victim, because who is there is not known yet; it carries a number from 0 to 1 that picks one when the time comes.
"""

import random

import msgspec

from octopii.errors import ConfigError
from octopii.sim.profiles import GROUPS, PROFILES, Profile

KIB = 1024

round_seconds = (6.0, 14.0)
"""Simulated time that faults go on before the quiet: enough for a few elections, snapshots and restarts."""

max_members = 7

kinds_left_out = 0.3
"""Share of a profile's kinds of faults that a run does without."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong. Times are seconds from the beginning of its round."""

    number: int
    """Its name in this plan."""
    round: int
    at: float
    kind: str
    lasts: float
    pick: float
    """0 to 1: whom it meets."""
    amount: float
    """0 to 1: how much of it."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    seed: int
    profile: str
    members: int
    clients: int
    pause: float
    """Seconds between two calls of a client, at most."""
    rounds: tuple[float, ...]
    """Seconds that each round of faults goes on."""
    loss: float
    repeat: float
    reorder: float
    breaks: float
    delay: float
    settings: dict[str, object]
    faults: tuple[Fault, ...]

    @property
    def rules(self) -> Profile:
        """The profile."""
        return PROFILES[self.profile]


def profile_of(name: str, seed: int) -> str:
    """The profile's own name, or for a group the one whose turn it is. Raises `ConfigError`."""
    if name in GROUPS:
        members = GROUPS[name]
        return members[seed % len(members)]
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}: choose from {', '.join([*PROFILES, *GROUPS])}")
    return name


def draw(
    seed: int,
    profile: str,
    *,
    members: int | None = None,
    seconds: float | None = None,
    faults: frozenset[int] | None = None,
) -> Plan:
    """Draw the plan of a seed; `members`, `seconds` (of faults, in all) and `faults` (by number) cut it down."""
    name = profile_of(profile, seed)
    rules = PROFILES[name]
    rng = random.Random(f"plan {seed} {name}")
    drawn_members = rng.choice((1, 3, 3, 3, 3, 3, 5, 5, 7))
    rounds = tuple(rng.uniform(*round_seconds) for _ in range(rng.choice((1, 1, 1, 2))))
    plan = Plan(
        seed=seed,
        profile=name,
        members=drawn_members,
        clients=rng.randint(1, 4),
        pause=rng.choice((0.05, 0.1, 0.2, 0.5)),
        rounds=rounds,
        loss=rng.choice((0.0, 0.3, 1.0)) * rules.loss,
        repeat=rng.choice((0.0, 0.3, 1.0)) * rules.repeat,
        reorder=rng.choice((0.0, 0.3, 1.0)) * rules.reorder,
        breaks=rng.choice((0.0, 0.3, 1.0)) * rules.breaks,
        delay=0.0005 + rng.choice((0.1, 0.3, 1.0)) * rules.delay,
        settings=_settings(rng),
        faults=_faults(rng, rules, rounds),
    )
    if members is not None:
        if not 1 <= members <= max_members:
            raise ConfigError(f"a simulated cluster has 1 to {max_members} members, not {members}")
        plan = msgspec.structs.replace(plan, members=members)
    if seconds is not None:
        if not seconds >= 0:
            raise ConfigError(f"faults go on for 0 seconds or more, not {seconds:g}", field="seconds")
        plan = _shortened(plan, seconds)
    if faults is not None:
        plan = msgspec.structs.replace(plan, faults=tuple(fault for fault in plan.faults if fault.number in faults))
    return plan


def _shortened(plan: Plan, seconds: float) -> Plan:
    rounds: list[float] = []
    for length in plan.rounds:
        if sum(rounds) + length >= seconds:
            rounds.append(seconds - sum(rounds))
            break
        rounds.append(length)
    kept = tuple(fault for fault in plan.faults if fault.round < len(rounds) and fault.at <= rounds[fault.round])
    return msgspec.structs.replace(plan, rounds=tuple(rounds), faults=kept)


def _settings(rng: random.Random) -> dict[str, object]:
    return {
        "snapshot_every_entries": rng.choice((5, 10, 30, 1000)),
        "log_keep_entries": rng.choice((0, 0, 3, 20)),
        "snapshot_lag_threshold": rng.choice((5, 20, 1000)),
        "compact_interval": rng.choice((0.5, 2.0, 60.0)),
        "entry_cache_bytes": rng.choice((0, 200, 16 * KIB)),
        "max_append_bytes": rng.choice((1, 200, 8 * KIB)),
    }


def _faults(rng: random.Random, rules: Profile, rounds: tuple[float, ...]) -> tuple[Fault, ...]:
    kinds = {kind: rate for kind, rate in rules.rates.items() if rng.random() >= kinds_left_out}
    drawn = []
    for number, seconds in enumerate(rounds):
        for kind, rate in kinds.items():
            at = rng.expovariate(rate / 60)
            while at < seconds:
                lasts = min(rng.choice((0.05, 0.3, 1.0, 2.0)) * rng.uniform(0.5, 2.0), seconds - at)
                drawn.append((number, at, kind, lasts, rng.random(), rng.random()))
                at += rng.expovariate(rate / 60)
    drawn.sort()
    return tuple(
        Fault(number=count, round=number, at=at, kind=kind, lasts=lasts, pick=pick, amount=amount)
        for count, (number, at, kind, lasts, pick, amount) in enumerate(drawn)
    )
