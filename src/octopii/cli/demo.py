"""`octopii demo`: three nodes replicate a state machine of `examples/`, and `kill -9` of their leader loses nothing.

Customers place numbered orders all the time. The leader is killed, another one takes over, the dead node comes back
and, because the log has been cut meanwhile, catches up by a snapshot. At the end every order that was acknowledged has
to be on every node, once.
"""

import asyncio
import contextlib
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from octopii.cli.demo_cluster import Cluster, Customer, Node, look_seconds
from octopii.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, fail
from octopii.cli.serve import load_machine

machine = "orders:OrderBook"
customer_names = ("ada", "bela", "chen", "dora")
articles = ("apples", "pears", "plums")

patience_seconds = 30.0
"""How long anything that is waited for may take before the demo counts as failed."""

_shortest_phase, _plain_interval = 2.5, 1.0  # seconds


def demo(
    seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.1, max=30.0, help="How long customers write undisturbed between two events."
        ),
    ] = _shortest_phase,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the nodes' folders and logs here, in a new folder.")
    ] = None,
) -> None:
    """Watch a cluster survive `kill -9` of its leader.

    Three nodes replicate a book of orders while customers write all the time. At the end every order that was
    acknowledged has to be on every node, once.
    """
    folder = _machine_folder()
    sys.path.insert(0, str(folder))
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    with _working_folder(keep) as parent:
        story = Story(parent, folder, console, seconds=seconds)
        try:
            ended_well = asyncio.run(story.tell())
        except (KeyboardInterrupt, asyncio.CancelledError):
            console.print("interrupted; all nodes are ended" + ("" if keep else ", the folder is removed"))
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except TimeoutError as error:
            fail(f"the demo did not go on: {error}", EXIT_FAILED)
    if not ended_well:
        raise typer.Exit(EXIT_FAILED)


@contextlib.contextmanager
def _working_folder(keep: Path | None) -> Iterator[Path]:
    """A folder for the nodes: a new one that stays, or one that goes with everything in it."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="octopii-demo-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        fail(f"--keep needs a folder that can be made and is not there yet: {error}", EXIT_USAGE)
    yield keep.absolute()


def _machine_folder() -> Path:
    """Where the examples are: in the source tree, or where the package's installation has put them."""
    places = [Path(__file__).parents[3] / "examples", Path(sysconfig.get_path("data")) / "share/octopii/examples"]
    found = next((place for place in places if (place / "orders.py").exists()), None)
    if found is None:
        fail(f"the examples are neither in {places[0]} nor in {places[1]}", EXIT_USAGE)
    return found


class Story:
    """The demo from beginning to end."""

    def __init__(self, folder: Path, machine_folder: Path, console: Console, *, seconds: float) -> None:
        self._console = console
        self._seconds = seconds
        self._orders: Any = type(load_machine(machine))
        self._cluster = Cluster(folder, machine=machine, machine_folder=machine_folder, heard=self._heard)
        self._customers = [
            Customer(name, self._cluster.addresses, self._order_of(articles[i % len(articles)]))
            for i, name in enumerate(customer_names)
        ]
        self._began = time.monotonic()
        self._rate = 0.0
        self._live: Live | None = None
        self._installed: dict[int, str] = {}

    def _order_of(self, article: str) -> Callable[[str, int], bytes]:
        return lambda customer, number: self._orders.place.encode(customer, number, article)

    # --- what is shown ------------------------------------------------------------------------------------------

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(f"{time.monotonic() - self._began:5.1f} s  {text}", style))

    def _heard(self, node_id: int, message: str) -> None:
        """A node has logged something: what belongs to the story is shown."""
        if "installs a snapshot" in message:
            self._installed[node_id] = message
        if any(words in message for words in ("founds", "installs a snapshot", "failed", "lags")):
            self._say(f"        {message}", "dim")

    @property
    def _acknowledged(self) -> int:
        return sum(len(customer.acknowledged) for customer in self._customers)

    def _table(self) -> Table:
        table = Table(
            title=f"{self._acknowledged:,} orders acknowledged, {self._rate:,.0f} a second", title_justify="left"
        )
        for heading in ("node", "state", "term", "log", "applied", "snapshot at"):
            table.add_column(heading, justify="left" if heading == "state" else "right", min_width=9)
        for node in self._cluster.nodes.values():
            facts = node.facts if node.answers else None
            if not node.runs:
                table.add_row(str(node.id), Text("killed", "bold red"), "", "", "", "")
            elif facts is None:
                table.add_row(str(node.id), "starting", "", "", "", "")
            else:
                role = Text(facts["role"], "bold green" if facts["role"] == "leader" else "")
                log = f"{facts['first_index']:,} to {facts['last_index']:,}"
                numbers = (str(facts["term"]), log, f"{facts['applied']:,}", f"{facts['snapshot']['index']:,}")
                table.add_row(str(node.id), role, *numbers)
        return table

    async def _watch(self) -> None:
        """Ask the nodes how they are and show it, for ever."""
        before, at, shown = self._acknowledged, time.monotonic(), 0.0
        while True:
            await self._cluster.look()
            now = time.monotonic()
            self._rate = (self._acknowledged - before) / max(now - at, 1e-3)
            before, at = self._acknowledged, now
            if self._live is not None:
                self._live.update(self._table())
            elif now - shown >= _plain_interval:
                shown = now
                self._say(f"{self._acknowledged:,} orders acknowledged")
            await asyncio.sleep(look_seconds)

    @contextlib.contextmanager
    def _screen(self) -> Iterator[None]:
        """The table below the story while there is a terminal; plain lines otherwise."""
        if not self._console.is_terminal:
            yield
            return
        with Live(self._table(), console=self._console, refresh_per_second=8, transient=True) as live:
            self._live = live
            yield
        self._live = None

    # --- the story ----------------------------------------------------------------------------------------------

    async def tell(self) -> bool:
        """Tell it all; returns whether nothing was lost. Raises `TimeoutError` when something does not come about."""
        loop, this = asyncio.get_running_loop(), asyncio.current_task()
        assert this is not None
        for number in (signal.SIGTERM, signal.SIGHUP):  # the nodes have sessions of their own, they would stay
            loop.add_signal_handler(number, this.cancel)
        others: list[asyncio.Task[None]] = []
        try:
            with self._screen():
                await self._start(others)
                victim = await self._kill_leader()
                await self._bring_back(victim)
                await self._finish(*others)
            return await self._judge()
        except TimeoutError:
            for node in self._cluster.nodes.values():
                self._say(f"last words of node {node.id}: {' | '.join(node.last_lines)}")
            raise
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.gather(*(customer.close() for customer in self._customers))
            await self._cluster.close()

    async def _start(self, others: list[asyncio.Task[None]]) -> None:
        self._say("Three nodes start; each is a process of its own:", "bold")
        for node in self._cluster.nodes.values():
            self._say(f"        octopii {' '.join(node.command[:9])} ... --machine {machine}", "dim")
            await self._cluster.start(node.id)
        others.append(asyncio.create_task(self._watch()))
        leader = await self._until(lambda: self._cluster.leader, "no leader was elected")
        self._say(f"Node {leader.id} leads. {len(self._customers)} customers begin to place numbered orders.", "bold")
        others += [asyncio.create_task(customer.run()) for customer in self._customers]
        await self._until(lambda: self._acknowledged >= 100, "no orders are acknowledged")
        await asyncio.sleep(self._seconds)

    async def _kill_leader(self) -> int:
        leader: Node = await self._until(lambda: self._cluster.leader, "nobody leads")
        self._say(
            f"kill -9 of node {leader.id}, which leads, with {self._acknowledged:,} orders acknowledged.", "bold red"
        )
        await leader.kill()
        killed = time.monotonic()
        successor = await self._until(lambda: self._cluster.leader, "no new leader was elected")
        await self._until(
            lambda: all(customer.last_acknowledged > killed + 0.001 for customer in self._customers) or None,
            "orders do not go on",
        )
        first = min(customer.last_acknowledged for customer in self._customers) - killed
        self._say(
            f"Node {successor.id} leads; every customer is served again, {first:.1f} s after the kill.", "bold green"
        )
        await asyncio.sleep(self._seconds)
        return leader.id

    async def _bring_back(self, victim: int) -> None:
        node = self._cluster.nodes[victim]
        last = int(node.facts["last_index"])
        await self._until(
            lambda: self._cluster.leader if self._log_begins() > last + 1 else None, "the log was not cut"
        )
        self._say(
            f"Node {victim} comes back. It knows entries to about {last:,}; the log now begins at "
            f"{self._log_begins():,}, so it needs a snapshot.",
            "bold",
        )
        await self._cluster.start(victim)
        await self._until(lambda: self._installed.get(victim), f"node {victim} was sent no snapshot")
        await self._until(lambda: self._has_caught_up(victim) or None, f"node {victim} did not catch up")
        self._say(f"Node {victim} has caught up, by a snapshot and the log behind it.", "bold green")
        await asyncio.sleep(self._seconds)

    def _log_begins(self) -> int:
        leader = self._cluster.leader
        return int(leader.facts["first_index"]) if leader is not None else 0

    def _has_caught_up(self, node_id: int) -> bool:
        node, leader = self._cluster.nodes[node_id], self._cluster.leader
        if leader is None or not node.answers:
            return False
        return int(node.facts["applied"]) + 100 >= int(leader.facts["applied"])

    async def _finish(self, watching: asyncio.Task[None], *writing: asyncio.Task[None]) -> None:
        self._say("The customers stop.", "bold")
        for customer in self._customers:
            customer.stop()
        await asyncio.wait_for(asyncio.gather(*writing), patience_seconds)
        watching.cancel()  # what it has seen, or is about to see, may be older than the last orders
        await asyncio.wait([watching])
        await self._until(self._all_equal, "the nodes did not become equal", fresh=True)

    def _all_equal(self) -> bool:
        nodes = self._cluster.nodes.values()
        if not all(node.answers for node in nodes):
            return False
        ends = {(node.facts["last_index"], node.facts["applied"]) for node in nodes}
        return len(ends) == 1 and all(last == applied for last, applied in ends)

    async def _until(self, condition: Callable[[], Any], otherwise: str, *, fresh: bool = False) -> Any:
        """Wait until something is there, and return it; raises `TimeoutError` with `otherwise`.

        With `fresh` the nodes are asked each time, where what was seen before does not count.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            if fresh:
                await self._cluster.look()
            if found := condition():
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(otherwise)
            await asyncio.sleep(0.02)

    # --- the end ------------------------------------------------------------------------------------------------

    async def _judge(self) -> bool:
        """Compare what customers were told with what each node's own replica holds."""
        promised = {customer.name: customer.acknowledged for customer in self._customers}
        unknown = {customer.name: customer.unknown for customer in self._customers}
        table = Table(box=None, pad_edge=False)
        for heading in ("", "orders applied", "lost", "applied twice", "never placed", "checksum of the book"):
            table.add_column(heading, justify="left" if not heading else "right")
        ended_well, checksums = True, set()
        for node in self._cluster.nodes.values():
            audit = self._orders.audit.decode(await node.audit(self._orders.audit.encode()))
            lost, strange = compare(promised, unknown, audit.ranges)
            ended_well = ended_well and not (lost or strange or audit.repeated)
            checksums.add(audit.checksum)
            numbers = (f"{n:,}" for n in (audit.orders, lost, audit.repeated, strange))
            table.add_row(f"node {node.id}", *numbers, f"{audit.checksum:08x}")
        count = sum(map(len, unknown.values()))
        self._console.print(
            f"\n{self._acknowledged:,} orders were acknowledged; of {count:,} the outcome is unknown.\n"
        )
        self._console.print(table)
        ended_well = ended_well and len(checksums) == 1
        if ended_well:
            self._console.print("\nlost 0, applied twice 0, and all three books are the same.", style="bold green")
        else:
            self._console.print("\nThe nodes do not hold what was promised.", style="bold red")
        return ended_well


def compare(
    promised: dict[str, set[int]], unknown: dict[str, set[int]], found: dict[str, list[tuple[int, int]]]
) -> tuple[int, int]:
    """Count the orders that were acknowledged and are not there, and those that are there and were never placed."""
    lost = strange = 0
    for name in promised.keys() | found.keys():
        there = {number for first, last in found.get(name, []) for number in range(first, last + 1)}
        acknowledged = promised.get(name, set())
        lost += len(acknowledged - there)
        strange += len(there - acknowledged - unknown.get(name, set()))
    return lost, strange
