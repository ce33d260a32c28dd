"""Checks for people who write state machines; they need no cluster and no test framework.

`check_determinism` plays one list of commands in several ways that must not matter, and says which command was the
first to differ, and why. `ManualClock` is replicated time in the hands of a test. `command_sequences` gives hypothesis
random commands for a typed machine (hypothesis is imported only when it is called).
"""

from octopii.testing.clock import ManualClock
from octopii.testing.determinism import NotDeterministic, check_determinism
from octopii.testing.plays import Cause
from octopii.testing.strategies import command_sequences

__all__ = ["Cause", "ManualClock", "NotDeterministic", "check_determinism", "command_sequences"]
