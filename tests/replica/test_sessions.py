"""A retried call is applied once and gets its first answer, whatever happens in between."""

from octopii.walrus.faults import survive_none
from octopii.wire import requests
from octopii.wire.codec import CallGroup
from octopii.wire.requests import Failure, FailureKind, Propose, ProposeAnswers, SessionOpened, SessionRequest
from tests.replica.clusters import Cluster, Node

TTL = 3600 * 10**9


def open_session(cluster: Cluster, node: Node, *, nonce: bytes = b"n" * 16, ttl_ns: int = TTL) -> int:
    """Open a session through a node, and return its id."""
    reply = cluster.reply(node, SessionRequest(request_id=1, nonce=nonce, ttl_ns=ttl_ns))
    assert isinstance(reply, SessionOpened), reply
    return reply.session


def group_of(session: int, first: int, *names: bytes, acked: int = 0) -> Propose:
    """A request with one group of calls."""
    return Propose(1, CallGroup(session=session, first=first, acked=acked, commands=list(names)))


def test_opening_with_the_same_nonce_finds_the_same_session() -> None:
    """Also through another node, after a change of leader."""
    cluster = Cluster(1)
    first = open_session(cluster, cluster.nodes[1])
    cluster.reply(cluster.wait_for_leader(), requests.TransferLeader(1, cluster.followers[0].id))
    assert open_session(cluster, cluster.nodes[3]) == first
    assert open_session(cluster, cluster.nodes[2], nonce=b"m" * 16) != first


def test_a_retried_group_is_applied_once_over_leader_change_restart_and_snapshot() -> None:
    """The same numbers again, through any node, at any time: the same answers, and no second effect."""
    cluster = Cluster(2, snapshot_every_entries=5, log_keep_entries=0)
    session = open_session(cluster, cluster.nodes[1])
    request = group_of(session, 0, b"a", b"b")
    first = cluster.reply(cluster.nodes[2], request)
    assert isinstance(first, ProposeAnswers)
    assert first.answers == [b"1", b"2"]
    assert cluster.reply(cluster.nodes[3], request) == first
    cluster.reply(cluster.wait_for_leader(), requests.TransferLeader(1, cluster.followers[0].id))
    assert cluster.reply(cluster.nodes[1], request) == first
    client = cluster.client()
    for _ in range(12):
        cluster.write(client)
    for node in cluster.nodes.values():
        node.crash(survive_none)
    for node in cluster.nodes.values():
        node.start()
    cluster.wait_for_leader()
    for node in cluster.nodes.values():
        assert cluster.reply(node, request) == first
    cluster.settle()
    names = cluster.nodes[1].machine.state.names
    assert names.count(b"a") == names.count(b"b") == 1


def test_an_acknowledged_answer_is_dropped_and_a_late_copy_changes_nothing() -> None:
    """Once a client has moved on, a late copy of an old group is neither applied nor answered as new."""
    cluster = Cluster(3)
    leader = cluster.wait_for_leader()
    session = open_session(cluster, leader)
    cluster.reply(leader, group_of(session, 0, b"old"))
    cluster.reply(leader, group_of(session, 1, b"new", acked=1))
    late = cluster.reply(leader, group_of(session, 0, b"old"))
    assert isinstance(late, Failure)
    assert late.kind is FailureKind.OUTCOME_UNKNOWN
    assert leader.machine.state.names == [b"old", b"new"]
    kept = leader.applier.sessions.capture()[0].answers
    assert list(kept) == [1]


def test_groups_of_one_session_may_arrive_out_of_order() -> None:
    """A later group that overtakes does not shut out an earlier one."""
    cluster = Cluster(4)
    leader = cluster.wait_for_leader()
    session = open_session(cluster, leader)
    second = cluster.reply(leader, group_of(session, 1, b"second"))
    first = cluster.reply(leader, group_of(session, 0, b"first"))
    assert isinstance(second, ProposeAnswers)
    assert isinstance(first, ProposeAnswers)
    assert leader.machine.state.names == [b"second", b"first"]


def test_an_expired_session_refuses_a_late_retry() -> None:
    """Replicated time has passed the session's end: the retry is not applied, and the caller is told what it means."""
    cluster = Cluster(5, compact_interval=1.0)
    leader = cluster.wait_for_leader()
    session = open_session(cluster, leader, ttl_ns=2 * 10**9)
    assert isinstance(cluster.reply(leader, group_of(session, 0, b"early")), ProposeAnswers)
    cluster.world.run(6.0)
    for node in cluster.nodes.values():
        late = cluster.reply(node, group_of(session, 0, b"early"))
        assert isinstance(late, Failure)
        assert late.kind is FailureKind.SESSION_EXPIRED
    assert cluster.nodes[1].machine.state.names == [b"early"]
    assert [kept.id for kept in leader.applier.sessions.capture() if kept.id == session] == []


def test_a_session_expires_by_replicated_time_alone() -> None:
    """A leader whose wall clock goes wrong, within what is allowed, ends no session early on one replica only."""
    cluster = Cluster(6, compact_interval=0.5)
    leader = cluster.wait_for_leader()
    session = open_session(cluster, leader, ttl_ns=2 * 10**9)
    cluster.reply(leader, group_of(session, 0, b"a"))
    cluster.world.run(1.0)
    leader.wall_offset = 3.0
    cluster.world.run(2.0)
    cluster.settle()
    assert len({len(node.applier.sessions) for node in cluster.nodes.values()}) == 1


def test_a_call_under_an_unknown_session_is_never_applied() -> None:
    """Sessions exist only by a replicated open."""
    cluster = Cluster(7)
    reply = cluster.reply(cluster.nodes[1], group_of(999, 0, b"x"))
    assert isinstance(reply, Failure)
    assert reply.kind is FailureKind.SESSION_EXPIRED
    assert cluster.nodes[1].machine.state.names == []


def test_every_node_takes_calls_and_answers_them_itself() -> None:
    """A follower forwards; its client hears from it when the entry was applied there."""
    cluster = Cluster(8)
    for node_id in (1, 2, 3):
        client = cluster.client(at=node_id)
        cluster.write(client, 5)
    cluster.recover()
    cluster.check()


def test_the_bookkeeping_of_calls_returns_to_nothing() -> None:
    """After retries, forwards and lost connections no call is counted as waiting for ever."""
    cluster = Cluster(9)
    clients = [cluster.client(at=node_id) for node_id in (1, 2, 3)]
    cluster.world.weather.breaks = 0.02
    for number in range(60):
        client = clients[number % 3]
        client.propose(cluster.name(), timeout=3.0)
        if number % 7 == 0:
            client.break_link()
        if number % 20 == 10:
            cluster.request(cluster.nodes[1], requests.TransferLeader(1, 1 + number % 3))
        cluster.world.run(0.02)
    cluster.recover()
    cluster.world.run(1.0)
    for node in cluster.nodes.values():
        calls = node.replica.calls
        assert (calls._waiting, calls._waiting_calls, calls._waiting_bytes) == ({}, 0, 0)
        assert (calls._forwards, calls._queue, calls._queue_bytes) == ({}, [], 0)
        assert node.replica.reads._pending == 0
    cluster.check()
