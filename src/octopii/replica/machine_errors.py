"""What a machine's methods raise without meaning to: told in full the first time, and counted from then on.

An exception that is an answer leaves no other trace on the node, and a bug may raise at every command. So exceptions
are told apart by method, type and the line that raised; each is reported with its traceback once, and again without
one when it has come 10, 100, 1,000, ... times. None of it is part of the replicated state.
"""

import traceback
from typing import Final

import msgspec

max_kinds: Final = 100
"""Exceptions that are told apart; all others are counted as one, so that memory and log lines stay bounded."""

max_trace_characters: Final = 8_000
"""Longest traceback that is reported; of a longer one the end is kept, where the exception is."""

_Key = tuple[str, str, str, int]
_others: Final[_Key] = ("", "", "", 0)


class MachineError(msgspec.Struct, frozen=True):
    """An exception to be reported: `count` times so far; `trace` is there the first time. `text` has the type's name.

    `index` is the log entry that was applied, or the last one for a question.
    """

    method: str
    index: int
    text: str
    count: int
    trace: str


class MachineErrors:
    """Notes the exceptions of one machine."""

    def __init__(self) -> None:
        self._counts: dict[_Key, int] = {}
        self._due: list[MachineError] = []

    def note(self, method: str, index: int, error: Exception, text: str) -> None:
        """An exception of `method`, whose text is `text`."""
        key = (method, type(error).__name__, *_place_of(error))
        if key not in self._counts and len(self._counts) >= max_kinds:
            key = _others
        count = self._counts[key] = self._counts.get(key, 0) + 1
        if _is_power_of_ten(count):
            trace = _trace_of(error) if count == 1 else ""
            name = type(error).__name__
            self._due.append(MachineError(method, index, f"{name}: {text}" if text else name, count, trace))

    def take(self) -> list[MachineError]:
        """What is to be reported since the last time."""
        due, self._due = self._due, []
        return due


def _is_power_of_ten(count: int) -> bool:
    return str(count).strip("0") == "1"


def _place_of(error: Exception) -> tuple[str, int]:
    """File and line that raised."""
    trace = error.__traceback__
    if trace is None:
        return "", 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno


def _trace_of(error: Exception) -> str:
    try:
        text = "".join(traceback.format_exception(error)).rstrip()
    except Exception:  # noqa: BLE001  (an exception that cannot even be shown is no reason to stop)
        text = type(error).__name__
    return text if len(text) <= max_trace_characters else f"...{text[-max_trace_characters:]}"
