"""Names what stops a whole process: one call into C that holds the interpreter stops every thread, the node's too.

A node notices by a tick that comes late, when it is over. Which thread ran meanwhile, and where that thread is now (the
call has just returned), names a large `json.dumps` or the like. So the first thing that a late tick does is to look
where all threads are: whatever gives the interpreter away, like reading a file, lets them go on. How long the node's
own thread waited for a processor tells an overloaded machine from that, and when nothing ran at all the process was
stopped.
"""

import logging
import os
import sys
import threading

import msgspec

logger = logging.getLogger("octopii.node")

least_stall = 0.1
"""Seconds; below it nothing is worth a line, however short the election timeout."""

quiet_seconds = 10.0
"""Stalls in the so many seconds after a line was logged are counted, not logged."""

least_run = 0.05
"""Seconds; who ran or waited for less did not matter."""

_tasks = "/proc/self/task"


class Watchdog:
    """See the module's text. One for each node; all is called from the node's thread."""

    def __init__(self, node_id: int, *, election_timeout: float) -> None:
        """Half an election timeout of silence is worth a line: after a whole one, others stand for election."""
        self._node_id = node_id
        self._least = max(least_stall, election_timeout / 2)
        self._used = processor_times()
        self._quiet_until = 0.0
        self._unsaid = 0
        self.stalls = 0

    def ticked(self, late: float, now: float) -> None:
        """A tick has come, `late` seconds after its time; `now` is any monotonic clock."""
        places = _places() if late >= self._least else {}
        before, self._used = self._used, processor_times()
        if late < self._least:
            return
        self.stalls += 1
        if now < self._quiet_until:
            self._unsaid += 1
            return
        self._quiet_until = now + quiet_seconds
        others, self._unsaid = self._unsaid, 0
        also = f" ({others} more since the last such line)" if others else ""
        logger.warning(
            "node %d stood still for %.1f s: %s%s", self._node_id, late, _meanwhile(before, self._used, places), also
        )


class Times(msgspec.Struct, frozen=True):
    """Seconds that a thread has run, and that it has waited for a processor."""

    ran: float = 0.0
    waited: float = 0.0


def processor_times() -> dict[int, Times]:
    """How much each thread of this process has run, by native id; empty where the system does not tell."""
    times: dict[int, Times] = {}
    try:
        for name in os.listdir(_tasks):
            with open(f"{_tasks}/{name}/schedstat", "rb") as file:
                ran, waited, _ = file.read().split()
            times[int(name)] = Times(int(ran) / 1e9, int(waited) / 1e9)
    except (OSError, ValueError):  # not Linux, or a thread that has just ended
        return times
    return times


def _places() -> dict[int, str]:
    """Where each thread is, by its identifier: function, file and line, in words."""
    return {
        thread: f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        for thread, frame in sys._current_frames().items()
    }


def _meanwhile(before: dict[int, Times], now: dict[int, Times], places: dict[int, str]) -> str:
    """What happened between two looks, at the end of which the threads were at `places`."""
    ran = {thread: times.ran - before.get(thread, Times()).ran for thread, times in now.items()}
    own = threading.get_native_id()
    waited = now.get(own, Times()).waited - before.get(own, Times()).waited
    busiest = max(ran, key=ran.__getitem__, default=own)
    if ran.get(busiest, 0.0) < least_run:
        what = "no thread of this process ran: it, or the machine, was stopped"
    elif busiest == own:
        what = f"its own thread ran for {ran[own]:.1f} s"
    else:
        what = (
            f"{_name_and_place(busiest, places)} ran for {ran[busiest]:.1f} s "
            "(one call into C that takes long stops every thread: work in pieces)"
        )
    return what if waited < least_run else f"{what}; waited {waited:.1f} s for a processor"


def _name_and_place(native_id: int, places: dict[int, str]) -> str:
    """A thread, and the line that it was in."""
    thread = next((thread for thread in threading.enumerate() if thread.native_id == native_id), None)
    if thread is None or thread.ident not in places:
        return f"thread {native_id}"
    return f"thread {thread.name}, in {places[thread.ident]},"
