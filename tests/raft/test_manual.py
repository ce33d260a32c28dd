"""The package's text is the manual: its driver loop is run here as it stands there, and its lists are complete."""

from __future__ import annotations

import random
import textwrap
from collections import deque
from collections.abc import Callable

import octopii.raft
from octopii.raft import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MembershipChange,
    MembershipStep,
    MemoryStorage,
    Message,
    MessageType,
    RaftConfig,
    RawNode,
    Role,
    Snapshot,
    decode_membership_change,
)
from octopii.raft.messages import ChangeOperation

MANUAL = octopii.raft.__doc__ or ""


def driver_loop() -> str:
    """The indented block of the manual that begins with the loop over events."""
    lines = MANUAL.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("    for event in events:"))
    end = next(at for at in range(start, len(lines)) if not lines[at].strip())
    return textwrap.dedent("\n".join(lines[start:end]))


class Member:
    """A node driven by the manual's loop; `mail` is the network all members share."""

    def __init__(self, node_id: int, *, storage: MemoryStorage, mail: deque[Message]) -> None:
        self.storage = storage
        self.mail = mail
        self.applied: list[bytes] = []
        self.node = RawNode(
            RaftConfig(id=node_id, election_ticks=10, heartbeat_ticks=1, rng=random.Random(node_id)), storage
        )
        self.loop = compile(driver_loop(), "the manual", "exec")

    def drive(self, event: Callable[[], object]) -> None:
        """Run the loop for one event."""
        names = {
            "events": [event],
            "node": self.node,
            "send": self.mail.extend,
            "write": self.write,
            "restore": self.restore,
            "apply": self.apply,
            "EntryKind": EntryKind,
            "decode_membership_change": decode_membership_change,
        }
        exec(self.loop, names)

    def write(self, snapshot: Snapshot | None, entries: list[Entry], hard_state: HardState | None) -> None:
        """Do the disk's part."""
        if snapshot is not None:
            self.storage.apply_snapshot(snapshot)
        self.storage.append(entries)
        if hard_state is not None:
            self.storage.set_hard_state(hard_state)

    def restore(self, snapshot: Snapshot) -> None:
        """Take the state of a snapshot: here, what was applied, joined."""
        self.applied = snapshot.data.split(b",")

    def apply(self, entry: Entry) -> None:
        """Keep what the users proposed."""
        if entry.kind is EntryKind.NORMAL and entry.data:
            self.applied.append(entry.data)


def deliver(members: dict[int, Member], mail: deque[Message]) -> None:
    """Deliver until nothing is under way."""
    while mail:
        message = mail.popleft()
        member = members[message.to]
        member.drive(lambda member=member, message=message: member.node.step(message))  # type: ignore[misc]


def test_driver_loop_has_at_most_15_lines() -> None:
    """The driver fits in 15 lines."""
    assert len(driver_loop().splitlines()) <= 15


def test_driver_loop_runs_a_cluster() -> None:
    """Three members driven by the manual's loop elect, replicate, take in a fourth by snapshot, and agree."""
    mail: deque[Message] = deque()
    conf = ConfState(voters=[1, 2, 3])
    members = {number: Member(number, storage=MemoryStorage(conf), mail=mail) for number in (1, 2, 3)}
    leader = members[1]
    leader.drive(leader.node.campaign)
    deliver(members, mail)
    assert leader.node.role is Role.LEADER
    for number in range(20):
        leader.drive(lambda number=number: leader.node.propose(b"%d" % number))  # type: ignore[misc]
    deliver(members, mail)
    expected = [b"%d" % number for number in range(20)]
    assert [member.applied for member in members.values()] == [expected] * 3

    applied = leader.node.status().applied
    leader.storage.create_snapshot(applied, conf, b",".join(leader.applied))
    leader.storage.compact(applied)
    members[4] = Member(4, storage=MemoryStorage(), mail=mail)
    change = MembershipChange(steps=[MembershipStep(ChangeOperation.ADD_VOTER, 4)])
    leader.drive(lambda: leader.node.propose_membership(change))
    deliver(members, mail)
    leader.drive(lambda: leader.node.tick(0.0))
    deliver(members, mail)
    leader.drive(lambda: leader.node.propose(b"last"))
    deliver(members, mail)
    assert [member.applied for member in members.values()] == [[*expected, b"last"]] * 4
    assert members[4].node.status().conf_state == ConfState(voters=[1, 2, 3, 4])


def test_manual_names_every_message() -> None:
    """Each message type has its line in the manual's list."""
    listed = {line.split()[0] for line in MANUAL.splitlines() if line.startswith("    ") and line.strip()}
    assert {kind.name for kind in MessageType} <= listed


def test_manual_names_every_call() -> None:
    """Each public method of `RawNode` that takes input or gives output is spoken of in the manual."""
    told_by_name = {"term", "leader", "role", "committed", "conf_state", "match_index", "peers", "has_ready"}
    public = {name for name in vars(RawNode) if not name.startswith("_")} - told_by_name
    assert {name for name in public if name not in MANUAL} == set()
