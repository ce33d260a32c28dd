"""A rolling upgrade over real nodes, as an operator does it: one node after the other, while clients go on."""

import asyncio
from pathlib import Path

import pytest

from octopii import Client, TypedStateMachine, VersionNotActive, command
from tests.node.cluster import eventually, patience, running


class Counter(TypedStateMachine):
    def __init__(self) -> None:
        self.total: int = 0

    @command
    def add(self, n: int) -> int:
        self.total += n
        return self.total


class CounterTwo(Counter):
    def __init__(self) -> None:
        super().__init__()
        self.resets: int = 0

    @command(since=2)
    def reset(self) -> int:
        self.total = 0
        self.resets += 1
        return self.resets


def test_a_rolling_upgrade_of_real_nodes(tmp_path: Path) -> None:
    """The new command is refused until the last node runs the new program, and the old ones work all the time."""

    async def play() -> None:
        async with running(tmp_path, machine=Counter) as cluster:
            async with Client(list(cluster.addresses.values()), timeout=patience) as client:
                for node_id in list(cluster.nodes):
                    with pytest.raises(VersionNotActive) as refused:
                        await client.call(CounterTwo.reset)
                    assert (refused.value.needed, refused.value.active) == (2, 1)
                    await client.call(Counter.add, 1)
                    await cluster.stop(node_id)
                    cluster.machine = CounterTwo
                    await cluster.start(node_id)
                    await cluster.agree()

                async def works() -> bool:
                    return await client.call(CounterTwo.reset.options(timeout=patience)) >= 1

                await eventually(works, "the version is raised")
                assert await client.call(Counter.add, 1) == 1
                await cluster.agree()
                for node in cluster.nodes.values():
                    assert node.status["machine"]["active_version"] == 2
                    assert node.status["failure"] is None

    asyncio.run(play())


def test_one_node_runs_its_newest_version_from_the_first_call(tmp_path: Path) -> None:
    """Nobody has to wait, or to try again, for the version of a cluster whose programs are all new."""

    async def play() -> None:
        async with running(tmp_path, 1, machine=CounterTwo) as cluster:
            assert await cluster.nodes[1].call(CounterTwo.reset) == 1
            await cluster.stop(1)
            await cluster.start(1)
            assert await cluster.nodes[1].call(CounterTwo.reset) == 2
            assert await cluster.nodes[1].propose(CounterTwo.reset.encode(), since=2) is not None
            assert len(await cluster.nodes[1].propose_batch([CounterTwo.reset.encode()] * 2, since=2)) == 2
            for since in (0, "2"):
                with pytest.raises(ValueError, match="since is a version"):
                    await cluster.nodes[1].propose(b"", since=since)  # type: ignore[arg-type]

    asyncio.run(play())
