"""One test for each section of the specification, named after it; docs/specification.md is the table of both.

Most sections are held by many tests elsewhere; in this folder each is shown once, in its own words and in small.
"""

from pathlib import Path

import pytest

from octopii import CommandError, StateMachine
from octopii.state_machine import SnapshotSource

ROOT = Path(__file__).resolve().parents[2]


def written(machine: StateMachine) -> bytes:
    """A machine's snapshot in one piece."""
    return b"".join(SnapshotSource(machine.snapshot()))


def run(machine: StateMachine, *steps: tuple[bytes, bytes | type[CommandError]]) -> None:
    """Apply commands and compare the answers."""
    for command, expected in steps:
        if isinstance(expected, bytes):
            assert machine.apply(command) == expected, command
        else:
            with pytest.raises(expected):
                machine.apply(command)
