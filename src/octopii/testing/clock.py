"""Replicated time that a test moves by hand."""

from octopii.state_machine import Clock

START_TIME = 1_700_000_000.0
"""Where a manual clock starts unless told otherwise, UTC seconds: 14 November 2023."""


class ManualClock(Clock):
    """A clock for `machine.use_clock`: starts at `time` (UTC seconds), and moves only when told to.

        machine.use_clock(clock := ManualClock())
        machine.apply(b"...")
        clock.next_entry(seconds=60)        # a minute later, at the next index: other random numbers too

    `set` and `advance` are those of every clock outside a cluster.
    """

    __slots__ = ()

    def __init__(self, time: float = START_TIME, *, index: int = 1, term: int = 1) -> None:
        """Start at `time`, at a place in the log; raises `ValueError` for a time that is negative or not finite."""
        super().__init__()
        self.set(time, index=index, term=term)

    def next_entry(self, *, seconds: float = 0.0, term: int | None = None) -> None:
        """Go on to the next log index, `seconds` later, optionally in a later term: what `rng` gives changes too."""
        self.set(self.now() + seconds, index=self.index + 1, term=term)
