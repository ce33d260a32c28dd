"""A node in which something breaks that must not: it ends with a clear error, and nobody waits for it in vain."""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octopii import BlockingNode, Client, NoLeader, NotApplied, OctopiiNode, OutcomeUnknown, ShuttingDown
from octopii.node.engine import Engine, clock
from octopii.wire.codec import Compact
from tests.node.cluster import Cluster, patience, until
from tests.node.test_calls import Gate


class Broken(Exception):
    """What no code of ours raises."""


def _boom(*_arguments: Any, **_named: Any) -> Any:
    raise Broken("the dynamo is on fire")


def _break_tick(engine: Engine) -> None:
    engine.replica.tick = _boom  # type: ignore[method-assign]


def _break_job_results(engine: Engine) -> None:
    engine.replica.job_done = _boom  # type: ignore[method-assign]


def _break_polling(engine: Engine) -> None:
    engine.replica.poll = _boom  # type: ignore[method-assign]


def _break_applier(engine: Engine) -> None:
    engine._apply._applier.run = _boom  # type: ignore[method-assign]


def _break_requests(engine: Engine) -> None:
    engine.replica.request = _boom  # type: ignore[method-assign]


def _break_syncs(engine: Engine) -> None:
    engine.replica.sync_done = _boom  # type: ignore[method-assign]


BREAKS: dict[str, Callable[[Engine], None]] = {
    "a tick": _break_tick,
    "a job's result": _break_job_results,
    "a turn": _break_polling,
    "the apply thread": _break_applier,
    "a client's request": _break_requests,
    "a finished sync": _break_syncs,
}

NEED_APPLY = ("a job's result", "the apply thread")
"""What breaks only once the apply thread goes on; by then the call that it was busy with may have its answer."""


@pytest.mark.parametrize("where", BREAKS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_node_s_own_ends_it_with_a_clear_error(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks: the node says so once, what is in the log ends as unknown, later calls as not applied, at once.

    Shutting down still works, and the same folder starts again with what was acknowledged.
    """

    async def play() -> None:
        cluster = Cluster(tmp_path, 1)
        machine = Gate()
        # A long election timeout, so that the call that is held is not sent again meanwhile.
        node = OctopiiNode(cluster.config(1, election_timeout=10.0), machine)
        await node.start()
        assert await node.propose(b"x", timeout=patience) == b"1"
        held = asyncio.create_task(node.propose(b"hold", timeout=patience))
        await until(machine.entered.is_set, "apply has the command")
        loop = asyncio.get_running_loop()
        engine = node._host.engine
        engine._from_thread(lambda: BREAKS[where](engine))
        if where in NEED_APPLY:
            machine.gate.set()
        began = loop.time()
        if where == "a client's request":
            async with Client(node.address) as client:
                with pytest.raises((NotApplied, OutcomeUnknown)):
                    await client.propose(b"y", timeout=1.0)
            await until(lambda: node.failure is not None, "the node has failed", 5.0)
        later = asyncio.create_task(node.propose(b"y", timeout=patience))
        await until(lambda: node.failure is not None, "the node has failed")
        [ended] = await asyncio.gather(later, return_exceptions=True)
        assert isinstance(ended, OutcomeUnknown | ShuttingDown)
        assert "dynamo" in str(ended)
        [ended] = await asyncio.gather(held, return_exceptions=True)
        if where not in NEED_APPLY:
            assert isinstance(ended, OutcomeUnknown), "it is in the log"
            assert "dynamo" in str(ended)
        else:
            assert ended == b"2" or isinstance(ended, OutcomeUnknown)
        for call in (node.propose(b"x"), node.query(b""), node.read_index()):
            with pytest.raises(ShuttingDown, match="dynamo"):
                await call
        assert loop.time() - began < patience / 2
        machine.gate.set()
        await node.shutdown()
        machine = Gate()
        machine.gate.set()
        async with OctopiiNode(cluster.config(1), machine) as again:
            assert int(await again.query(b"", timeout=patience)) >= 2

    with caplog.at_level(logging.CRITICAL, "octopii"):
        asyncio.run(play())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "node 1 has failed: Broken: the dynamo is on fire" in said[0]


def test_plain_threads_are_told_as_well(tmp_path: Path) -> None:
    """A thread that waits in a blocking call when the node breaks gets its error then, not at its timeout."""
    machine = Gate()
    with BlockingNode(Cluster(tmp_path, 1).config(1), machine) as node:
        assert node.propose(b"x", timeout=patience) == b"1"
        with concurrent.futures.ThreadPoolExecutor() as pool:
            held = pool.submit(node.propose, b"hold", timeout=100.0)
            assert machine.entered.wait(patience)
            engine = node._host.engine
            engine._from_thread(lambda: _break_tick(engine))
            try:
                with pytest.raises(OutcomeUnknown, match="dynamo"):
                    held.result(patience)
            finally:
                machine.gate.set()


def test_no_sync_begins_once_a_node_is_stopping(tmp_path: Path) -> None:
    """What would be written after the last turn stays unwritten: a sync under way would outlive the closed log."""

    async def play() -> None:
        cluster = Cluster(tmp_path, 1)
        node = OctopiiNode(cluster.config(1), Gate())
        await node.start()
        assert await node.propose(b"x", timeout=patience) == b"1"
        engine = node._host.engine
        submit, stop_applying = engine._sync_threads.submit, engine._apply.stop
        syncs: list[bool] = []
        late = threading.Event()

        def count(*arguments: Any) -> None:
            syncs.append(engine._stopped)
            submit(*arguments)

        def one_more_turn() -> None:
            assert engine.replica.leadership.is_leader
            engine.replica.calls.system(Compact(), clock())
            engine.turn()
            late.set()

        def stop() -> None:
            engine._from_thread(one_more_turn)
            assert late.wait(patience)
            stop_applying()

        engine._sync_threads.submit = count  # type: ignore[method-assign,assignment]
        engine._apply.stop = stop  # type: ignore[method-assign]
        await node.shutdown()
        assert late.is_set()
        assert True not in syncs
        async with OctopiiNode(cluster.config(1), Gate()) as again:
            assert await again.query(b"", timeout=patience) == b"1"

    asyncio.run(play())


@pytest.mark.parametrize("consistency", ["linearizable", "lease"])
def test_a_query_that_finds_no_leader_in_time_says_so(tmp_path: Path, consistency: Any) -> None:
    """Without a majority a blocking query ends at its timeout with `NoLeader`; a stale one is answered."""
    cluster = Cluster(tmp_path)
    with BlockingNode(cluster.config(1), Gate()) as node:
        with pytest.raises(NoLeader):
            node.query(b"", consistency=consistency, timeout=0.3)
        assert node.query(b"", consistency="stale", timeout=patience) == b"0"
