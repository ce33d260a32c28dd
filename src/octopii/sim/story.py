"""What is told of a run that failed: the rule that broke, the last events of each machine, how to see it again."""

import itertools
import shlex
import traceback

import msgspec

from octopii.sim.plan import Plan, draw
from octopii.sim.trace import Event, Trace
from octopii.wire.frames import FrameDecoder, WireError
from octopii.wire.peer_frames import decode_peer_frame
from octopii.wire.requests import decode_request

max_detail = 160
"""Characters of an event that are shown."""


max_frames = 8
"""Calls that are shown of an error in a user's code, from where that begins."""

OWN_CODE = __file__.removesuffix("sim/story.py")
"""Where the package's own modules are."""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """A failed run, told."""

    rule: str
    headline: str
    command: str
    """What replays it."""
    text: str


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """What the parts of a simulation are called, as "package.module:Class"; empty where the default is meant."""

    machine: str = ""
    workload: str = ""
    upgrade: str = ""

    @property
    def importable(self) -> bool:
        """Whether another process can find them."""
        names = (self.machine, self.workload, self.upgrade)
        return not any(name.startswith("__main__:") or "<" in name for name in names)


def name_of(part: object) -> str:
    """The name of a class or function for a command line; empty for None."""
    if part is None:
        return ""
    return f"{getattr(part, '__module__', '<unknown>')}:{getattr(part, '__qualname__', '<unnamed>')}"


def tell(error: Exception, trace: Trace, plan: Plan, now: float, names: Names) -> Story:
    """Tell what happened."""
    rule = getattr(error, "rule", type(error).__name__)
    headline = str(error) if str(error).startswith(rule) else f"{rule}: {error}"
    command = replay_command(plan, names) if names.importable else replay_call(plan, names)
    lines = [
        f"seed {plan.seed}, profile {plan.profile}: {headline}",
        f"at {now:.3f} s, {counted(plan.members, 'node')}, {counted(plan.clients, 'client')}, "
        f"{counted(len(plan.faults), 'fault')} planned",
        *_raised_at(error),
    ]
    for node, events in trace.last_events().items():
        lines.append(f"  node {node}" if node else "  faults")
        lines += [f"    {event.time:9.4f}  {_shown(event)}" for event in events]
    lines.append(f"to see it again: {command}")
    return Story(rule=rule, headline=headline, command=command, text="\n".join(lines))


def counted(count: int, noun: str) -> str:
    """A number of things, in words: 1 node, 2 nodes."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _raised_at(error: Exception) -> list[str]:
    """The lines of the user's own code that an error came through, a workload's or a machine's; none for our own."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = itertools.dropwhile(lambda frame: frame.filename.startswith(OWN_CODE), frames)
    shown = traceback.format_list(list(inner)[:max_frames])
    return [line for part in shown for line in part.rstrip().splitlines()]


def _cuts(plan: Plan) -> dict[str, object]:
    """How a plan was cut down from what its seed draws."""
    cuts: dict[str, object] = {}
    drawn = draw(plan.seed, plan.profile)
    if plan.members != drawn.members:
        cuts["members"] = plan.members
    if plan.rounds != drawn.rounds:
        cuts["seconds"] = sum(plan.rounds)
        drawn = draw(plan.seed, plan.profile, seconds=sum(plan.rounds))
    if plan.faults != drawn.faults:
        cuts["faults"] = frozenset(fault.number for fault in plan.faults)
    return cuts


def replay_command(plan: Plan, names: Names) -> str:
    """The command that runs a plan again."""
    words = ["octopii", "sim", "--profile", plan.profile, "--seed", str(plan.seed)]
    for option, value in (("--machine", names.machine), ("--workload", names.workload), ("--upgrade", names.upgrade)):
        if value:
            words += [option, value]
    for cut, number in _cuts(plan).items():
        text = ",".join(map(str, sorted(number))) or "none" if isinstance(number, frozenset) else str(number)
        words += [f"--{cut}", text]
    return shlex.join(words)


def replay_call(plan: Plan, names: Names) -> str:
    """The same in Python, for classes that no other process could import."""
    arguments = [names.machine.partition(":")[2]] if names.machine else []
    for keyword, name in (("workload", names.workload), ("upgrade", names.upgrade)):
        if name:
            arguments.append(f"{keyword}={name.partition(':')[2]}")
    arguments += [f"seed={plan.seed}", f"profile={plan.profile!r}"]
    for cut, number in _cuts(plan).items():
        arguments.append(f"{cut}=frozenset({sorted(number)})" if isinstance(number, frozenset) else f"{cut}={number}")
    return f"Simulation({', '.join(arguments)}).run()"


def _shown(event: Event) -> str:
    if isinstance(event.detail, str):
        text = f"{event.kind} {event.detail}".rstrip()
    elif event.kind.startswith("hears "):
        text = f"{event.kind}: {_message(event)}"
    elif event.kind == "is asked":
        text = f"{event.kind}: {_in_words(decode_request(event.detail))}"
    elif not event.detail:
        text = event.kind
    else:
        text = f"{event.kind} ({len(event.detail)} bytes)"
    return text if len(text) <= max_detail else text[: max_detail - 1] + "…"


def _message(event: Event) -> str:
    """A message between nodes, in words."""
    assert isinstance(event.detail, bytes)
    sender = int(event.kind.split()[1])
    try:
        messages = [
            message
            for frame_type, payload in FrameDecoder(1 << 26).feed(event.detail)
            for message in decode_peer_frame(frame_type, memoryview(payload), sender=sender, to=event.node)
        ]
    except WireError as error:
        return f"{len(event.detail)} bytes ({error})"
    return "; ".join(_in_words(message) for message in messages)


def _in_words(message: object) -> str:
    """The fields that differ from their defaults."""
    if not isinstance(message, msgspec.Struct):
        return repr(message)
    parts: list[str] = []
    for field in msgspec.structs.fields(message):
        value = getattr(message, field.name)
        if field.name in ("sender", "to") or value in (field.default, b"", [], None):
            continue
        if field.name == "group":
            parts.append(f"({_in_words(value)})")
            continue
        if field.name == "entries":
            value = [f"{entry.index}/{entry.term}" for entry in value]
        if field.name == "type":
            parts.insert(0, value.name.lower())
        else:
            parts.append(f"{field.name}={value!r}")
    return f"{type(message).__name__} {' '.join(parts)}"
