"""SQLite as a log: a table in WAL mode, an INSERT for each entry."""

import sqlite3
import threading
from collections.abc import Sequence

NAME = f"sqlite3 {sqlite3.sqlite_version}"

_insert = "INSERT INTO log (topic, data) VALUES (?, ?)"


class SqliteLog:
    """One table for all topics; a connection for each thread, as SQLite asks for."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self._path = f"{folder}/log.sqlite"
        self._durable = durable
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._connection().execute("CREATE TABLE log (offset INTEGER PRIMARY KEY, topic INTEGER, data BLOB)")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=60, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'OFF'}")
            self._local.connection = connection
            self._connections.append(connection)
        return connection

    def append(self, worker: int, entry: bytes, count: int) -> None:
        execute = self._connection().execute
        for _ in range(count):
            execute(_insert, (worker, entry))

    def append_batch(self, batch: Sequence[bytes]) -> None:
        connection = self._connection()
        connection.execute("BEGIN")
        connection.executemany(_insert, [(0, entry) for entry in batch])
        connection.execute("COMMIT")

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
