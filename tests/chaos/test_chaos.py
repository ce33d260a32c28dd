"""A short piece of chaos on real processes, and that its judge would notice."""

import asyncio
import random
from typing import cast

import pytest

from octopii import Client, CommandError
from octopii.sim import Operation, Outcome, check_history
from tests.chaos.clients import Recorder, Workload
from tests.chaos.machine import chaos_model
from tests.chaos.nemesis import Fault
from tests.chaos.proxy import ProxyNetwork
from tests.chaos.report import Report, longest_gap
from tests.chaos.run import chaos

SHORT = ("kill the leader", "partition: leader alone", "partition: one way", "pause", "membership")


@pytest.mark.timeout(300)
def test_a_short_run_loses_nothing_and_is_linearizable() -> None:
    """Three processes behind the proxy go through crashes, cuts, a pause and a change of members."""
    said: list[str] = []
    report = asyncio.run(chaos(nodes=3, minutes=0.2, seed=4, namespaces=False, rate=100.0, say=said.append, only=SHORT))
    assert report.passed, report.text() + "\n" + "\n".join(said)
    assert report.verdict is not None
    assert report.verdict.ordered == report.verdict.operations > 50
    assert report.faults
    assert f"seed {report.seed}" in report.text()


def test_a_cut_holds_what_one_node_says_to_another_and_nothing_else() -> None:
    """A direction that is cut passes nothing until it heals; the other direction, and clients, pass all the time."""

    async def play() -> None:
        network = ProxyNetwork(random.Random(1))
        await network.cut(1, 2)
        assert not network._link(1, 2).open.is_set()
        assert network._link(2, 1).open.is_set()
        waiting = asyncio.ensure_future(network._weather(network._link(1, 2)))
        await asyncio.wait_for(network._weather(network._link(2, 1)), 1.0)
        assert not waiting.done()
        await network.heal()
        await asyncio.wait_for(waiting, 1.0)

    asyncio.run(play())


class Lies:
    """Answers of a cluster that has counted wrongly, in place of a client."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers

    async def query(self, request: bytes, *, timeout: float) -> bytes:
        if request not in self._answers:
            raise CommandError("task not found")
        return self._answers[request]


@pytest.mark.parametrize(
    ("value", "payloads", "wrong"),
    [
        (b"2", [b"p1"], []),
        (b"3", [b"p1", b"p2"], []),
        (b"1", [b"p1"], ["counter c is b'1'"]),
        (b"4", [b"p1"], ["counter c is b'4'"]),
        (b"2", [], ["b'p1' is lost"]),
        (b"2", [b"p1", b"p1"], ["b'p1' is there 2 times"]),
        (b"2", [b"p1", b"p3"], ["b'p3' was never submitted"]),
    ],
)
def test_what_was_not_applied_exactly_once_is_counted(value: bytes, payloads: list[bytes], wrong: list[str]) -> None:
    """Two additions were answered and one is unknown, one task was accepted and one is unknown: only that fits."""
    recorder = Recorder()
    for request, returned in ((b"counter:INC c", 1.0), (b"counter:INC c", 1.0), (b"counter:INC c", None)):
        recorder.history.append(Operation(client=1, invoked=0.0, returned=returned, request=request))
    for payload, returned in ((b"p1", 1.0), (b"p2", None)):
        request = b"queue-0:SUBMIT\t" + payload
        recorder.history.append(Operation(client=1, invoked=0.0, returned=returned, request=request))
    answers = {b"counter:GET c": value}
    for task, payload in enumerate(payloads, 1):
        answers[b"queue-0:STATUS\t%d" % task] = b'{"id":%d,"payload":"%b"}' % (task, payload)
    workload = Workload(recorder, random.Random(1), list)
    found = asyncio.run(workload.read_everything(cast(Client, Lies(answers))))
    assert len(found) == len(wrong), found
    assert all(expected in text for expected, text in zip(wrong, found)), found


def test_a_report_says_what_was_found() -> None:
    """A history that is not linearizable fails a run, and so does a problem of any other kind."""
    stale = [
        Operation(client=1, invoked=0.0, returned=1.0, request=b"kv:SET x 1", answer=b"OK"),
        Operation(client=2, invoked=2.0, returned=3.0, request=b"kv:GET x", answer=b"NOT_FOUND"),
    ]
    verdict = check_history(stale, chaos_model())
    assert verdict.outcome is Outcome.VIOLATION
    bad = Report(nodes=3, network="none", seed=1, minutes=1.0, verdict=verdict)
    assert not bad.passed
    assert "GET x" in bad.text()
    good = Report(nodes=3, network="none", seed=1, minutes=1.0, verdict=check_history(stale[:1], chaos_model()))
    assert good.passed
    good.problems.append("something is lost")
    assert not good.passed
    assert "something is lost" in good.text()


def test_the_time_without_a_write_is_that_around_a_fault() -> None:
    """It counts from the last write before the fault to the first one after it, and no other pause."""
    fault = Fault("kill one", "node 1", began=10.0, healed=12.0, recovered=12.5)
    assert longest_gap([1.0, 9.9, 10.1, 12.5, 30.0], fault) == pytest.approx(2.4)
    assert longest_gap([1.0, 9.0, 12.5, 30.0], fault) == pytest.approx(3.5)
