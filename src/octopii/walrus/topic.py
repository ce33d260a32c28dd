"""What the log holds in memory of one topic: its chain of blocks, its tail, its cursors."""

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from octopii.walrus.record import no_block

if TYPE_CHECKING:
    from octopii.walrus.segment import Segment
    from octopii.walrus.vfs import MappedBuffer


class Cursor:
    """A named read position: `offset` is the next entry to read, `saved` what the catalog says."""

    __slots__ = ("offset", "saved")

    def __init__(self, offset: int, saved: int) -> None:
        self.offset = offset
        self.saved = saved


class Place(NamedTuple):
    """A block: the id of its segment, and its number there."""

    segment: int
    block: int


class Chain:
    """The live blocks of a topic, oldest first: 41 bytes for each."""

    __slots__ = ("continues", "ends", "firsts", "lives", "ordinals", "places")

    def __init__(self) -> None:
        self.places = array("Q")  # segment << 32 | block
        self.firsts = array("Q")  # offset of the first entry that begins in the block or after it
        self.lives = array("Q")
        self.ends = array("Q")  # last seq in the block; of the newest block: not kept up to date
        self.ordinals = array("I")
        self.continues = array("B")  # 1: the block begins inside an entry

    def __len__(self) -> int:
        return len(self.places)

    def add(self, place: Place, *, first: int, life: int, ordinal: int, continues: bool) -> None:
        """A new newest block."""
        self.places.append(place.segment << 32 | place.block)
        self.firsts.append(first)
        self.lives.append(life)
        self.ends.append(0)
        self.ordinals.append(ordinal)
        self.continues.append(continues)

    def place(self, index: int) -> Place:
        """Where block `index` of the chain is."""
        packed = self.places[index]
        return Place(packed >> 32, packed & 0xFFFFFFFF)

    def keep(self, start: int, stop: int) -> list[Place]:
        """Keep the blocks from `start` to before `stop`; returns the others."""
        dropped = [self.place(index) for index in [*range(start), *range(stop, len(self))]]
        for column in (self.places, self.firsts, self.lives, self.ends, self.ordinals, self.continues):
            del column[stop:]
            del column[:start]
        return dropped

    def block_of(self, offset: int) -> int:
        """Index of the block in which the entry at `offset` begins; the offset must not be below the first."""
        return bisect_right(self.firsts, offset) - 1

    def needed_below(self, offset: int) -> int:
        """How many blocks, counted from the oldest, hold any byte of entries below `offset`."""
        count = bisect_right(self.firsts, offset)
        while count and self.firsts[count - 1] == offset and not self.continues[count - 1]:
            count -= 1
        return count


class Topic:
    """One topic. `synced` and `visible` lag behind `seq` and `end` until the sync of what was written is done."""

    __slots__ = (
        "at",
        "base",
        "chain",
        "cursors",
        "dirty",
        "end",
        "limit",
        "low",
        "map",
        "marked",
        "name",
        "next_ordinal",
        "number",
        "seed",
        "segment",
        "seq",
        "synced",
        "tag",
        "trim_offset",
        "trim_ordinal",
        "visible",
    )

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.chain = Chain()
        self.cursors: dict[str, Cursor] = {}
        self.seq = 0  # of the last fragment written
        self.end = 0  # next offset
        self.synced = 0  # last seq known to be on disk
        self.visible = 0  # next offset as readers may see it under SyncEach
        self.low = 0  # lowest value that `end` had since the last `begin_sync`
        self.trim_offset = 0
        self.trim_ordinal = 0
        self.next_ordinal = 0
        self.dirty = False
        self.marked = 0  # the mark seq in the table
        # the tail: positions in its segment's file; `limit` is 0 while no more can be stored there directly
        self.segment: Segment | None = None
        self.map: MappedBuffer | None = None
        self.base = 0
        self.at = 0
        self.limit = 0
        self.seed = 0
        self.tag = 0

    @property
    def previous_ordinal(self) -> int:
        """The ordinal of the newest block."""
        return self.chain.ordinals[-1] if len(self.chain) else no_block

    def detach(self) -> None:
        """Let go of the mapping: the next write attaches again."""
        self.map = None
        self.limit = 0
