"""A replica that comes apart from the others, among real nodes."""

import asyncio
import random
import threading
from pathlib import Path

import pytest

from octopii import Client, ShuttingDown, StateMachine, TypedStateMachine, command, query
from tests.node.cluster import eventually, patience, running, until


class Dice(TypedStateMachine):
    """Rolls by the replicated random numbers, and, where it is loaded, by its own."""

    rolls: list[int]

    @command
    def roll(self) -> int:
        loaded = threading.current_thread().name.startswith("octopii-2-")
        self.rolls.append((random if loaded else self.rng).randrange(1_000_000))
        return self.rolls[-1]

    @query
    def all(self) -> list[int]:
        return self.rolls


def rolls_of(machine: StateMachine) -> list[int]:
    assert isinstance(machine, Dice)
    return list(machine.rolls)


def test_a_node_that_differs_is_named_and_stops_serving(tmp_path: Path) -> None:
    """Every node's status names it; it refuses calls, and clients go to the others."""

    async def play() -> None:
        async with running(tmp_path, machine=Dice, digest_interval=0.2) as cluster:
            async with Client(list(cluster.addresses.values()), timeout=patience) as client:
                await client.call(Dice.roll)
                for node in cluster.nodes.values():
                    await until(lambda node=node: list(node.status["digest"]["differing"]) == ["2"], "it is named")  # type: ignore[misc]
                assert "has come apart" in cluster.nodes[2].status["failure"]
                assert cluster.nodes[1].status["failure"] is None
                with pytest.raises(ShuttingDown, match="has come apart"):
                    await cluster.nodes[2].call(Dice.all.options(consistency="stale", timeout=1.0))
                assert len(await client.call(Dice.all)) == 1

    asyncio.run(play())


def test_a_node_that_differs_takes_its_state_from_the_leader(tmp_path: Path) -> None:
    """With `on_divergence="resync"` it serves again, with the state of the majority."""

    async def play() -> None:
        async with running(tmp_path, machine=Dice, digest_interval=0.2, on_divergence="resync") as cluster:
            async with Client([cluster.addresses[1], cluster.addresses[3]], timeout=patience) as client:
                await client.call(Dice.roll)
                bad = cluster.nodes[2]

                async def is_right() -> bool:
                    right = await client.call(Dice.all)
                    return rolls_of(cluster.machines[2]) == right and bad.status["failure"] is None

                await eventually(is_right, "it has the state of the others")
                assert not bad.status["digest"]["resyncing"]
                assert await bad.call(Dice.all.options(consistency="stale")) == rolls_of(cluster.machines[1])

    asyncio.run(play())
