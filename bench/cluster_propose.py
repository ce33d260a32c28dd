"""Three processes, fdatasync on, 100 B SETs by `propose` on the leader: 256 at a time, then one after the other."""

from collections.abc import Iterator
from typing import Any

from bench import measure, octopii_cluster
from bench.measure import Budget, Effort, Row

MANY = 256

_full_many = 100_000
_full_one = 2000

Answer = dict[str, Any]


def rows(effort: Effort) -> Iterator[Row]:
    """Rate and median latency with many in flight; median latency with one."""
    ours: dict[int, list[Answer]] = {MANY: [], 1: []}
    bare: dict[int, list[Answer]] = {MANY: [], 1: []}
    with octopii_cluster.running() as cluster:
        counts = {MANY: effort.count(_full_many) // MANY * MANY or MANY, 1: effort.count(_full_one)}

        def run() -> float:
            for in_flight, count in counts.items():
                ours[in_flight].append(cluster.leader().ask("propose", in_flight=in_flight, count=count))
            return 0.0

        def run_bare() -> float:
            for answer in octopii_cluster.run_module("bench.bare_cluster", "--in-flight", f"{MANY},1"):
                bare[answer["in_flight"]].append(answer)
            return 0.0

        measure.take_turns({"octopii": run, "bare cluster": run_bare}, rounds=effort.rounds)
    yield _row(ours[MANY], bare[MANY], title=f"propose, {MANY} in flight on the leader", key="rate")
    yield _row(ours[MANY], bare[MANY], title=f"propose, {MANY} in flight on the leader: p50", key="p50")
    yield _row(ours[1], bare[1], title="propose, one after the other on the leader: p50", key="p50")


def _row(ours: list[Answer], bare: list[Answer], *, title: str, key: str) -> Row:
    is_time = key == "p50"
    scale = 1e3 if is_time else 1.0
    figures = {  # the first round warms up and does not count
        "octopii": [answer[key] * scale for answer in ours[1:]],
        "bare cluster": [answer[key] * scale for answer in bare[1:]],
    }
    budget = Budget(ours="octopii", reference="bare cluster", factor=2.0 if is_time else 0.5, smaller_is_better=is_time)
    return Row(
        title=title,
        unit="ms" if is_time else "calls/s",
        digits=2 if is_time else 0,
        figures=figures,
        promises=(budget,),
    )
