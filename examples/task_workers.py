"""A task queue on three nodes, with workers in processes of their own; one dies in the middle of a task.

    python task_workers.py

A worker claims a task for two seconds at a time. The first worker gets stuck and is killed by SIGKILL: when its lease
has run out, another worker is given its task. So a task is done at least once: a task that must not be done twice
carries a key (its number will do) by which whatever it changes knows a repetition.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from octopii import BlockingClient, CommandError, Config, OctopiiRuntime
from octopii.machines import TaskQueueStateMachine

addresses = {1: "127.0.0.1:5071", 2: "127.0.0.1:5072", 3: "127.0.0.1:5073"}
lease_seconds = 2
tasks = 20


def work(name: str, seconds: float) -> None:
    """Be a worker: claim, do, complete, until killed; each task takes so many seconds."""
    with BlockingClient(list(addresses.values())) as client:
        while True:
            try:
                task = json.loads(client.propose(f"CLAIM\t{name}\t{lease_seconds}"))
            except CommandError:  # no tasks available
                time.sleep(0.2)
                continue
            time.sleep(seconds)  # the work itself
            # Naming the worker makes this an error when the lease has run out and another has the task.
            with contextlib.suppress(CommandError):
                client.propose(f"COMPLETE\t{task['id']}\t{name}")


def worker(name: str, seconds: float) -> "subprocess.Popen[bytes]":
    """Start a worker's process."""
    return subprocess.Popen([sys.executable, __file__, name, str(seconds)])


def task(client: BlockingClient, number: int) -> dict[str, object]:
    """What the queue knows of a task."""
    known: dict[str, object] = json.loads(client.query(f"DESCRIBE\t{number}"))
    return known


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again, for a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("this takes too long")
        time.sleep(0.1)


def main() -> None:
    """Three nodes here, three workers elsewhere."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())  # real nodes keep theirs
        runtime = stack.enter_context(OctopiiRuntime())
        for number, address in addresses.items():
            config = Config(
                node_id=number,
                bind_addr=address,
                peers={other: place for other, place in addresses.items() if other != number},
                wal_dir=f"{folder}/node-{number}",
                is_initial_leader=number == 1,
            )
            stack.enter_context(runtime.node(config, TaskQueueStateMachine()))
        client = stack.enter_context(BlockingClient(list(addresses.values())))

        for number in range(1, tasks + 1):
            client.propose(f"SUBMIT\tvideo-{number}.mp4")
        print(f"{tasks} tasks are submitted")

        stuck = worker("worker-1", seconds=3600)
        wait_until(lambda: task(client, 1)["status"] == "Assigned")
        stuck.kill()
        stuck.wait()
        print("worker-1 has task 1 in hand, and is killed")

        others = [worker("worker-2", seconds=0.05), worker("worker-3", seconds=0.05)]
        try:
            wait_until(lambda: all(task(client, n)["status"] == "Completed" for n in range(1, tasks + 1)))
        finally:
            for other in others:
                other.kill()
                other.wait()
        first = task(client, 1)
        print(f"{tasks} tasks are completed; task 1 took {first['attempts']} attempts")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1], float(sys.argv[2]))
    else:
        main()
