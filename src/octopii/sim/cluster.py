"""The machines of one run, and whoever operates them.

The operator does what docs/operations.md says a person or a service manager does: starts again what has ended, and
replaces a node whose disk is gone, damaged or refused by one with a new number. What takes several steps is an
*errand*: a generator that yields requests to the cluster (and is given how each ended) or seconds to wait.
"""

from collections.abc import Callable, Generator

from octopii.config import Config
from octopii.errors import CorruptLogError, NotApplied, OutcomeUnknown, RemovedNode
from octopii.sim.client import Asked, SimulatedClient
from octopii.sim.disk import rot
from octopii.sim.node import MachineMaker, Node
from octopii.sim.plan import KIB, Plan
from octopii.sim.world import World
from octopii.wire.requests import ChangeMembership, MemberChange, MemberOperation, Request

Wanted = Request | float
"""What an errand asks for: a request's outcome, or that many seconds."""

Errand = Generator[Wanted, Asked | None, None]

starts_after = (0.05, 2.5)
"""Seconds until what has ended is started again."""

retries_after = 0.4
"""Seconds until a start or a request that failed is tried again."""

request_timeout = 3.0

damaged_after = 3
"""Times that a machine says its disk is damaged until it is replaced."""

max_voters = 7
max_nodes = 9
"""Machines that are there at one time, those included that are about to leave."""


def config_of(node_id: int, members: int, **changes: object) -> Config:
    """Settings of one of the nodes 1 to `members`, small enough for short runs; node 1 founds the cluster."""
    settings: dict[str, object] = {
        "node_id": node_id,
        "bind_addr": f"127.0.0.1:{5000 + node_id}",
        "peers": {other: f"127.0.0.1:{5000 + other}" for other in range(1, members + 1) if other != node_id},
        "wal_dir": f"/node-{node_id}",
        "is_initial_leader": node_id == 1,
        "election_timeout": 0.4,
        "heartbeat_interval": 0.1,
        "call_timeout": 5.0,
        "session_ttl": 600.0,
        "compact_interval": 5.0,
        "snapshot_every_entries": 1000,
        "log_keep_entries": 50,
        "snapshot_lag_threshold": 500,
        "snapshot_chunk_bytes": 4 * KIB,
        "snapshot_window_bytes": 16 * KIB,
        "disk_reserve_bytes": 64 * KIB,
        "disk_low_water_bytes": 128 * KIB,
        "entry_cache_bytes": 16 * KIB,
        "max_append_bytes": 8 * KIB,
    }
    return Config(**{**settings, **changes})  # type: ignore[arg-type]


class Cluster:
    """See the module's text. `machines` makes the state machine of each version, the oldest first."""

    def __init__(self, world: World, plan: Plan, machines: tuple[MachineMaker, ...]) -> None:
        self.world = world
        self.plan = plan
        self.machines = machines
        self.version: dict[int, int] = {}
        self.next_id = plan.members + 1
        self.lost: set[int] = set()  # nodes that are being replaced
        self.damage: dict[int, int] = {}  # how often a disk was found damaged
        self.at_risk: set[int] = set()  # nodes whose disk is not to be trusted
        self.rotten: set[int] = set()  # those of them that may have lost what no later write vouched for
        self.clients: list[SimulatedClient] = []
        self.errands = 0
        self.asked = 0
        self.starting_fast = False
        self.rolling = False
        for node_id in range(1, plan.members + 1):
            self._build(config_of(node_id, plan.members, **plan.settings))

    def _build(self, config: Config) -> Node:
        node_id = config.node_id
        self.version[node_id] = max(self.version.values(), default=0) if self.version else 0
        return Node(self.world, config, machine=lambda: self.machines[self.version[node_id]]())

    # --- who is there -------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> dict[int, Node]:
        """All machines by number."""
        return self.world.nodes

    @property
    def running(self) -> list[Node]:
        """The machines that are up, those excepted that only wait for their end."""
        return [node for node in self.nodes.values() if node.up and not node.stopping and not node.paused]

    @property
    def leader(self) -> Node | None:
        """The leader of the newest term that is up."""
        leaders = [node for node in self.nodes.values() if node.up and node.replica.leadership.is_leader]
        return max(leaders, key=lambda node: node.replica.raft.term, default=None)

    def members(self) -> list[int]:
        """Voters and learners, as the newest leader, or else whoever is furthest, sees it."""
        nodes = [node for node in self.nodes.values() if node.up]
        leader = self.leader or max(nodes, key=lambda node: node.replica.raft.committed, default=None)
        if leader is None:
            return []
        conf = leader.replica.conf_state
        return sorted({*conf.voters, *conf.learners, *conf.voters_outgoing})

    def voters(self) -> list[int]:
        """The voters, as the leader sees it; none while there is no leader."""
        leader = self.leader
        return sorted(leader.replica.conf_state.voters) if leader is not None else []

    def present(self) -> list[Node]:
        """The machines of all members; empty while one of them is missing."""
        members = self.members()
        if any(node_id not in self.nodes for node_id in members):
            return []
        return [self.nodes[node_id] for node_id in members]

    # --- starting again -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot all machines for the first time."""
        self.starting_fast = False
        for node in list(self.nodes.values()):
            node.start()
            if not node.up:
                self.went_down(node)

    def went_down(self, node: Node) -> None:
        """A machine is down: start it again after a while."""
        if node.rots is not None and node.stopped:
            rot(node, node.rots)
        node.rots = None
        if isinstance(node.broken, CorruptLogError) and self._found_damaged(node):
            return
        delay = retries_after if self.starting_fast else self.world.between(starts_after)
        epoch = node.epoch
        self.world.at(delay, lambda: self.start_again(node, epoch))

    def start_again(self, node: Node, epoch: int) -> None:
        """Boot a machine, unless something else has happened to it since `epoch`."""
        if node.up or node.epoch != epoch or self.nodes.get(node.id) is not node:
            return
        node.start()
        if node.up:
            return
        if node.start_error is None or (isinstance(node.start_error, CorruptLogError) and self._found_damaged(node)):
            return
        started = node.epoch
        self.world.at(retries_after, lambda: self.start_again(node, started))

    def _found_damaged(self, node: Node) -> bool:
        """A disk gave other bytes than were written, or none, which passes sometimes; whether it is given up."""
        times = self.damage[node.id] = self.damage.get(node.id, 0) + 1
        others = set(self.members()) - {node.id}
        if times < damaged_after or not others:  # nobody else could bring another one in, now at least
            return False
        self.give_up(node)
        return True

    def look_after(self, node: Node) -> None:
        """End a process that has stopped applying, and replace a node that the others refuse."""
        replica = node.replica
        if replica.refused is not None:
            if isinstance(replica.refused, RemovedNode):
                self.retire(node)
            elif node.id not in self.lost:
                self.give_up(node)
        elif replica.applying.failure is not None:
            node.kill()

    def calm_down(self) -> None:
        """Faults are over: clocks are right, disks have room and work, and what is down is started at once."""
        self.starting_fast = True
        for node in list(self.nodes.values()):
            faults = node.vfs.faults
            faults.capacity = faults.before = faults.before_read = None
            node.wall_offset = node.slow_sync = node.slow_apply = 0.0
            node.set_clock_rate(1.0)
            node.crash_after_messages = 0
            node.fails_apply = False
            if node.paused:
                node.resume()
            if node.up and node.paused_sync:
                node.stall_disk(False)
            node.paused_sync = False
            if not node.up:
                self.start_again(node, node.epoch)

    def ask(self, request: Request) -> Asked:
        """Ask the cluster, as a command of the command line does: by a client that is new and knows all addresses."""
        self.asked += 1
        return SimulatedClient(self.world, f"operator-{self.asked}").ask(request, timeout=request_timeout)

    # --- errands ------------------------------------------------------------------------------------------------

    def send(self, errand: Errand) -> None:
        """Have an errand run."""
        self.errands += 1
        self._go_on(errand, None)

    def _go_on(self, errand: Errand, asked: Asked | None) -> None:
        try:
            wanted = errand.send(asked)
        except StopIteration:
            self.errands -= 1
            return
        if isinstance(wanted, float):
            self.world.at(wanted, lambda: self._go_on(errand, None))
            return
        call = self.ask(wanted)
        if call.done:
            self.world.at(0.0, lambda: self._go_on(errand, call))
        else:
            call.on_end = lambda ended: self._go_on(errand, ended)

    def change(self, *changes: MemberChange, done: Callable[[], bool]) -> Generator[Wanted, Asked | None, bool]:
        """Ask for a membership change until it is there; False when the cluster says that it makes no sense."""
        for _ in range(200):
            if done():
                return True
            asked = yield ChangeMembership(0, list(changes))
            assert asked is not None
            error = asked.error
            if error is not None and not isinstance(error, NotApplied | OutcomeUnknown):
                return done()
            yield retries_after
        return False

    def add(self) -> Node:
        """Set up a machine with a new number and an empty disk."""
        node_id, self.next_id = self.next_id, self.next_id + 1
        peers = {member: self.nodes[member].address for member in self.members() if member in self.nodes}
        settings = {**self.plan.settings, "is_initial_leader": False, "peers": peers}
        config = config_of(node_id, self.plan.members, **settings)
        node = self._build(config)
        node.start()
        if not node.up:
            self.went_down(node)
        return node

    def joining(self, node: Node) -> Errand:
        """Bring a new machine in: as a learner first, as a voter once it has caught up."""
        add = MemberChange(operation=MemberOperation.ADD_LEARNER, node_id=node.id, address=node.address)
        joined = yield from self.change(add, done=lambda: node.id in self.members())
        if joined:
            promote = MemberChange(operation=MemberOperation.PROMOTE, node_id=node.id)
            yield from self.change(promote, done=lambda: node.id in self.voters())

    def leaving(self, node_id: int) -> Errand:
        """Take a member out, and switch its machine off."""
        remove = MemberChange(operation=MemberOperation.REMOVE, node_id=node_id)
        gone = yield from self.change(remove, done=lambda: self.leader is not None and node_id not in self.members())
        node = self.nodes.get(node_id)
        if gone and node is not None:
            yield 1.0
            self.retire(node)

    def swapping(self, node: Node, gone: int) -> Errand:
        """Bring a machine in and take another one out, in one change that is asked for once."""
        add = MemberChange(operation=MemberOperation.ADD_LEARNER, node_id=node.id, address=node.address)
        remove = MemberChange(operation=MemberOperation.REMOVE, node_id=gone)
        asked = yield ChangeMembership(0, [add, remove])
        assert asked is not None
        if isinstance(asked.error, OutcomeUnknown):
            yield request_timeout  # it may come about yet, and until then no disk is to be lost

    def give_up(self, node: Node) -> None:
        """The disk of a machine is no use any more: bring in another one, then take it out."""
        if node.id in self.lost:
            return
        self.lost.add(node.id)
        self.world.trace.note(self.world.now, node.id, "is to be replaced")
        if node.up:
            node.kill()
        self.send(self._replacing(node))

    def _replacing(self, node: Node) -> Errand:
        while self.leader is None or self.leader is node:
            yield retries_after
        if node.id in self.members():
            yield from self.joining(self.add())
        yield from self.leaving(node.id)
        self.retire(node)

    def retire(self, node: Node) -> None:
        """Switch a machine off for good."""
        if self.nodes.get(node.id) is not node:
            return
        self.world.trace.note(self.world.now, node.id, "is switched off")
        del self.nodes[node.id]
        self.lost.discard(node.id)
        self.at_risk.discard(node.id)
        if node.up:
            node.kill()

    def rolling_restart(self, *, upgrade: bool) -> Errand:
        """Restart all machines, one after the other; to the newest version of the state machine, if asked."""
        if self.rolling:
            return
        self.rolling = True
        for node_id in sorted(self.nodes):
            node = self.nodes.get(node_id)
            if node is None:
                continue
            if upgrade:
                self.version[node_id] = len(self.machines) - 1
            if node.up and not node.stopping and not node.paused:
                node.stop()
            for _ in range(20):
                yield retries_after
                if node.up and not node.stopping:
                    break
        self.rolling = False
