"""Ready-made clusters for tests, and what has to be true of every one of them at the end."""

from collections.abc import Callable
from typing import cast

from octopii import sim
from octopii.config import Config
from octopii.errors import LogFull, NotApplied, OutcomeUnknown
from octopii.sim import Asked, SimulatedClient, World
from octopii.sim.cluster import config_of
from octopii.wire.requests import Consistency, Reply, Request
from tests.replica.journal import Journal, Ledger

KIB = 1024

MachineMaker = Callable[[Ledger], Journal]


class Node(sim.Node):
    """A machine of a test: its state machine is a `Journal`, and it may fail to start over a full disk alone."""

    def __init__(self, cluster: "Cluster", config: Config) -> None:
        super().__init__(cluster.world, config, machine=lambda: cluster.machine(cluster.ledger))

    @property
    def machine(self) -> Journal:
        """The state machine."""
        assert isinstance(self.applier.machine, Journal)
        return self.applier.machine

    def start(self) -> None:
        """Boot."""
        super().start()
        error = self.start_error
        if error is not None and not (isinstance(error, LogFull | OSError) and self.vfs.faults.capacity is not None):
            raise error

    def stop(self) -> None:
        """Stop in good order, and wait for it."""
        super().stop()
        self.world.run_until(lambda: not self.up, what=f"node {self.id} has stopped")


class Cluster:
    """A world with nodes 1 to `members`."""

    def __init__(
        self, seed: int, *, members: int = 3, machine: MachineMaker = Journal, start: bool = True, **changes: object
    ) -> None:
        self.world = World(seed)
        self.ledger = Ledger()
        self.members = members
        self.machine = machine
        self.changes = changes
        for node_id in range(1, members + 1):
            Node(self, config_of(node_id, members, **changes))
        self.clients: list[SimulatedClient] = []
        self._named = 0
        if start:
            self.start()

    @property
    def nodes(self) -> dict[int, Node]:
        """All machines by number."""
        return cast(dict[int, Node], self.world.nodes)

    def start(self) -> None:
        """Boot all, and wait until the cluster takes calls."""
        for node in self.nodes.values():
            node.start()
        self.world.run_until(self.is_complete, what="the cluster is founded and complete")

    def is_complete(self) -> bool:
        """Whether somebody leads and every founding member is in the membership that each node has applied."""
        wanted = set(range(1, self.members + 1))
        return self.leader is not None and all(
            node.up and set(node.replica.conf_state.voters) == wanted and not node.replica.conf_state.voters_outgoing
            for node in self.nodes.values()
        )

    @property
    def leader(self) -> Node | None:
        """The leader of the newest term that is up."""
        leaders = [node for node in self.nodes.values() if node.up and node.replica.leadership.is_leader]
        return max(leaders, key=lambda node: node.replica.raft.term, default=None)

    def wait_for_leader(self, *, among: tuple[int, ...] = ()) -> Node:
        """Let time pass until somebody leads, one of `among` if given."""

        def found() -> bool:
            leader = self.leader
            return leader is not None and (not among or leader.id in among)

        self.world.run_until(found, what="there is a leader")
        assert self.leader is not None
        return self.leader

    @property
    def followers(self) -> list[Node]:
        """Everybody who is up and does not lead."""
        return [node for node in self.nodes.values() if node.up and node is not self.leader]

    def client(self, *, at: int | None = None, **options: object) -> SimulatedClient:
        """A new client, of one node or of all."""
        addresses = [self.nodes[at].address] if at is not None else None
        name = f"client-{len(self.clients)}"
        client = SimulatedClient(self.world, name, addresses=addresses, **options)  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    def name(self) -> bytes:
        """A name that was not used before."""
        self._named += 1
        return b"name-%d" % self._named

    def write(self, client: SimulatedClient, count: int = 1) -> list[Asked]:
        """Append names, and wait until they are acknowledged."""
        asked = [client.propose(self.name()) for _ in range(count)]
        self.wait(*asked)
        for each in asked:
            assert each.error is None, repr(each.error)
        return asked

    def wait(self, *asked: Asked, limit: float = 60.0) -> None:
        """Let time pass until these calls have ended."""
        self.world.run_until(lambda: all(each.done for each in asked), limit=limit, what="the calls have ended")

    def request(self, node: Node, request: Request) -> list[Reply]:
        """Ask a node directly; the list is filled when its reply comes."""
        replies: list[Reply] = []
        self._named += 1
        origin = ("direct", self._named)
        node.reply_to[origin] = replies.append
        node.take_request(origin, request)
        return replies

    def reply(self, node: Node, request: Request) -> Reply:
        """Ask a node directly, and wait for its reply."""
        replies = self.request(node, request)
        self.world.run_until(lambda: bool(replies), what=f"node {node.id} replies to {request}")
        return replies[0]

    def applied(self, *nodes: Node) -> bool:
        """Whether these nodes (all that are up, if none are named) have applied all that the leader committed."""
        leader = self.leader
        if leader is None:
            return False
        goal = leader.replica.raft.committed
        return all(node.applier.index >= goal for node in nodes or self.nodes.values() if node.up)

    def settle(self, *nodes: Node) -> None:
        """Let time pass until all have applied the same."""
        self.world.run_until(lambda: self.applied(*nodes), what="all have applied what is committed")

    # --- the end ------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Mend everything and wait until all calls have ended and all members have applied the same."""
        world = self.world
        weather = world.weather
        weather.loss = weather.repeat = weather.reorder = weather.breaks = 0.0
        weather.delay, weather.job_time, weather.sync_time = (0.0002, 0.002), (0.0, 0.001), (0.0005, 0.002)
        world.network.heal()
        for node in self.nodes.values():
            node.vfs.faults.capacity = None
            node.wall_offset = 0.0
            node.vfs.faults.before = None
            if node.paused_sync:
                node.stall_disk(False)
            if not node.up:
                assert node.broken is None, repr(node.broken)
                node.start()
        for client in self.clients:
            client.pump()
        world.run_until(
            lambda: all(asked.done for client in self.clients for asked in client.calls),
            limit=120.0,
            what="all calls have ended",
        )
        self.wait_for_leader()
        last = SimulatedClient(world, "last", addresses=[self.leader.address] if self.leader else None)
        self.clients.append(last)
        end = last.propose(self.name(), timeout=100.0)
        self.wait(end, limit=100.0)
        assert end.error is None, repr(end.error)
        world.run_until(lambda: self.applied(*self.present), limit=60.0, what="all members have applied all")

    @property
    def present(self) -> list[Node]:
        """The nodes that are members now."""
        leader = self.wait_for_leader()
        conf = leader.replica.conf_state
        return [self.nodes[node_id] for node_id in sorted({*conf.voters, *conf.learners})]

    def check(self) -> None:
        """Every call has the fate that its caller was told, and all members are in the same state."""
        present = self.present
        goal = max(node.applier.index for node in present)
        self.world.run_until(lambda: all(node.applier.index >= goal for node in present), what="all are at one index")
        first = present[0]
        for node in present[1:]:
            if node.applier.index == first.applier.index:
                assert node.machine.state == first.machine.state, f"nodes {first.id} and {node.id} differ"
                assert node.applier.sessions.capture() == first.applier.sessions.capture()
                assert node.applier.roster == first.applier.roster
                assert node.applier.conf_state == first.applier.conf_state
                assert node.applier.time_ns == first.applier.time_ns
        names = first.machine.state.names
        counts: dict[bytes, int] = {}
        for name in names:
            counts[name] = counts.get(name, 0) + 1
        acknowledged, absent, unknown = outcomes(self.clients)
        for name in acknowledged:
            assert counts.get(name) == 1, f"{name!r} was acknowledged and applied {counts.get(name, 0)} times"
        for name in absent:
            assert name not in counts, f"{name!r} was 'not applied' and is there"
        for name in unknown:
            assert counts.get(name, 0) <= 1, f"{name!r} was applied {counts[name]} times"
        self._check_answers(names)
        self._check_queries(names)

    def _check_answers(self, names: list[bytes]) -> None:
        """Each answer is the position at which the name stands."""
        for client in self.clients:
            for asked in client.calls:
                if asked.consistency is None and asked.commands and isinstance(asked.result, list):
                    for name, answer in zip(asked.commands, asked.result, strict=True):
                        told = answer if isinstance(answer, bytes) else b"0"
                        assert told == b"0" or names[int(told) - 1] == name, f"{name!r} was told {told!r}"

    def _check_queries(self, names: list[bytes]) -> None:
        """A query saw all that was acknowledged before it was asked, and nothing that was asked after its answer."""
        calls = [asked for client in self.clients for asked in client.calls]
        asked_at = {name: asked.asked_at for asked in calls if asked.consistency is None for name in asked.commands}
        position = {name: place for place, name in enumerate(names, start=1)}
        known = sorted(
            (asked.ended_at, position[name])
            for asked in calls
            if asked.result is not None and asked.consistency is None
            for name in asked.commands
            if name in position
        )
        for query in calls:
            if query.consistency is None or not isinstance(query.result, list):
                continue
            (answer,) = query.result
            assert isinstance(answer, bytes)
            seen = int(answer)
            latest = max((asked_at[name] for name in names[:seen]), default=0.0)
            assert latest <= query.ended_at, f"a query saw {seen} names, one of which was asked for later"
            if query.consistency is not Consistency.STALE:
                needed = max((place for ended, place in known if ended < query.asked_at), default=0)
                assert seen >= needed, f"a {query.consistency.name} query saw {seen} names of {needed} acknowledged"


def is_not_applied(asked: Asked) -> bool:
    """Whether the caller was told that nothing was and nothing will be applied."""
    return isinstance(asked.error, NotApplied)


def outcomes(clients: list[SimulatedClient]) -> tuple[set[bytes], set[bytes], set[bytes]]:
    """The names that were acknowledged, those that are certainly absent, and those that may be there at most once."""
    acknowledged: set[bytes] = set()
    absent: set[bytes] = set()
    unknown: set[bytes] = set()
    for client in clients:
        for asked in client.calls:
            if asked.consistency is not None or not asked.commands:
                continue
            if isinstance(asked.result, list):
                for name, answer in zip(asked.commands, asked.result, strict=True):
                    (acknowledged if isinstance(answer, bytes) else absent).add(name)  # or it was rejected
            elif isinstance(asked.error, NotApplied):
                absent.update(asked.commands)
            else:
                assert asked.error is None or isinstance(asked.error, OutcomeUnknown), repr(asked.error)
                unknown.update(asked.commands)
    return acknowledged, absent, unknown
