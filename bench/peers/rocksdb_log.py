"""RocksDB as a log: ascending keys, its own write-ahead log on, one write for each entry or batch."""

import importlib.metadata
import struct
from collections.abc import Sequence
from itertools import count as count_from

from rocksdict import Options, Rdict, WriteBatch, WriteOptions

NAME = f"RocksDB (rocksdict {importlib.metadata.version('rocksdict')})"

_key = struct.Struct(">Q").pack


class RocksdbLog:
    """One column family; keys are offsets."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self._database = Rdict(f"{folder}/rocksdb", Options(raw_mode=True))
        write_options = WriteOptions()
        write_options.sync = durable
        self._database.set_write_options(write_options)
        self._offsets = count_from()

    def append(self, worker: int, entry: bytes, count: int) -> None:
        put, offsets = self._database.put, self._offsets
        for _ in range(count):
            put(_key(next(offsets)), entry)

    def append_batch(self, batch: Sequence[bytes]) -> None:
        writes = WriteBatch(raw_mode=True)
        for entry in batch:
            writes.put(_key(next(self._offsets)), entry)
        self._database.write(writes)

    def close(self) -> None:
        self._database.close()
