"""Changes fragments of a log and gives them right checksums: what is wrong then is their sense, not their bytes."""

from collections.abc import Iterator
from typing import NamedTuple

from xxhash import xxh3_64_digest

from octopii.walrus import Log
from octopii.walrus.memory_vfs import MemoryFileSystem
from octopii.walrus.record import HEAD, Fragment, fragment_at, header_bytes


class Found(NamedTuple):
    """A fragment of a log, and where it is."""

    path: str
    position: int
    seed: int
    fragment: Fragment
    payload: bytes


def fragments(log: Log, system: MemoryFileSystem, topic: str) -> list[Found]:
    """All fragments of a topic's live blocks, oldest first."""
    return list(_fragments(log, system, topic))


def _fragments(log: Log, system: MemoryFileSystem, name: str) -> Iterator[Found]:
    topic, store = log._topics[name], log._store
    for index in range(len(topic.chain)):
        place = topic.chain.place(index)
        segment = store.segments[place.segment]
        seed = segment.seed(place.block, topic.number, topic.chain.lives[index])
        start = segment.position(place.block)
        data = bytes(system.contents(segment.path)[start : start + segment.block_bytes])
        at = 0
        while (fragment := fragment_at(data, at, seed)) is not None:
            payload = data[fragment.at + header_bytes : fragment.end]
            yield Found(segment.path, start + at, seed, fragment, payload)
            at = (fragment.end + 7) & -8


def forge(
    system: MemoryFileSystem,
    found: Found,
    *,
    kind: int | None = None,
    seq: int | None = None,
    offset: int | None = None,
    payload: bytes | None = None,
) -> None:
    """Rewrite a fragment in its place with other fields."""
    old = found.fragment
    body = found.payload if payload is None else payload
    head = HEAD.pack(
        found.seed >> 32,
        (old.kind if kind is None else kind) << 24 | len(body),
        old.seq if seq is None else seq,
        old.offset if offset is None else offset,
        old.synced,
    )
    data = xxh3_64_digest(head + body, found.seed) + head + body
    assert len(body) <= len(found.payload), "it fits in its place"
    contents = system.contents(found.path)
    contents[found.position : found.position + len(data)] = data
