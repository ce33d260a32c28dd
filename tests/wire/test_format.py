"""The bytes of protocol version 1 stay as they are, and the page that describes them says the same."""

import re
from pathlib import Path

import pytest

from octopii.wire.codec import (
    MAX_ADDRESS_CHARACTERS,
    MAX_COMMANDS_PER_GROUP,
    MAX_GROUPS_PER_ENTRY,
    MAX_TEXT_CHARACTERS,
    EntryItem,
)
from octopii.wire.frames import (
    MAGIC,
    MAX_GREETING_TEXT_BYTES,
    MAX_HANDSHAKE_FRAME_BYTES,
    FrameType,
    Greeting,
    encode_frame,
    encode_greeting,
)
from octopii.wire.handshake import MAX_REFUSAL_CHARACTERS, RefusalKind
from octopii.wire.peer_frames import MAX_MESSAGES_PER_FRAME
from octopii.wire.requests import FailureKind, PeerMessage, Pulse, Reply, Request
from tests.wire.samples import DECODERS, HELLO

HERE = Path(__file__).parent
GOLDEN = HERE / "format_v1.txt"
PAGE = (HERE.parent.parent / "docs" / "wire-format.md").read_text()


def golden_lines() -> list[str]:
    """Every sample as it goes over the wire now, one line each."""
    lines = [
        f"greeting {encode_greeting(Greeting(text='x')).hex()}",
        f"frame {encode_frame(FrameType.REQUEST, b'payload').hex()}",
    ]
    for name, (encode, _, samples) in DECODERS.items():
        lines += [f"{name} {encode(sample).hex()}" for sample in samples]
    return lines


def test_version_1_is_what_it_was() -> None:
    """Every sample has the bytes that it had when the version was published; a change needs a new version."""
    assert golden_lines() == GOLDEN.read_text().splitlines()


@pytest.mark.parametrize("name", list(DECODERS))
def test_bytes_of_version_1_are_still_understood(name: str) -> None:
    """What an older program of the same version sent decodes to the same."""
    _, decode, samples = DECODERS[name]
    lines = [line.split() for line in GOLDEN.read_text().splitlines()]
    assert [decode(bytes.fromhex(line[1] if len(line) > 1 else "")) for line in lines if line[0] == name] == samples


PULSE = Pulse(1_700_000_000_000_000_000, True)
SHORTER: list[tuple[str, str, object]] = [
    ("peer", "940acf17979cfe362a0000c3c400", PULSE),
    ("peer", "990acf17979cfe362a0000c3c4000403cd03e803cd03e9", Pulse(PULSE.wall, True, b"", 4, 3, 1000, 3, 1001)),
    ("peer", "9c0acf17979cfe362a0000c3c400000000000001cd03e8c400", Pulse(PULSE.wall, True, digest_index=1000)),
    (
        "hello",
        "9a0102c41063636363636363636363636363636363c410737373737373737373737373737373730001a3623a31000000",
        HELLO,
    ),
]
"""What was sent before a message got more fields."""


@pytest.mark.parametrize(("name", "data", "message"), SHORTER)
def test_shorter_bytes_of_version_1_are_still_understood(name: str, data: str, message: object) -> None:
    """A message without its newer fields is the one with their defaults."""
    assert DECODERS[name][1](bytes.fromhex(data)) == message


def rows(title: str) -> dict[int, str]:
    """The numbered rows of all tables under a heading of the page."""
    section = PAGE.split(f" {title}\n", 1)[1].split("\n#", 1)[0]
    return {int(number): text for number, text in re.findall(r"^\| (\d+) \| ([^|]+)", section, re.MULTILINE)}


def test_the_page_names_every_frame_type() -> None:
    """The table of types is complete and right."""
    assert {number: name.strip() for number, name in rows("Frames").items() if name.strip().isupper()} == {
        kind.value: kind.name for kind in FrameType
    }


@pytest.mark.parametrize(
    ("title", "union"), [("Requests", Request), ("Replies", Reply), ("Between nodes", PeerMessage)]
)
def test_the_page_has_a_row_for_every_tag(title: str, union: object) -> None:
    """A message that is added later has to be described."""
    assert set(rows(title)) == {member.__struct_config__.tag for member in union.__args__}  # type: ignore[attr-defined]


def test_the_page_names_every_number() -> None:
    """Kinds of refusals and failures, and tags of log items."""
    refusals = PAGE.split("refusal: `", 1)[1].split("\n\n", 1)[0]
    assert {int(number) for number in re.findall(r"\b(\d+) [a-z]", refusals)} == {kind.value for kind in RefusalKind}
    failures = PAGE.split("Failure kinds.", 1)[1].split("\n\n", 1)[0]
    assert {int(number) for number in re.findall(r"\b(\d+) [a-z]", failures)} == {kind.value for kind in FailureKind}
    items = PAGE.split("Items, by tag:", 1)[1].split(".", 1)[0]
    assert {int(number) for number in re.findall(r"\b(\d+) [a-z]", items)} == {
        member.__struct_config__.tag for member in EntryItem.__args__
    }


def test_the_page_states_the_limits() -> None:
    """Every limit that the page gives is the program's."""
    assert MAGIC.hex(" ") in PAGE
    limits = PAGE.split("## Limits", 1)[1]
    for number in (
        MAX_GREETING_TEXT_BYTES,
        MAX_HANDSHAKE_FRAME_BYTES,
        MAX_COMMANDS_PER_GROUP,
        MAX_GROUPS_PER_ENTRY,
        MAX_MESSAGES_PER_FRAME,
        MAX_ADDRESS_CHARACTERS,
        MAX_TEXT_CHARACTERS,
        MAX_REFUSAL_CHARACTERS,
    ):
        assert f"{number:,} " in limits
