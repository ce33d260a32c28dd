"""One test per claim of the Raft paper (extended version, 2014) and of Ongaro's thesis (2014) that the core implements.

Each test states its claim and the section it comes from. Clusters are driven by the commands of
`tests.raft.harness_commands`; after every command the properties of figure 3 are checked as well.
"""

import pytest

from octopii.raft import ProgressState, Role
from tests.raft.harness import Cluster
from tests.raft.harness_checks import Violation

FOLLOWER, CANDIDATE, LEADER = Role.FOLLOWER, Role.CANDIDATE, Role.LEADER
THREE = "cluster 1 2 3 pre_vote=0 check_quorum=0"
FIVE = "cluster 1 2 3 4 5 pre_vote=0 check_quorum=0"
ELECTION_TICKS = 10


def run(*commands: str) -> Cluster:
    """A new cluster after these commands."""
    cluster = Cluster()
    cluster.do(*commands)
    return cluster


def led(founding: str = THREE, *commands: str) -> Cluster:
    """A cluster led by node 1 in term 1, all quiet, after these commands."""
    return run(founding, "campaign 1", "stabilize", *commands)


# --- paper 5.1: terms and roles


def test_servers_start_as_followers() -> None:
    """When servers start up, they begin as followers (5.2)."""
    cluster = run(THREE)
    assert [peer.role for peer in cluster.live()] == [FOLLOWER] * 3


@pytest.mark.parametrize("role", ["follower", "candidate", "leader"])
def test_a_larger_term_is_adopted(role: str) -> None:
    """A server whose current term is smaller updates it to the larger value; a candidate or leader steps down (5.1)."""
    cluster = run(THREE)
    cluster.do({"follower": "show", "candidate": "campaign 1", "leader": "campaign 1"}[role])
    if role == "leader":
        cluster.do("stabilize")
    cluster.do("step 1 append sender=2 term=7 index=0 log_term=0")
    peer = cluster.peers[1]
    assert (peer.role, peer.term, peer.leader) == (FOLLOWER, 7, 2)


def test_a_request_with_a_stale_term_changes_nothing() -> None:
    """If a server receives a request with a stale term number, it rejects the request (5.1)."""
    cluster = run(
        THREE, "step 1 heartbeat sender=2 term=5", "step 1 append sender=3 term=4 index=0 log_term=0 entries=4"
    )
    peer = cluster.peers[1]
    assert (peer.term, peer.leader, peer.terms()) == (5, 2, [])


def test_an_acknowledgement_of_an_old_term_counts_for_nothing() -> None:
    """A leader takes no answer of an earlier term for one of its own, though its log is as long again (5.1)."""
    cluster = led(THREE, "campaign 2", "stabilize", "campaign 1", "stabilize", "isolate 2", "isolate 3", "propose 1 x")
    cluster.do("step 1 append-reply sender=2 term=1 index=4", "step 1 append-reply sender=2 term=2 index=4")
    assert (cluster.peers[1].term, cluster.peers[1].last_index, cluster.peers[1].commit) == (3, 4, 3)


def test_a_stale_candidate_gets_no_vote() -> None:
    """RequestVote: reply false if its term is smaller than the current one (figure 2)."""
    cluster = run(THREE, "step 1 heartbeat sender=2 term=5", "step 1 vote sender=3 term=4 index=9 log_term=4")
    assert cluster.peers[1].durable_votes == {}
    assert not any(cluster.kinds("1>3"))


# --- paper 5.2: elections


def test_a_leader_sends_heartbeats() -> None:
    """Leaders send periodic heartbeats to all followers in order to maintain their authority (5.2)."""
    cluster = led(THREE, "tick 1")
    assert cluster.kinds("1>2") == cluster.kinds("1>3") == ["heartbeat"]


def test_heartbeats_keep_followers_quiet() -> None:
    """A server remains a follower as long as it receives valid messages from a leader (5.2)."""
    cluster = led()
    for _ in range(5 * ELECTION_TICKS):
        cluster.do("tick all", "stabilize")
    assert [(peer.role, peer.term) for peer in cluster.live()] == [(LEADER, 1), (FOLLOWER, 1), (FOLLOWER, 1)]


@pytest.mark.parametrize("first", [FOLLOWER, CANDIDATE])
def test_silence_starts_an_election(first: Role) -> None:
    """After an election timeout of silence a server increments its term, votes for itself and asks all others (5.2)."""
    cluster = run(THREE)
    if first is CANDIDATE:
        cluster.do("campaign 1", "lose 1>2 all", "lose 1>3 all")
    term = cluster.peers[1].term
    cluster.do(f"tick 1 {2 * ELECTION_TICKS - 1}")
    peer = cluster.peers[1]
    assert peer.role is CANDIDATE
    assert peer.term > term
    assert peer.durable_votes[peer.term] == {1}
    assert set(cluster.kinds("1>2")) == set(cluster.kinds("1>3")) == {"vote"}


@pytest.mark.parametrize(
    ("size", "granted", "refused", "outcome"),
    [
        (1, 0, 0, LEADER),
        (3, 1, 0, LEADER),
        (3, 0, 1, CANDIDATE),
        (3, 0, 2, FOLLOWER),
        (5, 1, 0, CANDIDATE),
        (5, 2, 0, LEADER),
        (5, 2, 2, LEADER),
        (5, 1, 2, CANDIDATE),
        (5, 1, 3, FOLLOWER),
        (7, 3, 0, LEADER),
        (7, 2, 3, CANDIDATE),
        (7, 0, 4, FOLLOWER),
        (4, 1, 0, CANDIDATE),
        (4, 2, 0, LEADER),
    ],
)
def test_a_majority_elects(size: int, granted: int, refused: int, outcome: Role) -> None:
    """A candidate wins if it receives votes from a majority of the full cluster for the same term (5.2)."""
    others = list(range(2, size + 1))
    cluster = run("cluster " + " ".join(map(str, range(1, size + 1))) + " pre_vote=0 check_quorum=0")
    for voter in others[granted : granted + refused]:
        # These have voted for someone else in this term.
        cluster.do(f"step {voter} vote sender={others[-1] if voter != others[-1] else 2} term=1 index=0 log_term=0")
    cluster.links.clear()
    cluster.do("campaign 1")
    for voter in others[: granted + refused]:
        cluster.do(f"deliver 1>{voter}", f"deliver {voter}>1")
    assert (cluster.peers[1].role, cluster.peers[1].term) == (outcome, 1)


def test_a_vote_repeated_counts_once() -> None:
    """Votes come from a majority of servers: the same server's answer counted twice is no majority (5.2)."""
    cluster = run(FIVE, "campaign 1", "deliver 1>2", "copy 2>1", "copy 2>1", "pass 2>1")
    assert cluster.peers[1].role is CANDIDATE


def test_first_come_first_served() -> None:
    """Each server will vote for at most one candidate in a given term, on a first-come-first-served basis (5.2)."""
    cluster = run(THREE, "campaign 1", "campaign 3", "deliver 1>2", "deliver 3>2", "deliver 2>3")
    assert cluster.peers[2].durable_votes == {1: {1}}
    assert cluster.peers[3].role is CANDIDATE
    cluster.do("deliver 2>1")
    assert cluster.peers[1].role is LEADER


def test_a_vote_is_repeated_to_the_same_candidate() -> None:
    """RequestVote grants again if votedFor is the candidate itself: answers may have been lost (figure 2, 5.5)."""
    cluster = run(THREE, "campaign 1", "copy 1>2", "lose 2>1 all", "deliver 1>2", "deliver 2>1")
    assert cluster.peers[1].role is LEADER


def test_a_vote_survives_a_restart() -> None:
    """Current term and vote are on stable storage, so a server votes once a term even if it restarts (5.2)."""
    cluster = run(THREE, "campaign 1", "campaign 3", "deliver 1>2", "crash 2", "restart 2", "tick 2 9", "lose 3>2 all")
    cluster.do("step 2 vote sender=3 term=1 index=0 log_term=0", "deliver 2>3")
    assert cluster.peers[2].term == 1
    assert cluster.peers[2].durable_votes == {1: {1}}
    assert cluster.peers[3].role is CANDIDATE


def test_a_vote_is_sent_only_from_disk() -> None:
    """Persistent state is updated on stable storage before responding to RPCs (figure 2)."""
    cluster = run(THREE, "hold 2 persist", "campaign 1", "deliver 1>2")
    assert cluster.kinds("2>1") == []
    cluster.do("persist 2")
    assert cluster.kinds("2>1") == ["vote-reply"]


@pytest.mark.parametrize("term", [1, 2])
def test_a_candidate_yields_to_a_leader(term: int) -> None:
    """A candidate that hears from a leader of a term at least as large as its own returns to follower state (5.2)."""
    cluster = run(THREE, "campaign 1", f"step 1 append sender=2 term={term} index=0 log_term=0")
    peer = cluster.peers[1]
    assert (peer.role, peer.term, peer.leader) == (FOLLOWER, term, 2)


def test_a_candidate_ignores_a_stale_leader() -> None:
    """If the term in the RPC is smaller than the candidate's, it rejects it and stays a candidate (5.2)."""
    cluster = run(THREE, "campaign 1", "campaign 1", "step 1 append sender=2 term=1 index=0 log_term=0")
    assert (cluster.peers[1].role, cluster.peers[1].term) == (CANDIDATE, 2)


def test_a_split_vote_ends_in_a_new_election() -> None:
    """Candidates of a split vote time out and start a new election by incrementing their terms (5.2)."""
    cluster = run("cluster 1 2 3 4 pre_vote=0 check_quorum=0", "campaign 1", "campaign 2")
    cluster.do("deliver 1>3", "deliver 2>4", "deliver", "deliver", "deliver")
    assert {cluster.peers[1].role, cluster.peers[2].role} <= {CANDIDATE, FOLLOWER}
    cluster.do("stabilize", f"tick 1 {2 * ELECTION_TICKS}", "stabilize")
    assert cluster.peers[1].role is LEADER
    assert cluster.peers[1].term >= 2


def test_election_timeouts_are_randomised() -> None:
    """Election timeouts are chosen randomly from a fixed interval, here one to two times `election_ticks` (5.2)."""
    waits: dict[int, int] = {}
    for seed in range(300):
        cluster = run(f"{THREE} seed={seed}")
        ticks = 0
        while cluster.peers[1].role is FOLLOWER:
            cluster.do("tick 1")
            ticks += 1
        waits[ticks] = waits.get(ticks, 0) + 1
    assert set(waits) == set(range(ELECTION_TICKS, 2 * ELECTION_TICKS))
    assert max(waits.values()) < 3 * 300 / ELECTION_TICKS


def test_split_votes_are_rare() -> None:
    """Randomised timeouts ensure that split votes are rare: in most cases one server times out first (5.2)."""
    split = 0
    for seed in range(100):
        cluster = run(f"{FIVE} seed={seed}")
        while all(peer.role is FOLLOWER for peer in cluster.live()):
            cluster.do("tick all")
        split += sum(peer.role is CANDIDATE for peer in cluster.live()) > 1
    assert split < 50


# --- paper 5.3: log replication


def test_a_leader_appends_and_sends_in_parallel() -> None:
    """The leader appends the command as a new entry, then issues AppendEntries in parallel to each server (5.3)."""
    cluster = led(THREE, "propose 1 x")
    assert cluster.peers[1].terms() == [1, 1]
    for other in (2, 3):
        (message,) = cluster.flight(f"1>{other}")
        assert (message.index, message.log_term, [entry.data for entry in message.entries]) == (1, 1, [b"x"])


@pytest.mark.parametrize(
    ("size", "holders", "committed"),
    [(1, 0, True), (3, 0, False), (3, 1, True), (5, 1, False), (5, 2, True), (4, 1, False), (4, 2, True), (7, 3, True)],
)
def test_an_entry_on_a_majority_is_committed(size: int, holders: int, committed: bool) -> None:
    """A log entry is committed once the leader that created it has replicated it on a majority of the servers (5.3)."""
    cluster = led("cluster " + " ".join(map(str, range(1, size + 1))) + " pre_vote=0", "propose 1 x")
    for follower in range(2, 2 + holders):
        cluster.do(f"deliver 1>{follower}", f"deliver {follower}>1")
    assert (cluster.peers[1].commit == 2) is committed
    assert (cluster.peers[1].applied == 2) is committed


def test_earlier_entries_are_committed_along() -> None:
    """This also commits all preceding entries in the leader's log, including entries of previous leaders (5.3)."""
    cluster = run(THREE, "preload 1 1 2", "preload 2 1 2", "preload 3", "elect 1", "stabilize")
    assert cluster.peers[1].term == 3
    assert [peer.terms() for peer in cluster.live()] == [[1, 2, 3]] * 3
    assert cluster.peers[1].commit == 3


def test_followers_learn_the_commit_index() -> None:
    """The leader includes the highest committed index in later messages, so that the others find out (5.3)."""
    cluster = led(THREE, "propose 1 x", "deliver", "deliver 2>1")
    assert (cluster.peers[1].commit, cluster.peers[2].commit) == (2, 1)
    cluster.do("stabilize")
    assert [peer.commit for peer in cluster.live()] == [2, 2, 2]
    assert [peer.applied for peer in cluster.live()] == [2, 2, 2]


def test_a_heartbeat_never_commits_beyond_what_was_acknowledged() -> None:
    """A heartbeat carries the lower of commit index and match: what is beyond may be another leader's (5.3)."""
    cluster = run(
        THREE,
        "preload 3 1 1 term=1",
        "preload 1 2 2 term=2",
        "preload 2 2 2 term=2",
        "cut 1 3",
        "elect 1 2",
        "stabilize",
    )
    assert cluster.peers[1].commit == 3
    cluster.do("heal", "tick 1", "deliver 1>3 only=heartbeat")
    assert cluster.peers[3].commit == 0


@pytest.mark.parametrize(
    ("index", "log_term", "accepted"),
    [(0, 0, True), (1, 1, True), (2, 2, True), (2, 1, False), (3, 3, False), (9, 2, False)],
)
def test_the_consistency_check(index: int, log_term: int, accepted: bool) -> None:
    """If the follower does not find an entry with the preceding index and term, it refuses the new entries (5.3)."""
    cluster = run(THREE, "preload 1 1 2")
    cluster.do(f"step 1 append sender=2 term=3 index={index} log_term={log_term}")
    (answer,) = cluster.flight("1>2")
    assert answer.reject is not accepted
    assert cluster.peers[1].terms() == [1, 2]


@pytest.mark.parametrize(
    ("index", "log_term", "entries", "log"),
    [
        (2, 2, "3", [1, 2, 3]),
        (1, 1, "3,4", [1, 3, 4]),
        (0, 0, "1", [1, 2]),
        (0, 0, "3", [3]),
        (0, 0, "1,2", [1, 2]),
        (1, 1, "2,3", [1, 2, 3]),
    ],
)
def test_conflicting_entries_are_replaced(index: int, log_term: int, entries: str, log: list[int]) -> None:
    """An entry that conflicts is deleted with all that follow it; one that is there already deletes nothing (5.3)."""
    cluster = run(
        THREE, "preload 1 1 2", f"step 1 append sender=2 term=5 index={index} log_term={log_term} entries={entries}"
    )
    assert cluster.peers[1].terms() == log


FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize("case", FIGURE_7)
def test_figure_7(case: str) -> None:
    """The leader forces the follower's log to duplicate its own, whichever of figure 7's states it is in (5.3)."""
    log = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    terms = " ".join(map(str, FIGURE_7[case]))
    cluster = run(THREE, f"preload 1 {' '.join(map(str, log))} term=7", f"preload 2 {terms} term=7", "preload 3 term=7")
    cluster.do("elect 1", "stabilize")
    assert cluster.peers[1].term == 8
    assert cluster.peers[2].terms() == [*log, 8]


def test_backing_up_takes_one_round_trip_per_term() -> None:
    """A refusal names the conflicting term: one AppendEntries is needed for each such term, not each entry (5.3)."""
    cluster = run(THREE, f"preload 1 {'1 ' * 3}{'5 ' * 40} term=6", f"preload 3 {'1 ' * 3}{'5 ' * 40} term=6")
    cluster.do(f"preload 2 {'1 ' * 3}{'2 ' * 20}{'3 ' * 30}{'4 ' * 10} term=6", "elect 1", "deliver 3>1")
    appends = 0
    for _ in range(100):
        appends += cluster.kinds("1>2").count("append")
        cluster.do("deliver 1>2", "deliver 2>1")
    assert cluster.peers[2].terms() == cluster.peers[1].terms()
    assert appends <= 6


def test_a_stale_refusal_moves_nothing_back() -> None:
    """A refusal that was delayed or doubled does not undo what was acknowledged since (5.3, 5.5)."""
    cluster = led(THREE, "propose 1 a", "propose 1 b", "stabilize")
    cluster.do("step 1 append-reply sender=2 term=1 reject index=1 reject_hint=0")
    peer = cluster.peers[1].raw.status().peers[2]
    assert (peer.match, peer.next, peer.state) == (3, 4, ProgressState.REPLICATE)


# --- paper 5.4: safety


@pytest.mark.parametrize(
    ("voter", "index", "log_term", "granted"),
    [
        ("1", 1, 1, True),
        ("1", 2, 1, True),
        ("1 1", 1, 1, False),
        ("1", 1, 2, True),
        ("1 1", 1, 2, True),
        ("2", 1, 1, False),
        ("2", 9, 1, False),
        ("1 2", 1, 2, False),
        ("", 0, 0, True),
    ],
)
def test_the_voting_restriction(voter: str, index: int, log_term: int, granted: bool) -> None:
    """The voter denies its vote if its own log is more up to date: by last term, then by length (5.4.1)."""
    cluster = run(
        THREE, f"preload 1 {voter} term=2", f"step 1 vote sender=2 term=3 index={index} log_term={log_term} transfer"
    )
    (answer,) = cluster.flight("1>2")
    assert answer.reject is not granted


def test_an_old_entry_is_not_committed_by_counting() -> None:
    """Only entries of the leader's current term are committed by counting replicas (5.4.2)."""
    cluster = run(FIVE, *(f"preload {node} 1 2" for node in (1, 2, 3)), "preload 4 1", "preload 5 1")
    cluster.do("elect 1 2 3", "isolate 4", "isolate 5", "lose 1>2 all", "lose 1>3 all")
    # Node 1 leads term 3; its own entry of term 3 reaches nobody, only acknowledgements of the older one arrive.
    cluster.do("step 1 append-reply sender=2 term=3 index=2", "step 1 append-reply sender=3 term=3 index=2")
    assert cluster.peers[1].terms() == [1, 2, 3]
    assert cluster.peers[1].commit == 0


def test_figure_8() -> None:
    """An entry of term 2 on a majority is not committed by that: a leader of term 5 overwrites it (5.4.2)."""
    setup = [
        FIVE,
        *["preload 1 1 2 term=2", "preload 2 1 2 term=2", "preload 3 1", "preload 4 1", "preload 5 1 3 term=3"],
        # (c) S1 leads term 4, brings its entry of term 2 to S3, and has 4 in its own log only.
        *["cut 1 4", "cut 1 5", "cut 2 5", "cut 3 5", "cut 2 4", "cut 3 4"],
        *["campaign 1", "elect 1 2 3"],
    ]
    cluster = run(*setup)
    assert cluster.peers[1].term == 4
    cluster.do("step 1 append-reply sender=2 term=4 index=2", "lose 1>3 all", "lose 1>2 all")
    cluster.do("step 3 append sender=1 term=4 index=1 log_term=1 entries=2", "deliver 3>1", "lose 1>3 all")
    assert cluster.peers[3].terms() == [1, 2]
    assert cluster.peers[1].commit == 0
    # (d) S1 crashes, S5 wins term 5 with the votes of 2, 3 and 4, and replaces the entry of term 2.
    cluster.do("crash 1", "heal", "campaign 5", "elect 5 2 3 4", "stabilize")
    assert cluster.peers[5].role is LEADER
    assert [cluster.peers[node].terms()[:2] for node in (2, 3, 4, 5)] == [[1, 3]] * 4


def test_figure_8_e() -> None:
    """With an entry of term 4 behind it on a majority, S5 cannot win, and term 2's entry is committed (5.4.2)."""
    cluster = run(
        FIVE, *(f"preload {node} 1 2 4 term=4" for node in (1, 2, 3)), "preload 4 1 term=4", "preload 5 1 3 term=3"
    )
    cluster.do("crash 1", "campaign 5", "stabilize")
    assert cluster.peers[5].role is not LEADER
    cluster.do("restart 1", "elect 2", "stabilize")
    assert [peer.terms()[:3] for peer in cluster.live()] == [[1, 2, 4]] * 5


def test_a_committed_entry_is_never_replaced() -> None:
    """What is committed stays (5.4.3): an append that says otherwise is answered with how far the log is committed."""
    cluster = led(THREE, "propose 1 x", "stabilize", "step 2 append sender=3 term=2 index=0 log_term=0 entries=2,2")
    assert (cluster.peers[2].terms(), cluster.peers[2].commit) == ([1, 1], 2)
    (answer,) = cluster.flight("2>3")
    assert (answer.reject, answer.index) == (False, 2)


# --- paper 5.5: crashes and repeated requests


def test_requests_are_idempotent() -> None:
    """A follower that gets a request for entries already in its log ignores those entries (5.5)."""
    cluster = led(THREE, "propose 1 a", "copy 1>2", "deliver", "stabilize", "propose 1 b", "stabilize")
    cluster.do("step 2 append sender=1 term=1 index=1 log_term=1 entries=1")
    assert cluster.peers[2].terms() == [1, 1, 1]


def test_a_leader_retries_until_the_follower_answers() -> None:
    """If a follower crashes, the leader retries until all followers eventually store all log entries (5.3, 5.5)."""
    cluster = led(THREE, "crash 3", "propose 1 a", "propose 1 b", "stabilize")
    for _ in range(5):
        cluster.do("tick 1", "stabilize")
    cluster.do("restart 3", "tick 1", "stabilize", "tick 1", "stabilize")
    assert cluster.peers[3].terms() == [1, 1, 1]
    assert cluster.peers[3].commit == 3


def test_nothing_is_lost_when_all_restart() -> None:
    """Safety does not depend on timing: after a restart of all servers the committed entries are still there (5.5)."""
    cluster = led(THREE, "propose 1 a", "stabilize")
    cluster.do(*(f"crash {node}" for node in (1, 2, 3)), *(f"restart {node}" for node in (1, 2, 3)), "recover")
    assert cluster.peers[1].terms()[:2] == [1, 1]


def test_availability_needs_a_majority_only() -> None:
    """A cluster of five makes progress with any two servers down (5.6, section 2)."""
    cluster = led(FIVE, "crash 4", "crash 5", "propose 1 x", "stabilize")
    assert [cluster.peers[node].applied for node in (1, 2, 3)] == [2, 2, 2]
    cluster.do("crash 3", "propose 1 y", "stabilize")
    assert cluster.peers[1].commit == 2


# --- the properties of figure 3, and that their checks can fail


def test_the_checks_of_figure_3_can_fail() -> None:
    """A forged acknowledgement breaks commitment, and the checker says so: it is not there for show."""
    cluster = led(THREE, "propose 1 x")
    with pytest.raises(Violation):
        cluster.do("step 1 append-reply sender=2 term=1 index=2")
