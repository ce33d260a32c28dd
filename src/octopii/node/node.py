"""`OctopiiNode`: a member of a cluster inside an asyncio program."""

import asyncio
from types import TracebackType
from typing import Any, TypeVar

from octopii.config import Config
from octopii.node.host import Host
from octopii.node.operations import AsyncOperations, Operation
from octopii.raft import ConfState
from octopii.replica.status import describe
from octopii.state_machine import StateMachine

T = TypeVar("T")


class NodeFacts:
    """Facts about a local node; none of them asks another node."""

    _host: Host

    @property
    def id(self) -> int:
        """The node's id."""
        return self._host.config.node_id

    @property
    def address(self) -> str:
        """ "host:port" under which others reach this node, with the port that was taken for port 0."""
        return self._host.engine.address

    @property
    def failure(self) -> BaseException | None:
        """Why the node stopped by itself, if it did: a failed sync, a refusal, a fault of its own."""
        return self._host.failure

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows."""
        return self._host.engine.replica.leadership.is_leader

    @property
    def leader(self) -> int | None:
        """Id of the leader, as far as this node knows."""
        return self._host.engine.replica.leadership.leader or None

    @property
    def conf_state(self) -> ConfState:
        """Voters and learners, as far as this node knows."""
        return self._host.ask_engine(lambda engine: engine.replica.conf_state)

    @property
    def status(self) -> dict[str, Any]:
        """Everything an operator wants to know of this node, as plain data."""
        return self._host.ask_engine(lambda engine: describe(engine.replica))


class OctopiiNode(NodeFacts, AsyncOperations):
    """A node on its own thread and event loop: nothing that the program around it does costs it leadership.

    Use it as `async with OctopiiNode(config, machine) as node`, or call `start` and `shutdown`. Methods may be awaited
    on any event loop. The machine belongs to the node from then on.
    """

    def __init__(
        self, config: Config, state_machine: StateMachine, *, skip_indexes: frozenset[int] = frozenset()
    ) -> None:
        """`skip_indexes`: log entries whose commands are answered instead of applied (a way out; see operations).

        Raises `TypeError` when `state_machine` is no instance of a `StateMachine`, or one with `async def` methods.
        """
        self._host = Host(config, state_machine, sync_threads=None, skip=skip_indexes)
        self._begin_one = self._host.begin_one

    async def start(self) -> None:
        """Open the folder, listen, begin. Raises `ConfigError`, a `WalrusError`, a `RefusedError` or `OSError`."""
        await asyncio.wrap_future(self._host.start())

    async def shutdown(self) -> None:
        """Hand leadership over, finish what is under way, sync and close."""
        self._host.request_stop()
        await asyncio.get_running_loop().run_in_executor(None, self._host.join)

    async def __aenter__(self) -> "OctopiiNode":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def _run(self, operation: Operation[T], timeout: float | None) -> T:
        return await self._host.run(operation, timeout)
