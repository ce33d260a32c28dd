"""A real process that writes a real log and is killed with SIGKILL in mid-stream, again and again in one folder.

The child takes random steps and reports each after it was acknowledged; the parent kills it after a random number of
reports, performs the same steps on the model, and compares what the folder shows.
"""

import multiprocessing
import random
import struct
from multiprocessing.connection import Connection
from pathlib import Path

from octopii.walrus import Milliseconds, NoFsync, SyncEach, Walrus
from tests.walrus.crashing import ShellLog
from tests.walrus.model import Model, Read, Sizes, Step, random_step

rounds = 50
topics = ("a", "b", "ü")
sizes = Sizes(small=300, spanning=200_000)
schedules = (SyncEach(), Milliseconds(5), NoFsync())
report = struct.Struct("<i")
"""How many entries a step read."""


def _step(rng: random.Random, model: Model, number: int) -> Step:
    return random_step(rng, model, topics=topics, sizes=sizes, tag=f"{number}")


def _write_until_killed(path: str, seed: int, connection: Connection) -> None:
    log = ShellLog(Walrus(path, fsync_schedule=schedules[seed % len(schedules)]))
    model = Model()
    model.adopt(log.look())
    rng = random.Random(seed)
    number = 0
    while True:
        number += 1
        step = _step(rng, model, number)
        before = model.topic(step.topic).cursor(step.cursor) if isinstance(step, Read) else 0
        model.begin(step)
        entries = log.take(step)
        connection.send_bytes(report.pack(len(entries)))
        if isinstance(step, Read):
            model.finish_read(step, before, [bytes(entry.data) for entry in entries])
        model.settle()


def _reports_until_killed(context: multiprocessing.context.ForkServerContext, path: str, seed: int) -> list[int]:
    """Run the child, kill it after a random number of reports, and return all that it has reported."""
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_write_until_killed, args=(path, seed, theirs), daemon=True)
    child.start()
    theirs.close()
    reports: list[int] = []
    wanted = random.Random(-seed).randrange(60)
    try:
        while True:
            if len(reports) == wanted:
                child.kill()  # and go on to read what it had said by then
            reports.append(report.unpack(ours.recv_bytes())[0])
    except EOFError:
        pass
    finally:
        child.kill()
        child.join()
        ours.close()
    assert len(reports) >= wanted, "the child ended by itself"
    return reports


def _replay(model: Model, seed: int, reports: list[int]) -> None:
    """Do on the model what the child did, and begin what it may have begun."""
    rng = random.Random(seed)
    for number, count in enumerate(reports, 1):
        step = _step(rng, model, number)
        before = model.topic(step.topic).cursor(step.cursor) if isinstance(step, Read) else 0
        model.begin(step)
        if isinstance(step, Read):
            entries = model.topic(step.topic).entries.newest
            start = before - entries.base
            model.finish_read(step, before, list(entries.items[start : start + count]))
        model.settle()
    model.begin(_step(rng, model, len(reports) + 1))


def test_killed_process_loses_nothing(tmp_path: Path) -> None:
    """After each of 50 kills the log holds every acknowledged step, and at most the one that was under way."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.walrus.test_sigkill"])
    path = str(tmp_path / "log")
    model = Model()
    steps = 0
    for seed in range(rounds):
        reports = _reports_until_killed(context, path, seed)
        steps += len(reports)
        _replay(model, seed, reports)
        log = ShellLog(Walrus(path))
        shown = log.look()
        model.check(shown)
        model.adopt(shown)
        log.close()
    assert steps > 10 * rounds
