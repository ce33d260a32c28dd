"""Puts every known bug back, one at a time, and writes down what catches it.

    python -m tests.mutants [--seeds 3] [--jobs 2] [--only WORD] [--write docs/mutants.md]

For each mutant the tests that are there for it are run up to the first failure; then the simulator, with the bug in
place, seed after seed up to `--seeds`. Fails if a mutant was caught by neither.
"""

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.mutants.judging import CLASSES, SUITES, Row, judge


def document(rows: list[Row], seeds: int) -> str:
    """The page of the docs."""
    lines = [
        "# Mutants: known bugs, and what catches them",
        "",
        "Each row is a bug that implementations of Raft or of write-ahead logs have had, put back into this one by",
        "replacing one function. A checker that never fails is no checker: each bug has to be caught by a test that is",
        f"there for it, or by the simulator within {seeds} seeds. This page is written by `make mutants`.",
        "",
        f"{len(rows)} mutants of {len({row.number for row in rows})} classes;"
        f" {sum(row.test is not None for row in rows)} caught by a test,"
        f" {sum(row.seeds > 0 for row in rows)} by the simulator.",
        "",
    ]
    for number, words in CLASSES.items():
        mine = [row for row in rows if row.number == number]
        if not mine:
            continue
        lines += [f"## {number}. {words[0].upper()}{words[1:]}", ""]
        lines += ["| mutant | caught by | seconds | simulator: seeds needed | seconds |", "|---|---|---|---|---|"]
        for row in mine:
            needed = f"{row.seeds} ({row.profile})" if row.seeds else f"not in {seeds} ({row.profile})"
            test = f"`{row.test}`" if row.test is not None else "-"
            lines.append(f"| {row.name} | {test} | {row.test_seconds:.1f} | {needed} | {row.seed_seconds:.1f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Judge all mutants, and fail if one was not caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Puts known bugs back.")
    parser.add_argument("--seeds", type=int, default=3, help="most seeds of the simulator (default: %(default)d)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)d)")
    parser.add_argument("--only", default="", help="mutants whose name has this in it")
    parser.add_argument("--write", type=Path, default=None, help="the page of the docs to write")
    chosen = parser.parse_args()
    todo = [(suite, one.name) for suite, (mutants, _) in SUITES.items() for one in mutants if chosen.only in one.name]
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for row in pool.map(judge, *zip(*((suite, name, chosen.seeds) for suite, name in todo))):
            rows.append(row)
            print(f"{row.number:2} {row.name}: {row.test or 'no test'} ({row.test_seconds:.1f} s);", end=" ")
            print(f"simulator, {row.profile}: {row.seeds or 'not'} ({row.seed_seconds:.1f} s)", flush=True)
    missed = [row.name for row in rows if row.test is None and not row.seeds]
    for name in missed:
        print(f"nothing noticed: {name}", flush=True)
    if chosen.write is not None and not chosen.only:
        chosen.write.write_text(document(rows, chosen.seeds))
    return 1 if missed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
