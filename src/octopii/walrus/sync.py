"""`Walrus`: the log for programs with threads. Calls block until what they wrote is as durable as the schedule says.

Threads that write while one fdatasync runs share the next one: the first that finds no sync under way leads, for all
that was written by then; the others wait for it. The lock is held for the stores into memory, never during an
fdatasync. A background thread syncs for `Milliseconds`, and under every schedule but `NoFsync` writes the marks that
vouch for the last records of a log that has gone idle.
"""

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Literal

from octopii.durability import FsyncSchedule, Milliseconds, NoFsync, SyncEach
from octopii.errors import WalrusError
from octopii.walrus.cursors import Consistency
from octopii.walrus.reader import Entry
from octopii.walrus.settings import default_block_bytes, default_max_entry_bytes, default_segment_blocks
from octopii.walrus.ticket import SyncTicket
from octopii.walrus.verify import Damage, Report
from octopii.walrus.vfs import Buffer, FileSystem
from octopii.walrus.walrus import Log, TopicStats

_idle_seconds: Final = 1.0  # without a write for so long, the marks are written


class Walrus:
    """A topic-based write-ahead log in a folder, shared by the threads of one process.

    Opening raises `ConfigError` for an argument that can't be, before anything is made on disk; `LogInUse`,
    `CorruptLogError`, `UnknownFormatError`, and `OSError` where the folder can't be made or written.
    `block_bytes` and `segment_blocks` count only when the folder is new.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        consistency: Consistency | None = None,
        fsync_schedule: FsyncSchedule | None = None,
        vfs: FileSystem | None = None,
        max_entry_bytes: int = default_max_entry_bytes,
        block_bytes: int = default_block_bytes,
        segment_blocks: int = default_segment_blocks,
    ) -> None:
        schedule = fsync_schedule if fsync_schedule is not None else SyncEach()
        self._log = Log(
            path,
            vfs=vfs,
            consistency=consistency,
            fsync_schedule=schedule,
            max_entry_bytes=max_entry_bytes,
            block_bytes=block_bytes,
            segment_blocks=segment_blocks,
        )
        self.path = self._log.path
        self.fsync_schedule = schedule
        self._syncs_each = isinstance(schedule, SyncEach)
        self._lock = _Turn(self._log)
        self._syncing = False
        self._group = _Group()  # what is written now is durable when this group is done
        self._stop = threading.Event()
        if not self._syncs_each:
            self.append_for_topic = self._log.append_for_topic  # type: ignore[method-assign]  # nothing to wait for
        self._background: threading.Thread | None = None
        if not isinstance(schedule, NoFsync):
            interval = schedule.interval / 1000 if isinstance(schedule, Milliseconds) else _idle_seconds
            self._background = threading.Thread(
                target=self._run_background, args=(interval,), name="walrus-sync", daemon=True
            )
            self._background.start()

    # --- writing ------------------------------------------------------------------------------------------------

    def append_for_topic(self, topic: str, data: Buffer) -> int:
        """Append one entry; returns its offset.

        Raises `EntryTooLarge`, `InvalidTopic`, `LogFull` (nothing was written), `LogPoisoned`, `LogClosed`.
        """
        offset = self._log.append_for_topic(topic, data)  # takes its turn by itself
        self._settle(self._group)
        return offset

    def batch_append_for_topic(self, topic: str, batch: Sequence[Buffer]) -> range:
        """Append entries, all or none, also across a crash; returns their offsets. Raises what an append raises."""
        with self._lock:
            offsets = self._log.batch_append_for_topic(topic, batch)
            group = self._group
        self._settle(group)
        return offsets

    def replace_from(self, topic: str, offset: int, batch: Sequence[Buffer]) -> range:
        """Drop the entries from `offset` on and append others, as one atomic act; returns the offsets of the new.

        Cursors beyond `offset` are set to it. Raises `OffsetTrimmedError`, `OffsetBeyondEndError`, and what an append
        raises.
        """
        with self._lock:
            offsets = self._log.replace_from(topic, offset, batch)
            group = self._group
        self._settle(group)
        return offsets

    def truncate_from(self, topic: str, offset: int) -> None:
        """Drop the entries from `offset` on: the next append gets that offset; cursors beyond are set to it."""
        with self._lock:
            self._log.truncate_from(topic, offset)
            group = self._group
        self._settle(group)

    def reset_topic(self, topic: str, next_offset: int) -> None:
        """Drop all entries, or begin the topic: the next append gets `next_offset`, and all cursors stand there."""
        with self._lock:
            self._log.reset_topic(topic, next_offset)
            group = self._group
        self._settle(group)

    def trim(self, topic: str, before_offset: int) -> tuple[str, ...]:
        """Drop the entries below `before_offset`; returns the names of the cursors that stood there and were moved.

        Raises `OffsetBeyondEndError`, and what an append raises.
        """
        with self._lock:
            moved = self._log.trim(topic, before_offset)
            group = self._group
        self._settle(group)
        return moved

    def delete_topic(self, topic: str) -> None:
        """Drop a topic with its entries and cursors; one that is not there is none to drop."""
        with self._lock:
            self._log.delete_topic(topic)
            group = self._group
        self._settle(group)

    # --- reading ------------------------------------------------------------------------------------------------

    def read_next(self, topic: str, checkpoint: bool = True, *, cursor: str = "default") -> Entry | None:
        """The entry at the cursor, or None at the end. With `checkpoint` the cursor moves on; without, this peeks.

        Raises `CorruptLogError`, `InvalidTopic`, `LogClosed`.
        """
        with self._lock:
            entry = self._log.read_next(topic, checkpoint, cursor=cursor)
            group = self._group
        if checkpoint and entry is not None:
            self._settle(group)
        return entry

    def batch_read_for_topic(
        self, topic: str, max_bytes: int, checkpoint: bool = True, *, cursor: str = "default"
    ) -> list[Entry]:
        """Entries from the cursor on: as many as have `max_bytes` together, at least one if there is any."""
        with self._lock:
            entries = self._log.batch_read_for_topic(topic, max_bytes, checkpoint, cursor=cursor)
            group = self._group
        if checkpoint and entries:
            self._settle(group)
        return entries

    def read_from(self, topic: str, offset: int, max_bytes: int) -> list[Entry]:
        """Entries from `offset` on: as many as have `max_bytes` together, at least one if there is any.

        Moves no cursor. At or beyond the end there are none. Raises `OffsetTrimmedError`, `CorruptLogError`.
        """
        with self._lock:
            return self._log.read_from(topic, offset, max_bytes)

    def commit(self, topic: str, offset: int, *, cursor: str = "default") -> None:
        """Put a cursor at `offset`, which its next read will return, and save it.

        Raises `OffsetTrimmedError`, `OffsetBeyondEndError`.
        """
        with self._lock:
            self._log.commit(topic, offset, cursor=cursor)
            group = self._group
        self._settle(group)

    # --- facts --------------------------------------------------------------------------------------------------

    def topics(self) -> list[str]:
        """The names of all topics, sorted."""
        with self._lock:
            return self._log.topics()

    def stats(self, topic: str) -> TopicStats:
        """A topic in numbers; all zero for one that is not there."""
        with self._lock:
            return self._log.stats(topic)

    def verify(self, report: Report | None = None) -> list[Damage]:
        """Read all that counts and compare the checksums; returns every damaged place. Writers wait meanwhile."""
        with self._lock:
            return self._log.verify(report)

    @property
    def has_unsynced(self) -> bool:
        """Whether anything that was written waits for a sync."""
        return self._log.has_unsynced

    @property
    def has_unmarked(self) -> bool:
        """Whether the last records are synced but vouched for by nothing yet: so until the log is idle or closed."""
        return self._log.has_unmarked

    # --- durability ---------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """All that was written before is on disk when this returns, whatever the schedule. Raises `LogPoisoned`."""
        with self._lock:
            group = self._group
        self._wait(group)

    def _settle(self, group: "_Group") -> None:
        if self._syncs_each:
            self._wait(group)

    def _wait(self, group: "_Group") -> None:
        """Return when the group is durable: wait for the thread that syncs it, or be that thread."""
        waiter: threading.Lock | None = None
        with self._lock:
            if group.is_done:
                return group.check()
            if self._syncing:
                waiter = group.enter()
            else:
                self._syncing = True
        if waiter is not None:
            self._await_turn(group, waiter)
            if group.is_done:
                group.wake_one()
                return group.check()
        self._lead(group)
        return group.check()

    def _await_turn(self, group: "_Group", waiter: threading.Lock) -> None:
        """Return when the group is done, or when it is this thread's turn to sync it."""
        try:
            waiter.acquire()
        except BaseException:
            with self._lock:
                leaves = waiter in group.waiters
                if leaves:
                    group.waiters.remove(waiter)
            if not leaves and group.is_done:
                group.wake_one()
            elif not leaves:  # interrupted just when it was given the lead
                self._lead(group)
            raise

    def _lead(self, group: "_Group", *, idle: bool = False) -> None:
        """Sync what was written so far; `_syncing` is held, and handed to a thread of the next group if one waits."""
        ticket: SyncTicket | None = None
        try:
            with self._lock:
                self._group = _Group()
                ticket = self._log.begin_sync(idle=idle)
            if ticket is not None:
                ticket.run()
        except WalrusError as error:
            group.error = error
        finally:
            with self._lock:
                if ticket is not None:
                    self._finish(group, ticket)
                group.is_done = True
                following = self._group.waiters
                if following:
                    following.pop(0).release()  # it leads the next group, and `_syncing` stays set for it
                else:
                    self._syncing = False
            group.wake_one()

    def _finish(self, group: "_Group", ticket: SyncTicket) -> None:
        if not ticket.is_done:  # interrupted: nothing failed, so it may be done again
            ticket.run()
        try:
            self._log.finish_sync(ticket)
        except WalrusError as error:
            group.error = error

    def _run_background(self, interval: float) -> None:
        """Sync what waits for it every `interval` seconds; write the marks of a log that has been idle for a second."""
        idle_seconds = 0.0
        while not self._stop.wait(interval):
            with self._lock:
                log = self._log
                if log.poison is not None:
                    return
                idle_seconds = 0.0 if log.has_unsynced else idle_seconds + interval
                idle = idle_seconds >= _idle_seconds and log.has_unmarked
                if self._syncing or not (idle or (log.has_unsynced and not self._syncs_each)):
                    continue
                self._syncing = True
                group = self._group
            self._lead(group, idle=idle)

    def close(self) -> None:
        """Make all durable and note that the log was closed in order. Doing so twice is harmless."""
        self._stop.set()
        background = self._background
        if background is not None and background is not threading.current_thread():
            background.join()
        while True:
            with self._lock:
                if not self._syncing:
                    self._log.close()
                    return
                group = self._group
                waiter = group.enter()
            self._await_turn(group, waiter)
            if group.is_done:
                group.wake_one()
            else:
                self._lead(group)

    def __enter__(self) -> "Walrus":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False


class _Group:
    """Writes that share an fdatasync, and the locks on which their threads wait."""

    __slots__ = ("error", "is_done", "waiters")

    def __init__(self) -> None:
        self.error: WalrusError | None = None
        self.is_done = False
        self.waiters: list[threading.Lock] = []

    def enter(self) -> threading.Lock:
        """A lock, held, that is released when the group is done or when its owner is to lead it."""
        waiter = threading.Lock()
        waiter.acquire()
        self.waiters.append(waiter)
        return waiter

    def wake_one(self) -> None:
        """Wake one of those who wait; it wakes the next. All at once would only queue up for the interpreter."""
        try:
            waiter = self.waiters.pop()
        except IndexError:
            return
        waiter.release()

    def check(self) -> None:
        """Raise what the group's sync raised: an exception of its own for each thread, with the same fields."""
        error = self.error
        if error is not None:
            twin = type(error).__new__(type(error), *error.args)
            twin.__dict__.update(error.__dict__)
            raise twin from error


class _Turn:
    """A lock around the log's token (`Log.turn`), which an append takes without it.

    Taking and giving back the token are single steps of the interpreter, so one thread has it at a time. Who finds none
    enters `waiting` and then looks again; who gives it back looks at `waiting` afterwards: so nobody is forgotten.
    """

    __slots__ = ("_turn", "_waiting")

    def __init__(self, log: Log) -> None:
        self._turn = log.turn
        self._waiting = log.waiting
        log.wait_turn = self._wait
        log.wake = self._wake

    def __enter__(self) -> None:
        try:
            del self._turn[0]
        except IndexError:
            self._wait()

    def __exit__(self, *_error: object) -> None:
        self._turn.append(None)
        if self._waiting:
            self._wake()

    def _wait(self) -> None:
        asleep = threading.Lock()
        asleep.acquire()
        while True:
            self._waiting.append(asleep.release)
            try:
                del self._turn[0]
            except IndexError:
                self._sleep(asleep)
            else:
                self._leave(asleep)
                return

    def _sleep(self, asleep: threading.Lock) -> None:
        try:
            asleep.acquire()
        except BaseException:
            if not self._leave(asleep) and self._waiting:  # woken and interrupted at once: the next one is to look
                self._wake()
            raise

    def _leave(self, asleep: threading.Lock) -> bool:
        try:
            self._waiting.remove(asleep.release)
        except ValueError:
            return False
        return True

    def _wake(self) -> None:
        try:
            release = self._waiting.popleft()
        except IndexError:
            return
        release()
