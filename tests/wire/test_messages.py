"""Every message survives the wire, and no bytes whatever make a decoder do anything but refuse in its own words."""

import random
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.errors import (
    ApplyFailed,
    CallTimeout,
    ConfigError,
    CorruptLogError,
    NoLeader,
    OctopiiError,
    Overloaded,
    TooLarge,
    VersionNotActive,
)
from octopii.raft.messages import (
    ConfState,
    Entry,
    EntryKind,
    MembershipChange,
    Snapshot,
    SnapshotMetadata,
    encode_membership_change,
)
from octopii.wire import codec, peer_frames, requests
from octopii.wire.codec import (
    CallGroup,
)
from octopii.wire.frames import FrameDecoder, FrameType, MalformedMessage, UnexpectedMessage, WireError
from octopii.wire.requests import FailureKind, error_of, failure_of
from tests.wire.fuzzing import HOSTILE, mutate, rebuild
from tests.wire.samples import (
    DECODERS,
    ENTRIES,
    ITEMS,
    LATER_ITEMS,
    PEER_MESSAGES,
    RAFT,
    REPLIES,
    REQUESTS,
)

each_decoder = pytest.mark.parametrize("name", list(DECODERS))


@each_decoder
def test_messages_survive(name: str) -> None:
    """What was encoded comes back equal, also out of a memoryview."""
    encode, decode, samples = DECODERS[name]
    for sample in samples:
        assert decode(encode(sample)) == sample
        assert decode(memoryview(encode(sample))) == sample  # type: ignore[arg-type]


def test_every_struct_of_the_protocol_is_among_the_samples() -> None:
    """A message that is added later has to be added to the samples too."""
    for union, samples in (
        (requests.Request, REQUESTS),
        (requests.Reply, REPLIES),
        (requests.PeerMessage, PEER_MESSAGES),
        (codec.EntryItem, ITEMS + LATER_ITEMS),
    ):
        assert {type(sample) for sample in samples} == set(union.__args__)


@each_decoder
def test_every_prefix_is_malformed(name: str) -> None:
    """A message that ends early is never taken for a shorter one."""
    encode, decode, samples = DECODERS[name]
    for sample in samples:
        data = encode(sample)
        for end in range(1, len(data)):
            with pytest.raises(MalformedMessage):
                decode(data[:end])


@each_decoder
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_bytes_are_malformed(name: str, number: int) -> None:
    """Announced lengths, deep nesting and broken text end in `MalformedMessage`, not in memory or recursion errors."""
    data = HOSTILE[number]
    if name == "members" and not data:
        return  # nobody is named
    with pytest.raises(MalformedMessage):
        DECODERS[name][1](data)


@each_decoder
def test_broken_bytes_are_refused_or_mean_something_within_limits(name: str) -> None:
    """Whatever was done to the bytes, a decoder refuses them or returns a value that survives the wire itself."""
    encode, decode, samples = DECODERS[name]
    encoded = [encode(sample) for sample in samples]
    rng = random.Random(name)
    refused = 0
    for turn in range(6000):
        data = rng.choice(encoded)
        broken = rebuild(rng, data) if turn % 2 else mutate(rng, data, encoded)
        try:
            value = decode(broken)
        except WireError:
            refused += 1
            continue
        assert decode(encode(value)) == value
    assert refused > 1000


@each_decoder
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_or_mean_something_within_limits(name: str, data: bytes) -> None:
    """The same for bytes that were never a message."""
    encode, decode, _ = DECODERS[name]
    try:
        value = decode(data)
    except WireError:
        return
    assert decode(encode(value)) == value


def test_unknown_fields_at_the_end_are_passed_over() -> None:
    """A newer version may add fields: an older reader goes by those that it knows, however deep the new ones are."""
    fields = msgspec.msgpack.decode(requests.encode_reply(requests.Done(4, 99)))
    assert requests.decode_reply(msgspec.msgpack.encode([*fields, ["new"], {"more": 1}])) == requests.Done(4, 99)
    deep = msgspec.msgpack.encode([*fields])[:1].replace(b"\x93", b"\x94") + msgspec.msgpack.encode([*fields])[1:]
    with pytest.raises(MalformedMessage):
        requests.decode_reply(deep + b"\x91" * 100_000 + b"\x90")


def test_missing_fields_at_the_end_have_their_defaults() -> None:
    """An older sender's shorter message is understood."""
    short = msgspec.msgpack.encode([6, 5, int(FailureKind.DISK_FULL)])
    assert requests.decode_reply(short) == requests.Failure(request_id=5, kind=FailureKind.DISK_FULL)


def test_an_unknown_version_of_an_entry_is_refused() -> None:
    """An entry of a format that this program does not know is never guessed at."""
    with pytest.raises(MalformedMessage):
        codec.decode_entry(msgspec.msgpack.encode([2, 0, []]))


def test_limits_hold() -> None:
    """One more than allowed is malformed, as many as allowed are not."""
    most = codec.MAX_COMMANDS_PER_GROUP
    for count, fits in ((most, True), (most + 1, False)):
        group = CallGroup(session=1, first=0, acked=0, commands=[b""] * count)
        data = requests.encode_request(requests.Propose(1, group))
        if fits:
            assert requests.decode_request(data) == requests.Propose(1, group)
        else:
            with pytest.raises(MalformedMessage):
                requests.decode_request(data)


def test_negative_and_oversized_numbers_are_malformed() -> None:
    """No number below 0 or beyond a signed 64-bit integer gets past a decoder."""
    for number in (-1, 2**63):
        with pytest.raises(MalformedMessage):
            requests.decode_request(msgspec.msgpack.encode([5, number]))


def test_memory_stays_within_a_small_multiple_of_the_input() -> None:
    """The most wasteful message that fits a frame costs a bounded number of bytes for each of its own."""
    data = b"\x93\x01\x01\x94\x00\x00\x00\x00"[:3] + b"\x95\x00\x00\x00\x00\xdd" + (65_536).to_bytes(4, "big")
    data += b"\xc4\x01a" * 65_536
    tracemalloc.start()
    try:
        requests.decode_request(data)
    except MalformedMessage:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * len(data)


def test_texts_are_cut_to_what_travels() -> None:
    """An error of any length and with any characters becomes a message that its reader accepts."""
    failure = failure_of(OctopiiError("x\ud800" * 10_000), 1)
    assert requests.decode_reply(requests.encode_reply(failure)) == failure
    assert len(failure.text) == codec.MAX_TEXT_CHARACTERS


# --- failures and exceptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        NoLeader("none", leader=3),
        NoLeader("none"),
        Overloaded("full", limit="window"),
        TooLarge("large", size=10, limit=5),
        ApplyFailed("boom", exception="KeyError"),
        ConfigError("bad", field="node_id"),
        *(kind(f"a {kind.__name__}") for kind in requests._KIND_OF_ERROR if kind.__init__ is Exception.__init__),
    ],
)
def test_errors_survive_the_wire_with_their_fields(error: OctopiiError) -> None:
    """The caller gets the same type, text and facts that the node had."""
    back = error_of(requests.decode_reply(requests.encode_reply(failure_of(error, 1))))  # type: ignore[arg-type]
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_an_error_without_a_kind_is_reported_as_internal() -> None:
    """Nobody is told that a call was not applied when that is not known."""
    failure = failure_of(CorruptLogError("bad", path="x"), 1)
    assert failure.kind is FailureKind.INTERNAL
    assert type(error_of(failure)) is OctopiiError


def test_a_timeout_is_never_reported_as_not_applied() -> None:
    """Kinds that promise that nothing was applied and those that do not are kept apart."""
    assert failure_of(CallTimeout("late"), 1).kind not in requests.NOT_APPLIED_KINDS
    assert {kind for kind in FailureKind if kind in requests.NOT_APPLIED_KINDS} == {
        failure_of(error, 1).kind
        for error in (
            NoLeader(),
            Overloaded("", limit=""),
            TooLarge("", size=0, limit=0),
            *(requests._ERROR_OF_KIND[kind]("") for kind in requests.NOT_APPLIED_KINDS if kind in (4, 5, 15)),
            VersionNotActive("", needed=2, active=1),
        )
    }


# --- between nodes ----------------------------------------------------------------------------------------------


def through_frames(outputs: list[peer_frames.PeerOutput]) -> list[peer_frames.PeerOutput]:
    stream = b"".join(map(bytes, peer_frames.encode_peer_frames(outputs)))
    return [
        output
        for frame_type, payload in FrameDecoder().feed(stream)
        for output in peer_frames.decode_peer_frame(frame_type, payload, sender=2, to=1)
    ]


def test_what_nodes_say_keeps_its_order() -> None:
    """Raft messages, peer messages and chunks come out as they went in, one after the other."""
    chunk = requests.SnapshotChunk(1 << 33, b"payload" * 100)
    outputs: list[peer_frames.PeerOutput] = [*RAFT, PEER_MESSAGES[0], RAFT[0], chunk, *RAFT, *PEER_MESSAGES]
    assert through_frames(outputs) == outputs


def test_small_messages_share_a_frame_and_entries_end_one() -> None:
    """Thousands of heartbeats are few frames; each run of entries has a frame to itself and what came before it."""
    assert len(peer_frames.encode_peer_frames([RAFT[0]] * 3000)) == 3
    assert len(peer_frames.encode_peer_frames([RAFT[0], RAFT[1], RAFT[1], RAFT[0]])) == 3
    assert through_frames([RAFT[0]] * 3000) == [RAFT[0]] * 3000


def test_a_chunk_is_a_view_of_what_arrived() -> None:
    """The bytes of a chunk are copied neither into a frame nor out of it."""
    data = bytes(1 << 20)
    buffers = peer_frames.encode_peer_frames([requests.SnapshotChunk(5, data)])
    assert buffers[-1] is data
    [(frame_type, payload)] = FrameDecoder().feed(b"".join(map(bytes, buffers)))
    [chunk] = peer_frames.decode_peer_frame(frame_type, payload, sender=2, to=1)
    assert isinstance(chunk, requests.SnapshotChunk)
    assert isinstance(chunk.data, memoryview)
    assert chunk.data.obj is payload.obj


@pytest.mark.parametrize(
    ("frame_type", "payload", "error"),
    [
        (FrameType.REQUEST, b"", UnexpectedMessage),
        (99, b"", UnexpectedMessage),
        (FrameType.SNAPSHOT_CHUNK, b"1234567", MalformedMessage),
        (FrameType.SNAPSHOT_CHUNK, b"\xff" * 9, MalformedMessage),
        (FrameType.PEER, b"", MalformedMessage),
        (FrameType.RAFT, msgspec.msgpack.encode([msgspec.structs.replace(RAFT[0], sender=3)]), UnexpectedMessage),
        (FrameType.RAFT, msgspec.msgpack.encode([msgspec.structs.replace(RAFT[0], to=3)]), UnexpectedMessage),
        (FrameType.RAFT, msgspec.msgpack.encode([msgspec.structs.replace(RAFT[0], term=-1)]), MalformedMessage),
        (FrameType.RAFT, msgspec.msgpack.encode([msgspec.structs.replace(RAFT[0], commit=2**63)]), MalformedMessage),
        (FrameType.RAFT, msgspec.msgpack.encode([msgspec.structs.replace(RAFT[1], index=9)]), MalformedMessage),
        (FrameType.RAFT, msgspec.msgpack.encode([msgspec.structs.replace(RAFT[1], log_term=4)]), MalformedMessage),
        (FrameType.RAFT, msgspec.msgpack.encode([msgspec.structs.replace(RAFT[1], term=3)]), MalformedMessage),
        (
            FrameType.RAFT,
            msgspec.msgpack.encode([msgspec.structs.replace(RAFT[1], entries=[*ENTRIES, ENTRIES[1]])]),
            MalformedMessage,
        ),
        *(
            (
                FrameType.RAFT,
                msgspec.msgpack.encode(
                    [msgspec.structs.replace(RAFT[1], entries=[Entry(3, 11, EntryKind.MEMBERSHIP, data)])]
                ),
                MalformedMessage,
            )
            for data in (b"\x00", b"\x93", encode_membership_change(MembershipChange(context=b"nobody")))
        ),
        (
            FrameType.RAFT,
            msgspec.msgpack.encode(
                [msgspec.structs.replace(RAFT[2], snapshot=Snapshot(SnapshotMetadata(9, 3, ConfState([0]))))]
            ),
            MalformedMessage,
        ),
    ],
)
def test_what_a_node_may_not_say_is_refused(frame_type: int, payload: bytes, error: type[WireError]) -> None:
    """Frames of clients, messages in another's name, numbers out of range, and entries with gaps never get through."""
    with pytest.raises(error):
        peer_frames.decode_peer_frame(frame_type, memoryview(payload), sender=2, to=1)


@given(st.integers(0, 255), st.binary(max_size=200))
def test_random_frames_of_nodes_raise_nothing_but_wire_errors(frame_type: int, payload: bytes) -> None:
    """Any type and any payload give outputs or a `WireError`."""
    try:
        peer_frames.decode_peer_frame(frame_type, memoryview(payload), sender=2, to=1)
    except WireError:
        return
