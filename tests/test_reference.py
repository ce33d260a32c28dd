"""The reference says what the code does."""

from octopii import Config
from octopii.cli.exits import CODES, MEANINGS
from tests.reference import PAGE, page


def test_the_reference_is_what_the_code_says() -> None:
    """docs/reference.md is what `python -m tests.reference` writes now."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_setting_is_in_the_reference() -> None:
    """No field of `Config` is left out, and each has a text."""
    text = PAGE.read_text(encoding="utf-8")
    for name in Config.__struct_fields__:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(row.split(" | ")[-1]) > 10


def test_every_exit_code_has_a_meaning() -> None:
    """No code is used that the reference does not explain."""
    assert {code for _, code in CODES} <= MEANINGS.keys()
