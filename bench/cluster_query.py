"""Linearizable `query` on the leader, 256 at a time, against the bare hand-over between two threads."""

from collections.abc import Iterator

from bench import measure, octopii_cluster
from bench.bare_handover import IN_FLIGHT
from bench.measure import Budget, Effort, Row

_full = 100_000


def rows(effort: Effort) -> Iterator[Row]:
    """One row."""
    count = effort.count(_full) // IN_FLIGHT * IN_FLIGHT or IN_FLIGHT
    with octopii_cluster.running() as cluster:
        cluster.leader().ask("propose", in_flight=1, count=1000)  # every key that is asked for
        figures = measure.take_turns(
            {
                "octopii": lambda: float(cluster.leader().ask("query", in_flight=IN_FLIGHT, count=count)["rate"]),
                "bare hand-over": lambda: float(octopii_cluster.run_module("bench.bare_handover")[0]["rate"]),
            },
            rounds=effort.rounds,
        )
    yield Row(
        title=f"linearizable query, {IN_FLIGHT} in flight on the leader",
        unit="calls/s",
        figures=figures,
        promises=(Budget(ours="octopii", reference="bare hand-over", factor=0.4),),
    )
