"""How a unit of entries is cut into fragments: decided as a whole before the first byte is written.

So a full disk or a limit is met before anything changed, and a failed append leaves no trace.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from octopii.walrus.record import COMMIT_BODY, CUT, FIRST, LAST, MANY, MIDDLE, ONE, TRIM, TRIM_BODY, header_bytes

_least_piece_bytes: Final = 64  # a shorter beginning of an entry is not worth its header
_waste_share: Final = 8  # up to an eighth of a block is left unused rather than cutting an entry that fits in the next
_commit_bytes: Final = header_bytes + COMMIT_BODY.size


class Piece(NamedTuple):
    """A fragment to be: entries `low` to before `high`, or bytes `start` to before `stop` of entry `low`."""

    new_block: bool
    kind: int
    low: int
    high: int
    start: int = 0
    stop: int = 0


class Plan:
    """Cuts entries of the given sizes (bytes) into fragments, beginning with `room` bytes in the present block."""

    def __init__(self, room: int, block_bytes: int) -> None:
        self.pieces: list[Piece] = []
        self.new_blocks = 0
        self._room = room
        self._block_bytes = block_bytes
        self._new = False

    def _turn(self) -> None:
        self._new = True
        self.new_blocks += 1
        self._room = self._block_bytes

    def _emit(self, payload: int, kind: int, low: int, high: int, start: int = 0, stop: int = 0) -> None:
        self.pieces.append(Piece(self._new, kind, low, high, start, stop))
        self._new = False
        self._room -= (header_bytes + payload + 7) & -8

    def bare(self, kind: int) -> "Plan":
        """A fragment without entries."""
        size = TRIM_BODY.size if kind == TRIM else 0
        if self._room < header_bytes + size:
            self._turn()
        self._emit(size, kind, 0, 0)
        return self

    def entries(self, sizes: Sequence[int]) -> "Plan":
        """Fragments for entries of these sizes, and the commit where they are several."""
        if not sizes:
            return self.bare(CUT)
        ends = list(accumulate([size + 4 for size in sizes]))
        count = len(sizes)
        at = 0
        while at < count:
            size = sizes[at]
            room = self._room - header_bytes
            if size <= room:
                below = ends[at - 1] if at else 0
                fit = bisect_right(ends, below + room - 4) - at
                if fit > 1:
                    self._emit(4 + ends[at + fit - 1] - below, MANY, at, at + fit)
                    at += fit
                else:
                    self._emit(size, ONE, at, at + 1)
                    at += 1
            elif self._is_better_in_next(size):
                self._turn()
            else:
                self._cut(at, size)
                at += 1
        if len(self.pieces) > 1 and self._room < _commit_bytes:
            self._turn()
            self.pieces.append(Piece(True, CUT, count, count))  # stands for the commit's block; see `turns_for_commit`
        return self

    @property
    def turns_for_commit(self) -> bool:
        """Whether the commit goes to a block of its own."""
        return len(self.pieces) > 1 and self.pieces[-1].kind == CUT

    def _is_better_in_next(self, size: int) -> bool:
        if self._room < header_bytes + _least_piece_bytes:
            return True
        return size <= self._block_bytes - header_bytes and self._room < self._block_bytes // _waste_share

    def _cut(self, at: int, size: int) -> None:
        done = 0
        while True:
            take = min(self._room - header_bytes, size - done)
            kind = FIRST if done == 0 else LAST if done + take == size else MIDDLE
            self._emit(take, kind, at, at + 1, done, done + take)
            done += take
            if done == size:
                return
            self._turn()
