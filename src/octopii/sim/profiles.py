"""What may go wrong in a run: kinds of faults, each with a rate, under names.

A rate is faults per minute of simulated time and cluster; shares are of messages. Each run draws from these, and
leaves out some kinds altogether, because what never happens together never shows what it breaks together.
"""

import msgspec

CONNECTIVITY = {
    "cut link": 12.0,
    "one-way cut": 8.0,
    "isolated node": 8.0,
    "isolated leader": 6.0,
    "split": 6.0,
    "bridge": 4.0,
    "flapping link": 4.0,
    "slow link": 8.0,
    "client disconnected": 12.0,
}
CRASHES = {
    "crash": 12.0,
    "leader crash": 8.0,
    "crash of all": 3.0,
    "crash at an operation": 16.0,
    "crash at a message": 12.0,
    "crash in recovery": 8.0,
    "kill": 8.0,
    "restart": 6.0,
    "pause": 10.0,
}
DISKS = {
    "write error": 4.0,
    "sync error": 6.0,
    "read error": 2.0,
    "full disk": 8.0,
    "slow disk": 10.0,
    "stalled disk": 6.0,
    "written back": 8.0,
}
CLOCKS = {"clock jump": 16.0, "clock drift": 16.0, "slow leader isolated": 8.0}
MACHINES = {"slow apply": 4.0, "out of memory": 2.0}
LOSSES = {"wiped node": 2.0, "bit rot": 2.0}
MEMBERS = {"member added": 6.0, "member removed": 4.0, "member replaced": 3.0, "leader transfer": 6.0, "campaign": 2.0}
UPKEEP = {"snapshot": 5.0, "snapshot sent": 4.0, "compaction": 4.0, "session ended": 2.0}


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One name's worth of trouble."""

    summary: str
    rates: dict[str, float] = {}
    loss: float = 0.0
    """Up to this share of Raft's messages is lost."""
    repeat: float = 0.0
    reorder: float = 0.0
    breaks: float = 0.0
    """Up to this share of writes to a connection breaks it."""
    delay: float = 0.002
    """Up to so many seconds a message takes."""
    drift: float = 1.0
    """By which part of `Config.lease_drift_max` two clocks may run apart; more than 1 is more than leases bear."""
    rot_anywhere: bool = False
    """Whether bytes also rot where no later write vouches for them."""
    shows: str = ""
    """What is lost under this profile, by design. Such a loss is reported, and fails nothing."""
    may_break: frozenset[str] = frozenset()
    """The rules that such a loss breaks."""


def _scaled(rates: dict[str, float], factor: float) -> dict[str, float]:
    return {kind: rate * factor for kind, rate in rates.items()}


PROFILES: dict[str, Profile] = {
    "calm": Profile(summary="nothing goes wrong", rates=UPKEEP),
    "network": Profile(
        summary="messages are lost, repeated, late; links are cut, one-way, flapping, slow",
        rates=CONNECTIVITY | UPKEEP,
        loss=0.1,
        repeat=0.1,
        reorder=0.2,
        breaks=0.003,
        delay=0.03,
    ),
    "crashes": Profile(
        summary="power losses at any write, sync or message, and during recovery; kills, restarts, pauses",
        rates=CRASHES | UPKEEP,
        loss=0.02,
    ),
    "disk": Profile(
        summary="disks fail, fill up, slow down, stand still and rot",
        rates=DISKS | {"bit rot": 2.0, "crash": 3.0, "kill": 3.0, "crash at an operation": 3.0} | UPKEEP,
    ),
    "clocks": Profile(
        summary="wall clocks jump and clocks drift up to the bound of lease reads; processes stand still",
        rates=CLOCKS | {"pause": 6.0, "isolated leader": 4.0, "slow link": 3.0, "crash": 2.0} | UPKEEP,
        loss=0.02,
    ),
    "membership": Profile(
        summary="members come, go and are replaced, leaders hand over, and links and machines fail meanwhile",
        rates=_scaled(MEMBERS, 2.0)
        | {"crash": 6.0, "cut link": 6.0, "isolated leader": 6.0, "wiped node": 2.0}
        | UPKEEP,
        loss=0.03,
    ),
    "upgrade": Profile(
        summary="rolling restarts, one of them to version 2 of the state machine",
        rates={"rolling restart": 4.0, "rolling upgrade": 6.0, "crash": 2.0, "cut link": 2.0, "snapshot sent": 8.0}
        | UPKEEP,
        loss=0.02,
    ),
    "chaos": Profile(
        summary="everything at once",
        rates=_scaled(CONNECTIVITY, 0.175)
        | _scaled(CRASHES, 0.2)
        | _scaled(DISKS, 0.2)
        | _scaled(CLOCKS, 0.2)
        | _scaled(MEMBERS, 0.4)
        | MACHINES
        | LOSSES
        | UPKEEP
        | {"rolling restart": 1.0, "rolling upgrade": 1.0},
        loss=0.05,
        repeat=0.05,
        reorder=0.1,
        breaks=0.002,
        delay=0.01,
    ),
    "drift": Profile(
        summary="clocks drift twelve times as far as lease reads bear",
        rates={"slow leader isolated": 20.0, "clock drift": 10.0},
        drift=12.0,
        shows="lease reads may be stale: a leader that was cut off and whose clock runs slow still trusts its lease",
        may_break=frozenset({"linearizability"}),
    ),
    "rot": Profile(
        summary="bytes rot also in the last group of a crashed log, which no later write vouches for",
        rates={"bit rot": 20.0, "crash of all": 6.0, "crash": 8.0} | UPKEEP,
        rot_anywhere=True,
        shows="entries of the last group may be lost on the disk that rots: they look like a torn tail",
        may_break=frozenset({
            "durable promises", "leader completeness", "linearizability", "log matching", "state-machine safety",
        }),
    ),
}  # fmt: skip
"""By name, from mild to what is known to lose something."""

GROUPS: dict[str, tuple[str, ...]] = {"all": tuple(PROFILES)}
"""Names that stand for several profiles; seeds go round them."""
