"""Calls from any loop and thread: the same names everywhere, timeouts, cancelling, errors that say what they mean."""

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from octopii import (
    ApplyFailed,
    BlockingClient,
    BlockingNode,
    CallTimeout,
    Client,
    CommandError,
    ConfigError,
    NotApplied,
    OctopiiNode,
    OctopiiRuntime,
    OutcomeUnknown,
    ShuttingDown,
    StateMachine,
    TooLarge,
    TypedStateMachine,
    command,
)
from octopii.errors import LogInUse
from octopii.node import add_learner
from octopii.state_machine import as_bytes
from tests.node.cluster import Cluster, patience, running, term_of, until


class Gate(StateMachine):
    """Counts commands; `hold` keeps it from going on until `gate` opens."""

    def __init__(self) -> None:
        self.count = 0
        self.gate = threading.Event()
        self.entered = threading.Event()

    def apply(self, command: bytes) -> bytes:
        """Count, after waiting if told so."""
        if command == b"hold":
            self.entered.set()
            assert self.gate.wait(patience)
        self.count += 1
        return b"%d" % self.count

    def query(self, command: bytes) -> bytes:
        """The count."""
        return b"%d" % self.count

    def snapshot(self) -> bytes:
        """The count."""
        return b"%d" % self.count

    def restore(self, data: memoryview) -> None:
        """The count."""
        self.count = int(bytes(data))


class Typed(TypedStateMachine):
    """One command with an argument of any length."""

    def __init__(self) -> None:
        self.text = ""

    @command
    def put(self, text: str) -> None:
        """Keep it."""
        self.text = text


class Wide(StateMachine):
    """Answers with as many bytes as it is asked for."""

    def apply(self, command: bytes) -> bytes:
        """So many bytes."""
        if not command.isdigit():
            raise CommandError("a number of bytes")
        return b"a" * int(command)

    def query(self, command: bytes) -> bytes:
        """Likewise."""
        return b"q" * int(command)

    def snapshot(self) -> bytes:
        """There is no state."""
        return b""

    def restore(self, data: memoryview) -> None:
        """There is no state."""


def test_many_long_answers_at_once_all_arrive(tmp_path: Path) -> None:
    """More than a frame holds together; one that fits no frame by itself is an error, and harms no other."""

    async def body() -> None:
        async with running(tmp_path, 1, machine=Wide) as cluster, Client([*cluster.addresses.values()]) as client:
            for call, letter in ((client.propose, b"a"), (client.query, b"q")):
                answers = await asyncio.gather(*[call(b"%d" % (64 << 10), timeout=patience) for _ in range(400)])
                assert answers == [letter * (64 << 10)] * 400
                with pytest.raises(ApplyFailed, match="17825792 bytes"):
                    await call(b"%d" % (17 << 20), timeout=patience)

    asyncio.run(body())


def methods(kind: type) -> dict[str, Callable[..., Any]]:
    """Public methods of a class, inherited ones included."""
    return {name: value for name, value in inspect.getmembers(kind, inspect.isfunction) if name[0] != "_"}


def properties(kind: type) -> set[str]:
    """Public properties of a class."""
    return {name for name, value in inspect.getmembers(kind) if isinstance(value, property) and name[0] != "_"}


@pytest.mark.parametrize(("plain", "blocking"), [(OctopiiNode, BlockingNode), (Client, BlockingClient)])
def test_blocking_and_async_have_the_same_names_and_signatures(plain: type, blocking: type) -> None:
    """Whoever knows one of the two knows the other: same methods, arguments, defaults and results, same properties."""
    assert methods(plain).keys() == methods(blocking).keys()
    for name, method in methods(plain).items():
        assert inspect.signature(method) == inspect.signature(methods(blocking)[name]), name
        assert not inspect.iscoroutinefunction(methods(blocking)[name]), name
    assert properties(plain) == properties(blocking)


def test_nodes_and_clients_share_the_calls() -> None:
    """What a node can be asked, a client can ask, by the same name and arguments."""
    own = {"start", "shutdown"}
    for name, method in methods(OctopiiNode).items():
        if name not in own:
            assert inspect.signature(method) == inspect.signature(methods(Client)[name]), name


def test_every_call_takes_a_timeout() -> None:
    """Each call has a keyword `timeout`, None by default; `call`, whose arguments are the method's, by `options`."""
    for name, method in methods(OctopiiNode).items():
        if name not in ("start", "shutdown", "call"):
            timeout = inspect.signature(method).parameters["timeout"]
            assert timeout.kind is inspect.Parameter.KEYWORD_ONLY, name
            assert timeout.default is None, name


def test_a_call_that_takes_too_long_has_an_unknown_outcome_and_may_count(tmp_path: Path) -> None:
    """`apply` hangs: the call fails with `CallTimeout`, also a `TimeoutError`; it was in the log, and counts once."""

    async def play() -> None:
        cluster = Cluster(tmp_path, 1, machine=Gate)
        await cluster.start()
        node = await cluster.leader()
        machine = cluster.machines[1]
        assert isinstance(machine, Gate)
        assert await node.propose(b"one", timeout=patience) == b"1"
        with pytest.raises(CallTimeout) as caught:
            await node.propose(b"hold", timeout=0.3)
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, OutcomeUnknown)
        machine.gate.set()
        assert await node.query(b"", timeout=patience) == b"2"
        assert await node.propose(b"three", timeout=patience) == b"3"
        await cluster.stop()

    asyncio.run(play())


def test_a_cancelled_call_counts_at_most_once_and_harms_nobody(tmp_path: Path) -> None:
    """Cancelling leaves the outcome unknown; calls before and after it go on."""

    async def play() -> None:
        cluster = Cluster(tmp_path, 1, machine=Gate)
        await cluster.start()
        node = await cluster.leader()
        machine = cluster.machines[1]
        assert isinstance(machine, Gate)
        task = asyncio.create_task(node.propose(b"hold", timeout=patience))
        await until(machine.entered.is_set, "apply has the command")
        others = [asyncio.create_task(node.propose(b"x", timeout=patience)) for _ in range(10)]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        machine.gate.set()
        assert sorted(await asyncio.gather(*others), key=int) == [b"%d" % n for n in range(2, 12)]
        gone = asyncio.create_task(node.propose(b"x"))
        gone.cancel()  # before it has begun
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert int(await node.query(b"", timeout=patience)) == 11
        await cluster.stop()

    asyncio.run(play())


def test_calls_from_several_loops_and_threads_at_once(tmp_path: Path) -> None:
    """One cluster, asked from this loop, from loops of other threads and by clients in threads: all are answered."""

    async def play() -> None:
        async with running(tmp_path, machine=Gate) as cluster:
            node = await cluster.leader()
            nodes = list(cluster.nodes.values())

            def in_a_loop_of_its_own(number: int) -> list[bytes]:
                async def ask() -> list[bytes]:
                    return await asyncio.gather(*(nodes[number % 3].propose(b"x", timeout=patience) for _ in range(50)))

                return asyncio.run(ask())

            def with_a_client(_number: int) -> list[bytes]:
                with BlockingClient(list(cluster.addresses.values())) as client:
                    return [client.propose(b"x", timeout=patience) for _ in range(20)]

            before = int(await node.query(b"", timeout=patience))
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(6) as threads:
                elsewhere = [loop.run_in_executor(threads, in_a_loop_of_its_own, number) for number in range(3)]
                elsewhere += [loop.run_in_executor(threads, with_a_client, number) for number in range(3)]
                here = await asyncio.gather(*(node.propose(b"x", timeout=patience) for _ in range(50)))
                answers = [answer for part in await asyncio.gather(*elsewhere) for answer in part] + here
            assert len(answers) == len(set(answers)) == 3 * 50 + 3 * 20 + 50
            assert int(await node.query(b"", timeout=patience)) == before + len(answers)

    asyncio.run(play())


def test_a_program_without_asyncio(tmp_path: Path) -> None:
    """`OctopiiRuntime` gives blocking nodes that found a cluster, answer calls from threads, and end with it."""
    cluster = Cluster(tmp_path)
    before = threading.active_count()
    with OctopiiRuntime(worker_threads=2) as runtime:
        nodes = [runtime.node(cluster.config(node_id), Gate()) for node_id in cluster.addresses]
        for node in nodes:
            node.start()
        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(lambda n: nodes[n % 3].propose(b"x", timeout=patience), range(60)))
        assert sorted(map(int, answers)) == list(range(1, 61))
        assert all(node.query(b"", timeout=patience) == b"60" for node in nodes)
        assert sum(node.is_leader for node in nodes) == 1
        assert {node.id for node in nodes} == {1, 2, 3}
        assert sorted(nodes[1].conf_state.voters) == [1, 2, 3]
    assert threading.active_count() == before
    with pytest.raises(ShuttingDown):
        nodes[0].propose(b"x")


def test_blocking_calls_time_out(tmp_path: Path) -> None:
    """A blocking call returns by its timeout, with an error, although nothing in the cluster moves."""
    cluster = Cluster(tmp_path)
    with BlockingNode(cluster.config(1), Gate()) as node:
        with pytest.raises(NotApplied):
            node.propose(b"x", timeout=0.2)
        with BlockingClient(cluster.addresses[1]) as client, pytest.raises(NotApplied):
            client.propose(b"x", timeout=0.2)


def test_before_the_start_and_after_the_end_calls_are_refused(tmp_path: Path) -> None:
    """A node that does not run raises `ShuttingDown`; shutting down twice is allowed; calls under way end."""

    async def play() -> None:
        cluster = Cluster(tmp_path, 1, machine=Gate)
        machine = Gate()
        node = OctopiiNode(cluster.config(1), machine)
        with pytest.raises(ShuttingDown):
            await node.propose(b"x")
        await node.shutdown()
        await node.start()
        assert await node.propose(b"x", timeout=patience) == b"1"
        held = asyncio.create_task(node.propose(b"hold", timeout=patience))
        await until(machine.entered.is_set, "apply has the command")
        ending = asyncio.create_task(node.shutdown())
        with pytest.raises((ShuttingDown, OutcomeUnknown)):
            await held
        machine.gate.set()
        await ending
        await node.shutdown()
        for call in (node.propose(b"x"), node.query(b""), node.read_index(), node.node_status()):
            with pytest.raises(ShuttingDown):
                await call
        with pytest.raises(ShuttingDown):
            _ = node.status
        client = Client(cluster.addresses[1])
        await client.close()
        with pytest.raises(ShuttingDown):
            await client.propose(b"x")

    asyncio.run(play())


def test_what_can_be_refused_at_once_is(tmp_path: Path) -> None:
    """Too large commands, unknown consistencies, wrong types and impossible changes each have their error."""

    async def play() -> None:
        async with running(tmp_path, max_command_bytes=1000, max_batch_bytes=4000) as cluster:
            node = next(node for node in cluster.nodes.values() if not node.is_leader)
            async with Client(list(cluster.addresses.values())) as client:
                asked: tuple[OctopiiNode | Client, ...] = (node, client)
                for one in asked:
                    with pytest.raises(TooLarge):
                        await one.propose(b"SET big " + bytes(2000), timeout=patience)
                    with pytest.raises(TooLarge):
                        await one.propose_batch([b"SET big " + bytes(900)] * 10, timeout=patience)
                    with pytest.raises(ValueError, match="consistency"):
                        await one.query(b"GET a", consistency="eventual")  # type: ignore[arg-type]
                    with pytest.raises(TypeError):
                        await one.propose(5)  # type: ignore[arg-type]
                    with pytest.raises(CommandError):
                        await one.propose(b"NONSENSE", timeout=patience)
                    with pytest.raises(ConfigError):
                        await one.promote_learner(9, timeout=patience)
                    with pytest.raises(ConfigError):
                        await one.change_membership([add_learner(2, "127.0.0.1:1")], timeout=patience)
                    assert await one.propose(b"SET small yes", timeout=patience) == b"OK"
                    assert await one.propose_batch([], timeout=patience) == []
                    together = [one.propose(b"SET big " + bytes(900), timeout=patience) for _ in range(20)]
                    assert await asyncio.gather(*together) == [b"OK"] * 20

    asyncio.run(play())


@pytest.mark.parametrize(("timeout", "error"), [("5", TypeError), (True, TypeError), (float("nan"), ValueError)])
def test_a_timeout_that_is_no_number_is_refused_and_harms_nobody(
    tmp_path: Path, timeout: Any, error: type[Exception]
) -> None:
    """It is an error of that call alone: those beside it, of a node or a client, go on."""

    async def ask(calls: OctopiiNode | Client) -> None:
        wrong = [calls.propose(b"x", timeout=timeout), calls.query(b"", timeout=timeout)]
        right = calls.propose(b"x", timeout=patience)
        *refused, answer = await asyncio.gather(*wrong, right, return_exceptions=True)
        with pytest.raises(error):
            await calls.read_index(timeout=timeout)
        assert [type(each) for each in refused] == [error] * 2
        assert isinstance(answer, bytes)

    async def main() -> None:
        async with running(tmp_path, 1, machine=Gate) as cluster:
            node = await cluster.leader()
            await ask(node)
            async with Client(node.address) as client:
                await ask(client)
            with BlockingClient(node.address) as plain, pytest.raises(error):
                plain.propose(b"x", timeout=timeout)
            assert node.failure is None

    asyncio.run(main())


def test_what_fits_no_frame_is_too_large_at_once_from_clients(tmp_path: Path) -> None:
    """No node could read it, so the client says so before it sends it; the connection and other calls live on."""
    big = bytes(20_000_000)

    async def play() -> None:
        async with running(tmp_path) as cluster, Client(list(cluster.addresses.values())) as client:
            assert await client.propose(b"SET a 1", timeout=patience) == b"OK"
            for call in (
                client.propose(big, timeout=patience),
                client.query(b"GET " + big, timeout=patience),
                client.call(Typed.put.options(timeout=patience), big.decode()),
                client.propose_batch([bytes(1_000_000)] * 17, timeout=patience),
            ):
                beside = asyncio.ensure_future(client.propose(b"SET b 2", timeout=patience))
                with pytest.raises(TooLarge, match="max_frame_bytes = 16777216"):
                    await call
                assert await beside == b"OK"

            def block() -> None:
                with BlockingClient(list(cluster.addresses.values())) as client:
                    with pytest.raises(TooLarge):
                        client.propose(big, timeout=patience)
                    with pytest.raises(TooLarge):
                        client.propose_batch([bytes(1_000_000)] * 17, timeout=patience)
                    with pytest.raises(TooLarge):
                        client.query(big, timeout=patience)

            await asyncio.to_thread(block)

    asyncio.run(play())


def test_a_port_or_folder_in_use_is_an_error_of_the_start(tmp_path: Path) -> None:
    """The second node on a port gets `OSError`, in a folder `LogInUse`; the first goes on, and nothing is left over."""

    async def play() -> None:
        cluster = Cluster(tmp_path, 1)
        await cluster.start()
        node = await cluster.leader()
        await node.propose(b"SET a 1", timeout=patience)
        threads = threading.active_count()
        with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
            await OctopiiNode(cluster.config(1, wal_dir=str(tmp_path / "other")), Gate()).start()
        with pytest.raises(LogInUse):
            await OctopiiNode(cluster.config(1, bind_addr="127.0.0.1:0"), Gate()).start()
        await until(lambda: threading.active_count() == threads, "the failed nodes' threads end")
        assert await node.query(b"GET a", timeout=patience) == b"1"
        await cluster.stop()

    asyncio.run(play())


def test_leadership_moves_when_told_to(tmp_path: Path) -> None:
    """`transfer_leader` on any node returns when the other leads; `campaign` does not depose a healthy leader."""

    async def play() -> None:
        async with running(tmp_path) as cluster:
            old = await cluster.leader()
            new, third = (node for node in cluster.nodes.values() if node.id != old.id)
            await third.transfer_leader(new.id, timeout=patience)
            await until(lambda: new.is_leader and not old.is_leader, "the other leads")
            await old.transfer_leader(old.id, timeout=patience)
            await until(lambda: old.is_leader, "and back")

            with pytest.raises(NotApplied):
                await third.transfer_leader(77, timeout=patience)
            term = term_of(old)
            await third.campaign(timeout=patience)
            await old.propose(b"SET still leading", timeout=patience)
            assert old.is_leader
            assert term_of(old) == term

    asyncio.run(play())


def test_a_subclass_of_bytes_is_a_command_like_any_other() -> None:
    """The codec takes plain bytes alone, so whatever else is a command is made into that before it is sent."""

    class Tagged(bytes):
        pass

    for given in (Tagged(b"x"), bytearray(b"x"), memoryview(b"x"), "x", b"x"):
        assert as_bytes(given) == b"x"
        assert type(as_bytes(given)) is bytes
