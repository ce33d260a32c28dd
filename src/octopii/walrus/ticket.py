"""A sync: what it covers, as noted when it began. `run` may be called on any thread; all else is the log's."""

from octopii.walrus.segment import Segment
from octopii.walrus.topic import Place, Topic
from octopii.walrus.vfs import File


class SyncTicket:
    """What `begin_sync` gives: call `run`, then hand it to `finish_sync`."""

    __slots__ = ("_files", "dropped", "error", "interrupted", "is_done", "segments", "topics")

    def __init__(
        self, topics: list[tuple[Topic, int, int]], segments: list[Segment], files: list[File], dropped: list[Place]
    ) -> None:
        self.topics = topics  # with their last seq and next offset
        self.segments = segments
        self.dropped = dropped
        self.error: OSError | None = None
        self.is_done = False
        self.interrupted = False
        self._files = files

    def run(self) -> None:
        """One fdatasync for each file written to. What it raises is kept for `finish_sync`, which reports it.

        What is no `OSError` (`KeyboardInterrupt`) is raised: nobody knows then what is on disk, only `close` is left.
        """
        try:
            for file in self._files:
                file.datasync()
        except OSError as error:
            self.error = error
        except BaseException:
            self.interrupted = True
            raise
        self.is_done = True
