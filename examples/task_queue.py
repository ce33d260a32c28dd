"""A task queue on one node: a task is submitted, claimed by a worker, and completed.

    python task_queue.py

`task_workers.py` is the same queue on three nodes, with workers in processes of their own.
"""

import asyncio

from octopii import Config, OctopiiNode
from octopii.machines import TaskQueueStateMachine


async def main() -> None:
    """Start a node and let one task go all its way."""
    config = Config(node_id=1, bind_addr="127.0.0.1:5061", wal_dir="task-queue-data", is_initial_leader=True)
    async with OctopiiNode(config, TaskQueueStateMachine()) as node:
        # Submit a task
        task_id = await node.propose(b"SUBMIT\tprocess_video.mp4")
        print(f"Submitted task: {task_id.decode()}")

        # Worker claims a task
        task = await node.propose(b"CLAIM\tworker-1")
        print(f"Claimed task: {task.decode()}")

        # Complete the task
        result = await node.propose(b"COMPLETE\t" + task_id)
        print(f"Completed: {result.decode()}")


if __name__ == "__main__":
    asyncio.run(main())
