"""What a machine raises is found in the log of the node, once in full and then counted."""

import logging

import pytest

from octopii.replica.machine_errors import MachineErrors, max_kinds, max_trace_characters
from octopii.wire.requests import CompactRequest
from tests.replica.clusters import Cluster


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_each_node_whose_machine_raised_logs_the_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each node with the method, the exception, the entry and where it was raised; then each tenfold."""
    cluster = Cluster(1)
    client = cluster.client()
    for _ in range(12):
        cluster.wait(client.propose(b"raise it"))
    cluster.settle()
    lines = errors_of(caplog)
    for node_id in cluster.nodes:
        first, tenth = [line for line in lines if line.startswith(f"node {node_id}: ")]
        assert first.startswith(f"node {node_id}: apply() raised KeyError: 'raise it' (entry ")
        assert "Traceback" in first
        assert ", line " in first
        assert tenth.endswith(", 10 times by now")
    assert len(lines) == 2 * len(cluster.nodes)


@pytest.mark.parametrize("method", ["query", "compact"])
def test_what_other_methods_raise_is_logged_too(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """A query's exception reaches its caller alone, a compaction's nobody."""
    cluster = Cluster(2)
    client = cluster.client()
    cluster.write(client)

    def fail(*_: object) -> bytes:
        return b"%d" % (1 // 0)

    for node in cluster.nodes.values():
        setattr(node.machine, method, fail)
    if method == "query":
        cluster.wait(client.query())
    else:
        cluster.wait(client.ask(CompactRequest(0)))
    cluster.settle()
    assert any(
        f": {method}() raised ZeroDivisionError: integer division or modulo by zero (entry " in line
        for line in errors_of(caplog)
    )


def _note(errors: MachineErrors, error: Exception) -> None:
    try:
        raise error
    except Exception as raised:  # noqa: BLE001
        errors.note("apply", 7, raised, str(raised))


def test_types_and_places_are_told_apart() -> None:
    """Two lines that raise the same, and two exceptions of one line, are four that are told in full."""
    errors = MachineErrors()
    for error in (ValueError("a"), KeyError("b"), ValueError("c")):
        _note(errors, error)
    try:
        raise ValueError("d")
    except ValueError as raised:
        errors.note("apply", 8, raised, str(raised))
    told = errors.take()
    assert [(each.text, each.count, bool(each.trace)) for each in told] == [
        ("ValueError: a", 1, True),
        ("KeyError: 'b'", 1, True),
        ("ValueError: d", 1, True),
    ]
    assert errors.take() == []


def test_what_is_told_apart_is_bounded() -> None:
    """Beyond the limit all other kinds are counted as one."""
    errors = MachineErrors()
    for number in range(max_kinds + 1000):
        _note(errors, type(f"Error{number}", (Exception,), {})(""))
    told = errors.take()
    assert [each.count for each in told] == [1] * max_kinds + [1, 10, 100, 1000]


def test_a_traceback_is_cut_to_its_end() -> None:
    """Of a long one the end is kept, where the exception is."""
    errors = MachineErrors()
    _note(errors, ValueError("a" * 2 * max_trace_characters + "the end"))
    (told,) = errors.take()
    assert len(told.trace) == max_trace_characters + len("...")
    assert told.trace.endswith("the end")
