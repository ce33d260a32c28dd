"""State machines written as plain typed methods, with commands, answers and snapshots encoded for them.

    class OutOfStock(CommandError): ...

    class Inventory(TypedStateMachine):
        errors = (OutOfStock,)                         # they reach the caller as themselves

        def __init__(self) -> None:
            self.stock: dict[str, int] = {}            # annotated attributes are the state: saved in snapshots

        @command
        def reserve(self, sku: str, n: int = 1) -> int:
            if self.stock.get(sku, 0) < n:
                raise OutOfStock(sku)
            self.stock[sku] -= n
            return self.stock[sku]

        @query
        def available(self, sku: str) -> int:
            return self.stock.get(sku, 0)

    left = await client.call(Inventory.reserve, "apple", n=3)          # an int, for type checkers too

State is what annotations declare, in `__init__` or in the class body; dicts, lists, sets and deques that the class body
declares start empty, its other fields need a default. An attribute that no annotation declares would be lost with a
snapshot, so it is an error. A class that has its own `snapshot` and `restore` may keep whatever it likes.

A command travels as the MessagePack array [name, [argument, ...]], with every default filled in by the caller: what
lies in the log does not change its meaning when a later program has other defaults. Values are checked against the
annotations on arrival; what does not fit is refused by `CommandError`. How a later program may differ:

    the order of methods, their other code    as you like
    a method's Python name                    as you like, when `@command(name=...)` keeps the old one
    a new command                             with `since=N`; it is refused until every member has `command_version` N
    a new parameter                           at the end, with a default; members that do not know it pass over it, so
                                              while versions are mixed a new command is what you want
    a parameter's type                        only to one that takes all old values
    `errors`                                  as you like; older callers get `CommandError` with the text
    a new field of the state                  it gets its default, or what `__init__` gives it
    any other change of the state             raise `snapshot_version` and override `migrate`

The snapshot holds each field in blocks of its own, small enough for one C call each.
"""

from octopii.typed.machine import TypedStateMachine
from octopii.typed.method import ConsistencyName, Method, command, query

__all__ = ["ConsistencyName", "Method", "TypedStateMachine", "command", "query"]
