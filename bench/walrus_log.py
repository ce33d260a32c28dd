"""Walrus as a contestant: the same interface as its peers."""

from collections.abc import Callable, Sequence

from octopii.walrus import NoFsync, SyncEach, Walrus

NAME = "walrus"


class WalrusLog:
    """A log open in `folder`, one topic for each worker."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self.log = Walrus(f"{folder}/walrus", fsync_schedule=SyncEach() if durable else NoFsync())

    def append(self, worker: int, entry: bytes, count: int) -> None:
        append, topic = self.log.append_for_topic, f"topic-{worker}"
        for _ in range(count):
            append(topic, entry)

    def append_batch(self, batch: Sequence[bytes]) -> None:
        self.log.batch_append_for_topic("topic-0", batch)

    def recycle(self) -> None:
        """Drop all entries, so that the next ones go to blocks which were used before, as in a log that is trimmed."""
        for topic in self.log.topics():
            self.log.trim(topic, self.log.stats(topic).next_offset)
        self.log.sync()  # what was trimmed is free once the trim is on disk

    def close(self) -> None:
        self.log.close()


def recycled(log: WalrusLog, contestant: Callable[[], float]) -> Callable[[], float]:
    """The contestant, with the log emptied before each run, outside of the measured time."""

    def run() -> float:
        log.recycle()
        return contestant()

    return run
