"""Any codec for snapshots: an array that is restored without copying, by NumPy, and documents, by msgspec.

    python zero_copy.py        (NumPy has to be installed)

`restore` gets the snapshot's file as a read-only mapping, which stays for as long as something refers to it. So the
array below is the file itself until a command changes it, and each document is a view of the file until it is replaced:
a node with gigabytes of state restarts in no time, and reads from the disk what it is asked for.
"""

import asyncio
from collections.abc import Callable

import msgspec
import numpy as np

from octopii import CommandError, Config, OctopiiNode, StateMachine
from octopii.machines import CompositeStateMachine

cells = 1_000_000


class Grid(StateMachine):
    """ADD <cell> <number> -> the cell's new value. As a query: SUM -> the sum of all cells.

    Whole numbers: sums of floats depend on the order, which NumPy chooses by the processor.
    """

    def __init__(self) -> None:
        self.cells = np.zeros(cells, dtype="<i8")

    def apply(self, command: bytes) -> bytes:
        """Add to a cell."""
        try:
            verb, cell, number = command.split()
            index, amount = int(cell), int(number)
        except ValueError:
            raise CommandError("ADD <cell> <number>") from None
        if verb != b"ADD" or not 0 <= index < cells or abs(amount) > 1_000_000:
            raise CommandError(f"ADD <cell below {cells}> <number up to 1000000>")
        if not self.cells.flags.writeable:
            self.cells = self.cells.copy()  # the first change after a restore
        self.cells[index] += amount
        return b"%d" % self.cells[index]

    def query(self, command: bytes) -> bytes:
        """Sum up."""
        return b"%d" % self.cells.sum()

    def snapshot(self) -> Callable[[], memoryview]:
        """Return a frozen view: of a copy, for commands go on."""
        copied = self.cells.copy()
        return lambda: copied.data

    def restore(self, data: memoryview) -> None:
        """Look at the file as an array."""
        if len(data) != cells * 8:
            raise ValueError(f"a snapshot of {cells} cells has {cells * 8} bytes, not {len(data)}")
        self.cells = np.frombuffer(data, dtype="<i8")


class Documents(StateMachine):
    """PUT <name> <text> -> OK. As a query: <name> -> the text."""

    def __init__(self) -> None:
        self.documents: dict[str, memoryview] = {}

    def apply(self, command: bytes) -> bytes:
        """Keep a document."""
        _, name, text = command.split(b" ", 2)
        self.documents[name.decode()] = memoryview(text)
        return b"OK"

    def query(self, command: bytes) -> bytes:
        """Show a document."""
        return bytes(self.documents.get(command.decode(), b""))

    def snapshot(self) -> Callable[[], bytes]:
        """Return a frozen view: documents are replaced, never changed."""
        frozen = dict(self.documents)
        return lambda: msgspec.msgpack.encode(frozen)

    def restore(self, data: memoryview) -> None:
        """Read names and places; the texts stay where they are."""
        self.documents = msgspec.msgpack.decode(data, type=dict[str, memoryview])


async def main() -> None:
    """Fill a node, take a snapshot, start it anew."""
    config = Config(bind_addr="127.0.0.1:5111", wal_dir="zero-copy-data", is_initial_leader=True)
    for fill in (True, False):
        machine = CompositeStateMachine({"grid": Grid, "documents": Documents})
        async with OctopiiNode(config, machine) as node:
            if fill:
                await node.propose_batch([b"grid:ADD %d %d" % (n, n) for n in range(1000)])
                await node.propose(b"documents:PUT readme to be read")
                await node.force_snapshot()
            print("sum:", (await node.query(b"grid:SUM")).decode())
            print("readme:", (await node.query(b"documents:readme")).decode())
            grid, documents = machine["grid"], machine["documents"]
            assert isinstance(grid, Grid)
            assert isinstance(documents, Documents)
            array = "an array of its own" if grid.cells.flags.owndata else "the file"
            print(f"cells are in {array}, readme is in {type(documents.documents['readme'].obj).__name__}")


if __name__ == "__main__":
    asyncio.run(main())
