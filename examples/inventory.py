"""A replicated inventory inside an asyncio program: one node here; three when others join (see the README).

python inventory.py                                     by itself
octopii serve --machine inventory:Inventory ...         as a server
"""

import asyncio

from octopii import CommandError, Config, OctopiiNode, TypedStateMachine, command, query


class Inventory(TypedStateMachine):
    """How many of each item there are."""

    stock: dict[str, int]  # what is declared is saved in snapshots

    @command
    def add(self, item: str, count: int = 1) -> int:
        """Put items in; returns how many there are now."""
        self.stock[item] = self.stock.get(item, 0) + count
        return self.stock[item]

    @command
    def take(self, item: str, count: int = 1) -> int:
        """Take items out; refused when there are too few."""
        if self.stock.get(item, 0) < count:
            raise CommandError(f"there are only {self.stock.get(item, 0)} of {item}")
        self.stock[item] -= count
        return self.stock[item]

    @query
    def count(self, item: str) -> int:
        """How many there are."""
        return self.stock.get(item, 0)


async def main() -> None:
    """Start a node, change the inventory, ask it."""
    config = Config(bind_addr="127.0.0.1:5051", wal_dir="inventory-data", is_initial_leader=True)
    async with OctopiiNode(config, Inventory()) as node:
        # On disk on a majority of the nodes, and applied once, when the call returns.
        before = await node.call(Inventory.add, "apples", count=3)
        await node.call(Inventory.take, "apples")
        try:
            await node.call(Inventory.take, "pears")
        except CommandError as error:
            print("refused:", error)
        after = await node.call(Inventory.count, "apples")
        print(f"apples: {before}, then {after}")


if __name__ == "__main__":
    asyncio.run(main())
