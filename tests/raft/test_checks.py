"""Each property that `harness_checks` watches is reported when it is broken: no checker is there for show.

A sound cluster is driven to some point, then its memory or its disk is falsified, and the next step has to be refused
under the right name.
"""

from collections.abc import Callable

import pytest

from octopii.raft import Entry, EntryKind, HardState
from octopii.raft.messages import ConfState
from tests.raft.harness import Cluster, Peer
from tests.raft.harness_checks import Election, Violation

FOUNDING = "cluster 1 2 3 pre_vote=0 check_quorum=0"
OTHER = b"something else"


def led(*commands: str) -> Cluster:
    """A quiet cluster led by node 1 in term 1, after these commands."""
    cluster = Cluster()
    cluster.do(FOUNDING, "campaign 1", "stabilize", *commands)
    return cluster


def falsify_last(peer: Peer) -> None:
    """Change the data of the last entry, wherever it is."""
    log = peer.raw._state.log
    entries = log.unstable or peer.storage._entries
    last = entries[-1]
    entries[-1] = Entry(last.term, last.index, last.kind, OTHER)


def two_leaders(cluster: Cluster) -> None:
    cluster.checker.elections[2] = Election(3, 1, 1, [])
    cluster.do("campaign 2", "stabilize")


def votes_not_on_disk(cluster: Cluster) -> None:
    cluster.do("campaign 2", "deliver 2>3", "deliver 2>1")
    for node in (1, 3):
        cluster.peers[node].durable_votes.clear()
        cluster.peers[node].storage.set_hard_state(HardState(1, 1))
    cluster.do("deliver 3>2")


def two_votes(cluster: Cluster) -> None:
    cluster.peers[3].durable_votes[2] = {1}
    cluster.do("campaign 2", "deliver 2>3")


def leader_rewrites(cluster: Cluster) -> None:
    cluster.do("isolate 1", "propose 1 x")
    falsify_last(cluster.peers[1])
    cluster.do("propose 1 y")


def committed_entry_changes(cluster: Cluster) -> None:
    falsify_last(cluster.peers[2])
    cluster.do("tick 2")


def same_place_other_entry(cluster: Cluster) -> None:
    cluster.do("propose 1 x", "hold 2", "deliver 1>2")
    falsify_last(cluster.peers[2])
    cluster.do("ready 2")


def leader_lacks_entry(cluster: Cluster) -> None:
    cluster.checker.committed.append((Entry(1, 2, EntryKind.NORMAL, OTHER), 1))
    cluster.do("campaign 2", "stabilize")


def commit_too_early(cluster: Cluster) -> None:
    cluster.do("propose 1 x", "isolate 1")
    cluster.peers[1].raw._state.log.commit_to(2)
    cluster.do("tick 1")


def commit_of_old_term(cluster: Cluster) -> None:
    cluster.do("cut 1 3", "propose 1 x", "deliver 1>2", "crash 1", "campaign 2", "deliver 2>3", "deliver 3>2")
    cluster.peers[2].raw._state.log.commit_to(2)
    cluster.do("tick 2")


def follower_commits_first(cluster: Cluster) -> None:
    cluster.do("propose 1 x", "deliver 1>2")
    cluster.peers[2].raw._state.log.commit_to(2)
    cluster.do("tick 2")


def commit_goes_back(cluster: Cluster) -> None:
    cluster.peers[2].raw._state.log.committed = 0
    cluster.do("tick 2")


def term_goes_back(cluster: Cluster) -> None:
    cluster.peers[2].raw._state.term = 0
    cluster.do("tick 2")


def match_of_nothing(cluster: Cluster) -> None:
    cluster.do("propose 1 x")
    cluster.peers[1].raw._state.progress[2].match = 2
    cluster.do("tick 1")


def disk_differs(cluster: Cluster) -> None:
    cluster.do("hold 2 persist", "propose 1 x", "deliver 1>2")
    cluster.peers[2].storage._entries[0] = Entry(1, 1, EntryKind.NORMAL, OTHER)
    cluster.do("persist 2")


def state_differs(cluster: Cluster) -> None:
    cluster.peers[2].digest ^= 1
    cluster.do("propose 1 x", "stabilize")


def entry_skipped(cluster: Cluster) -> None:
    cluster.peers[2].applied += 1
    cluster.do("propose 1 x", "stabilize")


def membership_differs(cluster: Cluster) -> None:
    cluster.peers[2].raw._state.set_conf(ConfState(voters=[1, 2]))
    cluster.do("member 1 learner:4", "stabilize")


def stale_read(cluster: Cluster) -> None:
    cluster.do("read 1 r")
    cluster.checker.reads[1, b"r"] = 2
    cluster.do("stabilize")


def stale_lease(cluster: Cluster) -> None:
    cluster.checker.believe(2)
    cluster.checker.leased_read(cluster.peers[1], 1)


def wedged(cluster: Cluster) -> None:
    cluster.peers[1].raw._state.transferee = 0
    for peer in cluster.peers.values():
        peer.raw.tick = lambda now: None  # type: ignore[method-assign]
    cluster.peers[1].raw._state.progress[2].paused = True
    cluster.peers[1].raw._state.progress[3].paused = True
    cluster.recover()


BREACHES: list[tuple[Callable[[Cluster], None], str]] = [
    (two_leaders, "election safety"),
    (votes_not_on_disk, "durable votes"),
    (two_votes, "one vote a term"),
    (leader_rewrites, "leader append-only"),
    (committed_entry_changes, "committed prefix"),
    (same_place_other_entry, "log matching"),
    (leader_lacks_entry, "leader completeness"),
    (commit_too_early, "durable commit"),
    (commit_of_old_term, "commit of own term"),
    (follower_commits_first, "commit source"),
    (commit_goes_back, "commit monotonicity"),
    (term_goes_back, "term monotonicity"),
    (match_of_nothing, "match on disk"),
    (disk_differs, "log and disk"),
    (state_differs, "state-machine safety"),
    (entry_skipped, "apply order"),
    (membership_differs, "membership"),
    (stale_read, "linearizable reads"),
    (stale_lease, "lease reads"),
    (wedged, "recovery"),
]


@pytest.mark.parametrize(("breach", "rule"), BREACHES, ids=lambda value: getattr(value, "__name__", None))
def test_a_breach_is_reported(breach: Callable[[Cluster], None], rule: str) -> None:
    """What was broken is named."""
    cluster = led()
    with pytest.raises(Violation) as raised:
        breach(cluster)
    assert raised.value.rule == rule
