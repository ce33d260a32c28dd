"""The bytes of fragments, slots and headers, and how units are cut into fragments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from octopii.walrus.plan import Plan
from octopii.walrus.record import (
    COMMIT_BODY,
    CUT,
    FIRST,
    HEAD,
    LAST,
    MANY,
    MIDDLE,
    ONE,
    USED,
    BadSlot,
    Slot,
    block_seed,
    check_table,
    decode_slot,
    encode_segment_header,
    encode_slot,
    fragment_at,
    fragments_after,
    free_slot,
    header_bytes,
    is_segment_header,
    no_block,
    owners,
    slot_bytes,
    slot_of,
    table_bytes,
)

seed = block_seed(7, 1, 2, 3)
numbers = st.integers(0, 2**64 - 1)
small_numbers = st.integers(0, 2**32 - 1)


def _fragment(payload: bytes, *, kind: int = ONE, seq: int = 1, of: int = seed) -> bytes:
    head = HEAD.pack(of >> 32, kind << 24 | len(payload), seq, 5, 0)
    data = xxh3_64_digest(head + payload, of) + head + payload
    return data.ljust((len(data) + 7) & -8, b"\0")


def test_fragment_is_found_with_its_fields() -> None:
    """A fragment is read back as it was written, at any multiple of 8."""
    data = bytes(16) + _fragment(b"payload", seq=9) + bytes(8)
    fragment = fragment_at(data, 16, seed)
    assert fragment is not None
    assert (fragment.kind, fragment.seq, fragment.offset, fragment.synced) == (ONE, 9, 5, 0)
    assert data[fragment.at + header_bytes : fragment.end] == b"payload"


def test_every_flipped_bit_of_a_fragment_is_noticed() -> None:
    """No single bit of header or payload can change without the fragment being refused."""
    data = _fragment(b"some payload")
    for position in range(header_bytes + len(b"some payload")):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            assert fragment_at(bytes(changed), 0, seed) is None


@pytest.mark.parametrize("other", [(8, 1, 2, 3), (7, 2, 2, 3), (7, 1, 3, 3), (7, 1, 2, 4)])
def test_fragment_of_another_topic_place_or_life_is_refused(other: tuple[int, int, int, int]) -> None:
    """The seed binds a fragment to its topic, segment, block and life: stale and misplaced bytes never pass."""
    assert fragment_at(_fragment(b"x"), 0, block_seed(*other)) is None


def test_truncated_fragment_is_refused() -> None:
    """A buffer that ends inside a fragment holds none."""
    data = _fragment(b"12345678")
    assert fragment_at(data, 0, seed) is not None
    for size in range(len(data)):
        assert fragment_at(data[:size], 0, seed) is None


def test_fragments_behind_a_hole_are_found() -> None:
    """Valid fragments are found wherever they stand behind a damaged place, and only those of this life."""
    stale = _fragment(b"stale", of=block_seed(7, 1, 2, 2))
    data = b"\xff" * 64 + _fragment(b"a", seq=4) + stale + b"\xee" * 24 + _fragment(b"b", seq=6)
    assert [fragment.seq for fragment in fragments_after(data, 0, seed)] == [4, 6]


@given(st.builds(Slot, small_numbers, small_numbers, numbers, small_numbers, small_numbers, numbers, numbers, numbers,
                 numbers, small_numbers, small_numbers, numbers, numbers))  # fmt: skip
def test_slots_round_trip(slot: Slot) -> None:
    """Any slot comes back as it was, and only at its own place."""
    data = encode_slot(slot, 3, 4)
    assert len(data) == slot_bytes
    assert decode_slot(data, 3, 4) == slot
    with pytest.raises(BadSlot):
        decode_slot(data, 3, 5)
    with pytest.raises(BadSlot):
        decode_slot(data, 4, 4)


def test_every_flipped_byte_of_a_slot_is_noticed() -> None:
    """No byte of a slot can change, its padding included; zeros are no slot."""
    data = encode_slot(free_slot._replace(flags=USED, previous=no_block), 1, 0)
    for position in range(slot_bytes):
        changed = bytearray(data)
        changed[position] ^= 0x10
        with pytest.raises(BadSlot):
            decode_slot(bytes(changed), 1, 0)
    with pytest.raises(BadSlot):
        decode_slot(bytes(slot_bytes), 1, 0)


def test_a_table_is_checked_slot_by_slot() -> None:
    """A damaged slot is found among others, by its block; sound slots tell owner, life and ordinal, block 0 first."""
    slots = [encode_slot(free_slot._replace(topic=block, life=9, ordinal=block + 2), 3, block) for block in range(4)]
    table = encode_segment_header(3, 1024, 4) + b"".join(slots)
    check_table(table, 3)
    assert list(owners(table)) == [(block, 0, 9, block + 2) for block in range(4)]
    assert slot_of(table, 2) == decode_slot(slots[2], 3, 2)
    for block in range(4):
        for position in range(slot_bytes):
            damaged = bytearray(table)
            damaged[(block + 1) * slot_bytes + position] ^= 4
            with pytest.raises(BadSlot) as caught:
                check_table(bytes(damaged), 3)
            assert caught.value.block == block
    with pytest.raises(BadSlot):
        check_table(table, 4)


def test_segment_header_binds_number_and_geometry() -> None:
    """A segment's header is that of one number, block size and count."""
    data = encode_segment_header(2, 1024, 4)
    assert is_segment_header(data, 2, 1024, 4)
    assert not is_segment_header(data, 3, 1024, 4)
    assert not is_segment_header(data, 2, 2048, 4)
    assert not is_segment_header(data, 2, 1024, 5)


def test_tables_fill_whole_pages() -> None:
    """Blocks begin at a page, or at a block's size where blocks are smaller."""
    assert table_bytes(1023, 65536) == 131072
    assert table_bytes(1024, 65536) == 131072 + 4096
    assert table_bytes(4, 1024) == 1024


# --- plans --------------------------------------------------------------------------------------------------------


def _check(sizes: list[int], room: int, block_bytes: int) -> Plan:
    """Walk a plan as the writer does: everything is placed once, in order, within blocks."""
    plan = Plan(room, block_bytes).entries(sizes)
    pieces = plan.pieces[:-1] if plan.turns_for_commit else plan.pieces
    left, turns, entry, done = room, 0, 0, 0
    for piece in pieces:
        if piece.new_block:
            left, turns = block_bytes, turns + 1
        assert piece.low == entry
        if piece.kind == MANY:
            size = 4 + sum(4 + sizes[each] for each in range(piece.low, piece.high))
            entry = piece.high
        elif piece.kind == ONE:
            size, entry = sizes[piece.low], piece.low + 1
        else:
            assert piece.start == done
            assert piece.kind == (FIRST if done == 0 else LAST if piece.stop == sizes[entry] else MIDDLE)
            size, done = piece.stop - piece.start, piece.stop
            assert size > 0
            if piece.kind == LAST:
                entry, done = entry + 1, 0
        left -= (header_bytes + size + 7) & -8
        assert left >= 0
    assert entry == len(sizes)
    if len(pieces) > 1:
        turns += plan.turns_for_commit
        assert plan.turns_for_commit == (left < header_bytes + COMMIT_BODY.size)
    assert turns == plan.new_blocks
    return plan


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.integers(0, 128), st.sampled_from([512, 1024, 4096]))
def test_plans_place_everything_once(sizes: list[int], room: int, block_bytes: int) -> None:
    """Whatever the sizes and the room left, entries are placed completely, in order, and within their blocks."""
    _check(sizes, min(room * 8, block_bytes), block_bytes)


def test_small_batch_is_one_fragment() -> None:
    """A batch that fits needs no commit: one fragment is atomic by itself."""
    assert [piece.kind for piece in _check([100] * 5, 1024, 1024).pieces] == [MANY]
    assert [piece.kind for piece in _check([100], 1024, 1024).pieces] == [ONE]


def test_cut_needs_a_header_only() -> None:
    """No entries are a cut; without room for it, in a new block."""
    assert [(piece.kind, piece.new_block) for piece in Plan(40, 1024).entries([]).pieces] == [(CUT, False)]
    assert [(piece.kind, piece.new_block) for piece in Plan(32, 1024).entries([]).pieces] == [(CUT, True)]
