"""Which node a client talks to, and how long it waits before it tries another."""

import random

import pytest

from octopii.errors import BadCertificate, NoLeader
from octopii.wire.call import CallLimits, CallMachine, Fail
from octopii.wire.links import Connect, LinkLimits, Links
from octopii.wire.requests import Consistency, LeaderHint
from tests.wire.model_cluster import Faults, cluster, silent


@pytest.mark.parametrize("seed", range(6))
def test_the_client_moves_to_the_leader(seed: int) -> None:
    """Wherever it dials first, its later calls go straight to the leader, and the first link is closed."""
    model = cluster(seed=seed)
    model.leader = 2
    for turn in range(3):
        model.machine.propose([b"x"], deadline=10.0)
        model.run(float(turn + 1))
    assert model.sent[-1][0] == "n2"
    assert list(model._links) == ["n2"]


def test_a_leader_that_cannot_be_reached_costs_nothing() -> None:
    """A hint to an address that does not answer leaves the link in use as it is."""
    model = cluster(addresses=["n1"])
    model.machine.propose([b"x"], deadline=10.0)
    model.run(1.0)
    model.faults = Faults(no_dial=1.0)
    model.reply("n1", LeaderHint(3, "n3"))
    calls = []
    for turn in range(1, 9):
        calls.append(model.machine.propose([b"y"], deadline=10.0))
        model.reply("n1", LeaderHint(3, "n3"))
        model.run(1.0 + turn / 2)
    assert all(model.outcomes[call] == [b"ok:y"] for call in calls)
    assert {address for address, _ in model.sent} == {"n1"}
    assert model.dials["n3"] == 1, "an address that could not be reached is left alone for a while"


def test_the_link_in_use_stays_while_the_leader_is_dialled() -> None:
    """Requests that are outstanding on the old link are still answered on it."""
    model = silent()
    model.leader = 0
    call = model.machine.query([b"q"], consistency=Consistency.STALE, deadline=5.0, now=0.0)
    model.run(0.2)
    address, request = model.sent[-1]
    leader = 1 + model.node_of(address) % 3
    model.reply(address, LeaderHint(leader, model.address_of(leader)))
    model.run(0.4)
    assert set(model._links) == {address, model.address_of(leader)}
    model.leader = leader
    model._committed(address, request)
    model.run(0.6)
    assert model.outcomes == {call: [b"answer"]}
    assert set(model._links) == {model.address_of(leader)}


def test_no_leader_is_tried_again_until_there_is_one() -> None:
    """A call waits through an election, with delays that grow, and asks more than one node."""
    model = cluster()
    model.leader = 0
    call = model.machine.propose([b"x"], deadline=20.0)
    model.run(4.0)
    asked = [address for address, _ in model.sent]
    assert 4 <= len(asked) <= 20
    assert len(set(asked)) == 3
    model.leader = 2
    model.run(8.0)
    assert model.outcomes == {call: [b"ok:x"]}


def test_all_nodes_down_is_not_a_busy_loop() -> None:
    """Dialling slows down to the longest delay, and the call ends as not applied."""
    model = cluster()
    model.faults = Faults(no_dial=1.0)
    call = model.machine.propose([b"x"], deadline=60.0)
    model.run(61.0)
    assert isinstance(model.outcomes[call], NoLeader)
    assert model._count < 61 / 2.0 * 2 + 30


def test_a_node_that_never_finishes_the_handshake_is_given_up() -> None:
    """A dial has a time limit of its own: the next address is tried."""
    model = cluster()
    first: list[str] = []
    original = model._dialled
    model._dialled = lambda address: first.append(address) if not first else original(address)  # type: ignore[method-assign]
    call = model.machine.propose([b"x"], deadline=10.0)
    model.run(3.0)
    assert model.outcomes == {call: [b"ok:x"]}


@pytest.mark.parametrize("refusing", [False, True])
def test_two_nodes_that_point_at_each_other_do_not_make_the_client_run(refusing: bool) -> None:
    """Hints are followed at a bounded rate, and do not undo the growing delays of refusals."""
    limits = LinkLimits(delay_min=0.05, delay_max=2.0)
    links = Links(["a", "b"], rng=random.Random(1), limits=limits)
    tries = moves = 0
    for step in range(10_000):
        now = step / 1000
        links.tick(now)
        links.ensure(now)
        for action in links.actions:
            if isinstance(action, Connect):
                moves += 1
                links.connected(action.address, {"a": 1, "b": 2}[action.address], now)
        links.actions = []
        if links.ready(now):
            tries += 1
            if refusing:
                links.refused(now, elsewhere=False)
            elsewhere = "b" if links.current == "a" else "a"
            links.hint({"a": 1, "b": 2}[elsewhere], elsewhere, now)
        links.close_drained(())
    assert moves <= 10 / 0.05 + 2
    if refusing:
        assert tries < 25


def test_a_node_that_keeps_to_itself_ignores_hints() -> None:
    """With `follow_leader` off, only the given address is ever dialled, and a hint ends the waiting."""
    model = cluster(
        addresses=["n1"], limits=CallLimits(links=LinkLimits(follow_leader=False, delay_min=50, delay_max=50))
    )
    model.leader = 0
    call = model.machine.propose([b"x"], deadline=60.0)
    model.run(1.0)
    model.leader = 3
    model.reply("n1", LeaderHint(3, "n3"))
    model.run(2.0)
    assert model.outcomes == {call: [b"ok:x"]}
    assert set(model._links) == {"n1"}


def test_an_error_says_of_each_address_what_was_the_matter() -> None:
    """A call that found nobody names every address that was tried, for people and as data."""
    machine = CallMachine(["a:1", "b:2"], rng=random.Random(1))
    call = machine.propose([b"x"], deadline=1.0)
    now = 0.0
    for _ in range(2):
        [dial] = machine.poll(now)
        assert isinstance(dial, Connect)
        machine.disconnected(dial.address, now=now, why=f"no answer of {dial.address}")
        now = machine.next_wake(now) or 1.0
    machine.tick(1.0)
    [failed] = [action for action in machine.poll(1.0) if isinstance(action, Fail)]
    assert failed.call_id == call
    assert isinstance(failed.error, NoLeader)
    assert failed.error.unreachable == {"a:1": "no answer of a:1", "b:2": "no answer of b:2"}
    assert "a:1: no answer of a:1" in str(failed.error)


def _turned_away(machine: CallMachine, *, times: int, patience: float) -> tuple[list[Fail], float]:
    """Have every dial be refused for the certificate's sake; returns what failed, and when."""
    now, refused = 0.0, 0
    while now < patience:
        failed = []
        while actions := machine.poll(now):
            failed += [action for action in actions if isinstance(action, Fail)]
            for address in [action.address for action in actions if isinstance(action, Connect)]:
                error = BadCertificate("not this one") if refused < times else None
                refused += error is not None
                machine.disconnected(address, now=now, why="gone", refusal=error)
        if failed:
            return failed, now
        now = min(machine.next_wake(now) or patience, patience)
        machine.tick(now)
    return [action for action in machine.poll(now) if isinstance(action, Fail)], now


def test_a_client_that_every_node_turns_away_gives_up_at_once() -> None:
    """Refused by each address some times in a row, it raises the refusal long before its deadline."""
    machine = CallMachine(["a:1", "b:2"], rng=random.Random(1))
    calls = [machine.propose([b"x"], deadline=60.0) for _ in range(2)]
    failed, now = _turned_away(machine, times=100, patience=60.0)
    assert [one.call_id for one in failed] == calls
    assert all(isinstance(one.error, BadCertificate) for one in failed)
    assert failed[0].error is not failed[1].error
    assert now < 5.0


def test_one_refusal_is_no_reason_to_give_up() -> None:
    """What looked like a refusal may have been a node that stopped: the call goes on until its deadline."""
    machine = CallMachine(["a:1", "b:2"], rng=random.Random(1))
    machine.propose([b"x"], deadline=20.0)
    failed, now = _turned_away(machine, times=3, patience=20.0)
    assert now == 20.0
    assert isinstance(failed[0].error, NoLeader)


def test_who_is_not_patient_dials_each_address_once() -> None:
    """Without patience a call fails as soon as no address could be reached."""
    limits = CallLimits(links=LinkLimits(patient=False))
    machine = CallMachine(["a:1", "b:2"], rng=random.Random(1), limits=limits)
    machine.query([b"x"], consistency=Consistency.STALE, deadline=20.0, now=0.0)
    failed, now = _turned_away(machine, times=0, patience=20.0)
    assert isinstance(failed[0].error, NoLeader)
    assert now < 1.0
