"""What makes everything go wrong, one fault after the other, from a seed."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

from octopii import Client, ConfigError, NotApplied, OutcomeUnknown
from tests.chaos.clients import Recorder
from tests.chaos.cluster import ELECTION_SECONDS, ChaosCluster

RECOVERY_SECONDS = 60.0
"""Within this time after a fault is over a write has to succeed: many elections, on a machine that may be busy."""

CHANGE_SECONDS = 90.0
"""Within this time a membership change has to come through."""


@dataclass
class Fault:
    """One fault: what it was, when it began, when it was taken away, and when a write had succeeded after that."""

    kind: str
    detail: str
    began: float
    healed: float = 0.0
    recovered: float = 0.0


class NotRecovered(AssertionError):
    """The cluster takes no writes although nothing is wrong any more."""


class Nemesis:
    """Goes through all kinds of faults in random order, again and again."""

    def __init__(
        self,
        cluster: ChaosCluster,
        recorder: Recorder,
        rng: random.Random,
        say: Callable[[str], None],
        only: Collection[str] = (),
    ) -> None:
        """`only` names the kinds of faults to choose from; without it all are done."""
        self._only = only
        self.faults: list[Fault] = []
        self._cluster = cluster
        self._recorder = recorder
        self._rng = rng
        self._say = say
        self._network = cluster.network
        self._detail = ""

    @property
    def kinds(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """All faults that can be done here."""
        kinds = {
            "kill one": self._kill_one,
            "kill the leader": self._kill_leader,
            "kill all": self._kill_all,
            "pause": self._pause,
            "partition: halves": self._halves,
            "partition: bridge": self._bridge,
            "partition: leader alone": self._leader_alone,
            "partition: one way": self._one_way,
            "membership": self._membership,
            "transfer": self._transfer,
        }
        if self._network.can_slow:
            kinds |= {"delay": self._delay, "loss": self._loss}
        if self._cluster.disks:
            kinds["full disk"] = self._full_disk
        return {kind: kinds[kind] for kind in kinds if not self._only or kind in self._only}

    async def run(self, until: float) -> None:
        """Do faults until the time is over; raises `NotRecovered`, and what a membership change raises."""
        if not self.kinds:
            raise ValueError(f"none of these faults can be done here: {', '.join(self._only)}")
        deck: list[str] = []
        while time.monotonic() < until:
            if not deck:
                deck = list(self.kinds)
                self._rng.shuffle(deck)
            kind = deck.pop()
            if kind not in self.kinds:
                continue
            fault = Fault(kind, "", time.monotonic())
            self.faults.append(fault)
            await self.kinds[kind]()
            await self.heal()
            fault.detail, fault.healed = self._detail, time.monotonic()
            await self._written(kind)
            fault.recovered = time.monotonic()
            self._say(f"{kind} ({fault.detail}): {fault.recovered - fault.began:.1f} s")
            await asyncio.sleep(self._rng.uniform(0.3, 1.5))

    async def heal(self) -> None:
        """Take away everything that is wrong."""
        self._cluster.resume()
        await self._network.heal()
        for disk in self._cluster.disks.values():
            disk.empty()
        for node_id, code in self._cluster.dead().items():
            raise NotRecovered(f"node {node_id} has ended by itself with exit code {code}, in {self._detail}")
        stopped = [node_id for node_id in self._cluster.addresses if node_id not in self._cluster.processes]
        if stopped:
            await self._cluster.start(*stopped)

    async def _written(self, kind: str) -> None:
        self._recorder.wrote.clear()
        try:
            await asyncio.wait_for(self._recorder.wrote.wait(), RECOVERY_SECONDS)
        except TimeoutError:
            raise NotRecovered(f"no write within {RECOVERY_SECONDS:g} s after: {kind} ({self._detail})") from None

    # --- who is who -----------------------------------------------------------------------------------------------

    async def leader(self) -> int:
        """Id of the node that leads in the newest term, or of any node where none says so."""
        facts = await asyncio.gather(
            *(facts_of(self._cluster.addresses[node_id]) for node_id in self._cluster.processes)
        )
        leading = [(one["term"], one["id"]) for one in facts if one.get("role") == "leader"]
        return max(leading)[1] if leading else self._any()

    def _any(self) -> int:
        return self._rng.choice(sorted(self._cluster.processes))

    async def _leader_or_any(self) -> int:
        return await self.leader() if self._rng.random() < 0.5 else self._any()

    async def _hold(self, least: float = 1.0, most: float = 4.0) -> None:
        await asyncio.sleep(self._rng.uniform(least, most))

    # --- processes ------------------------------------------------------------------------------------------------

    async def _kill_one(self) -> None:
        await self._kill(self._any())

    async def _kill_leader(self) -> None:
        await self._kill(await self.leader())

    async def _kill_all(self) -> None:
        await self._kill(*self._cluster.processes)

    async def _kill(self, *node_ids: int) -> None:
        self._detail = f"nodes {sorted(node_ids)}"
        self._cluster.kill(*node_ids)
        await self._hold(0.0, 3.0)

    async def _pause(self) -> None:
        node_id = await self._leader_or_any()
        self._detail = f"node {node_id}"
        self._cluster.pause(node_id)
        await self._hold(2 * ELECTION_SECONDS, 8 * ELECTION_SECONDS)

    # --- the network ----------------------------------------------------------------------------------------------

    async def _part(self, some: list[int], others: list[int]) -> None:
        for one in some:
            for other in others:
                await self._network.cut(one, other)
                await self._network.cut(other, one)

    def _shuffled(self) -> list[int]:
        nodes = sorted(self._cluster.processes)
        self._rng.shuffle(nodes)
        return nodes

    async def _halves(self) -> None:
        nodes = self._shuffled()
        at = self._rng.randint(1, len(nodes) // 2)
        self._detail = f"{nodes[:at]} | {nodes[at:]}"
        await self._part(nodes[:at], nodes[at:])
        await self._hold()

    async def _bridge(self) -> None:
        between, *nodes = self._shuffled()
        at = len(nodes) // 2
        self._detail = f"{nodes[:at]} - {between} - {nodes[at:]}"
        await self._part(nodes[:at], nodes[at:])
        await self._hold()

    async def _leader_alone(self) -> None:
        leader = await self.leader()
        self._detail = f"node {leader}"
        await self._part([leader], [node_id for node_id in self._cluster.processes if node_id != leader])
        await self._hold()

    async def _one_way(self) -> None:
        node_id = await self._leader_or_any()
        deaf = self._rng.random() < 0.5
        self._detail = f"node {node_id} {'hears' if deaf else 'reaches'} nobody"
        for other in self._cluster.processes:
            if other != node_id:
                await self._network.cut(*((other, node_id) if deaf else (node_id, other)))
        await self._hold()

    async def _delay(self) -> None:
        nodes = self._shuffled()[: self._rng.randint(1, len(self._cluster.processes))]
        delay = self._rng.uniform(0.02, 0.3)
        self._detail = f"nodes {nodes} by {delay * 1e3:.0f} ms"
        for node_id in nodes:
            await self._network.slow(node_id, delay=delay, loss=0.0)
        await self._hold()

    async def _loss(self) -> None:
        loss = self._rng.uniform(0.02, 0.3)
        self._detail = f"{loss:.0%} on all links"
        for node_id in self._cluster.processes:
            await self._network.slow(node_id, delay=0.001, loss=loss)
        await self._hold()

    # --- disks, members -------------------------------------------------------------------------------------------

    async def _full_disk(self) -> None:
        leader = await self.leader()
        node_id = leader if leader in self._cluster.disks else self._rng.choice(sorted(self._cluster.disks))
        self._detail = f"node {node_id}{', the leader' if node_id == leader else ''}"
        await asyncio.to_thread(self._cluster.disks[node_id].fill)
        await self._hold(2.0, 5.0)

    async def _transfer(self) -> None:
        target = self._any()
        self._detail = f"to node {target}"
        async with self._client() as client:
            with contextlib.suppress(NotApplied, OutcomeUnknown):
                await client.transfer_leader(target, timeout=5.0)
        await self._hold(0.2, 1.0)

    async def _membership(self) -> None:
        """Put a new node in the place of one that goes for good, now and then with a crash in between."""
        old = await self._leader_or_any()
        new = await self._cluster.place()
        self._detail = f"node {new} for node {old}"
        await self._cluster.start(new)
        crash = self._rng.random() < 0.3
        async with self._client() as client:
            address = self._cluster.addresses[new]
            await self._change(
                client, lambda: client.add_learner(new, address, timeout=5.0), lambda conf: new in members(conf)
            )
            if crash:
                victim = self._any()
                self._detail += f", node {victim} killed meanwhile"
                self._cluster.kill(victim)
                await self._cluster.start(victim)
            await self._change(
                client, lambda: client.promote_learner(new, timeout=5.0), lambda conf: new in conf["voters"]
            )
            await self._change(
                client, lambda: client.remove_node(old, timeout=5.0), lambda conf: old not in members(conf)
            )
        self._cluster.forget(old)

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        async with Client(list(self._cluster.addresses.values())) as client:
            yield client

    async def _change(
        self, client: Client, change: Callable[[], Awaitable[None]], done: Callable[[dict[str, Any]], bool]
    ) -> None:
        """Ask for a change until a node says that it is done."""
        deadline = time.monotonic() + CHANGE_SECONDS
        last: Exception | None = None
        while time.monotonic() < deadline:
            try:
                await change()
                return
            except (NotApplied, OutcomeUnknown, ConfigError) as error:
                last = error
            with contextlib.suppress(NotApplied, OutcomeUnknown):
                if done((await client.node_status(timeout=2.0))["conf_state"]):
                    return
            await asyncio.sleep(0.1)
        raise NotRecovered(f"{self._detail}: no membership change within {CHANGE_SECONDS:g} s: {last}")


async def facts_of(address: str) -> dict[str, Any]:
    """Status of the node at an address, empty where it does not say."""
    async with Client([address]) as client:
        with contextlib.suppress(NotApplied, OutcomeUnknown):
            return await client.status(timeout=1.0)
    return {}


def members(conf: dict[str, Any]) -> set[int]:
    """All nodes of a configuration."""
    return {node_id for nodes in conf.values() if isinstance(nodes, list) for node_id in nodes}
