"""Who is in the cluster: its id, each member's address and storage id, and who was removed.

Part of the replicated state: it changes when an entry is applied and travels in every snapshot. The voters and learners
themselves are the Raft core's business (`ConfState`); the roster keeps what Raft does not care about.

A member's storage id is the random number that its folder got when it was first opened. An empty id means that the
member was named but has never been heard of; the leader admits its storage the first time it shakes hands.
"""

import msgspec

from octopii.raft import ConfState
from octopii.wire.codec import Found, MemberFact


class Member(msgspec.Struct, frozen=True, array_like=True):
    """Where a member listens ("host:port") and which storage is its own (16 bytes, or empty while unknown)."""

    address: str
    storage_id: bytes = b""


class Roster(msgspec.Struct, kw_only=True):
    """The cluster's members at one applied index; `founding` are those of the first members that are no voters yet."""

    cluster_id: bytes = b""
    members: dict[int, Member] = msgspec.field(default_factory=dict)
    removed: set[int] = msgspec.field(default_factory=set)
    founding: set[int] = msgspec.field(default_factory=set)

    def copy(self) -> "Roster":
        """A copy that later changes do not reach."""
        return Roster(
            cluster_id=self.cluster_id,
            members=dict(self.members),
            removed=set(self.removed),
            founding=set(self.founding),
        )

    def found(self, found: Found) -> None:
        """Take over what the founding entry says; its first member is the founder, and the only voter."""
        self.cluster_id = found.cluster_id
        self.members = members_of(found.members)
        self.removed = set()
        self.founding = self.members.keys() - {found.members[0].node_id}

    def set_address(self, node_id: int, address: str) -> None:
        """Note a member's new address; unknown ids are left alone."""
        member = self.members.get(node_id)
        if member is not None:
            self.members[node_id] = Member(address, member.storage_id)

    def take_addresses(self, newer: "Roster") -> None:
        """Take over what a newer roster says of the members that both know."""
        for node_id in self.members.keys() & newer.members.keys():
            self.members[node_id] = newer.members[node_id]

    def admit_storage(self, node_id: int, storage_id: bytes) -> None:
        """Bind a member to the storage it first came with; a member that is bound already stays so."""
        member = self.members.get(node_id)
        if member is not None and not member.storage_id:
            self.members[node_id] = Member(member.address, storage_id)

    def change(self, conf_state: ConfState, added: dict[int, Member]) -> None:
        """Follow a membership change: `conf_state` is what it led to, `added` what it said of new members."""
        present = {*conf_state.voters, *conf_state.learners, *conf_state.voters_outgoing, *conf_state.learners_next}
        for node_id, member in added.items():
            if node_id in present and node_id not in self.members:
                self.members[node_id] = member
        for node_id in [node_id for node_id in self.members if node_id not in present]:
            del self.members[node_id]
            self.removed.add(node_id)
        if not conf_state.voters_outgoing:  # in the joint membership before, the founder alone could still stop all
            self.founding &= present - set(conf_state.voters)


def members_of(facts: list[MemberFact]) -> dict[int, Member]:
    """What an entry says of members, by id."""
    return {fact.node_id: Member(fact.address, fact.storage_id) for fact in facts}
