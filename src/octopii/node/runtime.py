"""`OctopiiRuntime` and `BlockingNode`: nodes for programs without asyncio."""

from types import TracebackType
from typing import TypeVar

from octopii.config import Config
from octopii.errors import ConfigError
from octopii.node.host import Host
from octopii.node.node import NodeFacts
from octopii.node.operations import BlockingOperations, Kind, Operation
from octopii.node.workers import SyncThreads
from octopii.state_machine import StateMachine

T = TypeVar("T")

max_worker_threads = 64


class BlockingNode(NodeFacts, BlockingOperations):
    """A node whose methods block; otherwise the same as `OctopiiNode`. Made by `OctopiiRuntime.node`, or directly."""

    def __init__(
        self,
        config: Config,
        state_machine: StateMachine,
        *,
        skip_indexes: frozenset[int] = frozenset(),
        sync_threads: SyncThreads | None = None,
    ) -> None:
        """`sync_threads` are shared with other nodes of this process; None gives the node one of its own."""
        self._host = Host(config, state_machine, sync_threads=sync_threads, skip=skip_indexes)

    def start(self) -> None:
        """Open the folder, listen, begin; raises as `OctopiiNode.start` does."""
        self._host.start().result()

    def shutdown(self) -> None:
        """Hand leadership over, finish what is under way, sync and close."""
        self._host.request_stop()
        self._host.join()

    def __enter__(self) -> "BlockingNode":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _run(self, operation: Operation[T], timeout: float | None) -> T:
        return self._host.run_blocking(operation, timeout)

    def _run_one(self, kind: Kind, command: bytes, timeout: float | None) -> bytes:
        return self._host.run_one_blocking(kind, command, timeout)


class OctopiiRuntime:
    """Gives `BlockingNode`s to a program, and shares `worker_threads` threads that wait for disks among them."""

    def __init__(self, worker_threads: int = 1) -> None:
        fits = isinstance(worker_threads, int) and not isinstance(worker_threads, bool)
        if not fits or not 1 <= worker_threads <= max_worker_threads:
            raise ConfigError(
                f"worker_threads has to be a whole number from 1 to {max_worker_threads}, not {worker_threads!r}",
                field="worker_threads",
            )
        self._threads = SyncThreads(worker_threads)
        self._nodes: list[BlockingNode] = []

    def node(
        self, config: Config, state_machine: StateMachine, *, skip_indexes: frozenset[int] = frozenset()
    ) -> BlockingNode:
        """A node, not started yet; it ends with the runtime at the latest."""
        node = BlockingNode(config, state_machine, skip_indexes=skip_indexes, sync_threads=self._threads)
        self._nodes.append(node)
        return node

    def shutdown(self) -> None:
        """Shut all nodes down, then the threads."""
        for node in self._nodes:
            node.shutdown()
        self._nodes.clear()
        self._threads.close()

    def __enter__(self) -> "OctopiiRuntime":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
