"""Drives the log's core over a file system in memory, and judges what a crash at any moment leaves of it.

`CoreLog` gives the core the blocking face of the shell. `take` performs one step and tells the model; `look` reads all
that a log shows; `judge` opens what a crash left, compares it with the model, and goes on from there.
"""

import random
from collections.abc import Iterator, Sequence

import xxhash

from octopii.durability import NoFsync, SyncEach
from octopii.walrus import AtLeastOnce, Entry, Log, StrictlyAtOnce, Walrus
from octopii.walrus.memory_vfs import (
    MemoryFileSystem,
    Operation,
    Survives,
    Unsynced,
    survive_all,
    survive_none,
    survive_randomly,
)
from octopii.walrus.vfs import FileSystem
from tests.walrus.model import (
    Append,
    Batch,
    Commit,
    Delete,
    Model,
    Read,
    Replace,
    Reset,
    Seen,
    Step,
    Sync,
    Trim,
    Truncate,
    read_bytes,
)

folder = "/log"
cursors = ("a", "b")

small_block_bytes = 1024
small_segment_blocks = 4


class DrivenLog:
    """A log under test: `take` performs a step, `look` reads all that can be read."""

    def __init__(self, log: Log | Walrus) -> None:
        self.log = log

    def take(self, step: Step) -> list[Entry]:
        """Perform a step; returns what a read read."""
        log = self.log
        match step:
            case Append(topic, data):
                log.append_for_topic(topic, data)
            case Batch(topic, batch):
                log.batch_append_for_topic(topic, list(batch))
            case Trim(topic, before):
                log.trim(topic, before)
            case Truncate(topic, offset):
                log.truncate_from(topic, offset)
            case Replace(topic, offset, batch):
                log.replace_from(topic, offset, list(batch))
            case Reset(topic, offset):
                log.reset_topic(topic, offset)
            case Delete(topic):
                log.delete_topic(topic)
            case Read(topic, cursor, 0):
                entry = log.read_next(topic, True, cursor=cursor)
                return [entry] if entry else []
            case Read(topic, cursor, max_bytes):
                return log.batch_read_for_topic(topic, max_bytes, True, cursor=cursor)
            case Commit(topic, cursor, offset):
                log.commit(topic, offset, cursor=cursor)
            case Sync():
                self.sync()
        return []

    def sync(self) -> None:
        """All that was written is durable."""
        raise NotImplementedError

    def look(self) -> dict[str, Seen]:
        """All that can be read."""
        return {topic: self._look_at(topic) for topic in self.log.topics()}

    def _look_at(self, topic: str) -> Seen:
        stats = self.log.stats(topic)
        first, end = stats.first_offset, stats.next_offset
        items: list[bytes] = []
        while entries := self.log.read_from(topic, first + len(items), read_bytes):
            offsets = [entry.offset for entry in entries]
            assert offsets == list(range(first + len(items), first + len(items) + len(entries)))
            items += [bytes(entry.data) for entry in entries]
        assert first + len(items) == end, f"{topic!r} has {len(items)} entries from {first}, not up to {end}"
        positions = {}
        for cursor in cursors:
            entry = self.log.read_next(topic, False, cursor=cursor)
            positions[cursor] = entry.offset if entry else end
            assert entry is None or bytes(entry.data) == items[entry.offset - first]
        return Seen(first, tuple(items), positions)

    def close(self) -> None:
        """An orderly end."""
        self.log.close()


class CoreLog(DrivenLog):
    """The thread-free core over a file system in memory: with `eager`, each step is durable when it was taken."""

    log: Log

    def __init__(
        self,
        system: FileSystem,
        *,
        eager: bool = True,
        lag: int = 0,
        segment_blocks: int = small_segment_blocks,
    ) -> None:
        self.eager = eager
        super().__init__(
            Log(
                folder,
                vfs=system,
                consistency=AtLeastOnce(lag) if lag else StrictlyAtOnce(),
                fsync_schedule=SyncEach() if eager else NoFsync(),
                block_bytes=small_block_bytes,
                segment_blocks=segment_blocks,
            )
        )

    def take(self, step: Step) -> list[Entry]:
        entries = super().take(step)
        if self.eager:
            self.sync()
        return entries

    def sync(self) -> None:
        ticket = self.log.begin_sync()
        if ticket is not None:
            ticket.run()
            self.log.finish_sync(ticket)


class ShellLog(DrivenLog):
    """The shell with its threads: durable as its schedule says."""

    log: Walrus

    def sync(self) -> None:
        self.log.sync()


def take(log: CoreLog, model: Model, step: Step) -> None:
    """Perform a step on both; the model knows of it before, and afterwards whether it is durable."""
    before = model.topic(step.topic).cursor(step.cursor) if isinstance(step, Read) else 0
    model.begin(step)
    entries = log.take(step)
    if isinstance(step, Read):
        model.finish_read(step, before, [bytes(entry.data) for entry in entries])
    if log.eager or isinstance(step, Sync):
        model.settle()


def play(log: CoreLog, model: Model, script: Sequence[Step]) -> None:
    """Perform a script."""
    for step in script:
        take(log, model, step)


# --- which changes survive ------------------------------------------------------------------------------------------


def outcomes(changes: Sequence[Unsynced], rng: random.Random, *, limit: int) -> Iterator[Survives]:
    """Choosers for every subset of the changes where there are at most `limit` subsets, for a sample where not."""
    order = {change: number for number, change in enumerate(changes)}
    if 1 << len(changes) <= limit:
        for subset in range(1 << len(changes)):
            yield lambda change, subset=subset: bool(subset >> order[change] & 1)  # type: ignore[misc]
        return
    yield survive_all
    yield survive_none
    for _ in range(limit - 2):
        kind = rng.randrange(4)
        if kind == 0:  # all but one
            lost = rng.choice(changes)
            yield lambda change, lost=lost: change != lost  # type: ignore[misc]
        elif kind == 1:  # one alone
            kept = rng.choice(changes)
            yield lambda change, kept=kept: change == kept  # type: ignore[misc]
        elif kind == 2:  # all up to some point, in the order of files and positions
            last = rng.randrange(len(changes))
            yield lambda change, last=last: order[change] <= last  # type: ignore[misc]
        else:
            share = survive_randomly(rng)
            kept_set = {change for change in changes if share(change)}
            yield lambda change, kept_set=kept_set: change in kept_set  # type: ignore[misc]


# --- judging a crash ------------------------------------------------------------------------------------------------


class Judge:
    """Explores crashes and judges each outcome once.

    `limit` outcomes are tried at each moment; at `depth` 1 the recovery of a share of them is crashed, too.
    """

    def __init__(self, *, seed: int, eager: bool, lag: int, limit: int, share_again: float) -> None:
        self.rng = random.Random(seed)
        self.eager = eager
        self.lag = lag
        self.limit = limit
        self.share_again = share_again
        self.judged = 0
        self._known: set[tuple[int, int]] = set()

    def explore(self, system: MemoryFileSystem, model: Model, *, moment: int, again: bool = True) -> None:
        """Try what a crash at this moment could leave. `moment` tells models apart."""
        for survives in outcomes(system.unsynced(), self.rng, limit=self.limit):
            crashed = system.after_crash(survives)
            key = (fingerprint(crashed), moment)
            if key not in self._known:
                self._known.add(key)
                self.judge(crashed, model, moment=moment, again=again and self.rng.random() < self.share_again)

    def judge(self, system: MemoryFileSystem, model: Model, *, moment: int, again: bool) -> None:
        """Open the log and compare it with the model; with `again`, crash at every operation of the opening, too."""
        self.judged += 1
        if again:

            def crash_again(_operation: Operation) -> None:
                self.explore(system, model, moment=moment, again=False)

            system.faults.before = crash_again
        log = CoreLog(system, eager=True, lag=self.lag)
        system.faults.before = None
        shown = log.look()
        model.check(shown)
        self._go_on(system, log, shown, model)

    def _go_on(self, system: MemoryFileSystem, log: CoreLog, shown: dict[str, Seen], before: Model) -> None:
        """The log accepts appends, and no later crash changes what it has shown.

        The entry appended is as long as the one that was lost, so that valid bytes behind it would follow on.
        """
        model = Model(lag=self.lag)
        model.adopt(shown)
        again = CoreLog(system.after_crash(survive_none), eager=True, lag=self.lag)
        model.check(again.look())
        names = [*shown, "another"]
        for topic in self.rng.choice((names, names[:1], [self.rng.choice(names)])):
            lost = before.entry_after(topic, shown[topic].end) if topic in shown else None
            size = 20 if lost is None else len(lost)
            take(log, model, Append(topic, self.rng.randbytes(size)))
        damages = log.log.verify()
        assert not damages, damages
        after = CoreLog(system.after_crash(self.rng.choice((survive_none, survive_all))), eager=True, lag=self.lag)
        model.check(after.look())


def fingerprint(system: MemoryFileSystem) -> int:
    """A digest of all files of the log."""
    digest = xxhash.xxh3_64()
    for name in system.list_folder(folder):
        digest.update(name.encode())
        digest.update(system.contents(f"{folder}/{name}"))
    return digest.intdigest()


def crash_everywhere(
    setup: Sequence[Step],
    script: Sequence[Step],
    *,
    seed: int = 1,
    eager: bool = True,
    lag: int = 0,
    limit: int = 24,
    share_again: float = 0.1,
    segment_blocks: int = small_segment_blocks,
) -> Judge:
    """Perform `setup`, then `script` with a crash before each of its operations and after its last."""
    system = MemoryFileSystem()
    system.make_folder(folder)
    model = Model(lag=lag)
    judge = Judge(seed=seed, eager=eager, lag=lag, limit=limit, share_again=share_again)
    log = CoreLog(system, eager=eager, lag=lag, segment_blocks=segment_blocks)
    play(log, model, setup)
    log.sync()
    model.settle()
    moment = 0

    def explore(_operation: Operation) -> None:
        judge.explore(system, model, moment=moment)

    system.faults.before = explore
    for moment, step in enumerate(script, 1):
        take(log, model, step)
        judge.explore(system, model, moment=-moment)
    system.faults.before = None
    return judge
