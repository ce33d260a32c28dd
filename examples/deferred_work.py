"""Effects on the world, done outside of `apply`: send each mail once a replica has decided that it is to be sent.

`apply` runs on every replica, and again when a node restarts: a mail sent there would be sent several times. So the
machine only notes what is to be done. A worker claims a task by a command, does it, and reports by another one. A
worker that dies between the two leaves a task that is claimed and not done; after its lease it is given out again. So
the effect happens at least once: give it a key (here the task's number) by which its receiver knows a repetition.
"""

import asyncio

from octopii import Config, OctopiiNode, TypedStateMachine, command, query

lease_seconds = 30.0


class Outbox(TypedStateMachine):
    """Mails by number: those to be sent, and until when each claimed one is in somebody's hands."""

    next_number: int = 1
    waiting: dict[int, str]
    claimed_until: dict[int, float]

    @command
    def write(self, text: str) -> int:
        """Ask for a mail; returns its number."""
        number, self.next_number = self.next_number, self.next_number + 1
        self.waiting[number] = text
        return number

    @command
    def claim(self) -> tuple[int, str] | None:
        """Take a mail that nobody has in hand; its number and text, or None."""
        now = self.clock.now()  # replicated time: the same on every replica
        for number, text in self.waiting.items():
            if self.claimed_until.get(number, 0.0) <= now:
                self.claimed_until[number] = now + lease_seconds
                return number, text
        return None

    @command
    def sent(self, number: int) -> bool:
        """Report a mail as sent; False when somebody else has done so."""
        self.claimed_until.pop(number, None)
        return self.waiting.pop(number, None) is not None

    @query
    def left(self) -> int:
        """How many are still to be sent."""
        return len(self.waiting)


async def work(node: OctopiiNode) -> None:
    """Send what there is to be sent; this runs beside the node, on any of them."""
    while (mail := await node.call(Outbox.claim)) is not None:
        number, text = mail
        print(f"sending mail {number}: {text}")
        await node.call(Outbox.sent, number)


async def main() -> None:
    """Ask for two mails and send them."""
    config = Config(bind_addr="127.0.0.1:5021", wal_dir="outbox-data", is_initial_leader=True)
    async with OctopiiNode(config, Outbox()) as node:
        for text in ("your order has come in", "your order is on its way"):
            await node.call(Outbox.write, text)
        await work(node)
        print("left:", await node.call(Outbox.left))


if __name__ == "__main__":
    asyncio.run(main())
