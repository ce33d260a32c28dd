"""`call`: a method of a typed machine, from clients and nodes, with its types and its errors."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import pytest

from octopii import (
    BlockingClient,
    Client,
    CommandError,
    OctopiiError,
    OctopiiNode,
    OctopiiRuntime,
    TypedStateMachine,
    command,
    query,
)
from tests.node.cluster import Cluster, patience, running


class OutOfStock(CommandError):
    def __init__(self, sku: str, left: int) -> None:
        super().__init__(f"only {left} of {sku} are left")
        self.sku, self.left = sku, left


class Inventory(TypedStateMachine):
    errors = (OutOfStock,)

    def __init__(self) -> None:
        self.stock: dict[str, int] = {}

    @command
    def add(self, sku: str, n: int = 1) -> int:
        self.stock[sku] = self.stock.get(sku, 0) + n
        return self.stock[sku]

    @command
    def reserve(self, sku: str, n: int) -> int:
        left = self.stock.get(sku, 0)
        if left < n:
            raise OutOfStock(sku, left)
        self.stock[sku] = left - n
        return self.stock[sku]

    @query
    def available(self, sku: str) -> int | None:
        if not sku:
            raise OutOfStock(sku, 0)
        return self.stock.get(sku)


if TYPE_CHECKING:

    async def refused_by_mypy(at: OctopiiNode | Client, blocking: BlockingClient) -> None:
        """What type checkers find: each comment would be an error if it were not needed."""
        await at.call(Inventory.reserve, "apple", "3")  # type: ignore[arg-type]
        await at.call(Inventory.reserve, "apple")  # type: ignore[call-arg]
        await at.call(Inventory.reserve, "apple", 3, much=1)  # type: ignore[call-arg]
        await at.call(b"reserve apple 3")  # type: ignore[arg-type]
        text: str = await at.call(Inventory.reserve, "apple", 3)  # type: ignore[arg-type]
        text = blocking.call(Inventory.reserve, "apple", n=3)  # type: ignore[assignment]
        Inventory.reserve.encode("apple", None)  # type: ignore[arg-type]
        Inventory().reserve(3, text)  # type: ignore[arg-type]


async def check(at: OctopiiNode | Client, name: str) -> None:
    """Calls, queries and refusals, of things of this name."""
    assert_type(await at.call(Inventory.add, name, n=5), int)
    assert_type(await at.call(Inventory.available, name), int | None)
    assert await at.call(Inventory.reserve, name, 3) == 2
    assert await at.call(Inventory.available, name) == 2
    assert await at.call(Inventory.available.options(consistency="lease", timeout=patience), name) == 2
    assert await at.call(Inventory.available.options(consistency="stale"), name) is not None
    with pytest.raises(OutOfStock) as refused:
        await at.call(Inventory.reserve, name, 3)
    assert (refused.value.sku, refused.value.left, str(refused.value)) == (name, 2, f"only 2 of {name} are left")
    with pytest.raises(OutOfStock):
        await at.call(Inventory.available, "")


def test_calls_of_nodes_and_clients_have_types_and_errors(tmp_path: Path) -> None:
    """The result is the method's, a declared error arrives as itself, from the leader, a follower and a client."""

    async def play() -> None:
        async with running(tmp_path, machine=Inventory) as cluster:
            for node_id, node in cluster.nodes.items():
                await check(node, f"node {node_id}")
            async with Client(list(cluster.addresses.values())) as client:
                await check(client, "client")

    asyncio.run(play())


def test_wrong_arguments_fail_at_the_caller(tmp_path: Path) -> None:
    """They raise `TypeError`, and no entry is written; nor for what is no method of a class."""

    async def play() -> None:
        async with running(tmp_path, 1, machine=Inventory) as cluster:
            node: Any = cluster.nodes[1]
            await node.call(Inventory.add, "apple")
            before = node.status["last_index"]
            for arguments in [(), (1,), ("apple", "x"), ("apple", 1, 2), (b"\xff",)]:
                with pytest.raises(TypeError):
                    await node.call(Inventory.add, *arguments)
            wrong: list[dict[str, Any]] = [{"much": 1}, {"n": 1.5}, {"n": None}]
            for keywords in wrong:
                with pytest.raises(TypeError):
                    await node.call(Inventory.add, "apple", **keywords)
            for unfit in (b"add", "add", Inventory().add, Inventory):
                with pytest.raises(TypeError, match=r"call takes a @command or a @query of a class"):
                    await node.call(unfit, "apple")
            assert node.status["last_index"] == before
            assert await node.call(Inventory.add, "apple") == 2

    asyncio.run(play())


class OtherInventory(TypedStateMachine):
    """What another version of the program says the same command returns."""

    @command
    def add(self, sku: str, n: int = 1) -> str:
        return sku * n


def test_an_answer_of_another_type_says_so(tmp_path: Path) -> None:
    """The caller learns that the command was applied, and not a codec's words alone."""

    async def play() -> None:
        async with running(tmp_path, 1, machine=Inventory) as cluster:
            with pytest.raises(OctopiiError, match="add was applied, and its answer does not fit"):
                await cluster.nodes[1].call(OtherInventory.add, "apple", 3)
            assert await cluster.nodes[1].call(Inventory.available, "apple") == 3

    asyncio.run(play())


def test_calls_of_programs_without_asyncio(tmp_path: Path) -> None:
    """`BlockingNode` and `BlockingClient` have the same `call`, without await."""
    cluster = Cluster(tmp_path, 1)
    with OctopiiRuntime() as runtime:
        node = runtime.node(cluster.config(1), Inventory())
        node.start()
        with BlockingClient(cluster.addresses[1]) as client:
            for at in (node, client):
                assert_type(at.call(Inventory.add, "apple", 2), int)
                assert_type(at.call(Inventory.available, "apple"), int | None)
                with pytest.raises(OutOfStock) as refused:
                    at.call(Inventory.reserve, "apple", 100)
                assert refused.value.sku == "apple"
            assert client.call(Inventory.available.options(consistency="stale", timeout=patience), "apple") == 4
