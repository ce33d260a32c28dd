"""An order book: customers place numbered orders, and anybody can check that each was taken exactly once.

    octopii serve --machine orders:OrderBook ...        (from this folder, or with it on PYTHONPATH)

The machine takes whatever it is given, a repeated number as well. That each order is there once, whatever crashes while
it is placed, is the cluster's doing; `audit` shows it. `octopii demo` runs this machine.
"""

import zlib

import msgspec

from octopii import CommandError, TypedStateMachine, command, query


class Order(msgspec.Struct, frozen=True, array_like=True):
    """One order as it stands in the book; `taken_at` in UTC seconds, the same on every replica."""

    customer: str
    number: int
    article: str
    taken_at: float


class Audit(msgspec.Struct, frozen=True):
    """What the book holds: numbers by customer as inclusive ranges, how many are there twice, and a checksum of all."""

    orders: int
    repeated: int
    ranges: dict[str, list[tuple[int, int]]]
    checksum: int


class OrderBook(TypedStateMachine):
    """All orders, in the order in which they were taken."""

    book: list[Order]
    checksum: int = 0

    @command
    def place(self, customer: str, number: int, article: str) -> int:
        """Take an order and return its place in the book, from 1."""
        if not article:
            raise CommandError("an order names an article")
        order = Order(customer, number, article, self.clock.now())
        self.book.append(order)
        self.checksum = zlib.crc32(msgspec.msgpack.encode(order), self.checksum)
        return len(self.book)

    @query
    def audit(self) -> Audit:
        """Look through the whole book."""
        numbers: dict[str, set[int]] = {}
        for order in self.book:
            numbers.setdefault(order.customer, set()).add(order.number)
        distinct = sum(map(len, numbers.values()))
        ranges = {customer: _ranges(sorted(taken)) for customer, taken in sorted(numbers.items())}
        return Audit(orders=len(self.book), repeated=len(self.book) - distinct, ranges=ranges, checksum=self.checksum)


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs without a gap."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
