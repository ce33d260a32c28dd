"""What the documents show is run: their Python, in an empty folder, as somebody would type it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]

_block = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_link = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")


def python_blocks() -> list[tuple[str, str]]:
    """Each Python block with the document and line it stands at."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in _block.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append((f"{document.relative_to(ROOT)}:{line}", match[1]))
    return found


@pytest.mark.parametrize(("code"), [code for _, code in python_blocks()], ids=[place for place, _ in python_blocks()])
def test_the_code_in_the_documents_runs(code: str, tmp_path: Path) -> None:
    """Each Python block of the documents is a whole program that ends without an error, with warnings as errors."""
    (tmp_path / "program.py").write_text(code, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_the_story_in_the_page_on_simulation_is_such_as_its_program_tells(tmp_path: Path) -> None:
    """Line by line, in order, but for numbers and names; and nothing else is printed, on standard error neither."""
    page = (ROOT / "docs/simulation.md").read_text(encoding="utf-8")
    code = _block.findall(page)[0]
    (tmp_path / "program.py").write_text(code, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    for start in (
        r"seed \d+, profile crashes: state-machine safety: entry \d+, command \d+: b'RESERVE .* elsewhere b'RESERVE",
        r"at [\d.]+ s, \d nodes?, \d clients?, \d+ faults? planned$",
        r"  faults$",
        r" +[\d.]+  fault \w+",
        r" +[\d.]+  the quiet begins",
        r"  node \d$",
        r" +[\d.]+  is asked: Propose request_id=\d+ \(CallGroup session=\d+ first=\d+ acked=\d+ commands=",
        r" +[\d.]+  (loses power|is killed)$",
        r" +[\d.]+  starts$",
        r"to see it again: Simulation\(Shop, workload=Shopping, seed=\d+, profile='crashes', ",
    ):
        at = next((at for at, line in enumerate(lines) if re.match(start, line)), None)
        assert at is not None, (start, ran.stdout)
        assert re.search(start, re.sub(r"\n(?=node 1;|faults=)", " ", page), re.MULTILINE), start
        del lines[: at + 1]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    """No document refers to a file that is not there."""
    targets = [target for target in _link.findall(document.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_walk_through_the_tree_names_only_what_is_there() -> None:
    """Every `file.py` that ARCHITECTURE.md speaks of exists in the tree."""
    named = set(re.findall(r"`(?:[\w./]*/)?(\w+\.py)`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))
    there = {path.name for folder in ("src", "tests", "bench") for path in (ROOT / folder).rglob("*.py")}
    assert named - there == set()


def test_the_walk_through_the_tree_passes_every_part() -> None:
    """Every package under src/octopii has its section in ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    parts = {path.parent.name for path in (ROOT / "src" / "octopii").glob("*/__init__.py")}
    assert {part for part in parts if f"{part}/`" not in text} == set()
