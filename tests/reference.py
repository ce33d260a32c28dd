"""Writes docs/reference.md from the code: `python -m tests.reference` in the project's folder.

The command line comes from the parser itself, the settings from `Config` with the text below each field.
"""

import ast
import inspect
import itertools
import re
import typing
from collections.abc import Sequence
from pathlib import Path

import msgspec
from typer.testing import CliRunner

from octopii import config
from octopii.cli.app import app
from octopii.cli.exits import CODES, MEANINGS
from octopii.replica.status import describe_schedule

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"

HEAD = """\
# Reference

Written from the code by `python -m tests.reference`; a test compares. [Operations](operations.md) says when to use
what.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Commands\n", *_commands([])]
    parts += ["## Exit status\n", _exit_codes(), "## Settings\n", _settings()]
    return "\n".join(parts)


# --- commands ---------------------------------------------------------------------------------------------------


def _help_of(words: list[str]) -> str:
    """What `octopii ... --help` prints."""
    ran = CliRunner().invoke(app, [*words, "--help"], prog_name="octopii", env={"COLUMNS": "100", "TERM": "dumb"})
    assert ran.exit_code == 0, ran.output
    return ran.output.strip()


def _commands(words: list[str]) -> list[str]:
    """A section for each command below `words`, in the order of the help."""
    text = _help_of(words)
    if "\nCommands:\n" not in text:
        return [f"### `octopii {' '.join(words)}`\n\n```text\n{text}\n```\n"]
    names = re.findall(r"^  ([a-z][a-z-]*)  ", text.split("\nCommands:\n")[1], re.MULTILINE)
    return [section for name in names for section in _commands([*words, name])]


# --- exit status ------------------------------------------------------------------------------------------------


def _exit_codes() -> str:
    rows = [("status", "meaning", "errors")]
    for code, meaning in MEANINGS.items():
        kinds = ", ".join(f"`{kind.__name__}`" for kind, its_code in CODES if its_code == code)
        rows.append((str(code), meaning, kinds))
    return _table(rows)


# --- settings ---------------------------------------------------------------------------------------------------


def _settings() -> str:
    """Every field of `Config` with its range, default and the text below it."""
    hints = typing.get_type_hints(config.Config, include_extras=True)
    defaults = {field.name: _field_default(field) for field in msgspec.structs.fields(config.Config)}
    lines = [
        "The fields of `Config`, by the same names in the TOML file of `octopii serve --config`. In TOML, `peers` is a "
        'table (`[peers]`, then `2 = "host:port"`).\n'
    ]
    rows = [("setting", "default", "from, to", "meaning")]
    for name, text in _field_texts().items():
        rows.append((f"`{name}`", defaults[name], _range(hints[name]), text))
    return "\n".join([*lines, _table(rows)])


def _field_texts() -> dict[str, str]:
    tree = ast.parse(inspect.getsource(config))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    texts = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr), field.target.id
            assert isinstance(text.value, ast.Constant), field.target.id
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def _field_default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None or value == {}:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, int | float):
        return f"`{value:_}`" if isinstance(value, int) else f"`{value:g}`"
    return f'`"{describe_schedule(value)}"`'


def _range(hint: object) -> str:
    metas = [meta for meta in typing.get_args(hint) if isinstance(meta, msgspec.Meta)]
    if not metas or metas[0].ge is None or metas[0].le is None:
        return ""
    unit = f" {metas[0].extra['unit']}" if metas[0].extra else ""
    return f"{_number(metas[0].ge)}, {_number(metas[0].le)}{unit}"


def _number(value: float) -> str:
    return f"{value:_}" if isinstance(value, int) else f"{value:g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
