"""Requests about the cluster itself: members, leadership, snapshots, status.

What only a leader can do is relayed to it as it is (`Relay`), and its reply comes back the same way. A membership
change is answered when this node has seen it take effect; the leader refuses one while another is under way.
"""

import json
from typing import TYPE_CHECKING

import msgspec

from octopii.errors import ConfigError, NoLeader, NotApplied, OctopiiError, Overloaded
from octopii.raft import (
    ChangeInProgress,
    ChangeOperation,
    ChangeRefused,
    MembershipChange,
    MembershipStep,
    ProposalDropped,
    Transition,
)
from octopii.replica.backup import Downloads
from octopii.replica.calls import Waiter
from octopii.replica.status import describe
from octopii.replica.work import Origin, PeerOrigin
from octopii.wire import requests
from octopii.wire.codec import MemberFact, UpdateAddress, encode_members
from octopii.wire.requests import Done, FailureKind, MemberOperation, Relay, Relayed, Report

if TYPE_CHECKING:
    from octopii.replica.replica import Replica

max_relays = 1024
"""Requests that may be with the leader at one time."""

max_pending = 1024
"""Requests that may wait for a snapshot, a member or a leader at one time."""

Requests = (
    requests.ChangeMembership
    | requests.ChangeAddress
    | requests.TransferLeader
    | requests.ForceSnapshotToPeer
    | requests.PeerProgressRequest
    | requests.CompactRequest
)
"""What only a leader can serve."""


class Pending(msgspec.Struct, frozen=True):
    """Someone who waits for something to become true: `kind` names it, `deadline` is when they are told it did not."""

    waiter: Waiter
    kind: str
    value: int
    deadline: float
    address: str = ""


class Admin:
    """The administration part of one replica."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica
        self._config = replica.config
        self._relays: dict[int, tuple[Origin, Requests]] = {}
        self._next_relay = 1
        self._pending: list[Pending] = []
        self.downloads = Downloads(replica)

    def request(self, origin: Origin, request: requests.Request) -> None:
        """Serve, or relay, whatever is no call, query or session."""
        replica = self._replica
        if isinstance(request, requests.StatusRequest):
            body = json.dumps(describe(replica)).encode()
            replica.outbox.reply(origin, Report(request.request_id, body))
        elif isinstance(request, requests.ForceSnapshot):
            self._wait(origin, request.request_id, "snapshot", 0)
            replica.upkeep.force_snapshot("asked for")
        elif isinstance(request, requests.FetchSnapshot):
            self.downloads.serve(origin, request)
        elif isinstance(request, requests.Campaign) and replica.refused is not None:
            replica.outbox.reply(origin, replica.leadership.failure(replica.refused, request.request_id))
        elif isinstance(request, requests.Campaign):
            replica.raft.campaign()
            replica.outbox.reply(origin, Done(request.request_id))
        elif isinstance(request, Requests):
            if replica.leadership.is_leader:
                self._serve(origin, request)
            else:
                self._relay(origin, request)

    # --- relaying -----------------------------------------------------------------------------------------------

    def _relay(self, origin: Origin, request: Requests) -> None:
        leadership = self._replica.leadership
        error: OctopiiError | None = self._replica.refused
        if error is not None:
            pass  # it takes no part: there is nobody to relay to
        elif isinstance(origin, PeerOrigin) or not leadership.leader:
            error = leadership.no_leader(f"node {leadership.node_id} does not lead")
        elif len(self._relays) >= max_relays:
            error = Overloaded(f"{max_relays} requests are with the leader already", limit="max_relays")
        if error is not None:
            self._replica.outbox.reply(origin, leadership.failure(error, request.request_id))
            return
        number = self._next_relay
        self._next_relay += 1
        self._relays[number] = (origin, request)
        self._replica.outbox.send(leadership.leader, Relay(msgspec.structs.replace(request, request_id=number)))

    def relayed(self, message: Relayed) -> None:
        """The leader has answered."""
        reply = message.reply
        if isinstance(reply, requests.LeaderHint):
            return
        if reply.request_id in self._relays:
            origin, request = self._relays.pop(reply.request_id)
            self._replica.outbox.reply(origin, msgspec.structs.replace(reply, request_id=request.request_id))

    def lost_relays(self, why: str = "the connection to the leader was lost while the request was under way") -> None:
        """Nobody is left to answer what was relayed. Whether leadership moves as asked is seen from here as well."""
        relays, self._relays = self._relays, {}
        for origin, request in relays.values():
            if isinstance(request, requests.TransferLeader):
                self._wait(origin, request.request_id, "leader", request.node_id)
            else:
                self._fail(Waiter(origin, request.request_id), FailureKind.CONNECTION_LOST, why)

    def leadership_changed(self) -> None:
        """Nobody is left to answer what was relayed, and a former leader cannot say how its changes end."""
        text = "leadership changed while the request was under way"
        self.lost_relays(text)
        if not self._replica.leadership.is_leader:
            for pending in self._take("member", None):
                self._fail(pending.waiter, FailureKind.CONNECTION_LOST, text)
        for pending in self._take("leader", None):
            if pending.value == self._replica.leadership.leader:
                self._replica.outbox.reply(pending.waiter.origin, Done(pending.waiter.request_id))
            elif self._replica.leadership.leader:
                self._fail(pending.waiter, FailureKind.NOT_APPLIED, "another node has become the leader")
            else:
                self._pending.append(pending)

    # --- serving, as leader -------------------------------------------------------------------------------------

    def _serve(self, origin: Origin, request: Requests) -> None:
        try:
            self._carry_out(origin, request)
        except OctopiiError as error:
            self._replica.outbox.reply(origin, self._replica.leadership.failure(error, request.request_id))

    def _carry_out(self, origin: Origin, request: Requests) -> None:
        replica = self._replica
        if isinstance(request, requests.CompactRequest):
            replica.calls.compact(origin, request, replica.now)
        elif isinstance(request, requests.ChangeMembership):
            self._change_membership(origin, request)
        elif isinstance(request, requests.ChangeAddress):
            self._require_member(request.node_id)
            replica.calls.system(UpdateAddress(request.node_id, request.address), replica.now)
            self._wait(origin, request.request_id, "address", request.node_id, address=request.address)
        elif isinstance(request, requests.TransferLeader):
            self._transfer(origin, request)
        elif isinstance(request, requests.ForceSnapshotToPeer):
            self._require_member(request.node_id)
            self._send_snapshot(origin, request)
        else:
            self._require_member(request.node_id)
            body = json.dumps(self._progress(request.node_id)).encode()
            replica.outbox.reply(origin, Report(request.request_id, body))

    def _progress(self, node_id: int) -> dict[str, object]:
        replica = self._replica
        last = replica.store.last_index()
        match = last if node_id == self._config.node_id else replica.raft.match_index(node_id)
        return {
            "node_id": node_id,
            "match": match,
            "last": last,
            "lag": last - match,
            "caught_up": node_id == self._config.node_id or self._is_caught_up(node_id),
            "snapshot": node_id in replica.senders.peers,
        }

    def _hand_over_first(self) -> None:
        """A leader does not remove itself: should it fail right afterwards, nobody might know that it was committed."""
        if not self._replica.upkeep.hand_over("it is to be removed"):
            raise NotApplied("the leader is to be removed, and no other member can take over")
        raise NoLeader("the leader is to be removed: it hands over first")

    def _is_there(self, node_id: int) -> bool:
        """Whether a member is reachable and has entries on its disk (an empty node does not vote)."""
        replica = self._replica
        return node_id == self._config.node_id or (
            node_id in replica.connected and replica.raft.match_index(node_id) > 0
        )

    def _is_caught_up(self, node_id: int) -> bool:
        """Whether a member's log holds what was committed one or two ticks ago."""
        match = self._replica.raft.match_index(node_id)
        return match > 0 and match >= self._replica.upkeep.committed_at_last_tick

    def _send_snapshot(self, origin: Origin, request: requests.ForceSnapshotToPeer) -> None:
        """Begin to send a member the newest snapshot, unless it has all of that already."""
        replica, peer = self._replica, request.node_id
        newest = replica.snapshots.newest
        if newest is None:
            raise NotApplied("there is no snapshot yet; take one first")
        if peer == self._config.node_id:
            raise NotApplied(f"node {peer} leads: it sends no snapshot to itself")
        has_it = replica.raft.match_index(peer) >= newest.index
        if not (has_it or replica.raft.send_snapshot(peer) or peer in replica.senders.peers):
            raise NotApplied(f"no snapshot can be sent to node {peer} now")
        replica.outbox.reply(origin, Done(request.request_id, newest.index))

    def _transfer(self, origin: Origin, request: requests.TransferLeader) -> None:
        replica = self._replica
        if request.node_id == self._config.node_id:
            replica.outbox.reply(origin, Done(request.request_id))
            return
        if request.node_id not in replica.conf_state.voters:
            raise NotApplied(f"node {request.node_id} is no voter and cannot lead")
        if request.node_id not in replica.connected:
            raise NotApplied(f"node {request.node_id} cannot be reached by node {self._config.node_id}, which leads")
        replica.raft.transfer_leader(request.node_id)
        self._wait(origin, request.request_id, "leader", request.node_id)

    def _require_member(self, node_id: int) -> None:
        if node_id not in self._replica.applying.roster.members:
            raise ConfigError(f"node {node_id} is no member of the cluster", field="node_id")

    def _change_membership(self, origin: Origin, request: requests.ChangeMembership) -> None:
        replica = self._replica
        steps = [self._step_of(change) for change in request.changes]
        added_voters = {step.node_id for step in steps if step.operation is ChangeOperation.ADD_VOTER}
        removed = {step.node_id for step in steps if step.operation is ChangeOperation.REMOVE}
        voters = ({*replica.conf_state.voters} | added_voters) - removed
        if not voters:
            raise ConfigError("the change would leave the cluster without a voter", field="node_id")
        there = [voter for voter in voters if self._is_there(voter)]
        if 2 * len(there) <= len(voters):
            raise NotApplied(
                f"of the voters {sorted(voters)} that the change would leave, only {sorted(there)} are there: "
                "they could not elect a leader"
            )
        if self._config.node_id in removed and self._config.node_id in replica.conf_state.voters:
            self._hand_over_first()
        added = [
            MemberFact(change.node_id, change.address, self._storage_of(change.node_id))
            for change in request.changes
            if change.operation is MemberOperation.ADD_LEARNER
        ]
        change = MembershipChange(transition=Transition.AUTO, steps=steps, context=encode_members(added))
        if not replica.joining.complete:
            raise NotApplied("the cluster is still being founded")
        try:
            index = replica.raft.propose_membership(change)
        except ChangeRefused as error:
            raise ConfigError(
                f"the change makes no sense for the present membership: {error}", field="changes"
            ) from error
        except ChangeInProgress as error:
            raise NotApplied(f"another membership change is under way, try again when it is done: {error}") from error
        except ProposalDropped as error:
            raise NoLeader(f"the membership cannot be changed now: {error}") from error
        self._wait(origin, request.request_id, "member", index)

    def _step_of(self, change: requests.MemberChange) -> MembershipStep:
        conf, node_id = self._replica.conf_state, change.node_id
        if change.operation is MemberOperation.ADD_LEARNER:
            if node_id in self._replica.applying.roster.members:
                raise ConfigError(f"node {node_id} is a member already", field="node_id")
            if node_id in self._replica.applying.roster.removed:
                raise ConfigError(f"node {node_id} was removed; its number is not used again", field="node_id")
            if not change.address:
                raise ConfigError("a new member needs an address", field="address")
            return MembershipStep(ChangeOperation.ADD_LEARNER, node_id)
        self._require_member(node_id)
        if change.operation is MemberOperation.PROMOTE:
            if node_id in conf.voters:
                raise ConfigError(f"node {node_id} is a voter already", field="node_id")
            if not self._is_caught_up(node_id):
                raise NotApplied(f"node {node_id} has not caught up yet: as a voter it would hold up the others")
            return MembershipStep(ChangeOperation.ADD_VOTER, node_id)
        return MembershipStep(ChangeOperation.REMOVE, node_id)

    def _storage_of(self, node_id: int) -> bytes:
        facts = self._replica.joining.peers.get(node_id)
        return facts.storage_id if facts is not None else b""

    # --- waiting ------------------------------------------------------------------------------------------------

    def _wait(self, origin: Origin, request_id: int, kind: str, value: int, *, address: str = "") -> None:
        if len(self._pending) >= max_pending:
            error = Overloaded(f"{max_pending} requests wait for something to change already", limit="max_pending")
            self._replica.outbox.reply(origin, self._replica.leadership.failure(error, request_id))
            return
        deadline = self._replica.now + self._config.call_timeout
        self._pending.append(Pending(Waiter(origin, request_id), kind, value, deadline, address))

    def _take(self, kind: str, upto: int | None) -> list[Pending]:
        taken = [p for p in self._pending if p.kind == kind and (upto is None or p.value <= upto)]
        self._pending = [p for p in self._pending if p not in taken]
        return taken

    def roster_changed(self, index: int) -> None:
        """Membership or addresses as of `index` are in force here."""
        members = self._replica.applying.roster.members
        for pending in self._take("member", index) + self._take("address", None):
            member = members.get(pending.value)
            if pending.kind == "address" and member is not None and member.address != pending.address:
                self._pending.append(pending)  # it was something else that changed
            else:
                self._replica.outbox.reply(pending.waiter.origin, Done(pending.waiter.request_id, index))

    def snapshot_taken(self, index: int) -> None:
        """A snapshot at `index` is durable here."""
        for pending in self._take("snapshot", None):
            self._replica.outbox.reply(pending.waiter.origin, Done(pending.waiter.request_id, index))

    def snapshot_not_taken(self, why: str) -> None:
        """A snapshot failed."""
        for pending in self._take("snapshot", None):
            self._fail(pending.waiter, FailureKind.NOT_APPLIED, why)

    def tick(self, now: float) -> None:
        """Tell those who waited too long."""
        self.downloads.tick(now)
        late = [pending for pending in self._pending if pending.deadline < now]
        if late:
            self._pending = [pending for pending in self._pending if pending.deadline >= now]
            for pending in late:
                self._fail(pending.waiter, FailureKind.CALL_TIMEOUT, f"the {pending.kind} did not change in time")

    def _fail(self, waiter: Waiter, kind: FailureKind, text: str) -> None:
        self._replica.outbox.reply(waiter.origin, requests.Failure(request_id=waiter.request_id, kind=kind, text=text))
