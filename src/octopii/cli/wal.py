"""`octopii wal`: look into a log without touching it, also while its owner runs.

Nothing here takes the log's lock or writes a byte. What the owner appends meanwhile is seen, or is not seen yet; it is
never taken for damage.
"""

import base64
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from octopii.errors import CorruptLogError, OffsetTrimmedError
from octopii.walrus.inspect import ReadOnlyLog, TopicFacts
from octopii.walrus.reader import Entry
from octopii.walrus.verify import Damage, damage_of

EXIT_DAMAGED = 1

_read_bytes = 1 << 20  # of one read while dumping: bounds memory, whatever the log's length
_preview_characters = 96
_poll_seconds = 0.2
_rest_share = 4  # a look at a log of very many blocks takes long: rest so many times as long

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="The log's folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text for people.")]
TopicOption = Annotated[
    list[str] | None,
    typer.Option("--topic", "-t", metavar="TOPIC", help="Only this topic; may be given more than once."),
]

app = typer.Typer(
    help="Look into a log, also while its owner runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def topics(path: PathArgument, as_json: JsonOption = False) -> None:
    """List the topics with their offsets, sizes and cursors."""
    with _open(path) as log:
        facts = log.topics()
    if as_json:
        for topic in facts:
            _print_json(_topic_as_json(topic))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("topic", "first", "next", "entries", "bytes", "blocks", "cursors"):
        table.add_column(heading, justify="left" if heading in ("topic", "cursors") else "right", overflow="fold")
    for topic in facts:
        cursors = ", ".join(f"{_visible(name)} at {offset}" for name, offset in sorted(topic.cursors.items()))
        numbers = (
            topic.first_offset,
            topic.next_offset,
            topic.next_offset - topic.first_offset,
            topic.bytes,
            topic.blocks,
        )
        table.add_row(Text(_visible(topic.name)), *(f"{number:,}" for number in numbers), Text(cursors))
    Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(table)


@app.command()
def dump(
    path: PathArgument,
    topic: TopicOption = None,
    start: Annotated[int, typer.Option("--from", min=0, metavar="OFFSET", help="First offset to show.")] = 0,
    limit: Annotated[
        int | None, typer.Option(metavar="COUNT", min=1, help="Most entries to show of each topic.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show entries whole, not their beginnings.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print entries, topic by topic, in the order of their offsets.

    In JSON each line has `topic`, `offset`, `size` (bytes) and `data` (base64).
    """
    with _open(path) as log:
        chosen = _chosen(log.topics(), topic)
        count = sum(_span(facts, start, limit) for facts in chosen)
        with _progress("dumping", hidden=sys.stdout.isatty()) as report:
            shown = 0
            for facts in chosen:
                for entry in _entries(log, facts, start, limit):
                    _print_entry(facts.name, entry, as_json=as_json, full=full)
                    shown += 1
                    report(shown, count)


@app.command()
def verify(path: PathArgument, as_json: JsonOption = False) -> None:
    """Compare the checksums of every byte that counts.

    Each place where there is damage is named, and the status is 1.
    """
    with _open(path, as_json=as_json) as log:
        with _progress("verifying", hidden=False) as report:
            damage = log.verify(report)
        facts = log.topics()
    for item in damage:
        _report_damage(item, as_json=as_json)
    if as_json:
        _print_json({"sound": not damage, "damaged": len(damage), "topics": len(facts)})
    elif not damage:
        entries = sum(topic.next_offset - topic.first_offset for topic in facts)
        size = sum(topic.bytes for topic in facts)
        print(f"sound: {len(facts):,} topics, {entries:,} entries, {size:,} bytes")
    if damage:
        raise typer.Exit(EXIT_DAMAGED)


@app.command()
def tail(
    path: PathArgument,
    topic: TopicOption = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="COUNT", min=0, help="Entries of each topic to begin with.")
    ] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as entries come, until Ctrl-C.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Show entries whole, not their beginnings.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the last entries, and with -f those that follow."""
    with _open(path) as log:
        shown: dict[str, int] = {}
        took = 0.0
        while True:
            for facts in _chosen(log.topics(), topic, may_be_missing=follow):
                first = max(facts.first_offset, facts.next_offset - lines) if not shown.get(facts.name) else 0
                start = shown.get(facts.name, first)
                if start > facts.next_offset:  # cut back by its owner since
                    start = facts.next_offset
                for entry in _entries(log, facts, start, None):
                    _print_entry(facts.name, entry, as_json=as_json, full=full)
                shown[facts.name] = facts.next_offset
            if not follow:
                return
            sys.stdout.flush()
            time.sleep(max(_poll_seconds, _rest_share * took))
            start_of_look = time.perf_counter()
            log.refresh()
            took = time.perf_counter() - start_of_look


# --- reading ------------------------------------------------------------------------------------------------------


@contextmanager
def _open(path: str, *, as_json: bool = False) -> Iterator[ReadOnlyLog]:
    """The log, closed afterwards; damage that is met on the way is reported and ends the program with status 1."""
    if not os.path.isdir(path):
        raise FileNotFoundError(f"there is no folder {path}")
    try:
        log = ReadOnlyLog(path)
        try:
            yield log
        finally:
            log.close()
    except CorruptLogError as error:
        sys.stdout.flush()
        _report_damage(damage_of(error), as_json=as_json)
        raise typer.Exit(EXIT_DAMAGED) from error


def _chosen(facts: list[TopicFacts], names: list[str] | None, *, may_be_missing: bool = False) -> list[TopicFacts]:
    if not names:
        return facts
    by_name = {topic.name: topic for topic in facts}
    missing = [name for name in names if name not in by_name]
    if missing and not may_be_missing:
        known = ", ".join(sorted(by_name)[:5]) or "none"
        raise typer.BadParameter(f"no such topic: {', '.join(missing)} (the log has: {known})")
    return [by_name[name] for name in names if name in by_name]


def _span(facts: TopicFacts, start: int, limit: int | None) -> int:
    count = max(0, facts.next_offset - max(start, facts.first_offset))
    return count if limit is None else min(count, limit)


def _entries(log: ReadOnlyLog, facts: TopicFacts, start: int, limit: int | None) -> Iterator[Entry]:
    """Entries from `start` up to what `facts` says; what a running owner trims meanwhile is passed over."""
    offset = max(start, facts.first_offset)
    end = offset + _span(facts, start, limit)
    while offset < end:
        try:
            batch = log.read_from(facts.name, offset, _read_bytes)
        except OffsetTrimmedError as error:
            offset = max(error.first_offset, offset + 1)
            continue
        if not batch:
            return
        for entry in batch:
            if entry.offset >= end:
                return
            yield entry
            offset = entry.offset + 1


# --- printing -----------------------------------------------------------------------------------------------------


def _print_entry(topic: str, entry: Entry, *, as_json: bool, full: bool) -> None:
    data = bytes(entry.data)
    if as_json:
        encoded = base64.b64encode(data).decode("ascii")
        _print_json({"topic": topic, "offset": entry.offset, "size": len(data), "data": encoded})
        return
    if full or len(data) <= _preview_characters:
        shown = _readable(data)
    else:
        shown = f"{_readable(data[:_preview_characters])}... ({len(data):,} bytes)"
    sys.stdout.write(f"{_visible(topic)}  {entry.offset}  {shown}\n")


def _readable(data: bytes) -> str:
    """Text as text, other bytes escaped: nothing that a log holds may steer the terminal."""
    return _visible(data.decode("utf-8", "backslashreplace"))


def _visible(text: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _print_json(value: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _topic_as_json(facts: TopicFacts) -> dict[str, object]:
    return {
        "topic": facts.name,
        "first_offset": facts.first_offset,
        "next_offset": facts.next_offset,
        "bytes": facts.bytes,
        "blocks": facts.blocks,
        "cursors": facts.cursors,
    }


def _report_damage(damage: Damage, *, as_json: bool) -> None:
    if as_json:
        place: dict[str, object] = {"path": damage.path, "position": damage.position, "topic": damage.topic}
        _print_json({**place, "problem": damage.problem})
        return
    place_text = damage.path if damage.position is None else f"{damage.path}, byte {damage.position}"
    topic = "" if damage.topic is None else f", topic {_visible(damage.topic)}"
    print(f"damaged: {place_text}{topic}: {damage.problem}", file=sys.stderr)


@contextmanager
def _progress(what: str, *, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while it is a terminal; yields the function to report (done, in all) to."""
    console = Console(stderr=True)
    if hidden or not console.is_terminal:
        yield lambda _done, _in_all: None
        return
    amount = DownloadColumn() if what == "verifying" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, in_all: bar.update(task, completed=done, total=in_all)
