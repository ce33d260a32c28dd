"""How a replica is, as plain data for people and programs (`octopii status`, `OctopiiNode.status`)."""

from typing import TYPE_CHECKING

from octopii.durability import FsyncSchedule, Milliseconds, SyncEach
from octopii.version import VERSION
from octopii.wire.frames import NEWEST_VERSION

if TYPE_CHECKING:
    from octopii.replica.replica import Replica


def describe(replica: "Replica") -> dict[str, object]:
    """Everything worth showing, as values that JSON can hold. Indexes count entries, sizes bytes, times seconds."""
    raft = replica.raft.status()
    applying, newest = replica.applying, replica.snapshots.newest
    return {
        "id": replica.config.node_id,
        "version": VERSION,
        "protocol": NEWEST_VERSION,
        "cluster_id": replica.identity.identity.cluster_id.hex(),
        "storage_id": replica.identity.identity.storage_id.hex(),
        "role": raft.role.name.lower(),
        "term": raft.term,
        "leader": raft.leader,
        "leader_address": replica.leadership.leader_address,
        "commit": raft.committed,
        "applied": applying.applied_index,
        "applied_time": applying.applied_time / 1e9,
        "first_index": replica.store.first_index(),
        "last_index": replica.store.last_index(),
        "snapshot": {
            "index": newest.index if newest is not None else 0,
            "bytes": newest.size if newest is not None else 0,
        },
        "disk": {"free": replica.disk.free, "low": replica.disk.low, "blocked": replica.writes.blocked},
        "fsync_schedule": describe_schedule(replica.config.fsync_schedule),
        "clock_skew": replica.clock_skew,
        "conf_state": {
            "voters": raft.conf_state.voters,
            "learners": raft.conf_state.learners,
            "voters_outgoing": raft.conf_state.voters_outgoing,
            "learners_next": raft.conf_state.learners_next,
        },
        "members": {str(node_id): _member(replica, node_id) for node_id in sorted(applying.roster.members)},
        "removed": sorted(applying.roster.removed),
        "sessions": applying.sessions,
        "machine": {
            "command_version": replica.versions.own,
            "active_version": replica.versions.active,
            "reported": {str(peer): version for peer, version in sorted(replica.versions.reported.items())},
        },
        "digest": {
            "index": replica.divergence.newest[0],
            "value": replica.divergence.newest[1].hex(),
            "agreed": replica.divergence.agreed_index,
            "differing": {str(member): text for member, text in sorted(replica.divergence.differing.items())},
            "on_divergence": replica.config.on_divergence,
            "resyncing": replica.divergence.resyncing,
        },
        "quarantined": {str(node_id): text for node_id, text in replica.quarantine.members.items()},
        "failure": applying.failure.reason if applying.failure is not None else None,
        "stopped_at": applying.failure.index if applying.failure is not None else None,
        "standstill": replica.upkeep.standstill.text or None,
        "refused": str(replica.refused) if replica.refused is not None else None,
        "warnings": dict(replica.warnings),
    }


def describe_schedule(schedule: FsyncSchedule) -> str:
    """A schedule by the name that settings files use."""
    if isinstance(schedule, SyncEach):
        return "sync-each"
    return f"{schedule.interval}ms" if isinstance(schedule, Milliseconds) else "no-fsync"


def _member(replica: "Replica", node_id: int) -> dict[str, object]:
    """One member: how far it is and how it is reached are known to the leader alone."""
    conf = replica.raft.conf_state
    facts: dict[str, object] = {
        "address": replica.applying.roster.members[node_id].address,
        "role": "voter" if node_id in conf.voters else "learner",
        "connected": node_id == replica.config.node_id or node_id in replica.connected,
    }
    peer = replica.raft.status().peers.get(node_id)
    if peer is not None:
        last = replica.store.last_index()
        match = last if node_id == replica.config.node_id else peer.match
        facts |= {"match": match, "lag": last - match, "state": peer.state.value}
    return facts
