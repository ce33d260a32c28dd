"""The Raft core alone: nodes in one thread, messages handed over in memory, entries kept in a list.

Figures are CPU time: nothing here waits for anything.
"""

import random
import time
from collections.abc import Callable, Iterator
from functools import partial

from bench import measure
from bench.measure import Budget, Effort, Limit, Row
from octopii.raft import ConfState, Entry, EntryKind, HardState, MemoryStorage, RaftConfig, RawNode, Role

BATCH_ENTRIES = 256
LOG_LENGTHS = (1, 1_000, 1_000_000)
CLUSTER_SIZES = (3, 5, 7, 9)

_full_batches = 400
_full_singles = 2000
_entry = b"x" * 100


class Nodes:
    """Some nodes, node 1 leading; whatever one sends, the others get before `settle` returns."""

    def __init__(self, count: int = 3, *, log: list[Entry] | None = None) -> None:
        self.log_entries = len(log) if log else 0
        self.messages = 0
        voters = list(range(1, count + 1))
        self._storages = {number: self._storage(voters, log or []) for number in voters}
        self._nodes = {number: self._node(number, storage) for number, storage in self._storages.items()}
        self.leader = self._nodes[1]
        for _ in range(20):  # restarted nodes elect nobody for an election timeout
            for node in self._nodes.values():
                node.tick(0.0)
            self.leader.campaign()
            self.settle()
            if self.leader.role is Role.LEADER:
                return
        raise AssertionError("node 1 was not elected")

    def _storage(self, voters: list[int], log: list[Entry]) -> MemoryStorage:
        storage = MemoryStorage(ConfState(voters=voters))
        storage.append(log)
        if log:
            storage.set_hard_state(HardState(term=1, vote=1))
        return storage

    def _node(self, number: int, storage: MemoryStorage) -> RawNode:
        config = RaftConfig(
            id=number,
            election_ticks=10,
            heartbeat_ticks=1,
            rng=random.Random(0 if number == 1 else number + 100),
            applied=self.log_entries,
        )
        return RawNode(config, storage)

    def settle(self) -> int:
        """Do what the nodes ask until none asks for more; returns the entries applied on all nodes together."""
        nodes, storages, applied, messages, busy = self._nodes, self._storages, 0, 0, True
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
                messages += len(ready.messages) + len(ready.messages_after_persist)
                if ready.committed_entries:
                    applied += len(ready.committed_entries)
                    node.on_applied(ready.committed_entries[-1].index)
        self.messages += messages
        return applied


def rows(effort: Effort) -> Iterator[Row]:
    """Batches, single entries, and what both cost when the log or the cluster grows."""
    batches, singles = effort.count(_full_batches), effort.count(_full_singles)
    yield Row(
        title=f"Raft core, three nodes in one thread, batches of {BATCH_ENTRIES}",
        unit="us/entry/node",
        digits=2,
        figures=measure.take_turns({"raft": lambda: per_entry(Nodes(), batches)}, rounds=effort.rounds),
        promises=(Limit(ours="raft", value=0.8),),
    )
    yield Row(
        title="Raft core, commit of one entry over three nodes",
        unit="us",
        digits=1,
        figures=measure.take_turns({"raft": lambda: per_commit(Nodes(), singles)}, rounds=effort.rounds),
        promises=(Limit(ours="raft", value=60),),
    )
    yield from growing_logs(effort)
    yield growing_clusters(effort)


def growing_logs(effort: Effort) -> Iterator[Row]:
    """The same, behind logs of different lengths."""
    lengths = [effort.count(length) for length in LOG_LENGTHS]
    log = [Entry(1, index, EntryKind.NORMAL, _entry) for index in range(1, lengths[-1] + 1)]
    kinds: tuple[tuple[str, str, int, Callable[[Nodes, int], float]], ...] = (
        (f"batches of {BATCH_ENTRIES}", "us/entry/node", effort.count(_full_batches // 2), per_entry),
        ("one entry at a time", "us", effort.count(_full_singles // 2), per_commit),
    )
    for title, unit, count, cost in kinds:
        contestants = {
            f"behind {length:,} entries": partial(behind, log[:length], cost=cost, count=count)
            for length in reversed(lengths)
        }
        longest, shortest = next(iter(contestants)), list(contestants)[-1]
        yield Row(
            title=f"Raft core, three nodes, logs of different lengths, {title}",
            unit=unit,
            digits=2,
            figures=measure.take_turns(contestants, rounds=effort.rounds),
            promises=(Budget(ours=longest, reference=shortest, factor=1.25, smaller_is_better=True),),
        )


def growing_clusters(effort: Effort) -> Row:
    """What one message costs, sent and taken, its share of Readys included, in clusters of different sizes."""
    singles = effort.count(_full_singles // 2)
    contestants = {f"{size} nodes": partial(among, size, count=singles) for size in reversed(CLUSTER_SIZES)}
    largest, smallest = f"{CLUSTER_SIZES[-1]} nodes", f"{CLUSTER_SIZES[0]} nodes"
    return Row(
        title="Raft core, one message, while single entries are committed",
        unit="us/message",
        digits=2,
        figures=measure.take_turns(contestants, rounds=effort.rounds),
        promises=(Budget(ours=largest, reference=smallest, factor=1.25, smaller_is_better=True),),
    )


def behind(log: list[Entry], *, cost: Callable[[Nodes, int], float], count: int) -> float:
    """A cost among three nodes that have a log already."""
    return cost(Nodes(log=log), count)


def among(size: int, *, count: int) -> float:
    """The cost of a message among so many nodes."""
    return per_message(Nodes(size), count)


def per_entry(nodes: Nodes, batches: int) -> float:
    """Microseconds for each entry on each node, in batches."""
    nodes.settle()
    batch = [_entry] * BATCH_ENTRIES
    applied, start = 0, time.process_time()
    for _ in range(batches):
        nodes.leader.propose_batch(batch)
        applied += nodes.settle()
    took = time.process_time() - start
    assert applied == batches * BATCH_ENTRIES * 3, "not every entry was applied on every node"
    return took / applied * 1e6


def per_commit(nodes: Nodes, singles: int) -> float:
    """Microseconds for each entry, proposed alone, until every node has applied it."""
    start = time.process_time()
    for _ in range(singles):
        nodes.leader.propose(_entry)
        nodes.settle()
    return (time.process_time() - start) / singles * 1e6


def per_message(nodes: Nodes, singles: int) -> float:
    """Microseconds for each message, while entries are proposed one by one."""
    nodes.messages = 0
    start = time.process_time()
    for _ in range(singles):
        nodes.leader.propose(_entry)
        nodes.settle()
    return (time.process_time() - start) / nodes.messages * 1e6
