"""Random schedules: clients work while everything that can go wrong does, and at the end every promise has to hold.

One seed is one schedule, always the same. `run(seed)` raises when a promise is broken; the message names the seed.
"""

import random
from collections.abc import Callable

from octopii.sim import SimulatedClient
from octopii.wire import requests
from octopii.wire.requests import Consistency, MemberChange, MemberOperation
from tests.replica.clusters import KIB, Cluster, Node, config_of
from tests.replica.journal import Journal, Ledger


class Schedule:
    """One random run of a cluster."""

    def __init__(self, seed: int, *, steps: int = 60) -> None:
        rng = self.rng = random.Random(seed)
        self.seed = seed
        self.steps = steps
        members = rng.choice((1, 3, 3, 3, 3, 5))
        filler, frozen = rng.choice((0, 0, 3 * KIB, 20 * KIB)), rng.random() < 0.5

        def machine(ledger: Ledger) -> Journal:
            return Journal(ledger, filler=filler, frozen=frozen)

        self.cluster = Cluster(
            rng.randrange(1 << 30),
            members=members,
            machine=machine,
            start=False,
            snapshot_every_entries=rng.choice((5, 10, 30, 1000)),
            log_keep_entries=rng.choice((0, 0, 3, 20)),
            snapshot_lag_threshold=rng.choice((5, 20, 1000)),
            compact_interval=rng.choice((0.5, 2.0, 60.0)),
            entry_cache_bytes=rng.choice((0, 200, 16 * KIB)),
            max_append_bytes=rng.choice((1, 200, 8 * KIB)),
        )
        self.machine = machine
        self.removed: set[int] = set()
        self.next_id = members + 1

    def run(self) -> None:
        """Run it, and check the promises."""
        cluster, rng = self.cluster, self.rng
        self._set_weather()
        for node in cluster.nodes.values():
            node.start()
        cluster.world.run(rng.uniform(0.0, 1.5))
        for _ in range(rng.randint(1, 3)):
            cluster.client()
        actions = self._actions()
        pace = rng.choice((1, 1, 1, 4))
        for _ in range(self.steps):
            rng.choice(actions)()
            cluster.world.run(pace * rng.choice((0.0, 0.001, 0.01, 0.05, 0.3)))
        self._end()

    def _set_weather(self) -> None:
        weather, rng = self.cluster.world.weather, self.rng
        weather.loss = rng.choice((0.0, 0.0, 0.02, 0.1))
        weather.repeat = rng.choice((0.0, 0.0, 0.1))
        weather.reorder = rng.choice((0.0, 0.0, 0.2))
        weather.breaks = rng.choice((0.0, 0.0, 0.002))
        weather.job_time = rng.choice(((0.0, 0.001), (0.0, 0.02)))
        weather.sync_time = rng.choice(((0.0005, 0.002), (0.0, 0.03)))

    def _actions(self) -> list[Callable[[], None]]:
        """What may happen, as often as it is listed; each run leaves out some."""
        frequent: list[Callable[[], None]] = [self.propose] * 12 + [self.query] * 4
        kinds = [
            self.crash,
            self.crash,
            self.restart,
            self.restart,
            self.stop,
            self.cut,
            self.isolate,
            self.heal,
            self.heal,
            self.break_link,
            self.snapshot,
            self.transfer,
            self.compact,
            self.add,
            self.promote,
            self.remove,
            self.stall,
            self.turn_clock,
            self.crash_in_operation,
            self.end_session,
            self.fill,
            self.make_room,
            self.trouble,
        ]
        return frequent + [kind for kind in kinds if self.rng.random() < 0.7]

    def _end(self) -> None:
        cluster = self.cluster
        for node in cluster.nodes.values():
            if node.up and (node.replica.refused is not None or node.machine.trouble is not None):
                node.crash()
            if node.broken is not None:
                raise AssertionError(f"seed {self.seed}: node {node.id} stopped") from node.broken
        cluster.recover()
        cluster.check()

    # --- what may happen ----------------------------------------------------------------------------------------

    def _client(self) -> SimulatedClient:
        return self.rng.choice(self.cluster.clients)

    def _up(self) -> list[Node]:
        return [node for node in self.cluster.nodes.values() if node.up]

    def propose(self) -> None:
        """Append a few names."""
        client = self._client()
        for _ in range(self.rng.choice((1, 1, 3, 8))):
            names = [self.cluster.name() for _ in range(self.rng.choice((1, 1, 1, 4)))]
            client.propose(*names, timeout=self.rng.choice((0.3, 2.0, 10.0)))

    def query(self) -> None:
        """Ask how long the journal is."""
        consistency = self.rng.choice((Consistency.LINEARIZABLE, Consistency.LEASE, Consistency.STALE))
        self._client().query(consistency)

    def crash(self) -> None:
        """Power loss."""
        if self._up():
            self.rng.choice(self._up()).crash()

    def stop(self) -> None:
        """Stop in good order."""
        nodes = [node for node in self._up() if not node.paused_sync]
        if nodes:
            self.rng.choice(nodes).stop()

    def restart(self) -> None:
        """Boot what is down."""
        down = [node for node in self.cluster.nodes.values() if not node.up and node.broken is None]
        if down:
            self.rng.choice(down).start()

    def crash_in_operation(self) -> None:
        """Power loss at one of the next operations of a disk."""
        from octopii.walrus.faults import Operation, PowerLoss

        if not self._up():
            return
        node = self.rng.choice(self._up())
        left = self.rng.randint(1, 60)

        def before(_operation: Operation) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise PowerLoss

        node.vfs.faults.before = before

    def cut(self) -> None:
        """Break one link."""
        if len(self.cluster.nodes) > 1:
            self.cluster.world.network.cut(*self.rng.sample(sorted(self.cluster.nodes), 2))

    def isolate(self) -> None:
        """Cut a node off."""
        self.cluster.world.network.isolate(self.rng.choice(sorted(self.cluster.nodes)))

    def heal(self) -> None:
        """Mend the network."""
        self.cluster.world.network.heal()

    def break_link(self) -> None:
        """A client loses its connection."""
        self._client().break_link()

    def snapshot(self) -> None:
        """Take a snapshot somewhere, or send one."""
        if self.rng.random() < 0.7:
            self._client().ask(requests.ForceSnapshot(0))
        else:
            self._client().ask(requests.ForceSnapshotToPeer(0, self.rng.choice(sorted(self.cluster.nodes))))

    def transfer(self) -> None:
        """Hand leadership over."""
        self._client().ask(requests.TransferLeader(0, self.rng.choice(sorted(self.cluster.nodes))), timeout=2.0)

    def compact(self) -> None:
        """Compact by request."""
        self._client().ask(requests.CompactRequest(0), timeout=5.0)

    def turn_clock(self) -> None:
        """Set a wall clock wrong, or right."""
        node = self.rng.choice(sorted(self.cluster.nodes))
        self.cluster.nodes[node].wall_offset = self.rng.choice((0.0, 0.0, -3600.0, 1.0, 1e9))

    def stall(self) -> None:
        """Let a disk hang, or go on."""
        nodes = self._up()
        if nodes:
            node = self.rng.choice(nodes)
            node.stall_disk(not node.paused_sync)

    def fill(self) -> None:
        """Leave little room on a disk, or none."""
        node = self.rng.choice(list(self.cluster.nodes.values()))
        node.vfs.faults.capacity = None
        if node.up:
            folder = f"/node-{node.id}"
            used = sum(len(node.vfs.contents(f"{folder}/{name}")) for name in node.vfs.list_folder(folder))
            node.vfs.faults.capacity = used + self.rng.choice((0, 4 * KIB, 40 * KIB, 100 * KIB, 200 * KIB))

    def make_room(self) -> None:
        """Free all disks."""
        for node in self.cluster.nodes.values():
            node.vfs.faults.capacity = None

    def trouble(self) -> None:
        """Run out of memory in `apply` on one machine, once."""
        nodes = self._up()
        if not nodes or self.rng.random() < 0.5:
            return
        node = self.rng.choice(nodes)

        def fail(_command: bytes) -> None:
            raise MemoryError

        node.machine.trouble = fail

    def end_session(self) -> None:
        """A client stops using its session at once: calls with late answers meet a session that is gone."""
        client = self._client()
        session = client.machine.session_id
        if session is not None and self.rng.random() < 0.3:
            client.ask(requests.SessionEnd(0, session), timeout=2.0)

    # --- members ------------------------------------------------------------------------------------------------

    def add(self) -> None:
        """Add a learner."""
        cluster = self.cluster
        if len(cluster.nodes) >= cluster.members + 2:
            return
        config = config_of(self.next_id, cluster.members, is_initial_leader=False, **cluster.changes)
        self.next_id += 1
        node = Node(cluster, config)
        node.start()
        change = MemberChange(operation=MemberOperation.ADD_LEARNER, node_id=node.id, address=node.address)
        self._client().ask(requests.ChangeMembership(0, [change]), timeout=3.0)

    def promote(self) -> None:
        """Make a learner a voter."""
        leader = self.cluster.leader
        if leader is not None and leader.replica.conf_state.learners:
            node_id = self.rng.choice(leader.replica.conf_state.learners)
            change = MemberChange(operation=MemberOperation.PROMOTE, node_id=node_id)
            self._client().ask(requests.ChangeMembership(0, [change]), timeout=3.0)

    def remove(self) -> None:
        """Remove a member, the leader perhaps."""
        leader = self.cluster.leader
        if leader is None or len(leader.replica.conf_state.voters) < 2 or self.rng.random() < 0.5:
            return
        conf = leader.replica.conf_state
        change = MemberChange(
            operation=MemberOperation.REMOVE, node_id=self.rng.choice(sorted({*conf.voters, *conf.learners}))
        )
        self._client().ask(requests.ChangeMembership(0, [change]), timeout=3.0)


def run(seed: int, *, steps: int = 60) -> None:
    """Run one schedule; raises `AssertionError`, or whatever broke."""
    try:
        Schedule(seed, steps=steps).run()
    except Exception as error:
        error.add_note(f"schedule seed {seed}, {steps} steps")
        raise
