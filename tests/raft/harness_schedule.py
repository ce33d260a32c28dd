"""Random schedules: hundreds of commands drawn from one seed, checked after each step, shrunk when one fails.

    python -m tests.raft.harness_schedule --seed 17            replay one schedule; if it fails, shrink it to a scenario
    python -m tests.raft.harness_schedule --count 10000        run seeds 0 to 9999 and name those that fail

A schedule is a list of command lines (`harness_commands`), drawn with the running cluster in view so that most of them
act on something: messages are passed, lost, copied and overtaken, disks lag, nodes crash and come back, links are cut,
the membership changes, logs are compacted, reads are asked for. It moves between moods, stretches with their own
odds, so that the cluster reaches deep states before it is disturbed. At the end everything heals, and the cluster has
to come to one state: a wedged node is a failure like any other.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from octopii.raft import Role
from tests.raft.harness import Cluster
from tests.raft.harness_checks import Violation
from tests.raft.harness_commands import execute

LINES = 700
MAX_SHRINK_RUNS = 1500

# What each mood does, with its odds. `turn` is everything one node has to do: Readys, disk, state machine.
MOODS: dict[str, dict[str, float]] = {
    "smooth": {"pass": 40, "turn": 40, "tick": 3, "propose": 8, "batch": 2, "read": 3, "member": 1, "compact": 1},
    "rounds": {
        "deliver": 30,
        "turn-all": 30,
        "tick-all": 12,
        "propose": 10,
        "read": 3,
        "member": 3,
        "compact": 2,
        "report": 2,
    },
    "stormy": {
        "pass": 24,
        "jump": 14,
        "lose": 6,
        "copy": 10,
        "turn": 26,
        "ready": 6,
        "persist": 5,
        "apply": 3,
        "tick": 5,
        "propose": 6,
        "read": 2,
        "member": 0.5,
        "unreachable": 1,
        "report": 2,
    },
    "slow disks": {"pass": 34, "jump": 4, "ready": 26, "persist": 12, "apply": 8, "tick": 4, "propose": 12, "read": 2},
    "crashes": {
        "pass": 36,
        "turn": 30,
        "ready": 8,
        "persist": 4,
        "tick-all": 4,
        "propose": 6,
        "crash": 2,
        "restart": 6,
        "compact": 1,
        "lose": 2,
        "report": 1,
    },
    "elections": {
        "pass": 44,
        "turn": 44,
        "campaign": 8,
        "tick-long": 3,
        "crash": 3,
        "restart": 10,
        "propose": 4,
        "copy": 2,
        "transfer": 1,
    },
    "unrest": {
        "pass": 40,
        "jump": 4,
        "turn": 40,
        "tick-long": 2,
        "campaign": 2,
        "transfer": 2,
        "propose": 8,
        "read": 2,
        "copy": 3,
        "forget": 1,
        "lose": 2,
    },
    "cut off": {"deliver": 24, "turn-all": 24, "tick-all": 10, "propose": 10, "read": 4, "compact": 6, "campaign": 0.5},
    "stalled": {
        "deliver": 26,
        "turn-all": 26,
        "tick-all": 10,
        "propose": 9,
        "read": 6,
        "transfer": 1,
        "campaign": 2,
        "compact": 4,
    },
    "members": {"deliver": 20, "turn-all": 24, "member": 10, "tick-all": 8, "propose": 6, "compact": 3, "transfer": 1},
}
ALWAYS = {"pass", "turn", "deliver", "turn-all", "tick-all", "ready", "persist", "restart"}
STALLING = {"stalled", "slow disks"}


@dataclass(slots=True)
class Failure:
    """How a schedule failed: the rule it broke (or the error it met), and the commands up to that point."""

    rule: str
    detail: str
    lines: list[str]


class Schedule:
    """Draws the commands of one seed against the cluster that runs them."""

    def __init__(self, seed: int, *, lines: int = LINES) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.length = lines
        self.cluster = Cluster()
        self.lines: list[str] = []
        self.lockstep = False
        self.counter = 0
        self.moods = self._temper()
        self.odds: dict[str, float] = {}
        # Links whose messages stay in flight for as long as the mood lasts, to arrive late.
        self.stalled: set[tuple[int, int]] = set()
        self.mood_left = 0

    def _temper(self) -> list[tuple[str, dict[str, float]]]:
        """The moods of this schedule, with odds of its own.

        A run that does everything at times does nothing often enough to matter; so each does without some of it
        (Groce et al., Swarm Testing, 2012).
        """
        draw = self.random
        moods = ["rounds", *draw.sample([mood for mood in MOODS if mood != "rounds"], draw.randint(2, 4))]
        weight = {act: 1.0 if act in ALWAYS else draw.choice([0, 0.5, 1, 1, 3]) for act in DRAWS}
        return [(mood, {act: odds * weight[act] for act, odds in MOODS[mood].items()}) for mood in moods]

    def run(self) -> Failure | None:
        """Run the whole schedule; return how it failed, or None."""
        try:
            self._act(self._founding())
            for _ in range(self.length):
                line = self._draw()
                if line is not None:
                    self._act(line)
            self._act("recover")
        except Exception as error:  # noqa: BLE001 - whatever the core raises is the finding
            return Failure(*describe(error), lines=self.lines)
        return None

    def _act(self, line: str) -> None:
        self.lines.append(line)
        execute(self.cluster, line)

    def _founding(self) -> str:
        draw = self.random
        size = draw.randint(3, 7)
        voters = draw.randint(1, size) if draw.random() < 0.15 else draw.randint(min(3, size), size)
        ids = list(range(1, size + 1))
        rest = ids[voters:]
        learners = [node for node in rest if draw.random() < 0.4]
        blank = [node for node in rest if node not in learners]
        self.lockstep = draw.random() < 0.4
        settings = {
            "seed": self.seed,
            "learners": ",".join(map(str, learners)),
            "blank": ",".join(map(str, blank)),
            "founded": draw.choice([0, 0, 5]),
            "pre_vote": int(draw.random() < 0.6),
            "check_quorum": int(self.lockstep or draw.random() < 0.6),
            "lockstep": int(self.lockstep),
            "max_message_bytes": draw.choice([1, 100, 1 << 20]),
            "max_inflight_messages": draw.choice([1, 2, 256]),
            "max_committed_bytes_per_ready": draw.choice([1, 60, 1 << 20]),
        }
        chosen = " ".join(f"{name}={value}" for name, value in settings.items() if value != "")
        return f"cluster {' '.join(map(str, ids[:voters]))} {chosen} hold=ready,persist,apply"

    def _draw(self) -> str | None:
        if self.mood_left == 0:
            return self._change_mood()
        self.mood_left -= 1
        act = self.random.choices(list(self.odds), list(self.odds.values()))[0]
        return DRAWS[act](self) or (self.deliver() if self.flowing() else "tick all")

    def _change_mood(self) -> str | None:
        draw = self.random
        mood, self.odds = draw.choice(self.moods) if self.odds else self.moods[0]
        self.mood_left = draw.randint(10, 60)
        self.stalled = self.stall() if mood in STALLING else set()
        if mood == "cut off":
            return f"isolate {self.leader() if draw.random() < 0.5 else self.anyone()}"
        if self.cluster.cut and draw.random() < 0.8:
            return "heal"
        return "restart all" if draw.random() < 0.3 else None

    # --- whom and what to act on

    def anyone(self) -> int:
        """Any node."""
        return self.random.choice(list(self.cluster.peers))

    def leader(self) -> int:
        """Mostly a node that leads, at times any."""
        leaders = [peer.id for peer in self.cluster.live() if peer.role is Role.LEADER]
        return self.random.choice(leaders) if leaders and self.random.random() < 0.9 else self.anyone()

    def busy(self, has_work: str) -> int | None:
        """A live node for which this is true, or whose queue of this name is not empty."""
        ids = [peer.id for peer in self.cluster.live() if getattr(peer, has_work)]
        return self.random.choice(ids) if ids else None

    def link(self) -> tuple[str, int] | None:
        """A link with messages in flight, and how many."""
        full = [(way, len(self.cluster.links[way])) for way in self.flowing()]
        if not full:
            return None
        (sender, receiver), count = self.random.choice(full)
        return f"{sender}>{receiver}", count

    def flowing(self) -> list[tuple[int, int]]:
        """The links with messages in flight that are not held up."""
        return [way for way, link in self.cluster.links.items() if link and way not in self.stalled]

    def stall(self) -> set[tuple[int, int]]:
        """The links to one node, from it, or both."""
        node = self.leader() if self.random.random() < 0.6 else self.anyone()
        directions = self.random.choice([(True, True), (True, False), (False, True)])
        ways = {(node, other) for other in self.cluster.peers} if directions[0] else set()
        return ways | ({(other, node) for other in self.cluster.peers} if directions[1] else set())

    def deliver(self) -> str | None:
        """A round of deliveries, on all links that are not held up."""
        if not self.stalled:
            return "deliver"
        ways = " ".join(f"{sender}>{receiver}" for sender, receiver in self.flowing())
        return f"deliver {ways}" if ways else None

    def tick_all(self) -> str:
        """One tick of everybody or, at times, of everybody but one, whose process is paused."""
        return f"tick-others {self.leader()}" if self.random.random() < 0.25 else "tick all"

    def name(self, prefix: str) -> str:
        """A new text."""
        self.counter += 1
        return f"{prefix}{self.counter}"

    def message(self, act: str, *, first: bool = False) -> str | None:
        """An act on one message in flight."""
        link = self.link()
        if link is None:
            return None
        way, count = link
        position = 0 if first else self.random.randrange(count)
        return f"{act} {way} {position}" if position else f"{act} {way}"

    def member(self) -> str:
        """A membership change, at times a foolish one."""
        draw = self.random
        leader = self.leader()
        ids = list(self.cluster.peers)
        if self.cluster.peers[leader].node is None:
            return f"leave-joint {leader}"
        voters = self.cluster.peers[leader].voters()
        if draw.random() < 0.15:
            return f"leave-joint {leader}"
        changes: list[str] = []
        removed = 0
        for node in draw.sample(ids, draw.choice([1, 1, 2, 3]) if len(ids) > 2 else 1):
            if node in voters and len(voters) - removed > 2 and draw.random() < 0.6:
                removed += 1
                changes.append(draw.choice([f"-{node}", f"learner:{node}"]))
            elif node not in voters:
                changes.append(draw.choice([f"+{node}", f"+{node}", f"learner:{node}", f"-{node}"]))
        if not changes:
            return f"leave-joint {leader}"
        return " ".join([f"member {leader}", *changes, *draw.choice([[], [], ["explicit"], ["implicit"]])])

    def tick(self) -> str:
        """One tick of one node."""
        return f"tick {self.anyone()}"

    def compact(self) -> str:
        """Snapshot and compact one node's log, mostly a leader's, so that who lags needs the snapshot."""
        node = self.leader() if self.random.random() < 0.7 else self.anyone()
        return f"compact {node} {self.random.choice([0, 0, 0, 1, 3])}"

    def ask_read(self) -> str:
        """A read by quorum or, where clocks may be trusted, by lease."""
        if self.lockstep and self.random.random() < 0.6:
            return "lease all"
        return f"read {self.leader() if self.random.random() < 0.6 else self.anyone()} {self.name('r')}"

    def crash(self) -> str:
        """Crash one node; some of what it was writing had reached the disk."""
        return (
            f"crash {self.anyone()} {self.random.choice([0, 0, 1, 2])} {self.random.choice(['', 'entries', 'state'])}"
        )

    def restart(self) -> str | None:
        """Start a node that is down."""
        down = [peer.id for peer in self.cluster.peers.values() if peer.node is None]
        return f"restart {self.random.choice(down)}" if down else None

    def report_snapshot(self) -> str | None:
        """Word, true or false, of a snapshot under way."""
        leader = self.leader()
        peer = self.cluster.peers[leader]
        pending = [] if peer.node is None else [i for i, s in peer.raw.status().peers.items() if s.pending_snapshot]
        return (
            f"snapshot-sent {leader} {self.random.choice(pending)} {self.random.choice(['ok', 'failed'])}"
            if pending
            else None
        )


def on(act: str, who: int | None) -> str | None:
    """A command on a node, if there is one to act on."""
    return None if who is None else f"{act} {who}"


DRAWS = {
    "pass": lambda s: s.message("pass", first=True),
    "jump": lambda s: s.message("pass"),
    "lose": lambda s: s.message("lose"),
    "copy": lambda s: s.message("copy"),
    "deliver": Schedule.deliver,
    "turn": lambda s: on("turn", s.busy("busy")),
    "turn-all": lambda _: "turn all",
    "ready": lambda s: on("ready", s.busy("has_ready")),
    "persist": lambda s: on("persist", s.busy("writing")),
    "apply": lambda s: on("apply", s.busy("applying")),
    "tick": Schedule.tick,
    "tick-all": Schedule.tick_all,
    "tick-long": lambda s: "tick all 4" if s.lockstep else f"tick {s.anyone()} {s.random.randint(5, 20)}",
    "propose": lambda s: f"propose {s.leader()} {s.name('x')}",
    "batch": lambda s: f"propose {s.leader()} {s.name('a')} {s.name('b')} {s.name('c')}",
    "read": Schedule.ask_read,
    "member": Schedule.member,
    "compact": Schedule.compact,
    "campaign": lambda s: f"campaign {s.anyone()}",
    "transfer": lambda s: f"transfer {s.leader()} {s.anyone()}",
    "forget": lambda s: f"forget {s.anyone()}",
    "report": Schedule.report_snapshot,
    "unreachable": lambda s: f"unreachable {s.leader()} {s.anyone()}",
    "crash": Schedule.crash,
    "restart": Schedule.restart,
}


def describe(error: Exception) -> tuple[str, str]:
    """Name what went wrong, so that shrinking can ask for the same again, and say it in full."""
    if isinstance(error, Violation):
        return error.rule, str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    rule = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.name}"
    return rule, "".join(traceback.format_exception(error))


def replay(lines: list[str]) -> Failure | None:
    """Run command lines against a new cluster; return how they fail, with the lines up to that point."""
    cluster = Cluster()
    for number, line in enumerate(lines, start=1):
        try:
            execute(cluster, line)
        except Exception as error:  # noqa: BLE001 - whatever the core raises is the finding
            return Failure(*describe(error), lines=lines[:number])
    return None


def shrink(failure: Failure) -> Failure:
    """Take lines out, in ever smaller pieces, as long as the same rule is broken."""
    best, runs = failure, 0
    size = max(1, len(best.lines) // 2)
    while size and runs < MAX_SHRINK_RUNS:
        position, shorter = 1, False
        while position < len(best.lines) and runs < MAX_SHRINK_RUNS:
            runs += 1
            found = replay(best.lines[:position] + best.lines[position + size :])
            if found is not None and found.rule == failure.rule:
                best, shorter = found, True
            else:
                position += size
        if not shorter or size > 1:
            size = size // 2
    return best


def scenario(failure: Failure, seed: int) -> str:
    """The scenario file of a failure; once the core is right, rewriting it makes it a regression test."""
    why = failure.detail.strip().splitlines()[-1]
    commands = "\n".join(f"! {line}" for line in failure.lines)
    return f"# Shrunk from the random schedule of seed {seed}.\n# It broke: {why}\n\n{commands}\n\n> show\n"


def explain(seed: int, failure: Failure) -> str:
    """Shrink a failure, write its scenario file, and say how to see it again."""
    small = shrink(failure)
    path = Path(tempfile.gettempdir()) / f"schedule-{seed}.txt"
    path.write_text(scenario(small, seed), encoding="utf-8")
    return (
        f"seed {seed} broke: {failure.rule}\n{small.detail}\n\n"
        f"shrunk from {len(failure.lines)} to {len(small.lines)} commands:\n"
        + "\n".join(f"  {line}" for line in small.lines)
        + f"\n\nscenario file: {path}\nreplay: python -m tests.raft.harness_schedule --seed {seed}"
    )


def run_seed(seed: int) -> str | None:
    """Run one seed; return the whole story if it fails."""
    failure = Schedule(seed).run()
    return None if failure is None else explain(seed, failure)


def main() -> None:
    """Run one seed or many from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="run this seed only, and shrink it if it fails")
    parser.add_argument("--first", type=int, default=0, help="first seed of many")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    options = parser.parse_args()
    if options.seed is not None:
        story = run_seed(options.seed)
        print(story or f"seed {options.seed}: all held")
        sys.exit(story is not None)
    failed = 0
    began = time.process_time()
    for seed in range(options.first, options.first + options.count):
        failure = Schedule(seed).run()
        if failure is not None:
            failed += 1
            print(f"seed {seed}: {failure.rule}", flush=True)
    print(f"{options.count} schedules, {failed} failed, {time.process_time() - began:.1f} s of CPU")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
