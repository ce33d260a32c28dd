"""State as one value that is never changed: a command is a pure function from the old state to a new one.

What it brings: a command that raises, whatever it raises, has changed nothing; and a snapshot is frozen at no cost,
since the value that it holds stays as it is while later commands go on. What it costs: a new value per command. A tuple
does for a small state; a large one is a `PersistentMap` (or a tuple of them), whose old and new versions share all but
the path to what changed.

    class Totals(ImmutableStateMachine[tuple[int, int]]):
        def initial(self) -> tuple[int, int]:
            return (0, 0)

        def transition(self, state: tuple[int, int], command: bytes) -> tuple[tuple[int, int], bytes]:
            new = (state[0] + 1, state[1] + len(command))
            return new, b"%d %d" % new

        def encode(self, state: tuple[int, int]) -> bytes:
            return struct.pack("<QQ", *state)

        def decode(self, data: memoryview) -> tuple[int, int]:
            return struct.unpack("<QQ", data)
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Generic, TypeVar

from octopii.errors import QueryNotSupported
from octopii.state_machine import SnapshotBuffers, StateMachine

State = TypeVar("State")


class ImmutableStateMachine(StateMachine, Generic[State]):
    """Base class over immutable states of type `State`: override `initial`, `transition`, `encode` and `decode`."""

    @cached_property
    def state(self) -> State:
        """The current state."""
        return self.initial()

    @abstractmethod
    def initial(self) -> State:
        """Return the state before the first command."""

    @abstractmethod
    def transition(self, state: State, command: bytes) -> tuple[State, bytes]:
        """Return the new state and the answer, leaving `state` as it is; raise `CommandError` to refuse."""

    def answer(self, state: State, query: bytes) -> bytes:
        """Answer a query from `state`; raises `QueryNotSupported` unless overridden."""
        raise QueryNotSupported(f"{type(self).__name__} answers no queries")

    def compacted(self, state: State) -> State:
        """Return the state without what has run out; unless overridden, the state itself."""
        return state

    @abstractmethod
    def encode(self, state: State) -> SnapshotBuffers:
        """Return `state` as a buffer or an iterable of buffers. Runs beside commands, on another thread."""

    @abstractmethod
    def decode(self, data: memoryview) -> State:
        """Return the state that `encode` wrote; raise `ValueError` for anything else."""

    def apply(self, command: bytes) -> bytes:
        """Replace the state by what `transition` returns, and return its answer."""
        self.state, answer = self.transition(self.state, command)
        return answer

    def query(self, command: bytes) -> bytes:
        """Answer from the current state."""
        return self.answer(self.state, command)

    def compact(self) -> None:
        """Replace the state by the compacted one."""
        self.state = self.compacted(self.state)

    def snapshot(self) -> Callable[[], SnapshotBuffers]:
        """Return a frozen view of the current state."""
        state = self.state
        return lambda: self.encode(state)

    def restore(self, data: memoryview) -> None:
        """Replace the state by the decoded one, or raise what `decode` raises and keep it."""
        self.state = self.decode(data)
