"""Clusters of real processes under chaos.

    python -m tests.chaos [--minutes 10] [--nodes 3 --nodes 5] [--seed 1] [--network auto|namespaces|proxy]
                           [--rate 100] [--fault "kill one"] [--report FILE] [--keep FOLDER]

The time is shared by the sizes, and within each by the networks that this machine allows. Ends with a report in
Markdown, and with exit code 1 if anything was found. Ctrl-C ends it and takes everything away.
"""

import argparse
import asyncio
import random
import signal
import sys
import time
from pathlib import Path

from tests.chaos.namespaces import available
from tests.chaos.report import Report
from tests.chaos.run import chaos

DEFAULT_MINUTES = 10.0


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Clusters of real processes under chaos."
    )
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="in all (default: %(default)g)")
    parser.add_argument("--nodes", type=int, action="append", choices=(3, 5), help="size; may be given twice")
    parser.add_argument("--seed", type=int, default=None, help="of the nemesis and the clients (default: a new one)")
    parser.add_argument(
        "--network", choices=("auto", "namespaces", "proxy"), default="auto", help="default: all there are"
    )
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second (default: %(default)g)")
    parser.add_argument("--fault", action="append", help="only this kind, as the report names it; may be repeated")
    parser.add_argument("--report", type=Path, default=None, help="file to write the report to")
    parser.add_argument("--keep", type=Path, default=None, help="where the nodes' folders go if something was found")
    return parser.parse_args()


async def run_all(chosen: argparse.Namespace) -> list[Report]:
    """One run after the other, until one finds something."""
    networks = {"auto": [True, False], "namespaces": [True], "proxy": [False]}[chosen.network]
    if chosen.network == "auto" and not available():
        print("no network namespaces here (they need root and iproute2): the proxy stands in for them", flush=True)
        networks = [False]
    sizes = chosen.nodes or [3, 5]
    seed = random.randrange(1 << 32) if chosen.seed is None else chosen.seed
    reports: list[Report] = []
    for size in sizes:
        for namespaces in networks:
            minutes = chosen.minutes / len(sizes) / len(networks)
            print(
                f"{size} nodes, {'namespaces' if namespaces else 'proxy'}, {minutes:.1f} minutes, seed {seed}",
                flush=True,
            )
            began = time.monotonic()

            def say(text: str, began: float = began) -> None:
                print(f"  {time.monotonic() - began:6.1f} s  {text}", flush=True)

            report = await chaos(
                nodes=size,
                minutes=minutes,
                seed=seed,
                namespaces=namespaces,
                rate=chosen.rate,
                say=say,
                only=chosen.fault or (),
                keep=chosen.keep,
            )
            print(report.text(), flush=True)
            reports.append(report)
            if not report.passed:
                return reports
            seed += 1
    return reports


def main() -> int:
    """Run, and say by the exit code whether anything was found."""
    chosen = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also ends in order
    try:
        reports = asyncio.run(run_all(chosen))
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", flush=True)
        return 130
    if chosen.report is not None:
        chosen.report.write_text("\n\n".join(report.text() for report in reports) + "\n")
    return 0 if all(report.passed for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
