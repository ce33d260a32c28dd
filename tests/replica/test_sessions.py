"""A retried call is applied once and gets its first answer, whatever happens in between."""

import pytest

from octopii.replica import applier, sessions
from octopii.sim.cluster import config_of
from octopii.state_machine import StateMachine
from octopii.walrus.faults import survive_none
from octopii.wire import requests
from octopii.wire.codec import CallGroup
from octopii.wire.requests import Failure, FailureKind, Propose, ProposeAnswers, SessionOpened, SessionRequest
from tests.replica.clusters import KIB, Cluster, Node
from tests.replica.journal import Journal

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


class Echo(Journal):
    """Answers commands that begin with `big` with as many bytes as they name."""

    def apply(self, command: bytes) -> bytes:
        """Append; the answer is the position, or so many bytes."""
        answer = super().apply(command)
        return b"a" * int(command.split()[1]) if command.startswith(b"big") else answer


class Clockless(Journal):
    """A machine to which time does not matter, as long as nothing is applied."""

    compact = StateMachine.compact


def big(size: int, number: int = 0) -> bytes:
    """A command whose answer has `size` bytes."""
    return b"big %d %d" % (size, number)


def test_a_snapshot_has_room_for_all_answers_that_are_kept() -> None:
    """Sessions with more than fits a record of the log, or a frame, go with a snapshot all the same."""
    cluster = Cluster(10, machine=Echo)
    leader, away = cluster.wait_for_leader(), cluster.followers[0]
    away.crash(survive_none)
    session = open_session(cluster, leader)
    requests_made = [group_of(session, number, big(1 << 20, number)) for number in range(12)]
    answers = [cluster.reply(leader, request) for request in requests_made]
    reply = cluster.reply(leader, requests.ForceSnapshot(1))
    assert isinstance(reply, requests.Done)
    assert leader.broken is None
    away.start()
    cluster.world.run_until(lambda: away.id in leader.replica.connected)
    cluster.reply(leader, requests.ForceSnapshotToPeer(1, away.id))
    cluster.settle()
    for node in cluster.nodes.values():
        node.crash(survive_none)
        node.start()
    for request, answer in zip(requests_made, answers, strict=True):
        assert cluster.reply(cluster.wait_for_leader(), request) == answer
    cluster.settle()
    assert away.applier.sessions.capture() == leader.applier.sessions.capture()
    assert len(away.machine.state.names) == 12


def test_a_session_keeps_only_so_many_bytes_of_answers() -> None:
    """Beyond the limit a call is not applied; the same call is, once others were acknowledged."""
    cluster = Cluster(11, machine=Echo)
    leader = cluster.wait_for_leader()
    session = open_session(cluster, leader)
    half = applier.max_session_bytes // 2
    for number in (0, 1):
        assert isinstance(cluster.reply(leader, group_of(session, number, big(half, number))), ProposeAnswers)
    refused = cluster.reply(leader, group_of(session, 2, b"c"))
    assert isinstance(refused, Failure)
    assert (refused.kind, refused.detail) == (FailureKind.OVERLOADED, requests.KEPT_ANSWERS)
    assert b"c" not in leader.machine.state.names
    assert cluster.reply(leader, group_of(session, 2, b"c", acked=1)) == ProposeAnswers(1, [b"3"])
    cluster.settle()
    (kept,) = leader.applier.sessions.capture()
    assert list(kept.answers) == [1, 2]
    assert kept.kept_bytes == leader.applier.sessions.kept_bytes == half + 1 + 2 * sessions.answer_overhead_bytes
    cluster.reply(leader, requests.SessionEnd(1, session))
    cluster.write(cluster.client())
    assert leader.applier.sessions.kept_bytes < 1000


def test_the_call_that_a_client_waits_for_first_always_goes() -> None:
    """It arrives late, and answers of later calls have filled the session: refused, it would be in its own way."""
    cluster = Cluster(12, machine=Echo)
    leader = cluster.wait_for_leader()
    session = open_session(cluster, leader)
    assert isinstance(cluster.reply(leader, group_of(session, 1, big(applier.max_session_bytes))), ProposeAnswers)
    assert isinstance(cluster.reply(leader, group_of(session, 2, b"c")), Failure)
    assert cluster.reply(leader, group_of(session, 0, b"a")) == ProposeAnswers(1, [b"2"])


def test_a_client_whose_answers_fill_its_session_waits_and_gets_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fails: calls go on as answers are acknowledged, each is applied once, and no more is kept than may be."""
    monkeypatch.setattr(applier, "max_session_bytes", 100 * KIB)
    cluster = Cluster(13, machine=Echo)
    client = cluster.client()
    cluster.write(client)
    asked = [client.propose(big(10 * KIB, number), timeout=60.0) for number in range(100)]
    most = 0
    while not all(each.done for each in asked):
        cluster.world.step()
        most = max(most, *(node.applier.sessions.kept_bytes for node in cluster.nodes.values()))
    assert all(each.error is None for each in asked)
    assert most >= 100 * KIB, "the limit was reached"
    names = cluster.wait_for_leader().machine.state.names
    assert sorted(names) == sorted({*names})
    assert len(names) == 101
    cluster.recover()


def test_sessions_that_are_idle_for_longest_end_when_all_keep_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit over all sessions holds on every replica alike; who is idle goes on under a fresh session."""
    monkeypatch.setattr(applier, "max_kept_bytes", 100 * KIB)
    cluster = Cluster(14, machine=Echo)
    clients = [cluster.client() for _ in range(20)]
    for number, client in enumerate(clients):
        asked = client.propose(big(10 * KIB, number))
        cluster.wait(asked)
        assert asked.error is None
        table = cluster.wait_for_leader().applier.sessions
        assert table.kept_bytes <= 100 * KIB
    cluster.settle()
    assert len(table) < 12
    assert (
        len({tuple(session.id for session in node.applier.sessions.capture()) for node in cluster.nodes.values()}) == 1
    )
    for client in clients:
        cluster.write(client)
    cluster.recover()


def test_calls_of_one_session_under_way_are_bounded_in_bytes() -> None:
    """A client that heeds no window is refused before the log; what it sent before is applied all the same."""
    cluster = Cluster(15, max_batch_bytes=4 * KIB, session_window_bytes=8 * KIB, max_command_bytes=4 * KIB)
    leader = cluster.wait_for_leader()
    session = open_session(cluster, leader)
    replies = [cluster.request(leader, group_of(session, number, b"%04d" % number * 500)) for number in range(10)]
    assert cluster.request(leader, group_of(session, 0, b"0000" * 500)) == []
    cluster.world.run(1.0)
    refused = [number for number, (reply,) in enumerate(replies) if isinstance(reply, Failure)]
    assert refused in (list(range(4, 10)), list(range(3, 10)))
    assert all(reply.detail == "session_window_bytes" for (reply,) in replies if isinstance(reply, Failure))
    cluster.settle()
    assert len(leader.machine.state.names) == 10 - len(refused)
    assert isinstance(cluster.reply(leader, group_of(session, 9, b"x")), ProposeAnswers)


def open_many(cluster: Cluster, node: Node, count: int) -> list[requests.Reply]:
    """Ask for many sessions at once."""
    replies = [
        cluster.request(node, SessionRequest(request_id=1, nonce=b"%016d" % number, ttl_ns=TTL))
        for number in range(count)
    ]
    cluster.world.run_until(lambda: all(replies), what="all are answered")
    return [reply for (reply,) in replies]


@pytest.mark.parametrize("at_leader", [True, False])
def test_no_more_sessions_enter_the_log_than_the_leader_may_have(at_leader: bool) -> None:
    """Also when many are asked for at once, through any node; `Overloaded` names the limit, and calls go on."""
    cluster = Cluster(16, max_sessions=5)
    leader = cluster.wait_for_leader()
    node = leader if at_leader else cluster.followers[0]
    before = leader.replica.store.last_index()
    opened: list[requests.Reply] = []
    refused: list[requests.Reply] = []
    for reply in open_many(cluster, node, 40):
        (opened if isinstance(reply, SessionOpened) else refused).append(reply)
    assert len(opened) == 5
    assert all(isinstance(reply, Failure) and reply.detail == "max_sessions" for reply in refused)
    assert leader.replica.store.last_index() - before == 5
    session = opened[0]
    assert isinstance(session, SessionOpened)
    assert isinstance(cluster.reply(node, group_of(session.session, 0, b"a")), ProposeAnswers)


def test_a_leader_with_other_limits_than_its_followers_splits_nothing() -> None:
    """`max_sessions` is the leader's own business: what is in the log is applied everywhere alike."""
    cluster = Cluster(17, start=False)
    for node in cluster.nodes.values():
        node.config = config_of(node.id, 3, max_sessions=2 + 3 * node.id)
    cluster.start()
    for node in cluster.nodes.values():
        open_many(cluster, node, 12)
    cluster.settle()
    tables = [node.applier.sessions.capture() for node in cluster.nodes.values()]
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) <= 2 + 3 * cluster.wait_for_leader().id


def test_expired_sessions_make_room_for_new_ones() -> None:
    """A full table is no dead end: a leader that refuses has expired sessions ended, also in an idle cluster."""
    cluster = Cluster(18, max_sessions=3, compact_interval=1.0, machine=Clockless)
    leader = cluster.wait_for_leader()
    for number in range(3):
        open_session(cluster, leader, nonce=b"%016d" % number, ttl_ns=10**9)
    cluster.world.run(3.0)
    assert len(leader.applier.sessions) == 3
    assert isinstance(cluster.reply(leader, SessionRequest(request_id=1, nonce=b"late", ttl_ns=TTL)), Failure)
    cluster.world.run(1.5)
    assert isinstance(cluster.reply(leader, SessionRequest(request_id=1, nonce=b"late", ttl_ns=TTL)), SessionOpened)
