"""The Raft core alone: three nodes in one thread, messages handed over in memory, entries kept in a list."""

import random
import time
from collections.abc import Iterator

from bench import measure
from bench.measure import Effort, Limit, Row
from octopii.raft import ConfState, MemoryStorage, RaftConfig, RawNode, Role

NODES = (1, 2, 3)
BATCH_ENTRIES = 256

_full_batches = 400
_full_singles = 2000
_entry = b"x" * 100


class Nodes:
    """Three nodes; whatever one sends, the others get before `settle` returns."""

    def __init__(self) -> None:
        self._storages = {number: MemoryStorage(ConfState(voters=list(NODES))) for number in NODES}
        self._nodes = {
            number: RawNode(
                RaftConfig(id=number, election_ticks=10, heartbeat_ticks=1, rng=random.Random(number)), storage
            )
            for number, storage in self._storages.items()
        }
        self._nodes[1].campaign()
        self.settle()
        self.leader = self._nodes[1]
        assert self.leader.role is Role.LEADER

    def settle(self) -> int:
        """Do what the nodes ask until none asks for more; returns the entries applied on all nodes together."""
        nodes, storages, applied, busy = self._nodes, self._storages, 0, True
        while busy:
            busy = False
            for number, node in nodes.items():
                if not node.has_ready():
                    continue
                busy = True
                ready = node.ready()
                for message in ready.messages:
                    nodes[message.to].step(message)
                if ready.entries:
                    storages[number].append(ready.entries)
                if ready.hard_state is not None:
                    storages[number].set_hard_state(ready.hard_state)
                node.on_persisted(ready.number)
                for message in ready.messages_after_persist:
                    nodes[message.to].step(message)
                if ready.committed_entries:
                    applied += len(ready.committed_entries)
                    node.on_applied(ready.committed_entries[-1].index)
        return applied


def rows(effort: Effort) -> Iterator[Row]:
    """Batches, then single entries."""
    batches, singles = effort.count(_full_batches), effort.count(_full_singles)

    def in_batches() -> float:
        nodes, batch = Nodes(), [_entry] * BATCH_ENTRIES
        nodes.settle()
        applied, start = 0, time.perf_counter()
        for _ in range(batches):
            nodes.leader.propose_batch(batch)
            applied += nodes.settle()
        took = time.perf_counter() - start
        assert applied == batches * BATCH_ENTRIES * len(NODES), "not every entry was applied on every node"
        return took / applied * 1e6

    def one_by_one() -> float:
        nodes = Nodes()
        applied, start = 0, time.perf_counter()
        for _ in range(singles):
            nodes.leader.propose(_entry)
            applied += nodes.settle()
        took = time.perf_counter() - start
        assert applied == singles * len(NODES), "not every entry was applied on every node"
        return took / singles * 1e6

    yield Row(
        title=f"Raft core, three nodes in one thread, batches of {BATCH_ENTRIES}",
        unit="us/entry/node",
        digits=2,
        figures=measure.take_turns({"raft": in_batches}, rounds=effort.rounds),
        promises=(Limit(ours="raft", value=0.8),),
    )
    yield Row(
        title="Raft core, commit of one entry over three nodes",
        unit="us",
        digits=1,
        figures=measure.take_turns({"raft": one_by_one}, rounds=effort.rounds),
        promises=(Limit(ours="raft", value=60),),
    )
