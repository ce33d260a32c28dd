"""A node that stood still says so, and names what held the interpreter."""

import logging
import threading
import time
from pathlib import Path

import pytest

from octopii import BlockingNode, Config
from octopii.machines import KvStateMachine
from octopii.node import watchdog
from octopii.node.watchdog import Times, Watchdog, quiet_seconds
from tests.node.cluster import patience

HELD_SECONDS = 0.6


def _hold_interpreter(seconds: float) -> None:
    """Call into C for so long, without a break: sums of ever more numbers until one takes long enough."""
    count, took = 1 << 20, 0.0
    while took < seconds:
        began = time.thread_time()
        sum(range(count))
        took = time.thread_time() - began
        count = int(count * min(64.0, max(1.5, 1.2 * seconds / max(took, 1e-6))))


class Greedy(KvStateMachine):
    """A machine with a command that holds the interpreter."""

    def apply(self, command: bytes) -> bytes:
        """Hold it on HOLD."""
        if command == b"HOLD":
            _hold_interpreter(HELD_SECONDS)
            return b"held"
        return super().apply(command)


class _Heard(logging.Handler):
    """Waits for a line of the log."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.lines: list[str] = []
        self.there = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Note it."""
        if self.text in record.getMessage():
            self.lines.append(record.getMessage())
            self.there.set()


def test_what_holds_the_interpreter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that holds the interpreter past half an election timeout is named, with its thread and its line.

    Where it is named is where its thread is when the node's thread runs again; on a busy machine that may be later, so
    there is more than one such command.
    """
    monkeypatch.setattr(watchdog, "quiet_seconds", 0.0)  # other stalls, of a busy machine, hide none
    heard = _Heard("_hold_interpreter")
    logging.getLogger("octopii.node").addHandler(heard)
    config = Config(
        bind_addr="127.0.0.1:0",
        wal_dir=str(tmp_path / "node"),
        is_initial_leader=True,
        election_timeout=0.3,
        heartbeat_interval=0.05,
    )
    try:
        with BlockingNode(config, Greedy()) as node:
            deadline = time.monotonic() + patience
            while not heard.there.is_set() and time.monotonic() < deadline:
                assert node.propose(b"HOLD", timeout=patience) == b"held"
    finally:
        logging.getLogger("octopii.node").removeHandler(heard)
    assert heard.lines, "named in time"
    assert "stood still for" in heard.lines[0]
    assert "thread octopii-1-apply, in _hold_interpreter" in heard.lines[0]
    assert __file__ in heard.lines[0]


def test_it_tells_what_happened_meanwhile(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process, a busy node, and an overloaded machine are told apart by who ran and who waited."""
    own = threading.get_native_id()
    looks = iter(
        [
            {own: Times(1.0, 1.0)},
            {own: Times(1.01, 1.01)},
            {own: Times(3.0, 1.01)},
            {own: Times(3.1, 2.5)},
        ]
    )
    monkeypatch.setattr(watchdog, "processor_times", lambda: next(looks))
    dog = Watchdog(7, election_timeout=1.0)
    dog.ticked(2.0, now=0.0)
    assert caplog.messages[-1].startswith("node 7 stood still for 2.0 s: no thread of this process ran")
    dog.ticked(2.0, now=quiet_seconds)
    assert caplog.messages[-1] == "node 7 stood still for 2.0 s: its own thread ran for 2.0 s"
    dog.ticked(2.0, now=2 * quiet_seconds)
    assert caplog.messages[-1].endswith("its own thread ran for 0.1 s; waited 1.5 s for a processor")


def test_stalls_are_not_worth_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    """Short delays are nothing, and stalls soon after one that was logged are counted with the next line."""
    dog = Watchdog(7, election_timeout=1.0)
    dog.ticked(0.49, now=0.0)
    assert caplog.messages == []
    assert dog.stalls == 0
    for second in range(4):
        dog.ticked(0.6, now=float(second))
    assert len(caplog.messages) == 1
    dog.ticked(0.6, now=1.0 + quiet_seconds)
    assert len(caplog.messages) == 2
    assert "3 more since the last such line" in caplog.messages[1]
    assert dog.stalls == 5
