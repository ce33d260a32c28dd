"""One run: a cluster, its clients, the nemesis, and the judgement at the end."""

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from octopii import Client, NotApplied, OutcomeUnknown
from octopii.sim import check_history
from tests.chaos.clients import Recorder, Workload
from tests.chaos.cluster import ChaosCluster
from tests.chaos.machine import chaos_model
from tests.chaos.namespaces import NamespaceNetwork, remove_leftovers
from tests.chaos.nemesis import Nemesis
from tests.chaos.network import Network
from tests.chaos.proxy import ProxyNetwork
from tests.chaos.report import Report

CLIENTS = 8

CONVERGE_SECONDS = 60.0
"""Within this time after the last fault all nodes have applied the same."""


async def chaos(
    *,
    nodes: int,
    minutes: float,
    seed: int,
    namespaces: bool,
    rate: float,
    say: Callable[[str], None],
    only: Collection[str] = (),
    keep: Path | None = None,
) -> Report:
    """Run one cluster under chaos and judge what its clients saw. Leaves nothing behind, however it ends.

    Where something was found, the nodes' folders are copied to `keep`.
    """
    rng = random.Random(seed)
    remove_leftovers()
    network: Network = NamespaceNetwork() if namespaces else ProxyNetwork(random.Random(rng.random()))
    report = Report(nodes=nodes, network=network.name, seed=seed, minutes=minutes)
    with tempfile.TemporaryDirectory(prefix="octopii-chaos-", ignore_cleanup_errors=True) as folder:
        cluster = ChaosCluster(Path(folder), network, nodes)
        try:
            await _run(cluster, report, rng, rate, say, only)
        finally:
            if report.problems:
                _show_logs(cluster, say)
            cluster.kill()
            if report.problems and keep is not None:
                shutil.copytree(folder, keep / f"seed-{seed}-{nodes}", dirs_exist_ok=True)
            await cluster.close()
    return report


async def _run(
    cluster: ChaosCluster,
    report: Report,
    rng: random.Random,
    rate: float,
    say: Callable[[str], None],
    only: Collection[str],
) -> None:
    await cluster.found()
    recorder = Recorder()
    workload = Workload(recorder, random.Random(rng.random()), lambda: list(cluster.addresses.values()))
    nemesis = Nemesis(cluster, recorder, random.Random(rng.random()), say, only)
    report.outcomes, report.faults, report.write_times = recorder.outcomes, nemesis.faults, recorder.write_times
    began, cpu_before = time.monotonic(), cluster.cpu_seconds()
    workload.start(clients=CLIENTS, rate=rate)
    try:
        await nemesis.run(began + report.minutes * 60)
    except AssertionError as error:  # not recovered, or a node that does not start
        report.problems.append(str(error))
    report.problems += await workload.stop()
    report.minutes = (time.monotonic() - began) / 60
    report.cpu_share = (cluster.cpu_seconds() - cpu_before) / (time.monotonic() - began)
    if not report.problems:
        report.problems += await _differences(cluster)
        async with Client(list(cluster.addresses.values())) as client:
            report.problems += await workload.read_everything(client)
        report.problems += cluster.complaints()
    say(f"judging {len(recorder.history):,} operations")
    report.verdict = check_history(recorder.history, chaos_model())
    if not report.verdict.is_linearizable:
        report.problems.append("the history is not linearizable, or could not be judged")


async def _differences(cluster: ChaosCluster) -> list[str]:
    """Wait until all nodes have applied the same, and say which do not."""
    deadline = time.monotonic() + CONVERGE_SECONDS
    applied: dict[int, int] = {}
    while time.monotonic() < deadline:
        applied = {}
        for node_id in cluster.processes:
            async with Client([cluster.addresses[node_id]]) as client:
                try:
                    applied[node_id] = int((await client.status(timeout=2.0))["applied"])
                except (NotApplied, OutcomeUnknown):
                    applied[node_id] = -1
        if len(set(applied.values())) == 1 and -1 not in applied.values():
            return []
        await asyncio.sleep(0.05)
    return [f"the nodes have not come together within {CONVERGE_SECONDS:g} s: applied {json.dumps(applied)}"]


def _show_logs(cluster: ChaosCluster, say: Callable[[str], None]) -> None:
    """Show the end of each node's log: the folder goes away."""
    for path in sorted(cluster.folder.glob("node-*.log")):
        for line in path.read_text().splitlines()[-15:]:
            say(f"{path.stem}: {line}")
