"""A service registry on three nodes: services announce themselves, send heartbeats, and vanish when these stop.

    python service_registry.py

Expiry is decided by replicated time, in a log entry, so that all replicas drop a service at the same point.
"""

import asyncio
import contextlib
import tempfile

from octopii import Client, Config, OctopiiNode
from octopii.machines import RegistryStateMachine

addresses = {1: "127.0.0.1:5081", 2: "127.0.0.1:5082", 3: "127.0.0.1:5083"}
expiry_seconds = 1.5
heartbeat_seconds = 0.3


async def serve(name: str, address: str, port: int, zone: str) -> None:
    """Be a service: register, then send heartbeats until cancelled; one that was dropped registers again."""
    async with Client(list(addresses.values())) as client:
        known = False
        while True:
            if not known:
                await client.propose(f"REGISTER {name} {address} {port} zone={zone}")
            await asyncio.sleep(heartbeat_seconds)
            known = await client.propose(f"HEARTBEAT {name}") == b"OK"


async def find(client: Client, name: str) -> str:
    """Where a service is, or NOT_FOUND."""
    return (await client.query(f"LOOKUP {name}")).decode()


async def wait_for(client: Client, name: str, *, there: bool) -> str:
    """Look until a service is there, or no longer there."""
    async with asyncio.timeout(30):
        while True:
            found = await find(client, name)
            if (found != "NOT_FOUND") is there:
                return found
            await asyncio.sleep(0.1)


async def main() -> None:
    """Three nodes and two services in one program; each may as well be a process of its own."""
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
                    compact_interval=0.5,  # expiry is looked at so often
                ),
                RegistryStateMachine(expiry_seconds=expiry_seconds),
            )
            for number, address in addresses.items()
        ]
        for node in nodes:
            await stack.enter_async_context(node)
        client = await stack.enter_async_context(Client(list(addresses.values())))

        web = asyncio.create_task(serve("web", "10.0.0.1", 80, zone="a"))
        database = asyncio.create_task(serve("database", "10.0.0.2", 5432, zone="b"))
        for name in ("web", "database"):
            print(f"{name} is at {await wait_for(client, name, there=True)}")

        web.cancel()  # its process has died, say
        print("web sends no heartbeats any more")
        await wait_for(client, "web", there=False)
        print(f"web: {await find(client, 'web')}, database: {await find(client, 'database')}")

        database.cancel()
        await asyncio.gather(web, database, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
