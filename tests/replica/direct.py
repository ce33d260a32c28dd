"""Replicas in one process on a real disk, as fast as they go: no network, no clock, no threads.

What one says is heard by the others at once, every sync is waited for, every job is done where it is handed out. Time
stands still but for `tick`. For tests that need many calls or many bytes, and nothing to go wrong.
"""

import random
import time
from pathlib import Path

from octopii.config import Config
from octopii.replica.applier import Applier
from octopii.replica.founding import facts_of
from octopii.replica.jobs import Job, SnapshotView
from octopii.replica.replica import Replica
from octopii.replica.work import Work
from octopii.state_machine import StateMachine
from octopii.walrus.vfs import RealFileSystem
from octopii.wire.codec import CallGroup
from octopii.wire.requests import Propose, ProposeAnswers, Reply, SessionOpened, SessionRequest

ORIGIN = "the test"


class DirectNode:
    """One replica, and the applier that belongs to it."""

    def __init__(self, config: Config, machine: StateMachine) -> None:
        self.id = config.node_id
        self.applier = Applier(machine, timer=time.perf_counter)
        self.replica = Replica(
            config,
            vfs=RealFileSystem(),
            rng=random.Random(config.node_id),
            now=0.0,
            wall=0,
            random_id=config.node_id.to_bytes(16, "big"),
        )
        self.replies: list[Reply] = []


class Direct:
    """A cluster of such nodes; `machine` makes a state machine for each."""

    def __init__(self, folder: Path, machines: list[StateMachine], **settings: object) -> None:
        members = range(1, len(machines) + 1)
        self.now = 0.0
        self.nodes: dict[int, DirectNode] = {}
        for node_id, machine in zip(members, machines, strict=True):
            config = Config(
                node_id=node_id,
                bind_addr=f"127.0.0.1:{5000 + node_id}",
                peers={other: f"127.0.0.1:{5000 + other}" for other in members if other != node_id},
                wal_dir=str(folder / f"node-{node_id}"),
                is_initial_leader=node_id == 1,
                disk_low_water_bytes=0,
                **settings,  # type: ignore[arg-type]
            )
            self.nodes[node_id] = DirectNode(config, machine)
        self.cut_off: set[int] = set()
        for one in members:
            for other in range(one + 1, len(machines) + 1):
                self.connect(one, other)
        while not self.is_complete:
            self.tick()
        self.session = self._open_session()
        self._next = 0

    @property
    def leader(self) -> DirectNode | None:
        """Who leads."""
        return next((node for node in self.nodes.values() if node.replica.leadership.is_leader), None)

    @property
    def is_complete(self) -> bool:
        """Whether all are voters and the leader takes calls."""
        leader = self.leader
        return leader is not None and len(leader.replica.conf_state.voters) == len(self.nodes)

    def connect(self, one: int, other: int) -> None:
        """Let two nodes meet."""
        first, second = self.nodes[one].replica, self.nodes[other].replica
        first_hello, second_hello = first.hello(), second.hello()
        first.peer_connected(facts_of(second_hello))
        second.peer_connected(facts_of(first_hello))

    def cut(self, node_id: int) -> None:
        """Take a node's connections away."""
        self.cut_off.add(node_id)
        for other in self.nodes:
            if other != node_id:
                self.nodes[other].replica.peer_disconnected(node_id)
                self.nodes[node_id].replica.peer_disconnected(other)

    def join(self, node_id: int) -> None:
        """Bring it back."""
        self.cut_off.discard(node_id)
        for other in self.nodes:
            if other != node_id:
                self.connect(node_id, other)

    # --- work ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let one heartbeat interval pass."""
        self.now += 0.1
        for node in self.nodes.values():
            node.replica.tick(self.now, int(self.now * 1e9))
        self.settle()

    def settle(self) -> None:
        """Go on until nobody has anything to do."""
        busy = True
        while busy:
            busy = False
            for node in self.nodes.values():
                while work := node.replica.poll():
                    busy = True
                    self._carry_out(node, work)

    def _carry_out(self, node: DirectNode, work: Work) -> None:
        node.replies += [reply for _, reply in work.replies]
        for peer, outputs in work.messages.items():
            if node.id not in self.cut_off and peer not in self.cut_off:
                for output in outputs:
                    self.nodes[peer].replica.receive(node.id, output)
        if work.sync is not None:
            work.sync.run()
            node.replica.sync_done(work.sync)
        for job in work.jobs:
            self._run(node, job)

    @staticmethod
    def _run(node: DirectNode, job: Job) -> None:
        result = node.applier.run(job)
        if isinstance(result, SnapshotView):
            node.replica.job_done(node.replica.snapshots.write(result))
        else:
            node.replica.job_done(result)

    # --- calls --------------------------------------------------------------------------------------------------

    def _open_session(self) -> int:
        leader = self.leader
        assert leader is not None
        leader.replica.request(ORIGIN, SessionRequest(request_id=0, nonce=b"n" * 16, ttl_ns=1 << 60))
        self.settle()
        (reply,) = leader.replies
        leader.replies.clear()
        assert isinstance(reply, SessionOpened)
        return reply.session

    def propose(self, commands: list[bytes]) -> list[object]:
        """Have commands applied as one group, and return the answers."""
        leader = self.leader
        assert leader is not None
        group = CallGroup(session=self.session, first=self._next, acked=self._next, commands=commands)
        self._next += len(commands)
        leader.replica.request(ORIGIN, Propose(self._next, group))
        self.settle()
        (reply,) = leader.replies
        leader.replies.clear()
        assert isinstance(reply, ProposeAnswers), reply
        return [*reply.answers]

    def close(self) -> None:
        """Stop all."""
        for node in self.nodes.values():
            node.replica.close()
