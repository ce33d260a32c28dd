"""Putting known bugs back, one at a time, at run time.

A `Mutant` names one function of the package and how to build its wrong twin. `planted` swaps it in everywhere it is
bound (its own module, modules that imported it by name, dispatch tables) and restores it afterwards. A name that is
gone is an error, never a mutant that does nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

Check = Callable[[], None]


class MissingTarget(LookupError):
    """The function that a mutant replaces does not exist (any more)."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A known bug: its class number in the list of known bugs, the function it lives in, and its wrong twin.

    `target` is `module:function` or `module:Class.method`; `build` is given the right function.
    """

    name: str
    number: int
    target: str
    build: Callable[[Callable[..., Any]], Callable[..., Any]]


def locate(target: str) -> tuple[Any, str, Callable[..., Any]]:
    """Return the owner (module or class), the attribute's name and the function.

    Raises `MissingTarget`.
    """
    module_name, _, path = target.partition(":")
    try:
        owner: Any = importlib.import_module(module_name)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        return owner, name, vars(owner)[name]
    except (ImportError, AttributeError, KeyError) as error:
        raise MissingTarget(f"{target} is gone: adapt the mutant") from error


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Run with the bug in place; whatever happens, take it out again."""
    owner, name, right = locate(mutant.target)
    wrong = mutant.build(right)
    undo: list[Callable[[], None]] = []

    def swap(holder: Any, key: str) -> None:
        setattr(holder, key, wrong)
        undo.append(lambda: setattr(holder, key, right))

    def swap_item(table: dict[Any, Any], key: Any) -> None:
        table[key] = wrong
        undo.append(lambda: table.__setitem__(key, right))

    package = mutant.target.partition(":")[0].rpartition(".")[0]
    try:
        swap(owner, name)
        for module_name, module in list(sys.modules.items()):
            if not module_name.startswith(package) or module is None:
                continue
            for key, value in list(vars(module).items()):
                if value is right:
                    swap(module, key)
                elif isinstance(value, dict) and not key.startswith("__"):
                    for item in [item for item, held in value.items() if held is right]:
                        swap_item(value, item)
        yield
    finally:
        for step in reversed(undo):
            step()


def catchers(mutant: Mutant, families: Mapping[str, Mapping[str, Check]]) -> dict[str, str | None]:
    """Plant the bug and run each family of checks up to its first failure; return the failing check of each family."""
    caught: dict[str, str | None] = {}
    with planted(mutant):
        for family, checks in families.items():
            caught[family] = next((name for name, check in checks.items() if fails(check)), None)
    return caught


def fails(check: Check) -> bool:
    """Return whether the check fails, by an assertion or by any error."""
    try:
        check()
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - a bug may show as any error
        return True
    return False


def table(rows: list[tuple[Mutant, dict[str, str | None]]]) -> str:
    """Which check of each family caught which mutant, as text in columns."""
    families = list(rows[0][1])
    lines = [["class", "mutant", *families]]
    for mutant, caught in rows:
        lines.append([str(mutant.number), mutant.name, *(caught[family] or "-" for family in families)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
