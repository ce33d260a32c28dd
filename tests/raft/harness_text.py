"""The core's data as short text, and text as data: for transcripts, commands and failure reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octopii.raft import (
    ChangeOperation,
    ConfState,
    Entry,
    EntryKind,
    MembershipChange,
    MembershipStep,
    Message,
    MessageType,
    Ready,
    Role,
    Snapshot,
    SnapshotMetadata,
    Transition,
    decode_membership_change,
)
from octopii.raft.candidate import transfer_context

if TYPE_CHECKING:
    from tests.raft.harness import Peer

KINDS = {
    MessageType.APPEND: "append",
    MessageType.APPEND_RESPONSE: "append-reply",
    MessageType.HEARTBEAT: "heartbeat",
    MessageType.HEARTBEAT_RESPONSE: "heartbeat-reply",
    MessageType.VOTE_REQUEST: "vote",
    MessageType.VOTE_RESPONSE: "vote-reply",
    MessageType.PRE_VOTE_REQUEST: "prevote",
    MessageType.PRE_VOTE_RESPONSE: "prevote-reply",
    MessageType.SNAPSHOT: "snapshot",
    MessageType.TIMEOUT_NOW: "timeout-now",
    MessageType.READ_INDEX: "read",
    MessageType.READ_INDEX_RESPONSE: "read-reply",
}
TYPES = {name: kind for kind, name in KINDS.items()}
ROLES = {
    Role.FOLLOWER: "follower",
    Role.PRE_CANDIDATE: "pre-candidate",
    Role.CANDIDATE: "candidate",
    Role.LEADER: "leader",
}
MARKS = {ChangeOperation.ADD_VOTER: "+", ChangeOperation.ADD_LEARNER: "learner:", ChangeOperation.REMOVE: "-"}


def kind(message: Message) -> str:
    """The short name of a message's type."""
    return KINDS[message.type]


def data(value: bytes) -> str:
    """Bytes as text."""
    return value.decode(errors="backslashreplace")


def ids(values: list[int]) -> str:
    """Node ids in order."""
    return ",".join(map(str, sorted(values)))


def conf(state: ConfState) -> str:
    """A membership: voters, then the outgoing ones of a joint one, then learners."""
    text = ids(state.voters)
    if state.voters_outgoing:
        text += f" & {ids(state.voters_outgoing)}"
    if state.learners:
        text += f" learners {ids(state.learners)}"
    if state.learners_next:
        text += f" learners-next {ids(state.learners_next)}"
    return text + (" auto-leave" if state.auto_leave else "")


def change(value: MembershipChange) -> str:
    """A membership change, as `parse_change` reads it."""
    words = [f"{MARKS[step.operation]}{step.node_id}" for step in value.steps]
    if value.transition is not Transition.AUTO:
        words.append(value.transition.name.lower())
    return " ".join(words) or "leave-joint"


def parse_change(words: list[str]) -> MembershipChange:
    """A membership change from words like `+4`, `-2`, `learner:5`, `explicit`; none leaves a joint membership."""
    transition = Transition.AUTO
    steps: list[MembershipStep] = []
    for word in words:
        for operation, mark in MARKS.items():
            if word.startswith(mark) and word[len(mark) :].isdigit():
                steps.append(MembershipStep(operation, int(word[len(mark) :])))
                break
        else:
            transition = Transition[word.upper()]
    return MembershipChange(transition, steps)


def entry(value: Entry) -> str:
    """An entry as `index/term data`."""
    if value.kind == EntryKind.MEMBERSHIP:
        return f"{value.index}/{value.term} members {change(decode_membership_change(value.data))}"
    text = data(value.data)
    return f"{value.index}/{value.term} {text if len(text) <= 16 else f'{len(text)} bytes'}".rstrip()


def log(first: int, entries: list[Entry]) -> str:
    """A log from its first index."""
    start = f"from {first}: " if first > 1 else ""
    return start + (" | ".join(map(entry, entries)) or "empty")


def message(value: Message) -> str:
    """A message: its type, its term, and the fields that its type uses."""
    parts = [KINDS[value.type], f"term={value.term}"]
    match value.type:
        case MessageType.APPEND:
            parts += [f"after={value.index}/{value.log_term}", f"commit={value.commit}"]
            parts += [f"[{' | '.join(map(entry, value.entries))}]"] if value.entries else []
        case MessageType.APPEND_RESPONSE if value.reject:
            parts += [f"reject={value.index}", f"hint={value.reject_hint}/{value.log_term}"]
        case MessageType.APPEND_RESPONSE:
            parts.append(f"index={value.index}")
        case MessageType.HEARTBEAT:
            parts += [f"round={value.index}", f"commit={value.commit}"]
        case MessageType.HEARTBEAT_RESPONSE:
            parts.append(f"round={value.index}")
        case MessageType.VOTE_REQUEST | MessageType.PRE_VOTE_REQUEST:
            parts.append(f"last={value.index}/{value.log_term}")
            parts += ["transfer"] if value.context else []
        case MessageType.VOTE_RESPONSE | MessageType.PRE_VOTE_RESPONSE:
            parts.append("refused" if value.reject else "granted")
        case MessageType.SNAPSHOT:
            metadata = value.snapshot.metadata if value.snapshot is not None else SnapshotMetadata()
            parts += [f"at={metadata.index}/{metadata.term}", f"members={conf(metadata.conf_state)}"]
        case MessageType.READ_INDEX:
            parts.append(data(value.context))
        case MessageType.READ_INDEX_RESPONSE:
            parts += [data(value.context), f"index={value.index}"]
    return " ".join(parts)


def parse_message(name: str, to: int, words: list[str]) -> Message:
    """A message from its short name and `field=value` words.

    `entries=3,4` are entries of these terms behind `index`; `snapshot=5/2` is a snapshot of that index and term with
    voters 1, 2 and 3; `reject` and `transfer` are flags.
    """
    fields: dict[str, object] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key == "transfer":
            fields["context"] = transfer_context
        elif key == "reject":
            fields["reject"] = True
        elif key == "context":
            fields["context"] = value.encode()
        elif key == "entries":
            fields["entries"] = value
        elif key == "snapshot":
            index, _, term = value.partition("/")
            metadata = SnapshotMetadata(int(index), int(term), ConfState(voters=[1, 2, 3]))
            fields["snapshot"] = Snapshot(metadata)
        else:
            fields[key] = int(value)
    if "entries" in fields:
        first = int(str(fields.get("index", 0))) + 1
        terms = map(int, str(fields["entries"]).split(","))
        fields["entries"] = [own_entry(first + place, term) for place, term in enumerate(terms)]
    return Message(type=TYPES[name], to=to, **fields)  # type: ignore[arg-type]


def ready(value: Ready) -> str:
    """What a Ready has for the disk."""
    parts = [f"snapshot {value.snapshot.metadata.index}/{value.snapshot.metadata.term}"] if value.snapshot else []
    parts += [f"[{' | '.join(map(entry, value.entries))}]"] if value.entries else []
    parts += [f"term {value.hard_state.term} vote {value.hard_state.vote}"] if value.hard_state else []
    return ", ".join(parts)


def own_entry(index: int, term: int) -> Entry:
    """The entry that every test means by this index and term."""
    return Entry(term, index, EntryKind.NORMAL, b"%d.%d" % (index, term))


def outline(peer: Peer) -> str:
    """Role, leader, term, log's end and commit index of a live node."""
    role = ROLES[peer.role]
    if peer.role is Role.FOLLOWER and peer.leader:
        role += f" of {peer.leader}"
    return f"{role}, term {peer.term}, log {peer.last_index}/{peer.last_term}, commit {peer.commit}"


def progress(peer: Peer) -> list[str]:
    """What a leader knows of each member."""
    lines: list[str] = []
    for node_id, status in sorted(peer.raw.status().peers.items()):
        parts = [f"{peer.id} sees {node_id}: {status.state.value}", f"match={status.match} next={status.next}"]
        parts += [f"inflight={status.inflight_messages}"] if status.inflight_messages else []
        parts += [f"snapshot={status.pending_snapshot}"] if status.pending_snapshot else []
        parts += ["paused"] if status.paused else []
        parts += ["learner"] if status.is_learner else []
        lines.append(" ".join(parts))
    return lines
