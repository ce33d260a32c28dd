"""The Raft log on Walrus, against a list in memory."""

import random

import pytest

from octopii.raft import Compacted, Entry, EntryKind, HardState, Snapshot, Unavailable
from octopii.replica.log_store import LogStore
from octopii.walrus import Log
from octopii.walrus.faults import survive_none
from octopii.walrus.memory_vfs import MemoryFileSystem

Model = dict[int, Entry]


def open_store(vfs: MemoryFileSystem, cache_bytes: int) -> tuple[Log, LogStore]:
    """The store in a folder of its own."""
    log = Log("/n", vfs=vfs, block_bytes=1024, segment_blocks=16)
    return log, LogStore(log, prefix="g", cache_bytes=cache_bytes, newest_snapshot=Snapshot)


def sync(log: Log) -> None:
    """Make everything durable."""
    ticket = log.begin_sync()
    if ticket is not None:
        ticket.run()
        log.finish_sync(ticket)


def check(store: LogStore, model: Model, first: int, base_term: int) -> None:
    """The store says what the model says."""
    last = max(model, default=first - 1)
    assert (store.first_index(), store.last_index()) == (first, last)
    assert [store.term(index) for index in range(first, last + 1)] == [model[i].term for i in range(first, last + 1)]
    assert store.term(first - 1) == base_term
    for low in {first, (first + last) // 2, last}:
        if first <= low <= last:
            for limit in (0, 50, 1 << 20):
                found = store.entries(low, last + 1, limit)
                assert found == [model[index] for index in range(low, low + len(found))]
                assert len(found) >= 1
                assert len(found) == 1 or sum(len(entry.data) for entry in found) <= limit
    kept = [model[i] for i in sorted(model) if i >= first and (model[i].kind is EntryKind.MEMBERSHIP or i == 1)]
    assert store.memberships == kept
    with pytest.raises(Unavailable):
        store.term(last + 1)
    if first > 1:
        with pytest.raises(Compacted):
            store.entries(first - 1, last + 1, 10)


@pytest.mark.parametrize("seed", range(30))
def test_the_store_is_a_list_that_is_replaced_trimmed_reset_and_reopened(seed: int) -> None:
    """Random appends, replaced suffixes, trims, resets, syncs and restarts leave what a list would hold."""
    rng = random.Random(seed)
    vfs, cache_bytes = MemoryFileSystem(), rng.choice((0, 100, 10_000))
    log, store = open_store(vfs, cache_bytes)
    model: Model = {}
    first, base_term, term = 1, 0, 1
    for _ in range(80):
        last = max(model, default=first - 1)
        action = rng.randrange(10)
        if action < 6:
            term += rng.random() < 0.3
            at = last + 1 if rng.random() < 0.7 else rng.randint(first, last + 1)
            entries = [
                Entry(term, at + n, EntryKind(rng.random() < 0.1), rng.randbytes(rng.randrange(60)))
                for n in range(rng.randint(1, 6))
            ]
            for index in [index for index in model if index >= at]:
                del model[index]
            store.append(entries)
            model |= {entry.index: entry for entry in entries}
            sync(log)
        elif action == 6 and last >= first:
            before = rng.randint(first, last + 1)
            base_term = model[before - 1].term if before > first else base_term
            store.compact(before)
            first = before
            model = {index: entry for index, entry in model.items() if index >= first}
            sync(log)
        elif action == 7 and rng.random() < 0.3:
            index = last + rng.randint(1, 5)
            store.reset(index, term)
            model, first, base_term = {}, index + 1, term
            sync(log)
        elif action == 8:
            log.close()
            log, store = open_store(vfs, cache_bytes)
            store.know_term(first - 1, base_term)
        check(store, model, first, base_term)


def test_a_vote_survives_only_when_it_was_synced() -> None:
    """Term and vote are a record of their own; the last one that was synced counts."""
    vfs = MemoryFileSystem()
    log, store = open_store(vfs, 0)
    store.save_hard_state(HardState(term=3, vote=2))
    sync(log)
    store.save_hard_state(HardState(term=4, vote=1))
    vfs.crash(survive_none)
    log, store = open_store(vfs, 0)
    assert store.hard_state == HardState(term=3, vote=2)


def test_a_last_entry_of_a_newer_term_raises_the_term_and_clears_the_vote() -> None:
    """Log and hard state are not written atomically; what was promised is never forgotten for it."""
    vfs = MemoryFileSystem()
    log, store = open_store(vfs, 0)
    store.save_hard_state(HardState(term=3, vote=2))
    store.append([Entry(5, 1, EntryKind.NORMAL, b"x")])
    sync(log)
    log.close()
    log, store = open_store(vfs, 0)
    assert store.hard_state == HardState(term=5, vote=0)
