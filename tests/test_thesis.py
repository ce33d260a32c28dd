"""The claims of Ongaro's thesis (2014), and of sections 6 to 8 of the paper, beyond the basic algorithm: one test each.

Membership changes, log compaction, leadership transfer, clients' reads, pre-vote, the leader that steps down.
See `test_paper.py` for elections and replication, and for how these tests drive a cluster.
"""

import pytest

from octopii.raft import Role
from tests.test_paper import ELECTION_TICKS, THREE, led, run

FOLLOWER, CANDIDATE, LEADER = Role.FOLLOWER, Role.CANDIDATE, Role.LEADER
JOINT = ["cluster 1 2 3 blank=4,5 pre_vote=0 check_quorum=0", "member 1 +4 +5 -2 -3 explicit", "stabilize"]
JOINT += ["tick 1", "stabilize", "tick 1", "stabilize"]
CAREFUL = "cluster 1 2 3 pre_vote=1 check_quorum=1"


# --- paper 6, thesis 4: membership


def test_a_membership_change_is_a_log_entry() -> None:
    """Configurations are stored and communicated using special entries in the replicated log (paper 6)."""
    cluster = led("cluster 1 2 3 blank=4 pre_vote=0", "member 1 +4", "stabilize", "tick 1", "stabilize")
    assert [sorted(peer.voters()) for peer in cluster.live()] == [[1, 2, 3, 4]] * 4
    assert cluster.peers[4].applied == cluster.peers[1].applied


def test_a_joint_change_goes_through_both_configurations() -> None:
    """The cluster first switches to joint consensus, and once that is committed, to the new configuration (paper 6)."""
    cluster = led("cluster 1 2 3 blank=4,5 pre_vote=0", "member 1 +4 +5 -2 -3 explicit", "stabilize")
    members = cluster.peers[1].members
    assert (members.voters, members.voters_outgoing) == ([1, 4, 5], [1, 2, 3])
    cluster.do("leave-joint 1", "stabilize")
    members = cluster.peers[1].members
    assert (members.voters, members.voters_outgoing) == ([1, 4, 5], [])


@pytest.mark.parametrize("away", ["4 5", "2 3"])
def test_joint_agreement_needs_both_majorities(away: str) -> None:
    """Agreement for commitment requires separate majorities from both the old and the new configuration (paper 6)."""
    cluster = led("cluster 1 2 3 blank=4,5 pre_vote=0", "member 1 +4 +5 -2 -3 explicit", "stabilize")
    cluster.do(*(f"isolate {node}" for node in away.split()))
    before = cluster.peers[1].commit
    cluster.do("propose 1 x", "stabilize")
    assert cluster.peers[1].commit == before
    cluster.do("heal", "tick 1", "stabilize", "tick 1", "stabilize")
    assert cluster.peers[1].commit > before


@pytest.mark.parametrize(("away", "wins"), [("1 2", False), ("1 5", False), ("2 3", False), ("5 2", True)])
def test_joint_elections_need_both_majorities(away: str, wins: bool) -> None:
    """Elections during joint consensus need separate majorities from both configurations (paper 6)."""
    cluster = led(*JOINT, *(f"isolate {node}" for node in away.split()))
    cluster.do("campaign 4", "stabilize")
    assert (cluster.peers[4].role is LEADER) is wins


def test_any_server_of_either_configuration_may_lead() -> None:
    """Any server from either configuration may serve as leader while the change is under way (paper 6)."""
    for node in (2, 4):
        cluster = led(*JOINT, f"campaign {node}", "stabilize")
        assert cluster.peers[node].role is LEADER


def test_new_servers_catch_up_without_a_vote() -> None:
    """New servers join as non-voting members: they are sent the log, but count for no majority (paper 6)."""
    cluster = led("cluster 1 2 3 blank=4 pre_vote=0", "member 1 learner:4", "stabilize", "propose 1 x", "stabilize")
    assert cluster.peers[4].applied == cluster.peers[1].applied
    cluster.do("isolate 2", "isolate 3", "propose 1 y", "stabilize")
    assert cluster.peers[1].commit == cluster.peers[1].last_index - 1


def test_a_learner_does_not_campaign() -> None:
    """A non-voting member starts no election, however long it hears nothing (paper 6, thesis 4.2.1)."""
    cluster = led("cluster 1 2 3 learners=4 pre_vote=0", f"tick 4 {5 * ELECTION_TICKS}", "campaign 4")
    assert (cluster.peers[4].role, cluster.peers[4].term) == (FOLLOWER, 1)
    assert cluster.kinds("4>1") == []


def test_a_promoted_learner_that_has_not_heard_votes() -> None:
    """A server grants votes by the candidate's term and log, not by its own idea of the configuration (thesis 4.1)."""
    cluster = led("cluster 1 2 learners=3 pre_vote=0 check_quorum=0", "isolate 3", "member 1 +3", "stabilize")
    assert sorted(cluster.peers[2].voters()) == [1, 2, 3]
    cluster.do("heal", "crash 1", "campaign 2", "stabilize")
    assert cluster.peers[2].role is LEADER


def test_one_change_at_a_time() -> None:
    """A leader does not start a membership change before the previous one is committed (thesis 4.1)."""
    cluster = led("cluster 1 2 3 blank=4,5 pre_vote=0", "member 1 +4", "member 1 +5", "stabilize")
    assert sorted(cluster.peers[1].voters()) == [1, 2, 3, 4]


def test_a_new_leader_waits_for_the_change_it_inherits() -> None:
    """A change in a new leader's log may yet be committed: it starts none before that one is applied (thesis 4.1)."""
    cluster = led(
        "cluster 1 2 3 blank=4,5 pre_vote=0 check_quorum=0", "cut 1 3", "member 1 +4", "deliver 1>2", "crash 1"
    )
    cluster.do("campaign 2", "deliver 2>3", "deliver 3>2", "member 2 +5")
    assert cluster.peers[2].role is LEADER
    assert cluster.peers[2].terms() == [1, 1, 2]


def test_a_restarted_server_uses_no_membership_that_is_two_changes_old() -> None:
    """Quorums of memberships two changes apart need not overlap: all changes but the last come first (thesis 4.1)."""
    cluster = led("cluster 1 2 3 blank=4,5 pre_vote=0 check_quorum=0", "cut 1 2", "member 1 +4", "stabilize", "tick 1")
    cluster.do("stabilize", "member 1 +5", "stabilize", "tick 1", "stabilize", "crash 3", "restart 3")
    cluster.do("cut 3 1", "cut 3 4", "cut 3 5", "campaign 3", "stabilize", "propose 1 x", "stabilize")
    assert cluster.peers[3].role is not LEADER
    assert cluster.peers[1].commit == 4


def test_a_removed_leader_leads_until_the_change_is_committed() -> None:
    """A leader that is not in the new configuration steps down once it has committed it (paper 6, thesis 4.2.2)."""
    cluster = led(THREE, "propose 1 x", "member 1 -1")
    assert cluster.peers[1].role is LEADER
    cluster.do("stabilize")
    assert cluster.peers[1].role is not LEADER
    cluster.do("campaign 2", "stabilize", "propose 2 y", "stabilize")
    assert cluster.peers[2].role is LEADER
    assert cluster.peers[2].commit == cluster.peers[3].commit == cluster.peers[2].last_index


def test_a_removed_server_starts_no_election() -> None:
    """A server that is not part of its own configuration does not campaign (thesis 4.2.2)."""
    cluster = led(THREE, "member 1 -3", "stabilize", "tick 1", "stabilize")
    cluster.do(f"tick 3 {5 * ELECTION_TICKS}")
    assert cluster.peers[3].role is FOLLOWER


@pytest.mark.parametrize("kind", ["vote", "prevote"])
def test_a_disruptive_server_is_ignored(kind: str) -> None:
    """Within the minimum election timeout of hearing from a leader, a request for votes changes nothing (paper 6)."""
    cluster = led(CAREFUL, "tick 1", "stabilize", f"step 2 {kind} sender=3 term=9 index=99 log_term=8")
    peer = cluster.peers[2]
    assert (peer.term, peer.leader, cluster.kinds("2>3")) == (1, 1, [])


def test_a_leader_is_not_deposed_by_a_returning_server() -> None:
    """A server cut off for long comes back without raising anybody's term (thesis 4.2.3, 9.6)."""
    cluster = led(CAREFUL, "isolate 3", f"tick 3 {6 * ELECTION_TICKS}", "heal", "tick 1", "stabilize")
    assert (cluster.peers[1].role, cluster.peers[1].term, cluster.peers[3].leader) == (LEADER, 1, 1)


# --- paper 7, thesis 5: log compaction


def test_a_slow_follower_gets_a_snapshot() -> None:
    """The leader sends a snapshot when it has discarded the next log entry that a follower needs (paper 7)."""
    cluster = led(
        THREE, "isolate 3", "propose 1 a", "propose 1 b", "stabilize", "compact 1", "heal", "tick 1", "stabilize"
    )
    cluster.do("tick 1", "stabilize")
    assert cluster.peers[3].applied == cluster.peers[1].applied == 3
    assert cluster.peers[3].first_index == 4
    cluster.do("propose 1 c", "stabilize")
    assert cluster.peers[3].applied == 4


def test_a_snapshot_replaces_a_conflicting_log() -> None:
    """If the snapshot has what is not in the log, the follower discards its entire log (paper 7)."""
    cluster = run(THREE, "preload 2 1 1 1 1 1 term=1", "step 2 snapshot sender=1 term=3 snapshot=4/2")
    assert (cluster.peers[2].first_index, cluster.peers[2].last_index, cluster.peers[2].commit) == (5, 4, 4)


def test_a_snapshot_of_a_prefix_keeps_what_follows() -> None:
    """If the snapshot describes a prefix of the log, the entries that follow it are retained (paper 7)."""
    cluster = run(THREE, "preload 2 1 1 1 1 1 term=1", "step 2 snapshot sender=1 term=3 snapshot=3/1")
    assert (cluster.peers[2].last_index, cluster.peers[2].commit) == (5, 3)


def test_an_old_snapshot_is_ignored() -> None:
    """A snapshot that ends before what is committed changes nothing: it arrived late or twice (paper 7)."""
    cluster = led(THREE, "propose 1 a", "stabilize", "step 2 snapshot sender=1 term=1 snapshot=1/1")
    assert (cluster.peers[2].applied, cluster.peers[2].terms()) == (2, [1, 1])


def test_a_snapshot_carries_the_membership() -> None:
    """The snapshot includes the latest configuration as of its last included index (paper 7)."""
    cluster = led("cluster 1 2 3 blank=4 pre_vote=0", "isolate 3", "member 1 +4", "stabilize", "compact 1")
    cluster.do("heal", "tick 1", "stabilize", "tick 1", "stabilize")
    assert sorted(cluster.peers[3].voters()) == [1, 2, 3, 4]


def test_a_restart_continues_from_the_snapshot() -> None:
    """A server that restarts has the state of its snapshot and applies only what follows (paper 7)."""
    cluster = led(THREE, "propose 1 a", "propose 1 b", "stabilize", "compact 2 1", "crash 2", "restart 2")
    assert (cluster.peers[2].applied, cluster.peers[2].commit) == (3, 3)
    cluster.do("propose 1 c", "tick 1", "stabilize")
    assert cluster.peers[2].applied == 4


# --- thesis 3.10: leadership transfer


def test_leadership_is_transferred() -> None:
    """The target starts an election at once when told, and wins it without an election timeout (thesis 3.10)."""
    cluster = led(CAREFUL, "transfer 1 2", "stabilize")
    assert (cluster.peers[2].role, cluster.peers[2].term, cluster.peers[1].role) == (LEADER, 2, FOLLOWER)


def test_a_lagging_target_is_brought_up_to_date_first() -> None:
    """The prior leader fully updates the target server's log before it tells it to campaign (thesis 3.10)."""
    cluster = led(CAREFUL, "cut 1 3", "propose 1 x", "stabilize", "heal", "transfer 1 3")
    assert "timeout-now" not in cluster.kinds("1>3")
    cluster.do("stabilize")
    assert cluster.peers[3].role is LEADER
    assert cluster.peers[3].applied == 3


def test_proposals_are_refused_during_a_transfer() -> None:
    """The prior leader stops accepting new client requests (thesis 3.10)."""
    cluster = led(CAREFUL, "isolate 3", "transfer 1 3", "propose 1 x")
    assert cluster.peers[1].last_index == 1


def test_a_transfer_is_given_up_after_an_election_timeout() -> None:
    """If the transfer does not complete within an election timeout, the leader accepts requests again (3.10)."""
    cluster = led(CAREFUL, "isolate 3", "transfer 1 3")
    for _ in range(ELECTION_TICKS):
        cluster.do("tick 1", "stabilize")
    cluster.do("propose 1 x", "stabilize")
    assert (cluster.peers[1].role, cluster.peers[1].last_index) == (LEADER, 2)


def test_a_stale_timeout_now_is_ignored() -> None:
    """TimeoutNow of an earlier term starts no election (thesis 3.10, paper 5.1)."""
    cluster = led(THREE, "campaign 2", "stabilize", "step 3 timeout-now sender=1 term=1")
    assert (cluster.peers[3].role, cluster.peers[3].term) == (FOLLOWER, 2)


# --- paper 8, thesis 6: reads


def test_a_new_leader_commits_an_entry_of_its_term() -> None:
    """Each leader commits a blank no-op entry at the start of its term (paper 8)."""
    cluster = led()
    assert [peer.terms() for peer in cluster.live()] == [[1]] * 3
    assert cluster.peers[1].commit == 1


def test_a_read_waits_for_a_majority_of_heartbeats() -> None:
    """The leader exchanges heartbeat messages with a majority of the cluster before it answers a read (paper 8)."""
    cluster = led(THREE, "propose 1 x", "stabilize", "read 1 r")
    assert cluster.answered == []
    cluster.do("deliver 1>2", "deliver 2>1")
    assert cluster.answered == [(1, b"r", 2)]


def test_a_read_waits_for_the_first_commit_of_the_term() -> None:
    """Until it has committed an entry of its term a leader does not know the commit index, so reads wait (6.4)."""
    cluster = led(THREE, "propose 1 x", "deliver", "deliver", "campaign 2", "deliver 2>3", "deliver 3>2", "read 2 r")
    assert cluster.peers[2].role is LEADER
    cluster.do("tick 2", "deliver 2>3 only=heartbeat", "deliver 3>2 only=heartbeat-reply")
    assert cluster.answered == []
    cluster.do("stabilize", "tick 2", "stabilize")
    assert cluster.answered == [(2, b"r", 3)]


def test_a_deposed_leader_answers_no_read() -> None:
    """A leader that was deposed without knowing it gets no majority for its heartbeats, so no stale data (6.4)."""
    cluster = led(THREE, "isolate 1", "campaign 2", "stabilize", "propose 2 x", "stabilize", "read 1 r", "heal")
    cluster.do("tick 1", "stabilize", "tick 1", "stabilize")
    assert cluster.answered == []


def test_acknowledgements_of_an_older_round_confirm_no_read() -> None:
    """Only a round of heartbeats begun after the request arrived shows that the leader still leads (6.4)."""
    cluster = led(
        THREE, "tick 1", "deliver 1>2", "deliver 1>3", "read 1 r", "lose 1>2 all", "lose 1>3 all", "stabilize"
    )
    assert cluster.answered == []


def test_one_round_confirms_many_reads() -> None:
    """One round of heartbeats serves any number of read-only requests that have accumulated (6.4)."""
    cluster = led(THREE, "read 1 a", "read 1 b", "read 1 c", "stabilize")
    assert cluster.answered == [(1, b"a", 1), (1, b"b", 1), (1, b"c", 1)]


def test_a_follower_reads_through_the_leader() -> None:
    """A follower asks the leader for a read index and reads its own state once it has applied that far (6.4)."""
    cluster = led(THREE, "propose 1 x", "stabilize", "read 2 r", "stabilize")
    assert cluster.answered == [(2, b"r", 2)]


def test_a_lease_allows_reads_for_an_election_timeout() -> None:
    """Once a majority acknowledged a round, the leader may read without messages until its lease runs out (6.4.1)."""
    cluster = led(CAREFUL + " lockstep=1", "tick all 10", "stabilize", "tick all", "stabilize")
    assert cluster.peers[1].lease_read() is not None
    cluster.do("isolate 1", f"clock {ELECTION_TICKS}")
    assert cluster.peers[1].lease_read() is None


def test_a_restarted_voter_keeps_the_leases_it_forgot() -> None:
    """A voter that restarts grants no vote for an election timeout: it may have confirmed a lease before (6.4.1)."""
    cluster = led(CAREFUL + " lockstep=1", "tick all", "stabilize", "crash 2", "restart 2")
    cluster.do("step 2 vote sender=3 term=2 index=9 log_term=1", "step 2 prevote sender=3 term=2 index=9 log_term=1")
    assert (cluster.peers[2].term, cluster.kinds("2>3")) == (1, [])
    cluster.do("grace", "step 2 vote sender=3 term=2 index=9 log_term=1")
    assert cluster.kinds("2>3") == ["vote-reply"]


def test_a_lease_ends_when_a_transfer_starts() -> None:
    """A leader that hands over gives up its lease first: the next one may be elected within it (thesis 6.4.1)."""
    cluster = led(
        CAREFUL + " lockstep=1", "tick all 10", "stabilize", "tick all", "stabilize", "isolate 3", "transfer 1 3"
    )
    assert cluster.peers[1].lease_read() is None


def test_a_lease_given_up_for_a_transfer_does_not_come_back() -> None:
    """TimeoutNow may still be under way when the transfer is given up; its receiver ignores leases (6.4.1, 3.10)."""
    cluster = led(CAREFUL + " lockstep=1", "tick all", "stabilize", "transfer 1 2", "cut 1 3")
    for _ in range(ELECTION_TICKS + 2):
        cluster.do("tick 1", "clock 1", "deliver 1>2 only=heartbeat", "deliver 2>1")
    assert cluster.peers[1].raw.status().transferee == 0
    assert cluster.peers[1].lease_read() is None


def test_a_leader_without_a_majority_steps_down() -> None:
    """A leader steps down if an election timeout passes without heartbeats answered by a majority (thesis 6.2)."""
    cluster = led(CAREFUL, "isolate 1", f"tick 1 {2 * ELECTION_TICKS}")
    assert cluster.peers[1].role is not LEADER


# --- thesis 9.6: pre-vote


def test_a_pre_vote_raises_no_term() -> None:
    """A candidate increments its term only if a majority would vote for it (thesis 9.6)."""
    cluster = run(CAREFUL, "isolate 3", f"tick 3 {6 * ELECTION_TICKS}")
    assert cluster.peers[3].term == 0


def test_a_pre_vote_is_granted_only_without_a_leader() -> None:
    """Servers grant a pre-vote only if they have not heard from a valid leader for an election timeout (thesis 9.6)."""
    cluster = led(CAREFUL, "tick 1", "stabilize", "campaign 3", "stabilize")
    assert (cluster.peers[1].role, cluster.peers[1].term) == (LEADER, 1)


def test_a_pre_vote_is_granted_only_to_an_up_to_date_log() -> None:
    """Servers grant a pre-vote only if the candidate's log is sufficiently up to date (thesis 9.6)."""
    cluster = run(CAREFUL, "preload 1 1 2", "preload 2 1 2", "preload 3 1", "tick 1 9", "tick 2 9", "tick 3 9")
    cluster.do("campaign 3", "stabilize")
    assert cluster.peers[3].role is not LEADER
    assert max(peer.term for peer in cluster.live()) == 2


def test_pre_votes_of_an_earlier_round_count_for_nothing() -> None:
    """A pre-vote speaks of the term that was asked for, and of no later one (thesis 9.6)."""
    cluster = run(
        "cluster 1 2 3 4 5 pre_vote=1 check_quorum=0", "campaign 1", "deliver 1>2 1>3", "isolate 4", "isolate 5"
    )
    cluster.do("step 1 heartbeat sender=4 term=1", "campaign 1", "lose 1>2 all", "lose 1>3 all", "deliver 2>1 3>1")
    assert (cluster.peers[1].role, cluster.peers[1].term) == (Role.PRE_CANDIDATE, 1)


# --- thesis 10.2: performance without loss of safety


def test_the_leader_writes_in_parallel_with_its_followers() -> None:
    """The leader may commit before its own disk has the entry, if a majority of the others have it (10.2.1)."""
    cluster = led(THREE, "hold 1 persist apply", "propose 1 x")
    assert cluster.kinds("1>2") == ["append"]
    cluster.do("deliver 1>2", "deliver 2>1")
    assert cluster.peers[1].commit == 1
    cluster.do("deliver 1>3", "deliver 3>1")
    assert cluster.peers[1].commit == 2


def test_a_write_of_entries_that_were_replaced_counts_for_nothing() -> None:
    """A write whose entries are being replaced on disk makes nothing stable, though they come back (10.2.1)."""
    cluster = run(
        "cluster 1 2 3 4 5 pre_vote=0 check_quorum=0", "step 1 append sender=2 term=2 index=0 log_term=0 entries=2"
    )
    cluster.do("hold 1 persist")
    for sender, term, entry in ((2, 2, 2), (3, 3, 3), (4, 4, 2)):
        cluster.do(f"step 1 append sender={sender} term={term} index=1 log_term=2 entries={entry}")
    for _ in range(3):
        assert cluster.peers[1].terms() == [2, 2]
        cluster.do("persist 1")
    assert cluster.peers[1].terms() == [2, 2]


def test_entries_are_pipelined() -> None:
    """The leader sends the next entries without waiting for the acknowledgement of those before (10.2.2)."""
    cluster = led(THREE, "propose 1 a", "propose 1 b", "propose 1 c")
    assert cluster.kinds("1>2") == ["append"] * 3


def test_entries_are_batched() -> None:
    """Many commands travel in one AppendEntries request and one write to disk (10.2.2)."""
    cluster = led(THREE, "propose 1 a b c")
    (message,) = cluster.flight("1>2")
    assert len(message.entries) == 3
