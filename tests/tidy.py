"""The project's rules of style that a program can check, one function for each; `test_tidy.py` runs them.

A rule takes a `Source` (one Python file, parsed) and yields a `Violation` for each place that breaks it. Rules look
at the syntax tree alone and import nothing, so that they also judge code which does not run.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MAX_FILE_LINES = 580  # "about 500": room to finish a thought, not to start another
MAX_FUNCTION_LINES = 70  # without its docstring
MAX_CLASS_METHODS = 25  # properties and double-underscore methods do not count

# Classes that were wider when the rule came: they may shrink, and never grow. Most are the one place where the parts
# of a layer meet, and pass calls on.
WIDE_CLASSES: dict[tuple[str, str], int] = {
    ("src/octopii/raft/raw_node.py", "RawNode"): 27,
    ("src/octopii/replica/calls.py", "Calls"): 27,
    ("src/octopii/replica/replica.py", "Replica"): 34,
    ("src/octopii/walrus/walrus.py", "Log"): 31,
    ("src/octopii/wire/call.py", "CallMachine"): 26,
    ("tests/raft/harness.py", "Peer"): 26,
}

# --- the layers: what a module of the package may import of the package ------------------------------------------

_GROUND = frozenset({"errors", "version", "durability", "config", "state_machine", "blocks", "typed"})
_CORES = frozenset({"raft", "walrus"})
_REPLICA = frozenset({"wire", "replica"})
_BELOW_SHELLS = _GROUND | _CORES | _REPLICA

MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "version": frozenset(),
    "durability": frozenset({"errors"}),
    "config": frozenset({"errors", "durability"}),
    "state_machine": frozenset({"errors"}),
    "blocks": frozenset({"errors", "state_machine"}),
    "typed": frozenset({"errors", "state_machine", "blocks"}),
    "machines": _GROUND,
    "raft": _GROUND,
    "walrus": _GROUND,
    "wire": _GROUND | _CORES,
    "replica": _GROUND | _CORES | {"wire"},
    "node": _BELOW_SHELLS,
    "client": _BELOW_SHELLS | {"node"},
    "sim": _BELOW_SHELLS | {"machines"},
    "testing": _BELOW_SHELLS | {"sim"},
    "cli": _BELOW_SHELLS | {"machines", "node", "client", "sim", "testing", "octopii"},
    "octopii": _BELOW_SHELLS | {"node", "client"},  # the package's own __init__, which only re-exports
}

# --- the world: what only the shells may touch --------------------------------------------------------------------

# The simulator is a shell by its place, and has to be as deterministic as what it drives.
PURE = _BELOW_SHELLS | {"machines", "sim"}

WORLD_MODULES = frozenset({
    "threading", "_thread", "concurrent", "multiprocessing", "queue", "subprocess", "signal", "sched", "asyncio",
    "uvloop", "selectors", "select", "socket", "socketserver", "ssl", "http", "urllib", "time", "secrets", "mmap",
    "fcntl", "tempfile", "shutil", "pathlib", "glob", "io",
})  # fmt: skip
# The two shells inside walrus, and what each is there for; the settings, which read the file that they are given; and
# the machine whose commands are coroutines.
WORLD_EXCEPTIONS: dict[str, frozenset[str]] = {
    "src/octopii/config.py": frozenset({"pathlib"}),
    "src/octopii/machines/asynchronous.py": frozenset({"asyncio"}),  # an event loop of a machine's own, run to its end
    "src/octopii/walrus/sync.py": frozenset({"threading", "time"}),
    "src/octopii/walrus/vfs.py": frozenset({"mmap", "fcntl", "os", "open", "io"}),
}
HARMLESS_OS = frozenset({"fspath", "PathLike", "path", "strerror"})
HARMLESS_OS_PATH = frozenset({"join", "basename", "dirname", "normpath", "split"})

BANNED_EVERYWHERE = frozenset({"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"})

# Whose machine, and where packages came from, is nobody else's business.
UNWANTED_TEXT = re.compile(
    r"/work/|/home/\w|/root/|/Users/\w|/opt/wheels|/tmp/\w|pypi\.org|pythonhosted|crates\.io|golang\.org/|npmjs"
    r"|--index-url|--extra-index|--find-links"
)
TEXT_EXEMPT = frozenset({"tests/tidy.py", "tests/test_tidy.py"})  # they spell out what they look for


@dataclass(frozen=True)
class Violation:
    """One broken rule and its place."""

    path: str
    line: int
    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.detail}"


@dataclass(frozen=True)
class Source:
    """One Python file: `path` is relative to the project's root, with forward slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text, self.path)

    @cached_property
    def part(self) -> str | None:
        """The part of the package that the file belongs to (`raft`, `errors`, ...), or None outside the package."""
        match = re.fullmatch(r"src/octopii/(?:(\w+)(?:\.py|/.*)|__init__\.py)", self.path)
        if match is None:
            return None
        name = match[1]
        return "octopii" if name is None or name == "__init__" else name

    def violation(self, node: ast.AST, rule: str, detail: str) -> Violation:
        """A violation at the line of `node`."""
        return Violation(self.path, getattr(node, "lineno", 1), rule, detail)


Rule = Callable[[Source], Iterator[Violation]]


# --- imports ------------------------------------------------------------------------------------------------------


def imported_modules(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Every module that the file imports, wherever the statement stands, as absolute dotted names."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = source.path.removeprefix("src/").removesuffix(".py").split("/")
                base = parts[: len(parts) - node.level]
                yield node, ".".join([*base, *([node.module] if node.module else [])])
            elif node.module == "octopii":
                for alias in node.names:  # a submodule, or a name that the package re-exports
                    known = alias.name in MAY_IMPORT
                    yield node, f"octopii.{alias.name}" if known else "octopii"
            elif node.module:
                yield node, node.module


def imports_go_down(source: Source) -> Iterator[Violation]:
    """A part of the package imports only what its layer may see."""
    part = source.part
    if part is None:
        return
    if part not in MAY_IMPORT:
        yield Violation(source.path, 1, "layers", f"{part} has no place in the table of layers")
        return
    for node, module in imported_modules(source):
        if module == "octopii" or module.startswith("octopii."):
            target = module.split(".")[1] if "." in module else "octopii"
            if target != part and target not in MAY_IMPORT[part]:
                yield source.violation(node, "layers", f"{part} may not import {target}")


def world_comes_as_argument(source: Source) -> Iterator[Violation]:
    """Below the shells: no threads, clock, event loop, sockets, random module state, and no opening of files."""
    if source.part not in PURE:
        return
    allowed = WORLD_EXCEPTIONS.get(source.path, frozenset())
    for node, module in imported_modules(source):
        top = module.split(".")[0]
        if top in WORLD_MODULES and top not in allowed:
            yield source.violation(node, "world", f"imports {top}")
    for node in ast.walk(source.tree):
        detail = _touches_the_world(node)
        if detail is not None and detail.split(".")[0] not in allowed:
            yield source.violation(node, "world", f"uses {detail}")


def _touches_the_world(node: ast.AST) -> str | None:
    if isinstance(node, ast.ImportFrom) and node.module in ("random", "os", "os.path", "datetime", "uuid"):
        harmless = {"random": {"Random"}, "os": HARMLESS_OS, "os.path": HARMLESS_OS_PATH, "uuid": {"UUID"}}
        for alias in node.names:
            if node.module != "datetime" and alias.name not in harmless[node.module]:
                return f"{node.module}.{alias.name}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
        return "open"
    if not isinstance(node, ast.Attribute):
        return None
    if isinstance(node.value, ast.Attribute) and node.value.attr == "path" and _is_name(node.value.value, "os"):
        return None if node.attr in HARMLESS_OS_PATH else f"os.path.{node.attr}"
    if _is_name(node.value, "os") and node.attr not in HARMLESS_OS:
        return f"os.{node.attr}"
    if _is_name(node.value, "random") and node.attr != "Random":
        return f"random.{node.attr}"
    if _is_name(node.value, "uuid") and node.attr in ("uuid1", "uuid4"):
        return f"uuid.{node.attr}"
    base = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
    if base in ("datetime", "date") and node.attr in ("now", "utcnow", "today"):
        return f"{base}.{node.attr}"
    return None


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


# --- sizes, names, habits -----------------------------------------------------------------------------------------


def lengths(source: Source) -> Iterator[Violation]:
    """No long file, no long function, no class with many methods."""
    count = source.text.count("\n")
    if count > MAX_FILE_LINES:
        yield Violation(source.path, count, "length", f"file of {count} lines, over {MAX_FILE_LINES}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = _code_lines(node)
            if size > MAX_FUNCTION_LINES:
                yield source.violation(node, "length", f"{node.name} has {size} lines, over {MAX_FUNCTION_LINES}")
        elif isinstance(node, ast.ClassDef):
            methods = sum(_is_method(child) for child in node.body)
            most = WIDE_CLASSES.get((source.path, node.name), MAX_CLASS_METHODS)
            if methods > most:
                yield source.violation(node, "length", f"{node.name} has {methods} methods, over {most}")


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    size = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        size -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return size


def _is_method(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    double = node.name.startswith("__") and node.name.endswith("__")
    return not double and not any(_is_name(item, "property") for item in node.decorator_list)


def names(source: Source) -> Iterator[Violation]:
    """No `utils.py` and no `Manager`: neither says what it owns."""
    stem = source.path.rsplit("/", 1)[-1]
    if stem in ("utils.py", "util.py", "helpers.py", "misc.py"):
        yield Violation(source.path, 1, "names", f"{stem} says nothing about what it holds")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and "Manager" in node.name:
            yield source.violation(node, "names", f"class {node.name} says nothing about what it owns")


def habits(source: Source) -> Iterator[Violation]:
    """No bare `except`, nothing of pickle's family."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield source.violation(node, "habits", "bare except")
    for node, module in imported_modules(source):
        if module.split(".")[0] in BANNED_EVERYWHERE:
            yield source.violation(node, "habits", f"imports {module}")


# --- docstrings and exports ---------------------------------------------------------------------------------------


def docstrings(source: Source) -> Iterator[Violation]:
    """Every module has a docstring; so has every public name of the package, and every test."""
    if ast.get_docstring(source.tree) is None:
        yield Violation(source.path, 1, "docstrings", "the module has none")
    if source.part is not None:
        yield from _public_docstrings(source, source.tree.body)
    elif source.path.startswith("tests/"):
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
                continue
            if ast.get_docstring(node) is None:
                yield source.violation(node, "docstrings", f"{node.name} does not state the fact that it holds")


def _public_docstrings(source: Source, body: list[ast.stmt]) -> Iterator[Violation]:
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if any(_is_name(item, "overload") for item in node.decorator_list):
            continue
        if ast.get_docstring(node) is None:
            yield source.violation(node, "docstrings", f"{node.name} has none")
        # A file whose methods are described once, on the protocol that they fulfil, says so by this mark.
        if isinstance(node, ast.ClassDef) and "# ruff: noqa: D102" not in source.text:
            yield from _public_docstrings(source, node.body)


def exports(source: Source) -> Iterator[Violation]:
    """A package's `__all__` is what it offers: complete, without repeats, and every name is there."""
    if source.part is None or not source.path.endswith("/__init__.py"):
        return
    bound = _bound_names(source.tree)
    listed = _listed_names(source.tree)
    if listed is None:
        if bound:
            yield Violation(source.path, 1, "exports", "binds public names and has no __all__")
        return
    for name in sorted({name for name in listed if listed.count(name) > 1}):
        yield Violation(source.path, 1, "exports", f"{name} stands twice in __all__")
    for name in sorted(set(listed) - bound - {"__version__"}):
        yield Violation(source.path, 1, "exports", f"{name} is in __all__ and not bound")
    for name in sorted(bound - set(listed)):
        yield Violation(source.path, 1, "exports", f"{name} is bound and not in __all__")


def _bound_names(tree: ast.Module) -> set[str]:
    """Public names of our own: defined here, or imported from the package; other modules are only tools."""
    bound: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("octopii")):
            bound.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.Assign):
            bound.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return {name for name in bound if not name.startswith("_")}


def _listed_names(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(_is_name(target, "__all__") for target in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


RULES: tuple[Rule, ...] = (
    imports_go_down,
    world_comes_as_argument,
    lengths,
    names,
    habits,
    docstrings,
    exports,
)


# --- text, and the tree -------------------------------------------------------------------------------------------


def text_hygiene(path: str, text: str) -> Iterator[Violation]:
    """No file of the project names somebody's machine or a package registry."""
    if path in TEXT_EXEMPT:
        return
    for number, line in enumerate(text.splitlines(), 1):
        match = UNWANTED_TEXT.search(line)
        if match is not None:
            yield Violation(path, number, "text", f"contains {match[0]!r}")


def project_files() -> list[str]:
    """What belongs to the project: all that git tracks or would, or the whole folder where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode == 0:
        paths = listing.stdout.splitlines()
    else:
        paths = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if ".venv" not in path.parts]
    return sorted({path for path in paths if (ROOT / path).is_file()})


def check_source(source: Source) -> list[Violation]:
    """All that is wrong with one Python file."""
    return [violation for rule in RULES for violation in rule(source)]


def check_tree() -> list[Violation]:
    """All that is wrong with the project."""
    violations: list[Violation] = []
    for path in project_files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        violations += text_hygiene(path, text)
        if path.endswith(".py"):
            violations += check_source(Source(path, text))
    return violations
