"""Clients of the cluster under chaos: what they ask, what they were told, and the counting at the end."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from octopii import Client, CommandError, NotApplied, OutcomeUnknown, Rejected
from octopii.sim import Operation, Query
from tests.chaos.machine import QUEUES

CALL_SECONDS = 3.0
"""How long a call may take before its outcome counts as unknown."""

CLIENT_LIFE_CALLS = 200
"""A client connects anew, with a new session, after so many calls, or after one without an answer."""

READERS = 0.4
"""Share of the clients' lives in which they read from one node alone."""

EPOCH_SECONDS = 20.0
"""Keys and counters are new ones after this time, so that the checker has many small parts."""

KEYS, COUNTERS = 10, 4
"""Per epoch."""

QUEUE_CALLS = 300
"""Calls to one queue, before the next one is used."""

FINAL_SECONDS = 30.0
"""How long a call may take when all faults are over."""

STOP_SECONDS = 10 * CALL_SECONDS
"""Long after this every call has ended one way or the other."""

LEASE = 86_400
"""Seconds of a task's lease: none runs out while this lasts."""


class Recorder:
    """The history, and when writes succeeded."""

    def __init__(self) -> None:
        self.history: list[Operation] = []
        self.write_times: list[float] = []
        self.outcomes: Counter[str] = Counter()
        self.wrote = asyncio.Event()

    async def call(self, client: Client, who: int, request: bytes, *, timeout: float = CALL_SECONDS) -> object:
        """Make one call and record it; return the answer, None where there is none."""
        invoked = time.monotonic()
        returned: float | None = None
        answer: object = None
        is_query = isinstance(request, Query)
        try:
            ask = client.query if is_query else client.propose
            answer = await ask(request, timeout=timeout)
            returned = time.monotonic()
            self.outcomes["answered"] += 1
        except Rejected as error:
            answer = error
            returned = time.monotonic()
            self.outcomes["refused by the machine"] += 1
        except NotApplied:
            self.outcomes["not applied"] += 1
            return None
        except OutcomeUnknown:
            self.outcomes["outcome unknown"] += 1
        self.history.append(Operation(client=who, invoked=invoked, returned=returned, request=request, answer=answer))
        if returned is not None and not is_query:
            self.write_times.append(returned)
            self.wrote.set()
        return answer


class Workload:
    """Clients that go on until they are stopped, `rate` calls a second in all."""

    def __init__(self, recorder: Recorder, rng: random.Random, addresses: Callable[[], Sequence[str]]) -> None:
        self.recorder = recorder
        self._rng = rng
        self._addresses = addresses
        self._started = time.monotonic()
        self._values = 0
        self._queue_calls = 0
        self._claimed: list[tuple[int, int, str]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def start(self, *, clients: int, rate: float) -> None:
        """Begin."""
        self._tasks = [asyncio.ensure_future(self._live(who, clients / rate)) for who in range(1, clients + 1)]

    async def stop(self) -> list[str]:
        """Let every client finish its call; return what went wrong with clients that did not, or by a wrong error."""
        self._stopping = True
        _, hanging = await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
        for task in hanging:
            task.cancel()
        wrong = [f"{len(hanging)} clients wait for calls that do not end"] if hanging else []
        errors = [task.exception() for task in self._tasks if task not in hanging and not task.cancelled()]
        return wrong + [f"a client ended by {error!r}" for error in errors if error is not None]

    async def _live(self, who: int, pause: float) -> None:
        while not self._stopping:
            addresses = list(self._addresses())
            self._rng.shuffle(addresses)
            # Some clients only read, and from one node: what it says has to be as new as anywhere else.
            reader = self._rng.random() < READERS
            async with Client(addresses[:1] if reader else addresses) as client:
                for _ in range(CLIENT_LIFE_CALLS):
                    if self._stopping or not await (self._read(client, who) if reader else self._call(client, who)):
                        break
                    await asyncio.sleep(self._rng.expovariate(1 / pause))

    async def _call(self, client: Client, who: int) -> bool:
        """Make a call of any kind; return whether there was an answer."""
        kind = self._rng.choices(("kv", "counter", "queue"), (5, 2, 3))[0]
        if kind == "kv":
            return await self.recorder.call(client, who, self._kv_request()) is not None
        if kind == "counter":
            return await self.recorder.call(client, who, self._counter_request()) is not None
        return await self._queue_call(client, who)

    async def _read(self, client: Client, who: int) -> bool:
        """Read a key or a counter; return whether there was an answer."""
        if self._rng.random() < 0.5:
            request = f"kv:GET {self._epoch()}-{self._rng.randrange(KEYS)}"
        else:
            request = f"counter:GET {self._epoch()}-{self._rng.randrange(COUNTERS)}"
        return await self.recorder.call(client, who, Query(request.encode())) is not None

    def _epoch(self) -> int:
        return int((time.monotonic() - self._started) / EPOCH_SECONDS)

    def _value(self) -> int:
        self._values += 1
        return self._values

    def _kv_request(self) -> bytes:
        key = f"{self._epoch()}-{self._rng.randrange(KEYS)}"
        verb = self._rng.choices(("SET", "GET", "query", "DELETE"), (10, 1, 8, 2))[0]
        if verb == "SET":
            return f"kv:SET {key} {self._value()}".encode()
        return Query(f"kv:GET {key}".encode()) if verb == "query" else f"kv:{verb} {key}".encode()

    def _counter_request(self) -> bytes:
        name = f"{self._epoch()}-{self._rng.randrange(COUNTERS)}"
        if self._rng.random() < 0.7:
            return f"counter:INC {name}".encode()
        return Query(f"counter:GET {name}".encode())

    async def _queue_call(self, client: Client, who: int) -> bool:
        self._queue_calls += 1
        number = self._queue_calls // QUEUE_CALLS
        if number >= QUEUES:
            raise RuntimeError(f"{QUEUES} queues of {QUEUE_CALLS} calls are used up: run for a shorter time, or slower")
        verb = self._rng.choices(("SUBMIT", "CLAIM", "COMPLETE", "STATUS"), (5, 4, 3, 1))[0]
        if verb == "SUBMIT":
            request = f"queue-{number}:SUBMIT\tp{self._value()}".encode()
        elif verb == "CLAIM":
            worker = f"w{self._value()}"
            answer = await self.recorder.call(client, who, f"queue-{number}:CLAIM\t{worker}\t{LEASE}".encode())
            if isinstance(answer, bytes):
                self._claimed.append((number, json.loads(answer)["id"], worker))
            return answer is not None
        elif self._claimed and verb == "COMPLETE":
            number, task, worker = self._claimed.pop(self._rng.randrange(len(self._claimed)))
            request = f"queue-{number}:COMPLETE\t{task}\t{worker}".encode()
        else:
            task = self._rng.randint(1, 1 + self._queue_calls % QUEUE_CALLS // 3)
            request = Query(f"queue-{number}:STATUS\t{task}".encode())
        return await self.recorder.call(client, who, request) is not None

    # --- when all faults are over ---------------------------------------------------------------------------------

    async def read_everything(self, client: Client) -> list[str]:
        """Read all that was ever written, as part of the history, and count: what was applied not exactly once."""
        parts = {one.request.partition(b":")[0] for one in self.recorder.history}
        words = {one.request.split()[1] for one in self.recorder.history if one.request.startswith(b"counter:")}
        keys = {one.request.split(b" ", 2)[1] for one in self.recorder.history if one.request.startswith(b"kv:")}
        for key in sorted(keys):
            await self.recorder.call(client, 0, Query(b"kv:GET " + key), timeout=FINAL_SECONDS)
        wrong: list[str] = []
        for name in sorted(words):
            value = await self.recorder.call(client, 0, Query(b"counter:GET " + name), timeout=FINAL_SECONDS)
            wrong += self._miscounted(name, value)
        for queue in sorted(part for part in parts if part.startswith(b"queue-")):
            wrong += await self._read_queue(client, queue)
        return wrong

    def _miscounted(self, name: bytes, value: object) -> list[str]:
        mine = [one for one in self.recorder.history if one.request == b"counter:INC " + name]
        sure = sum(one.returned is not None for one in mine)
        if isinstance(value, bytes) and sure <= int(value) <= len(mine):
            return []
        return [f"counter {name.decode()} is {value!r}: {sure} additions were answered, {len(mine) - sure} unknown"]

    async def _read_queue(self, client: Client, queue: bytes) -> list[str]:
        found: Counter[bytes] = Counter()
        for task in range(1, QUEUE_CALLS + 2):
            request = Query(b"%b:STATUS\t%d" % (queue, task))
            answer = await self.recorder.call(client, 0, request, timeout=FINAL_SECONDS)
            if isinstance(answer, CommandError):
                break
            if not isinstance(answer, bytes):
                return [f"task {task} of {queue.decode()} cannot be read"]
            found[json.loads(answer)["payload"].encode()] += 1
        prefix = queue + b":SUBMIT\t"
        submitted = {
            one.request.removeprefix(prefix): one for one in self.recorder.history if one.request.startswith(prefix)
        }
        wrong = [f"{queue!r}: {payload!r} is there {times} times" for payload, times in found.items() if times > 1]
        wrong += [f"{queue!r}: {payload!r} was never submitted" for payload in found if payload not in submitted]
        wrong += [
            f"{queue!r}: {payload!r} is lost"
            for payload, one in submitted.items()
            if one.returned is not None and payload not in found
        ]
        return wrong
