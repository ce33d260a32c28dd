"""What each ready-made machine does, said as simply as possible: plain lists and dicts, searched from end to end.

A model answers a command with bytes, or with None where the machine refuses it. `COMMANDS` has for each a strategy that
makes commands which meet each other: few names, few ids, and now and then something malformed.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from octopii.machines import (
    CounterStateMachine,
    EventLogStateMachine,
    KvStateMachine,
    RegistryStateMachine,
    TaskQueueStateMachine,
    TimeSeriesStateMachine,
)
from octopii.state_machine import StateMachine


class Model:
    """`now` is replicated time in UTC seconds."""

    now = 0.0

    def apply(self, command: bytes) -> bytes | None:
        """Answer a command, or refuse it."""
        raise NotImplementedError

    def compact(self) -> None:
        """Drop what has run out."""


class KvModel(Model):
    """A dict."""

    def __init__(self) -> None:
        self.pairs: dict[bytes, bytes] = {}

    def apply(self, command: bytes) -> bytes | None:
        if found := re.fullmatch(rb"SET ([^ ]+) (.*)", command, re.DOTALL):
            self.pairs[found[1]] = found[2]
            return b"OK"
        if found := re.fullmatch(rb"GET ([^ ]+)", command, re.DOTALL):
            return self.pairs.get(found[1], b"NOT_FOUND")
        if found := re.fullmatch(rb"DELETE ([^ ]+)", command, re.DOTALL):
            return b"NOT_FOUND" if self.pairs.pop(found[1], None) is None else b"OK"
        return None


class CounterModel(Model):
    """Every increment that was taken."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, int]] = []

    def value(self, name: bytes) -> int:
        return sum(delta for each, delta in self.taken if each == name)

    def apply(self, command: bytes) -> bytes | None:
        if found := re.fullmatch(rb"INC (\w+)(?: ([+-]?[0-9]+))?", command):
            delta = int(found[2] or b"1")
            if not all(-(2**63) <= number < 2**63 for number in (delta, self.value(found[1]) + delta)):
                return None
            self.taken.append((found[1], delta))
            return b"%d" % self.value(found[1])
        if found := re.fullmatch(rb"GET (\w+)", command):
            return b"%d" % self.value(found[1])
        return None


class TimeSeriesModel(Model):
    """Every point that was put, as it came."""

    def __init__(self) -> None:
        self.points: list[tuple[bytes, int, float]] = []

    def apply(self, command: bytes) -> bytes | None:
        if found := re.fullmatch(rb"PUT (\w+) ([0-9]+) (-?[0-9.]+)", command):
            self.points.append((found[1], int(found[2]), float(found[3])))
            return b"OK"
        if found := re.fullmatch(rb"QUERY (\w+) ([0-9]+) ([0-9]+)", command):
            inside = [
                {"timestamp": at, "value": value}
                for name, at, value in self.points
                if name == found[1] and int(found[2]) <= at <= int(found[3])
            ]
            return compactly(sorted(inside, key=lambda point: point["timestamp"]))
        return None

    def compact(self) -> None:
        self.points = [point for point in self.points if point[1] >= self.now - 30 * 24 * 3600]


class EventLogModel(Model):
    """A list."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def apply(self, command: bytes) -> bytes | None:
        if found := re.fullmatch(rb"LOG\t([^\t]*)\t([^\t]*)\t(.*)", command):
            user, action, details = (part.decode() for part in found.groups())
            event = {"id": len(self.events) + 1, "timestamp": int(self.now)}
            self.events.append(event | {"user": user, "action": action, "details": details})
            return b"%d" % len(self.events)
        if found := re.fullmatch(rb"QUERY\t([0-9]+)(?:\t([0-9]+))?", command):
            late = [event for event in self.events if event["id"] >= int(found[1])]
            return compactly(late[: int(found[2] or b"100")])
        return None


class RegistryModel(Model):
    """A dict of dicts."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, Any]] = {}

    def apply(self, command: bytes) -> bytes | None:
        match command.decode().split():
            case ["REGISTER", name, address, port, *pairs] if port.isdigit() and int(port) < 65_536:
                if not all(re.fullmatch(".+?=.*", pair) for pair in pairs):
                    return None
                metadata = dict(pair.split("=", 1) for pair in pairs)
                if len(metadata) < len(pairs):
                    return None
                entry = {"name": name, "address": address, "port": int(port), "metadata": metadata}
                self.services[name] = entry | {"last_heartbeat": int(self.now)}
                return b"REGISTERED"
            case ["HEARTBEAT" | "DEREGISTER" as verb, name]:
                if name not in self.services:
                    return b"NOT_REGISTERED"
                if verb == "DEREGISTER":
                    del self.services[name]
                else:
                    self.services[name]["last_heartbeat"] = int(self.now)
                return b"OK"
            case ["LOOKUP" | "DESCRIBE" as verb, name]:
                if name not in self.services:
                    return b"NOT_FOUND"
                service = self.services[name]
                return f"{service['address']}:{service['port']}".encode() if verb == "LOOKUP" else compactly(service)
        return None

    def compact(self) -> None:
        old = [name for name, service in self.services.items() if service["last_heartbeat"] < self.now - 3600]
        for name in old:
            del self.services[name]


class TaskQueueModel(Model):
    """A list of dicts, searched for the best one at every claim."""

    def __init__(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self.count = 0

    def apply(self, command: bytes) -> bytes | None:
        verb, *parts = command.decode().split("\t")
        match verb, parts:
            case "SUBMIT", [payload]:
                return self.submit(payload)
            case "SUBMIT", [payload, priority] if number(priority):
                return self.submit(payload, int(priority))
            case "SUBMIT", [payload, priority, attempts] if number(priority) and number(attempts) and int(attempts) > 0:
                return self.submit(payload, int(priority), int(attempts))
            case "CLAIM", [worker] if worker:
                return self.claim(worker, 300)
            case "CLAIM", [worker, lease] if worker and number(lease) and int(lease) > 0:
                return self.claim(worker, int(lease))
            case "STATUS" | "DESCRIBE", [task_id] if (task := self.find(task_id)) is not None:
                return compactly(dict(list(task.items())[: 6 if verb == "STATUS" else None]))
            case "START" | "EXTEND" | "COMPLETE" | "FAIL" | "RELEASE", [task_id, *_] if len(parts) <= 2:
                task = self.find(task_id)
                if task is not None and parts[1:2] in ([], [""], [task["assigned_to"]]):
                    return self.step(verb, task)
        return None

    def find(self, task_id: str) -> dict[str, Any] | None:
        return next((task for task in self.tasks if str(task["id"]) == task_id), None)

    def submit(self, payload: str, priority: int = 0, attempts: int = 3) -> bytes:
        self.count += 1
        task = {"id": self.count, "payload": payload, "status": "Pending", "assigned_to": None}
        task |= {"created_at": int(self.now), "completed_at": None, "priority": priority, "attempts": 0}
        self.tasks.append(task | {"max_attempts": attempts, "lease_until": 0.0})
        return b"%d" % self.count

    def lost(self) -> list[dict[str, Any]]:
        return [task for task in self.tasks if task["status"] in HELD and task["lease_until"] <= self.now]

    def put_back(self, task: dict[str, Any]) -> None:
        task |= {"status": "Pending", "assigned_to": None, "lease_until": 0.0}

    def claim(self, worker: str, lease: int) -> bytes | None:
        for task in self.lost():
            if task["attempts"] < task["max_attempts"]:
                self.put_back(task)
        pending = [task for task in self.tasks if task["status"] == "Pending"]
        if not pending:
            return None
        best = min(pending, key=lambda task: (-task["priority"], task["id"]))
        best |= {"status": "Assigned", "assigned_to": worker, "lease_until": self.now + lease}
        best["attempts"] += 1
        return compactly(dict(list(best.items())[:6]))

    def finish(self, task: dict[str, Any], status: str) -> None:
        task |= {"status": status, "completed_at": int(self.now), "lease_until": 0.0}

    def step(self, verb: str, task: dict[str, Any]) -> bytes | None:
        if verb == "COMPLETE" and task["status"] == "Completed":
            return b"OK"
        if task["status"] not in HELD or (verb == "START" and task["status"] != "Assigned"):
            return None
        if verb == "START":
            task["status"] = "Running"
        elif verb == "EXTEND":
            task["lease_until"] = self.now + 300
        elif verb == "COMPLETE":
            self.finish(task, "Completed")
        elif verb == "RELEASE":
            task["attempts"] -= 1
            self.put_back(task)
        elif task["attempts"] == task["max_attempts"]:
            self.finish(task, "Failed")
            return b"FAILED"
        else:
            self.put_back(task)
            return b"RETRY"
        return b"OK"

    def compact(self) -> None:
        for task in self.lost():
            if task["attempts"] < task["max_attempts"]:
                self.put_back(task)
            else:
                self.finish(task, "Failed")
        day = 24 * 3600
        self.tasks = [task for task in self.tasks if (task["completed_at"] or self.now) >= self.now - day]


HELD = ("Assigned", "Running")


def number(text: str) -> bool:
    return re.fullmatch("[+-]?[0-9]+", text) is not None


def compactly(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# --- commands that meet -----------------------------------------------------------------------------------------


def joined(separator: bytes, *parts: st.SearchStrategy[bytes] | bytes) -> st.SearchStrategy[bytes]:
    return st.tuples(*(st.just(part) if isinstance(part, bytes) else part for part in parts)).map(separator.join)


def whole(least: int, most: int) -> st.SearchStrategy[bytes]:
    return st.integers(least, most).map(lambda number: b"%d" % number)


_name = st.sampled_from([b"a", b"b", b"c"])
_value = st.one_of(st.sampled_from([b"", b"1", b"two words", b"tab\there"]), st.binary(max_size=5))
_id = whole(0, 9)
_worker = st.sampled_from([b"w1", b"w2"])
_text = st.sampled_from([b"", b"x", b"some words", "grüß".encode()])
_step = st.sampled_from([b"START", b"EXTEND", b"COMPLETE", b"FAIL", b"RELEASE"])
_malformed = st.sampled_from(
    [b"", b" ", b"\t", b"GET", b"SET a", b"INC", b"PUT a 1", b"LOG\tx", b"NOPE", b"CLAIM", b"get a"]
)

MODELS: dict[str, tuple[Callable[[], StateMachine], Callable[[], Model], st.SearchStrategy[bytes]]] = {
    "kv": (
        KvStateMachine,
        KvModel,
        st.one_of(
            joined(b" ", b"SET", _name, _value), joined(b" ", b"GET", _name), joined(b" ", b"DELETE", _name), _malformed
        ),
    ),
    "counter": (
        CounterStateMachine,
        CounterModel,
        st.one_of(
            joined(b" ", b"INC", _name),
            joined(b" ", b"INC", _name, whole(-5, 5)),
            joined(b" ", b"INC", _name, whole(-(2**63) - 1, 2**63)),
            joined(b" ", b"GET", _name),
            _malformed,
        ),
    ),
    "time_series": (
        TimeSeriesStateMachine,
        TimeSeriesModel,
        st.one_of(
            joined(b" ", b"PUT", _name, whole(1_697_400_000, 1_697_500_000), st.sampled_from([b"1", b"-2.5", b"0.1"])),
            joined(b" ", b"PUT", _name, whole(0, 3), whole(0, 9)),
            joined(b" ", b"QUERY", _name, whole(0, 2), whole(1, 2_000_000_000)),
            joined(b" ", b"QUERY", _name, whole(1_697_400_000, 1_697_500_000), whole(1_697_400_000, 1_697_500_000)),
            _malformed,
        ),
    ),
    "event_log": (
        EventLogStateMachine,
        EventLogModel,
        st.one_of(
            joined(b"\t", b"LOG", _text, _text, st.one_of(_text, st.just(b"with\ttab"))),
            joined(b"\t", b"QUERY", _id),
            joined(b"\t", b"QUERY", _id, whole(0, 3)),
            _malformed,
        ),
    ),
    "registry": (
        RegistryStateMachine,
        RegistryModel,
        st.one_of(
            joined(b" ", b"REGISTER", _name, b"10.0.0.1", st.sampled_from([b"80", b"0", b"65535", b"65536", b"x"])),
            joined(b" ", b"REGISTER", _name, b"host", b"81", st.sampled_from([b"k=v", b"k=", b"k", b"=v", b"k=1 k=2"])),
            joined(b" ", st.sampled_from([b"HEARTBEAT", b"DEREGISTER", b"LOOKUP", b"DESCRIBE"]), _name),
            _malformed,
        ),
    ),
    "task_queue": (
        TaskQueueStateMachine,
        TaskQueueModel,
        st.one_of(
            joined(b"\t", b"SUBMIT", _text),
            joined(b"\t", b"SUBMIT", _text, whole(-2, 2)),
            joined(b"\t", b"SUBMIT", _text, whole(-1, 1), whole(0, 2)),
            joined(b"\t", b"CLAIM", _worker),
            joined(b"\t", b"CLAIM", _worker, whole(0, 20)),
            joined(b"\t", _step, _id),
            joined(b"\t", _step, _id, _worker),
            joined(b"\t", st.sampled_from([b"STATUS", b"DESCRIBE"]), _id),
            _malformed,
        ),
    ),
}
