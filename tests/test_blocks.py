"""The block format: every rule of its validity is checked."""

import msgspec
import pytest

from octopii.blocks import MAX_BLOCK_ITEMS, TARGET_BLOCK_BYTES, frozen, read_blocks, spans, write_blocks

NUMBERS = msgspec.msgpack.Decoder(list[int])


def read(data: bytes) -> list[list[int]]:
    return list(read_blocks("numbers/1", memoryview(data), NUMBERS))


def test_values_come_back_in_order() -> None:
    """What was written is read, none and many."""
    for values in ([], [[1]], [[1, 2], [], [3]]):
        assert read(b"".join(write_blocks("numbers/1", values))) == values


def test_the_format_is_as_it_is_described() -> None:
    """The bytes of a small snapshot, written out: a change to them needs a new format number."""
    assert b"".join(write_blocks("n/1", [[7]])) == (
        b"OMSB\x01\x00\x03\x00n/1\x02\x00\x00\x00\x91\x07\x00\x00\x00\x00" + b"\x01" + bytes(7)
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"OMSB", b"OMSX", "not a numbers/1 snapshot: it starts"),
        (b"B\x01\x00", b"B\x02\x00", "not a numbers/1 snapshot: it starts"),
        (b"numbers/1", b"numbers/2", "but one of 'numbers/2'"),
        (b"\x92\x01\x02", b"\x92\x01\xa0", "block 0 at byte 21 is damaged"),
        (b"\x03\x00\x00\x00\x92", b"\x30\x00\x00\x00\x92", "ends within block 0"),
        (b"\x00\x00\x00\x00\x02", b"\x00\x00\x00\x00\x03", "has 2 blocks where its end says 3"),
        (b"\x00\x00\x00\x00\x02", b"\x00\x00\x00\x00\x01", "has 2 blocks where its end says 1"),
    ],
)
def test_each_rule_is_checked(old: bytes, new: bytes, message: str) -> None:
    """A snapshot that breaks one rule is refused with that rule in the message."""
    whole = b"".join(write_blocks("numbers/1", [[1, 2], [3]]))
    assert whole.count(old) == 1
    with pytest.raises(ValueError, match=message):
        read(whole.replace(old, new))


def test_bytes_behind_the_end_are_refused() -> None:
    """A snapshot ends where it says."""
    with pytest.raises(ValueError, match="bytes behind its end"):
        read(b"".join(write_blocks("numbers/1", [[1]])) + b"\x00")


@pytest.mark.parametrize("size", [1, 100, 5_000, TARGET_BLOCK_BYTES, TARGET_BLOCK_BYTES * 3])
def test_spans_cover_everything_once_and_stay_small(size: int) -> None:
    """Ranges follow each other without gaps, within the limits of items and bytes, a single large item apart."""
    count = 3 * MAX_BLOCK_ITEMS + 5 if size < 5_000 else 200
    at = 0
    for start, end in spans(count, lambda start, end: (end - start) * size):
        assert start == at < end
        assert end - start <= MAX_BLOCK_ITEMS
        assert end - start == 1 or (end - start) * size <= TARGET_BLOCK_BYTES
        at = end
    assert at == count
    assert list(spans(0, lambda start, end: 0)) == []


def test_frozen_copies_everything() -> None:
    """More items than one slice holds are all there, in order."""
    assert frozen(range(200_001)) == list(range(200_001))
    assert frozen([]) == []
