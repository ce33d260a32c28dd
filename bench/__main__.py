"""Measure and print the budget table: `python -m bench [--quick] [--json FILE] [ROW ...]`.

A row is the name of a file beside this one (`wal_append`); without any, all of them are measured. A budget that is
missed is printed as missed and changes no exit status: machines differ, and figures are for people to judge.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import Budget, Effort, Limit, Row

ROWS = (
    "wal_append",
    "wal_batch",
    "wal_large",
    "wal_sync",
    "wal_read",
    "wal_open",
    "machine_strategies",
    "raft_core",
    "apply_loop",
    "cluster_propose",
    "cluster_clients",
    "cluster_query",
    "cluster_failover",
    "cluster_memory",
)

_quick = Effort(rounds=1, share=0.02)


def main() -> None:
    """Measure the rows that were asked for, printing each as soon as it is there."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Print the budget table.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(ROWS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the work, once: shows that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single figure there as well")
    options = parser.parse_args()
    unknown = sorted(set(options.rows) - set(ROWS))
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}")
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(f"Python {platform.python_version()}, {os.cpu_count()} processors, {platform.platform()}")
    effort = _quick if options.quick else Effort()
    measured: list[Row] = []
    failed: list[str] = []
    for name in options.rows or ROWS:
        try:
            for row in importlib.import_module(f"bench.{name}").rows(effort):
                console.print(table(row), "")
                measured.append(row)
        except Exception:  # noqa: BLE001 - one row that can't be measured takes no other with it
            console.print_exception()
            failed.append(name)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(measured), indent=1))
    if failed:
        sys.exit(f"could not be measured: {', '.join(failed)}")


def table(row: Row) -> Table:
    """One row of the budget table: a line for each contestant, with its ratios to what we are measured against."""
    drawn = Table(title=row.title, title_justify="left", title_style="bold", caption=row.note, caption_justify="left")
    drawn.add_column("who", min_width=28)
    drawn.add_column(row.unit, justify="right", min_width=12)
    drawn.add_column("lowest - highest", justify="right", min_width=22)
    drawn.add_column("ours / it", justify="right")
    drawn.add_column("budget")
    for name, figures in row.figures.items():
        low, high = min(figures), max(figures)
        digits = row.digits
        ratio = row.ratio(Budget(ours=next(iter(row.figures)), reference=name, factor=1))
        drawn.add_row(
            name,
            f"{row.median(name):,.{digits}f}",
            f"{low:,.{digits}f} - {high:,.{digits}f}",
            "" if ratio is None or name == next(iter(row.figures)) else f"{ratio:.2f}",
            "; ".join(_judgements(row, name)),
        )
    return drawn


def _judgements(row: Row, name: str) -> Iterable[str]:
    first = next(iter(row.figures))
    for promise in row.promises:
        if isinstance(promise, Limit):
            if promise.ours == name:
                yield f"at most {promise.value:g} {row.unit}: {_verdict(row.median(name) <= promise.value)}"
            continue
        # A promise of the first contestant stands on its reference's line, any other on its own.
        if name != (promise.reference if promise.ours == first else promise.ours):
            continue
        ratio = row.ratio(promise)
        if ratio is None:
            continue
        met = ratio <= promise.factor if promise.smaller_is_better else ratio >= promise.factor
        bound = "<=" if promise.smaller_is_better else ">="
        shown = "" if promise.ours == first else f" x {promise.reference} ({ratio:.2f})"
        yield f"{bound} {promise.factor:g}{shown}: {_verdict(met)}"


def _verdict(met: bool) -> str:
    return "[green]met[/]" if met else "[red]MISSED[/]"


def as_json(rows: Iterable[Row]) -> dict[str, object]:
    """All figures, for comparing two runs."""
    return {
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "rows": [{"title": row.title, "unit": row.unit, "figures": dict(row.figures)} for row in rows],
    }


if __name__ == "__main__":
    main()
