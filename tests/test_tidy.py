"""The tree keeps the rules of `tidy.py`, and each rule is shown to catch what it is there for."""

import ast

import pytest

from tests import tidy

PACKAGE = "src/octopii/__init__.py"
DOC = '"""A module."""\n'


def test_the_tree_is_tidy() -> None:
    """No file of the project breaks a rule of style."""
    violations = tidy.check_tree()
    assert not violations, "\n".join(["", *map(str, violations)])


def long_function(lines: int) -> str:
    """A function with a one-line docstring and so many lines besides."""
    return 'def f() -> None:\n    """Work."""\n' + "    pass\n" * (lines - 1)


def large_class(methods: int) -> str:
    """A class with so many methods, and a property and a double-underscore method, which do not count."""
    extra = (
        '    @property\n    def p(self) -> int:\n        """Doc."""\n        return 1\n\n'
        "    def __len__(self) -> int:\n        return 1\n\n"
    )
    each = "".join(f'    def m{n}(self) -> None:\n        """Doc."""\n\n' for n in range(methods))
    return 'class C:\n    """Doc."""\n\n' + extra + each


PLANTED = [
    # imports go down only
    ("layers", "src/octopii/raft/log.py", "import octopii.walrus\n"),
    ("layers", "src/octopii/walrus/log.py", "from octopii.raft import Entry\n"),
    ("layers", "src/octopii/walrus/log.py", "from octopii import raft\n"),
    ("layers", "src/octopii/walrus/log.py", "from ..raft import Entry\n"),
    ("layers", "src/octopii/wire/codec.py", "from octopii.replica.sessions import Sessions\n"),
    ("layers", "src/octopii/replica/replica.py", "from octopii.node import OctopiiNode\n"),
    ("layers", "src/octopii/replica/replica.py", "from octopii import OctopiiNode\n"),
    ("layers", "src/octopii/machines/kv.py", "def f() -> None:\n    '''Doc.'''\n    import octopii.raft\n"),
    ("layers", "src/octopii/errors.py", "from octopii.config import Config\n"),
    ("layers", "src/octopii/node/node.py", "from octopii.cli import main\n"),
    ("layers", "src/octopii/client.py", "from octopii.sim import Simulation\n"),
    ("layers", "src/octopii/extras.py", "import json\n"),
    # the world comes as an argument
    ("world", "src/octopii/raft/step.py", "import time\n"),
    ("world", "src/octopii/raft/step.py", "from time import monotonic\n"),
    ("world", "src/octopii/raft/step.py", "import threading\n"),
    ("world", "src/octopii/raft/step.py", "import asyncio\n"),
    ("world", "src/octopii/wire/frames.py", "import socket\n"),
    ("world", "src/octopii/raft/step.py", "import random\nx = random.random()\n"),
    ("world", "src/octopii/raft/step.py", "from random import randint\n"),
    ("world", "src/octopii/machines/kv.py", "import datetime\nx = datetime.datetime.now()\n"),
    ("world", "src/octopii/machines/kv.py", "import os\nx = os.urandom(8)\n"),
    ("world", "src/octopii/machines/kv.py", "import uuid\nx = uuid.uuid4()\n"),
    ("world", "src/octopii/machines/kv.py", "import secrets\n"),
    ("world", "src/octopii/replica/snapshots.py", "x = open('file')\n"),
    ("world", "src/octopii/walrus/segment.py", "import os\nx = os.open('file', 0)\n"),
    ("world", "src/octopii/walrus/segment.py", "import os\nx = os.path.exists('file')\n"),
    ("world", "src/octopii/walrus/segment.py", "import mmap\n"),
    ("world", "src/octopii/walrus/vfs.py", "import threading\n"),
    ("world", "src/octopii/walrus/sync.py", "x = open('file')\n"),
    ("world", "src/octopii/sim/network.py", "import time\n"),
    # lengths
    ("length", "src/octopii/raft/step.py", "# more\n" * tidy.MAX_FILE_LINES),
    ("length", "src/octopii/raft/step.py", long_function(tidy.MAX_FUNCTION_LINES + 1)),
    ("length", "tests/raft/test_step.py", large_class(tidy.MAX_CLASS_METHODS + 1)),
    # names
    ("names", "src/octopii/raft/utils.py", ""),
    ("names", "src/octopii/raft/step.py", 'class LogManager:\n    """Doc."""\n'),
    # habits
    ("habits", "src/octopii/node/node.py", "try:\n    pass\nexcept:\n    pass\n"),
    ("habits", "tests/test_node.py", "import pickle\n"),
    ("habits", "bench/raft.py", "from marshal import dumps\n"),
    # docstrings
    ("docstrings", "src/octopii/raft/step.py", "class C:\n    pass\n"),
    ("docstrings", "src/octopii/raft/step.py", "def f() -> None:\n    pass\n"),
    ("docstrings", "src/octopii/raft/step.py", 'class C:\n    """Doc."""\n\n    def f(self) -> None:\n        pass\n'),
    ("docstrings", "tests/test_node.py", "def test_it() -> None:\n    pass\n"),
    # exports
    ("exports", PACKAGE, "from octopii.errors import OctopiiError\n"),
    ("exports", PACKAGE, "from octopii.errors import OctopiiError\n__all__ = []\n"),
    ("exports", PACKAGE, "__all__ = ['OctopiiError']\n"),
    ("exports", PACKAGE, "from octopii.errors import OctopiiError\n__all__ = ['OctopiiError', 'OctopiiError']\n"),
]


@pytest.mark.parametrize(("rule", "path", "code"), PLANTED)
def test_a_planted_violation_is_found(rule: str, path: str, code: str) -> None:
    """Each rule finds a violation of its own, and no other rule is needed for it."""
    assert {violation.rule for violation in tidy.check_source(tidy.Source(path, DOC + code))} == {rule}


def test_a_module_without_docstring_is_found() -> None:
    """A module has to say what it owns."""
    found = tidy.check_source(tidy.Source("bench/raft.py", "x = 1\n"))
    assert [violation.rule for violation in found] == ["docstrings"]


ALLOWED = [
    ("src/octopii/walrus/vfs.py", "import mmap\nimport os\nx = os.open('file', 0)\ny = open('file')\n"),
    ("src/octopii/walrus/sync.py", "import threading\nimport time\n"),
    ("src/octopii/raft/step.py", "from random import Random\nimport random\nx = random.Random(1)\n"),
    ("src/octopii/replica/replica.py", "from octopii.wire import codec\nfrom octopii import raft, walrus\n"),
    ("src/octopii/walrus/segment.py", "import os\nx = os.path.join('a', 'b')\n"),
    ("src/octopii/node/node.py", "import asyncio\nimport time\nfrom octopii.replica import Replica\n"),
    ("src/octopii/machines/kv.py", "def f(self) -> float:\n    '''Doc.'''\n    return self.clock.now()\n"),
    ("src/octopii/raft/step.py", long_function(tidy.MAX_FUNCTION_LINES)),
    ("src/octopii/raft/step.py", large_class(tidy.MAX_CLASS_METHODS)),
    (PACKAGE, "import json\nfrom octopii.errors import OctopiiError\n__all__ = ['OctopiiError']\n"),
]


@pytest.mark.parametrize(("path", "code"), ALLOWED)
def test_what_is_allowed_passes(path: str, code: str) -> None:
    """The rules find nothing in code that keeps them, at the very edge included."""
    assert tidy.check_source(tidy.Source(path, DOC + code)) == []


@pytest.mark.parametrize(
    "line",
    ["see /home/somebody/octopii", "cd /work/octopii", "pip install --index-url x", "https://pypi.org/project/octopii"],
)
def test_machine_paths_and_registry_hosts_are_found(line: str) -> None:
    """A tracked file names neither somebody's machine nor a package registry."""
    assert [violation.line for violation in tidy.text_hygiene("docs/guide.md", f"fine\n{line}\n")] == [2]


def test_what_is_allowed_to_be_wide_is_there() -> None:
    """The list of wide classes holds no class that is gone, or that could keep the rule by now."""
    for (path, name), most in tidy.WIDE_CLASSES.items():
        text = (tidy.ROOT / path).read_text(encoding="utf-8")
        found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef) and node.name == name]
        assert found, f"{name} is not in {path}"
        assert most > tidy.MAX_CLASS_METHODS


def test_every_part_of_the_package_has_a_layer() -> None:
    """The table of layers lists itself in order: whatever a part may import is in the table as well."""
    for part, targets in tidy.MAY_IMPORT.items():
        assert targets <= tidy.MAY_IMPORT.keys(), part


def test_layers_have_no_cycle() -> None:
    """No two parts may import each other, at any distance."""

    def reaches(part: str) -> set[str]:
        seen: set[str] = set()
        pending = [part]
        while pending:
            for target in tidy.MAY_IMPORT[pending.pop()] - seen:
                seen.add(target)
                pending.append(target)
        return seen

    assert [part for part in tidy.MAY_IMPORT if part in reaches(part)] == []


def test_the_project_has_files_to_check() -> None:
    """The listing that the rules walk is not empty: a check of nothing would always pass."""
    paths = tidy.project_files()
    assert "src/octopii/errors.py" in paths
    assert "pyproject.toml" in paths
