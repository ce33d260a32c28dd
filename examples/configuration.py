"""Replicated configuration with a typed machine: revisions, edits that notice each other, and a watcher.

    python configuration.py

Two operators edit the same settings. Who edits what he has not seen gets a `Conflict`, with the revision that he
missed, as a Python exception with fields. A watcher follows all changes on another node.
"""

import asyncio
import contextlib
import tempfile

from octopii import CommandError, Config, OctopiiNode, TypedStateMachine, command, query

addresses = {1: "127.0.0.1:5091", 2: "127.0.0.1:5092", 3: "127.0.0.1:5093"}


class Conflict(CommandError):
    """Somebody else has changed the setting since: at `revision`."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"changed at revision {revision}")
        self.revision = revision


class Settings(TypedStateMachine):
    """Settings by name, each with the revision at which it was last changed."""

    errors = (Conflict,)

    def __init__(self) -> None:
        self.revision: int = 0
        self.values: dict[str, tuple[str, int]] = {}

    @command
    def put(self, name: str, value: str, *, seen: int) -> int:
        """Set a value, if it was last changed at revision `seen` (0: never); returns the new revision."""
        changed_at = self.values.get(name, ("", 0))[1]
        if changed_at != seen:
            raise Conflict(changed_at)
        self.revision += 1
        self.values[name] = (value, self.revision)
        return self.revision

    @query
    def get(self, name: str) -> tuple[str, int]:
        """A value and its revision; an empty one and 0 when there is none."""
        return self.values.get(name, ("", 0))

    @query
    def changes(self, since: int) -> list[tuple[int, str, str]]:
        """What has changed after a revision, oldest first: revision, name and present value."""
        return sorted((at, name, value) for name, (value, at) in self.values.items() if at > since)


async def watch(node: OctopiiNode, seen: int, *, until: int) -> int:
    """Print changes after a revision as this node sees them, until there is that one; returns the last seen."""
    while seen < until:
        # Stale is enough: the node's own state, without asking the leader.
        for revision, name, value in await node.call(Settings.changes.options(consistency="stale"), seen):
            print(f"revision {revision}: {name} = {value}")
            seen = revision
        await asyncio.sleep(0.02)
    return seen


async def main() -> None:
    """Three nodes; the operators sit at two of them, the watcher at the third."""
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
                ),
                Settings(),
            )
            for number, address in addresses.items()
        ]
        for node in nodes:
            await stack.enter_async_context(node)
        first, second, third = nodes

        revision = await first.call(Settings.put, "log_level", "info", seen=0)
        watched = await watch(third, 0, until=revision)
        await second.call(Settings.put, "log_level", "debug", seen=revision)
        watched = await watch(third, watched, until=revision + 1)
        try:
            await first.call(Settings.put, "log_level", "error", seen=revision)
        except Conflict as conflict:
            print(f"conflict: {conflict}")
            value, seen = await first.call(Settings.get, "log_level")
            print(f"it is {value} since revision {seen}")
            await first.call(Settings.put, "log_level", "error", seen=conflict.revision)
        await watch(third, watched, until=revision + 2)


if __name__ == "__main__":
    asyncio.run(main())
