"""Walrus: a topic-based write-ahead log.

    from octopii.walrus import Walrus

    with Walrus("orders.wal") as log:
        offset = log.append_for_topic("orders", b"first")       # on disk when this returns
        log.batch_append_for_topic("orders", [b"a", b"b"])      # all or none, also across a crash
        while (entry := log.read_next("orders")) is not None:   # the cursor is saved with each read
            print(entry.offset, entry.data)

A topic is a sequence of entries (bytes) with dense offsets from 0. Writers append; readers follow with named cursors,
or read from any offset. Owners trim the front, truncate or replace the tail, reset or delete a topic.

What is durable when is the schedule's: `SyncEach` (the default: before the call returns), `Milliseconds(n)`, `NoFsync`.
When a cursor is saved is the consistency's: `StrictlyAtOnce` or `AtLeastOnce(persist_every)`.

`Walrus` blocks and may be shared by threads; `Log` is the core below it, for programs that own their event loop.
The layers: `record` (the bytes), `segment` (files and free blocks), `topic` (what memory holds), `plan` and `writer`,
`reader`, `catalog` and `cursors`, `recovery` and `opening`, `verify`, `life` and `walrus` (the core), `sync` (the
threads). The file system is reached through `vfs` alone.
"""

from octopii.durability import FsyncSchedule, Milliseconds, NoFsync, SyncEach
from octopii.walrus.cursors import AtLeastOnce, Consistency, StrictlyAtOnce
from octopii.walrus.reader import Entry
from octopii.walrus.sync import Walrus
from octopii.walrus.ticket import SyncTicket
from octopii.walrus.verify import Damage
from octopii.walrus.walrus import Log, TopicStats

__all__ = [
    "AtLeastOnce",
    "Consistency",
    "Damage",
    "Entry",
    "FsyncSchedule",
    "Log",
    "Milliseconds",
    "NoFsync",
    "StrictlyAtOnce",
    "SyncEach",
    "SyncTicket",
    "TopicStats",
    "Walrus",
]
