"""Named read positions, and when they are saved: `StrictlyAtOnce` at every read, `AtLeastOnce` at every n entries."""

import msgspec

from octopii.walrus.catalog import Catalog, check_name
from octopii.walrus.topic import Cursor, Topic


class StrictlyAtOnce(msgspec.Struct, frozen=True):
    """Every read that moves a cursor saves it, as durably as the schedule says: no entry is read twice."""


class AtLeastOnce(msgspec.Struct, frozen=True):
    """A cursor is saved when it has moved by `persist_every` entries: at most so many are read again after a crash."""

    persist_every: int

    def __post_init__(self) -> None:
        every = self.persist_every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"persist_every is a whole number of entries from 1 on, not {every!r}")


Consistency = StrictlyAtOnce | AtLeastOnce


class Cursors:
    """Moves cursors and saves them in the catalog."""

    def __init__(self, catalog: Catalog, consistency: Consistency) -> None:
        self._catalog = catalog
        self._every = consistency.persist_every if isinstance(consistency, AtLeastOnce) else 1

    def position(self, topic: Topic, name: str) -> int:
        """The offset that the cursor's next read begins at."""
        cursor = topic.cursors.get(name)
        if cursor is None:
            check_name(name)
            return topic.trim_offset
        return max(cursor.offset, topic.trim_offset)

    def advance(self, topic: Topic, name: str, offset: int) -> None:
        """Move a cursor over what was read, and save it when it is time."""
        cursor = topic.cursors.get(name)
        if cursor is None:
            cursor = topic.cursors[name] = Cursor(topic.trim_offset, -1)
        saved = max(cursor.saved, topic.trim_offset)
        before, cursor.offset = cursor.offset, offset
        if offset - saved >= self._every:
            try:
                self._catalog.save(topic, name, offset)
            except BaseException:
                cursor.offset = before  # not read: the caller gets an error instead of the entries
                raise

    def commit(self, topic: Topic, name: str, offset: int) -> None:
        """Put a cursor somewhere, and save it."""
        cursor = topic.cursors.get(name)
        if cursor is None:
            cursor = topic.cursors[name] = Cursor(offset, -1)
        self._catalog.save(topic, name, offset)
        cursor.offset = offset

    def cut(self, topic: Topic, offset: int) -> None:
        """Entries from `offset` on are gone: set the cursors beyond to it."""
        for name, cursor in topic.cursors.items():
            if cursor.offset > offset:
                cursor.offset = offset
            if cursor.saved > offset:
                self._catalog.save(topic, name, offset)

    def reset(self, topic: Topic, offset: int) -> None:
        """All cursors stand at `offset`: those beyond are set back, those below stand at the trim point anyway."""
        self.cut(topic, offset)

    def trim(self, topic: Topic, before: int) -> tuple[str, ...]:
        """The names of the cursors that stood in `before`..trim point, and now stand there.

        They are moved where they are read (`position`), never where they are saved: a saved step forward could outlive
        a trim that a crash takes back, and skip entries.
        """
        first = topic.trim_offset
        return tuple(sorted(name for name, cursor in topic.cursors.items() if max(cursor.offset, before) < first))

    def save_all(self) -> None:
        """Save every cursor that has moved since it was saved last."""
        for topic in self._catalog.topics.values():
            for name, cursor in topic.cursors.items():
                if cursor.offset != cursor.saved:
                    self._catalog.save(topic, name, cursor.offset)
