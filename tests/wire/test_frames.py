"""Frames and greetings: every split, every flipped bit, every limit."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.wire.frames import (
    HEADER_BYTES,
    MAGIC,
    MAX_GREETING_TEXT_BYTES,
    DamagedFrame,
    FrameDecoder,
    FrameTooLarge,
    Greeting,
    GreetingRefused,
    GreetingStatus,
    MalformedMessage,
    NotOctopii,
    UnsupportedVersion,
    WireError,
    common_version,
    decode_greeting,
    encode_frame,
    encode_frame_parts,
    encode_greeting,
)

frames = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=8)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """Cut a stream at the given places."""
    bounds = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(bounds)]


def feed_all(decoder: FrameDecoder, pieces: list[bytes]) -> list[tuple[int, bytes]]:
    """Feed pieces and copy what comes out."""
    return [(kind, bytes(payload)) for piece in pieces for kind, payload in decoder.feed(piece)]


@given(frames, st.lists(st.integers(0, 3000), max_size=12))
def test_frames_survive_any_split(sent: list[tuple[int, bytes]], places: list[int]) -> None:
    """Whatever pieces the stream arrives in, the same frames come out in the same order, and nothing is left over."""
    decoder = FrameDecoder()
    stream = b"".join(encode_frame(kind, payload) for kind, payload in sent)
    assert feed_all(decoder, cut(stream, places)) == sent
    assert decoder.buffered_bytes == 0


def test_frames_survive_byte_by_byte() -> None:
    """A stream that arrives byte by byte gives each frame with its last byte."""
    decoder = FrameDecoder()
    sent = [(1, b""), (7, b"abc"), (255, bytes(500))]
    stream = b"".join(encode_frame(kind, payload) for kind, payload in sent)
    assert feed_all(decoder, [stream[at : at + 1] for at in range(len(stream))]) == sent


@given(st.integers(0, 255), st.lists(st.binary(max_size=100), max_size=5))
def test_a_frame_from_parts_is_the_same_frame(kind: int, parts: list[bytes]) -> None:
    """`encode_frame_parts` puts the same bytes on the wire as `encode_frame` of the joined parts."""
    assert b"".join(encode_frame_parts(kind, *parts)) == encode_frame(kind, b"".join(parts))


def test_parts_are_not_copied() -> None:
    """The buffers given to `encode_frame_parts` come out as they are."""
    data = memoryview(bytes(1000))
    assert encode_frame_parts(6, b"head", data)[2] is data


@pytest.mark.parametrize("payload", [b"", b"a", bytes(range(256)) * 2])
def test_every_flipped_bit_is_noticed(payload: bytes) -> None:
    """One flipped bit anywhere in a frame never yields a frame: it is damage, too large, or not yet whole."""
    frame = encode_frame(7, payload)
    for bit in range(8 * len(frame)):
        broken = bytearray(frame)
        broken[bit // 8] ^= 1 << bit % 8
        decoder = FrameDecoder(1 << 16)
        try:
            assert decoder.feed(bytes(broken)) == []
        except (DamagedFrame, FrameTooLarge):
            continue
        assert bit < 32, "only a longer length may leave the frame unfinished"


def test_a_frame_of_exactly_the_limit_passes_and_one_byte_more_is_refused_by_its_header() -> None:
    """The limit is on the payload and holds before a single byte of it has arrived."""
    assert len(FrameDecoder(100).feed(encode_frame(1, bytes(100)))) == 1
    decoder = FrameDecoder(100)
    with pytest.raises(FrameTooLarge) as caught:
        decoder.feed(encode_frame(1, bytes(101))[:HEADER_BYTES])
    assert (caught.value.size, caught.value.limit) == (101, 100)
    assert decoder.buffered_bytes == 0


def test_a_broken_decoder_stays_broken() -> None:
    """After damage nobody knows where frames begin: every later call fails as the first did."""
    decoder = FrameDecoder()
    broken = bytearray(encode_frame(1, b"payload"))
    broken[-1] ^= 1
    with pytest.raises(DamagedFrame):
        decoder.feed(bytes(broken))
    with pytest.raises(DamagedFrame):
        decoder.feed(encode_frame(1, b"payload"))


def test_memory_follows_what_arrived_not_what_was_announced() -> None:
    """A header that announces much makes the decoder hold only what came."""
    decoder = FrameDecoder(1 << 30)
    decoder.feed(encode_frame(1, bytes(1 << 20))[: HEADER_BYTES + 10])
    assert decoder.buffered_bytes == HEADER_BYTES + 10


def test_most_leaves_later_frames_for_a_later_limit() -> None:
    """With `most=1` the frame behind the first is neither cut nor held against the limit of the moment."""
    decoder = FrameDecoder(10)
    assert len(decoder.feed(encode_frame(1, b"small") + encode_frame(2, bytes(100)), most=1)) == 1
    decoder.max_frame_bytes = 100
    assert [(kind, len(payload)) for kind, payload in decoder.feed(b"")] == [(2, 100)]


def test_payloads_stay_valid_after_later_feeds() -> None:
    """A payload that is kept does not change when the decoder goes on."""
    decoder = FrameDecoder()
    stream = encode_frame(1, b"first" * 100)
    decoder.feed(stream[:20])
    kept = decoder.feed(stream[20:] + encode_frame(2, b"second")[:8])[0][1]
    decoder.feed(encode_frame(2, b"second")[8:])
    assert bytes(kept) == b"first" * 100
    assert kept.readonly


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=4))
def test_random_bytes_raise_nothing_but_wire_errors(data: bytes, places: list[int]) -> None:
    """Garbage gives a `WireError` or waits for more; it never holds more than it brought."""
    decoder = FrameDecoder(200)
    try:
        feed_all(decoder, cut(data, places))
    except WireError:
        return
    assert decoder.buffered_bytes <= len(data)


def test_mutated_streams_raise_nothing_but_wire_errors_and_only_whole_frames_come_out() -> None:
    """Of a stream with bytes changed, cut or put in, only frames that were sent come out before the error."""
    rng = random.Random(1)
    sent = [(rng.randrange(9), rng.randbytes(rng.randrange(60))) for _ in range(6)]
    stream = b"".join(encode_frame(kind, payload) for kind, payload in sent)
    for _ in range(3000):
        broken = bytearray(stream)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(broken))
            kind = rng.randrange(3)
            if kind == 0:
                broken[at] = rng.randrange(256)
            elif kind == 1:
                del broken[at : at + rng.randrange(1, 20)]
            else:
                broken[at:at] = rng.randbytes(rng.randrange(1, 20))
        decoder = FrameDecoder(1000)
        out: list[tuple[int, bytes]] = []
        try:
            for piece in cut(bytes(broken), [rng.randrange(len(broken) + 1) for _ in range(3)]):
                out += feed_all(decoder, [piece])
        except WireError:
            pass
        assert all(frame in sent for frame in out)


# --- greetings --------------------------------------------------------------------------------------------------


@given(st.integers(0, 9), st.integers(0, 9), st.sampled_from(GreetingStatus), st.text(max_size=80), st.binary())
def test_greetings_survive(oldest: int, more: int, status: GreetingStatus, text: str, rest: bytes) -> None:
    """A greeting comes back as it was, with the number of its bytes, whatever follows it; any prefix waits for more."""
    text = text.encode("utf-8", "replace").decode()
    greeting = Greeting(oldest=oldest, newest=oldest + more, status=status, text=text)
    data = encode_greeting(greeting)
    assert decode_greeting(data + rest) == (greeting, len(data))
    assert all(decode_greeting(data[:end]) is None for end in range(len(data)))


def test_a_long_text_is_cut() -> None:
    """A greeting's text has at most its limit in bytes, whatever characters it is made of."""
    found = decode_greeting(encode_greeting(Greeting(text="ü" * 1000)))
    assert found is not None
    assert found[1] == 16 + MAX_GREETING_TEXT_BYTES


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"SSH-2.0-x", b"\x00", MAGIC[:4] + b"x"]
)
def test_another_protocol_is_refused_at_its_first_wrong_byte(start: bytes) -> None:
    """Nobody waits for sixteen bytes of something else."""
    with pytest.raises(NotOctopii):
        decode_greeting(start)


@pytest.mark.parametrize(
    "data", [MAGIC + bytes.fromhex("0200 0100 0000 0000"), MAGIC + bytes.fromhex("0100 0100 0000 0102")]
)
def test_an_impossible_greeting_is_malformed(data: bytes) -> None:
    """A range that ends before it begins and a text over the limit are refused."""
    with pytest.raises(MalformedMessage):
        decode_greeting(data)


@given(st.binary(max_size=40))
def test_random_greetings_raise_nothing_but_wire_errors(data: bytes) -> None:
    """Any bytes after the magic give a greeting, a wait for more, or a `WireError`."""
    for start in (data, MAGIC + data):
        try:
            decode_greeting(start)
        except WireError:
            continue


@pytest.mark.parametrize(
    ("ours", "theirs", "version"), [((1, 1), (1, 1), 1), ((1, 3), (2, 5), 3), ((2, 5), (1, 3), 3), ((1, 9), (4, 4), 4)]
)
def test_the_highest_common_version_is_spoken(ours: tuple[int, int], theirs: tuple[int, int], version: int) -> None:
    """Both sides come to the same version by themselves."""
    assert common_version(Greeting(oldest=theirs[0], newest=theirs[1]), oldest=ours[0], newest=ours[1]) == version


@pytest.mark.parametrize(("ours", "theirs"), [((1, 1), (2, 3)), ((4, 6), (1, 3))])
def test_versions_without_overlap_are_refused_in_words(ours: tuple[int, int], theirs: tuple[int, int]) -> None:
    """The error says what each side speaks."""
    with pytest.raises(UnsupportedVersion) as caught:
        common_version(Greeting(oldest=theirs[0], newest=theirs[1]), oldest=ours[0], newest=ours[1])
    assert (caught.value.theirs, caught.value.ours) == (theirs, ours)


def test_a_refusal_in_the_greeting_carries_its_text() -> None:
    """A node that refuses at once says why."""
    with pytest.raises(GreetingRefused, match="too many connections"):
        common_version(Greeting(status=GreetingStatus.REFUSED, text="too many connections"))
