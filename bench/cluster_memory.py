"""Ten million SETs over 10,000 keys through one node, snapshots on: memory after the first of them, and at the end."""

from collections.abc import Iterator

from bench import octopii_cluster
from bench.measure import Effort, Limit, Row

SETS = 10_000_000
KEYS = 10_000
STEPS = 10

_batch = 1000
_mebibyte = 1 << 20


def rows(effort: Effort) -> Iterator[Row]:
    """One row: memory after each tenth. The first tenth is warm-up: it holds several snapshots."""
    step = max(effort.count(SETS) // STEPS, _batch)
    with octopii_cluster.running(size=1) as cluster:
        memory = []
        for _ in range(STEPS):
            answer = cluster.nodes[0].ask("fill", count=step, keys=KEYS, batch=_batch)
            memory.append(answer["memory"] / _mebibyte)
    yield Row(
        title=f"{step * STEPS:,} SETs over {KEYS:,} keys through one node: memory of its own",
        unit="MiB",
        digits=1,
        figures={"octopii, at the end": memory[-1:]},
        promises=(Limit(ours="octopii, at the end", value=300),),
        note=f"After each tenth: {', '.join(f'{each:.0f}' for each in memory)} MiB.",
    )
