"""The bare hand-over that queries refer to: 256 awaits answered from another thread, one wake-up for each batch.

`python -m bench.bare_handover` prints calls per second as a JSON object.
"""

import asyncio
import json
import queue
import threading
import time

import uvloop

IN_FLIGHT = 256
CALLS = 200_000

Batch = list[tuple[bytes, "asyncio.Future[bytes]"]]


class Handover:
    """Collects what is asked within one turn of the loop, hands it to a thread, and takes the answers back."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: Batch = []
        self._batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, question: bytes) -> "asyncio.Future[bytes]":
        future: asyncio.Future[bytes] = self._loop.create_future()
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append((question, future))
        return future

    def _flush(self) -> None:
        batch, self._waiting = self._waiting, []
        self._batches.put(batch)

    def _run(self) -> None:
        values = {b"key%d" % number: b"v" * 92 for number in range(1000)}
        while True:
            batch = self._batches.get()
            answers = [values[question.split(b" ", 1)[1]] for question, _ in batch]
            self._loop.call_soon_threadsafe(self._resolve, batch, answers)

    @staticmethod
    def _resolve(batch: Batch, answers: list[bytes]) -> None:
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)


async def run() -> float:
    handover = Handover()

    async def client() -> None:
        for number in range(CALLS // IN_FLIGHT):
            await handover.ask(b"GET key%d" % (number % 1000))

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    return CALLS // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps({"rate": uvloop.run(run())}))
