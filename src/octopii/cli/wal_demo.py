"""`octopii wal demo`: a program that writes to a log is killed in mid-stream, and nothing it was promised is missing.

A second process appends to several topics under `SyncEach` and says each time what was acknowledged. This one listens,
kills it with SIGKILL at a random moment, opens the log again and compares, entry by entry. Then the next round goes on
in the same log.
"""

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from octopii.walrus import SyncEach, Walrus

EXIT_LOST = 1
TOPICS = ("orders", "payments", "audit")

_shortest_seconds, _longest_seconds = 0.6, 1.6  # that a writer lives: long enough for thousands of entries
_read_bytes = 1 << 20


def entry_data(topic: str, offset: int) -> bytes:
    """What the entry at this offset holds: anybody can tell whether it is whole and in its place."""
    body = hashlib.blake2b(f"{topic} {offset}".encode()).hexdigest()
    return f"{topic} {offset} {body}".encode()


def write_until_killed(folder: str) -> None:
    """The writer process: append for ever, every fourth time a batch, and print what was acknowledged."""
    with Walrus(folder, fsync_schedule=SyncEach()) as log:
        following = {topic: log.stats(topic).next_offset if topic in log.topics() else 0 for topic in TOPICS}
        turn = 0
        while True:
            for topic in TOPICS:
                turn += 1
                offset = following[topic]
                if turn % 4:
                    log.append_for_topic(topic, entry_data(topic, offset))
                    following[topic] += 1
                else:
                    log.batch_append_for_topic(topic, [entry_data(topic, offset + n) for n in range(10)])
                    following[topic] += 10
                print(topic, following[topic], flush=True)


def demo(
    rounds: Annotated[int, typer.Option(metavar="COUNT", min=1, help="How often the writer is killed.")] = 5,
) -> None:
    """Watch a log survive `kill -9` of its writer.

    Every entry that was acknowledged has to be there again.
    """
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        "[bold]A program appends to a write-ahead log and is killed with SIGKILL in mid-stream, again and again.[/]\n"
        f"Topics: {', '.join(TOPICS)}. Each append is acknowledged once it is on disk (fdatasync has returned).\n"
    )
    acknowledged = dict.fromkeys(TOPICS, 0)
    lost = 0
    with tempfile.TemporaryDirectory(prefix="octopii-demo-") as parent:
        folder = f"{parent}/log"
        for number in range(1, rounds + 1):
            before = sum(acknowledged.values())
            seconds = random.uniform(_shortest_seconds, _longest_seconds)
            _run_writer(folder, seconds, acknowledged)
            written = sum(acknowledged.values()) - before
            start = time.perf_counter()
            with Walrus(folder) as log:
                opened = time.perf_counter() - start
                found = {topic: _sound_entries(log, topic) for topic in TOPICS}
            lost_now = sum(max(0, acknowledged[topic] - found[topic]) for topic in TOPICS)
            lost += lost_now
            console.print(
                f"round {number}: killed after {seconds:.1f} s and {written:,} acknowledged entries; "
                f"opened again in {opened * 1e3:.0f} ms: {'all there' if not lost_now else f'{lost_now:,} LOST'}"
            )
            acknowledged.update(found)  # a write that was under way may have reached the disk: it counts from now on
        console.print(_summary(acknowledged))
    if lost:
        console.print(f"[bold red]{lost:,} acknowledged entries were lost.[/]")
        raise typer.Exit(EXIT_LOST)
    console.print("[bold green]No acknowledged entry was lost, and every entry is whole and in order.[/]")


def _run_writer(folder: str, seconds: float, acknowledged: dict[str, int]) -> None:
    """Start a writer, note what it was promised, and kill it after `seconds`, counted from its first entry."""
    program = "import sys; from octopii.cli.wal_demo import write_until_killed; write_until_killed(sys.argv[1])"
    command = [sys.executable, "-c", program, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        try:
            end = None
            for line in writer.stdout:
                topic, _, following = line.partition(" ")
                if not line.endswith("\n"):
                    break  # killed within the line
                acknowledged[topic] = int(following)
                end = end or time.monotonic() + seconds
                if time.monotonic() >= end:
                    break
            else:
                raise RuntimeError("the writer ended by itself")
        finally:
            writer.kill()
        # What it said before it died was promised as well.
        for line in writer.stdout:
            topic, _, following = line.partition(" ")
            if line.endswith("\n"):
                acknowledged[topic] = int(following)


def _sound_entries(log: Walrus, topic: str) -> int:
    """How many entries the topic has, each in its place with the right content; a wrong one ends the demo."""
    for following, entry in enumerate(_all_entries(log, topic)):
        if entry != (following, entry_data(topic, following)):
            raise RuntimeError(f"{topic}: the entry at offset {following} is not what was written there")
    return log.stats(topic).next_offset if topic in log.topics() else 0


def _all_entries(log: Walrus, topic: str) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while topic in log.topics() and (batch := log.read_from(topic, offset, _read_bytes)):
        for entry in batch:
            yield entry.offset, bytes(entry.data)
            offset = entry.offset + 1


def _summary(found: dict[str, int]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("topic")
    table.add_column("entries in the log", justify="right")
    for topic, count in found.items():
        table.add_row(topic, f"{count:,}")
    return table
