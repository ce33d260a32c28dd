"""Opening a log: the superblock, the tables, the catalog, every topic; then repairing what a crash left.

`load` only reads, so that a log can be inspected while its owner runs. `repair` makes durable what was recovered,
cuts torn tails (their bytes are kept aside in a `.broken` file), and gives free the blocks that belong to nothing.
"""

from typing import Final

import msgspec
from xxhash import xxh3_64_digest

from octopii.errors import CorruptLogError
from octopii.walrus import superblock
from octopii.walrus.catalog import Saved, catalog_number
from octopii.walrus.reader import Reader
from octopii.walrus.record import (
    USED,
    BadSlot,
    check_table,
    encode_slot,
    free_slot,
    owners,
    slot_bytes,
)
from octopii.walrus.recovery import Slots, TopicRecovery
from octopii.walrus.segment import Segment, SegmentStore
from octopii.walrus.superblock import Superblock
from octopii.walrus.topic import Cursor, Place, Topic
from octopii.walrus.vfs import FileSystem

_catalog_read_bytes: Final = 1 << 20
_prefix, _suffix = "segment-", ".wal"


class Loaded(msgspec.Struct):
    """A log as found on disk."""

    store: SegmentStore
    catalog: Topic
    topics: dict[str, Topic]
    next_number: int
    clean: bool
    recoveries: list[TopicRecovery]
    strangers: list[Place]  # blocks of topics that the catalog does not know
    moved: list[tuple[Topic, str]]  # cursors that stand elsewhere than the catalog's last record says


def find_superblock(vfs: FileSystem, folder: str) -> tuple[Superblock, bool] | None:
    """The folder's superblock and whether both copies are sound, or None for a folder that holds no log."""
    if vfs.exists(f"{folder}/{superblock.file_name}"):
        return superblock.read(vfs, folder)
    if any(_is_segment(name) for name in vfs.list_folder(folder)):
        raise CorruptLogError(f"{folder}: the superblock is missing", path=f"{folder}/{superblock.file_name}")
    return None


def _is_segment(name: str) -> bool:
    return name.startswith(_prefix) and name.endswith(_suffix)


def remove_strangers(vfs: FileSystem, folder: str, block: Superblock) -> None:
    """Remove segments that a crash left half made or half removed: the superblock does not know them."""
    known = {f"{_prefix}{each.number:08}{_suffix}" for each in block.segments}
    for name in vfs.list_folder(folder):
        if _is_segment(name) and name not in known:
            vfs.remove(f"{folder}/{name}")


def load(store: SegmentStore) -> Loaded:
    """Read the tables, the catalog and the tails. Raises `CorruptLogError`."""
    clean = store.superblock.clean
    slots, fresh = _read_tables(store, clean=clean)
    catalog = Topic(catalog_number, "")
    recoveries = [_recover(store, catalog, slots.pop(catalog_number, None), clean=clean)]
    saved = _read_catalog(store, catalog)
    topics: dict[str, Topic] = {}
    moved = []
    for number, name in saved.names.items():
        topic = topics[name] = Topic(number, name)
        recovery = _recover(store, topic, slots.pop(number, None), clean=clean)
        recoveries.append(recovery)
        for cursor_name, records in saved.cursors[number].items():
            # a record from beyond the end was written with a cut or an append that the crash has taken back
            cursor = next((each for each in reversed(records) if each.seq <= topic.seq), records[0])
            offset = cursor.offset
            for seq, cut in recovery.replaced:
                if seq > cursor.seq:
                    offset = min(offset, cut)
            offset = max(topic.trim_offset, min(offset, topic.end))
            topic.cursors[cursor_name] = Cursor(offset, offset)
            if (offset, cursor) != (records[-1].offset, records[-1]):
                moved.append((topic, cursor_name))
    strangers = []
    for number, found in slots.items():
        if number >= saved.next_number:
            _check_unknown(store, number, found)
            strangers += [found[ordinal][1] for ordinal in found]
    _find_free(store, [catalog, *topics.values()], fresh)
    return Loaded(store, catalog, topics, saved.next_number, clean, recoveries, strangers, moved)


def _read_tables(store: SegmentStore, *, clean: bool) -> tuple[dict[int, Slots], dict[int, list[int]]]:
    """The used blocks by topic, and by segment those that were never used."""
    topics: dict[int, Slots] = {}
    fresh: dict[int, list[int]] = {}
    tables: dict[int, bytes] = {}
    for facts in store.superblock.segments:
        segment = store.segments[facts.number]
        table = tables[segment.number] = store.read_table(segment)
        if clean and xxh3_64_digest(table) != facts.table_digest:
            raise CorruptLogError(
                f"{segment.path}: the table is not the one it was closed with", path=segment.path, position=0
            )
        if not clean:
            try:
                check_table(table, segment.number)
            except BadSlot as error:
                at = (error.block + 1) * slot_bytes
                raise CorruptLogError(f"{segment.path}: {error}", path=segment.path, position=at) from error
        unused = fresh[segment.number] = []
        base = segment.number << 32
        for block, (topic, flags, life, ordinal) in enumerate(owners(table)):
            if flags & USED:
                if topic not in topics:
                    topics[topic] = Slots(tables)
                places = topics[topic].places
                if ordinal in places:
                    raise CorruptLogError(
                        f"{segment.path}: two blocks claim place {ordinal} in topic {topic}",
                        path=segment.path,
                        position=(block + 1) * slot_bytes,
                    )
                places[ordinal] = base | block
            elif not life:
                unused.append(block)
    return topics, fresh


def _recover(store: SegmentStore, topic: Topic, slots: Slots | None, *, clean: bool) -> TopicRecovery:
    recovery = TopicRecovery(store, topic, slots if slots is not None else Slots({}))
    if clean:
        recovery.open_closed()
    else:
        recovery.open_crashed()
    return recovery


def _read_catalog(store: SegmentStore, catalog: Topic) -> Saved:
    saved = Saved()
    reader = Reader(store)
    offset = catalog.trim_offset
    while offset < catalog.end:
        for entry in reader.read(catalog, offset, _catalog_read_bytes, catalog.end):
            try:
                saved.take(entry.data)
            except ValueError as error:
                raise reader.damage(catalog, catalog.chain.block_of(entry.offset), str(error)) from error
            offset = entry.offset + 1
    return saved


def _check_unknown(store: SegmentStore, number: int, slots: Slots) -> None:
    """Blocks of a topic that the catalog does not know yet: a crash leaves them, unless any of it was synced."""
    recovery = TopicRecovery(store, Topic(number, f"number {number}"), slots)
    if recovery.is_vouched():
        _, place = slots[next(iter(slots))]
        path = store.segments[place.segment].path
        raise CorruptLogError(
            f"{path}: topic {number} has blocks but is missing from the catalog", path=path, position=0
        )


def _find_free(store: SegmentStore, topics: list[Topic], fresh: dict[int, list[int]]) -> None:
    used = {number: bytearray(segment.blocks) for number, segment in store.segments.items()}
    for topic in topics:
        for index in range(len(topic.chain)):
            place = topic.chain.place(index)
            used[place.segment][place.block] = 1
    for number, segment in store.segments.items():
        store.set_free(segment, [block for block, taken in enumerate(used[number]) if not taken], fresh[number])


def repair(loaded: Loaded) -> None:
    """Cut torn tails, give up what was cut, and make all that was recovered durable."""
    store = loaded.store
    for recovery in loaded.recoveries:
        _keep_aside(store, recovery)
        if recovery.torn is not None:
            topic = recovery.topic
            segment = topic.segment
            assert segment is not None
            rest = topic.base + segment.block_bytes - topic.at
            store.file(segment).write_at(bytes(rest), topic.at)
        for _, place in recovery.cut:
            _clear_slot(store, store.segments[place.segment], place.block)
    for place in loaded.strangers:  # their topic's number will be given out again
        _clear_slot(store, store.segments[place.segment], place.block)
    for segment in store.segments.values():
        store.file(segment).datasync()


def _clear_slot(store: SegmentStore, segment: Segment, block: int) -> None:
    store.file(segment).write_at(encode_slot(free_slot, segment.number, block), (block + 1) * slot_bytes)


def _keep_aside(store: SegmentStore, recovery: TopicRecovery) -> None:
    """Write the bytes of a torn tail to a `.broken` file; on a disk without room for it, go on without."""
    pieces = recovery.torn_bytes
    if not any(pieces.values()):
        return
    (number, position), *_ = pieces
    path = f"{store.folder}/segment-{number:08}-{position}.broken"
    try:
        file = store.vfs.open(path, create=True)
        try:
            file.truncate(0)
            file.write_at(b"".join(pieces.values()), 0)
            file.datasync()
        finally:
            file.close()
    except OSError:
        return
