"""An audit trail on three nodes: every event is on a majority of disks before it counts, and none is ever changed.

    python audit_log.py

Events are written through all three nodes at once; then the leader is stopped, and the rest write on. The trail has
every event once, under numbers without a gap.
"""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator

from octopii import Client, Config, OctopiiNode
from octopii.machines import EventLogStateMachine

addresses = {1: "127.0.0.1:5101", 2: "127.0.0.1:5102", 3: "127.0.0.1:5103"}
page = 50


async def log(node: OctopiiNode, user: str, actions: int) -> None:
    """Log a user's actions, one after the other."""
    for number in range(1, actions + 1):
        await node.propose(f"LOG\t{user}\tupdate\trecord {number}")


async def trail(client: Client) -> AsyncIterator[dict[str, object]]:
    """All events, oldest first, in pages."""
    start = 1
    while events := json.loads(await client.query(f"QUERY\t{start}\t{page}")):
        for event in events:
            yield event
        start = events[-1]["id"] + 1


async def main() -> None:
    """Three nodes in one program; each may as well be a process of its own."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())  # real nodes keep theirs
        nodes = [
            OctopiiNode(
                Config(
                    node_id=number,
                    bind_addr=address,
                    peers={other: place for other, place in addresses.items() if other != number},
                    wal_dir=f"{folder}/node-{number}",
                    is_initial_leader=number == 1,
                    election_timeout=0.5,
                ),
                EventLogStateMachine(),
            )
            for number, address in addresses.items()
        ]
        for node in nodes:
            await stack.enter_async_context(node)
        client = await stack.enter_async_context(Client(list(addresses.values())))

        await asyncio.gather(*(log(node, user, 40) for node, user in zip(nodes, ("ann", "bob", "eve"), strict=True)))
        print("120 events are logged")

        leader = next(node for node in nodes if node.is_leader)
        rest = [node for node in nodes if node is not leader]
        await leader.shutdown()
        print("the leader is stopped")
        await asyncio.gather(*(log(node, user, 10) for node, user in zip(rest, ("ann", "bob"), strict=True)))

        events = [event async for event in trail(client)]
        assert [event["id"] for event in events] == list(range(1, 141))
        by_user = {user: sum(event["user"] == user for event in events) for user in ("ann", "bob", "eve")}
        print(f"the trail has {len(events)} events without a gap: {by_user}")


if __name__ == "__main__":
    asyncio.run(main())
