"""LMDB as a log: ascending keys, a write transaction for each entry or batch."""

import struct
from collections.abc import Sequence
from itertools import count as count_from

import lmdb

NAME = "LMDB {}.{}.{}".format(*lmdb.version())

_map_bytes = 1 << 34
_key = struct.Struct(">Q").pack  # big-endian, so that keys sort as numbers do


class LmdbLog:
    """One database; keys are offsets, appended at the end. Writers queue at LMDB's own lock."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self._environment = lmdb.open(
            folder, map_size=_map_bytes, writemap=True, sync=durable, metasync=durable, map_async=not durable
        )
        self._offsets = count_from()

    def append(self, worker: int, entry: bytes, count: int) -> None:
        begin, offsets = self._environment.begin, self._offsets
        for _ in range(count):
            with begin(write=True) as transaction:
                transaction.put(_key(next(offsets)), entry, append=True)

    def append_batch(self, batch: Sequence[bytes]) -> None:
        offsets = self._offsets
        with self._environment.begin(write=True) as transaction:
            put = transaction.put
            for entry in batch:
                put(_key(next(offsets)), entry, append=True)

    def close(self) -> None:
        self._environment.close()
