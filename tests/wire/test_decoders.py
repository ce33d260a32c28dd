"""Every function that reads bytes from elsewhere: from other nodes and clients, and from this node's own disk.

Whatever the bytes are, there comes a value or the one kind of error that the function names, at once and in little
memory. A decoder that is added later has to be added here, too: the modules are searched for them.
"""

import importlib
import inspect
import pkgutil
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import octopii.raft
import octopii.replica
import octopii.wire
from octopii.errors import CorruptLogError, OctopiiError
from octopii.raft import (
    ChangeOperation,
    ConfState,
    HardState,
    MalformedChange,
    MembershipChange,
    MembershipStep,
    decode_membership_change,
    encode_membership_change,
)
from octopii.replica import backup, identity, log_store, sessions, snapshots
from octopii.replica.jobs import Manifest
from octopii.replica.roster import Member, Roster
from octopii.walrus.memory_vfs import MemoryFileSystem
from octopii.wire import codec, frames, handshake, peer_frames, requests
from octopii.wire.frames import FrameDecoder, Greeting, MalformedMessage, WireError
from tests.wire.fuzzing import HOSTILE, mutate
from tests.wire.samples import ANSWERS, DECODERS, PEER_MESSAGES, RAFT

ROSTER = Roster(cluster_id=b"c" * 16, members={1: Member("a:1", b"s" * 16)}, removed={9}, founding={2})
CONF = ConfState([1, 2], [3], [1], [4], True)
MANIFEST = Manifest(
    index=9, term=3, conf_state=CONF, roster=ROSTER, time=5, machine_version=1, sessions=1, state_size=3, size=90
)
SESSION = sessions.Session(id=7, ttl_ns=1, last_ns=2, nonce=b"n" * 16, answers={0: ANSWERS})
HELD = identity.Held(4, 3, 10)


def read_head(data: bytes) -> object:
    """A saved snapshot's head, from a file."""
    vfs = MemoryFileSystem()
    vfs.make_folder("/f")
    file = vfs.open("/f/saved", create=True)
    file.write_at(data, 0)
    return backup.read_head(file)


def feed_frames(data: bytes) -> object:
    """Whatever frames there are, up to 64 KiB each."""
    return FrameDecoder(1 << 16).feed(data)


def decode_session_table(data: bytes) -> object:
    """One session."""
    return sessions.decode_sessions(data, count=1)


Case = tuple[Callable[[bytes], object], list[bytes], type[OctopiiError]]

CASES: dict[str, Case] = {
    **{
        f"wire.{name}": (decode, [encode(sample) for sample in samples], WireError)
        for name, (encode, decode, samples) in DECODERS.items()
    },
    "wire.greeting": (frames.decode_greeting, [frames.encode_greeting(Greeting(text="x"))], WireError),
    "wire.frames": (feed_frames, [frames.encode_frame(7, b"payload") * 2], WireError),
    "wire.peer_frame": (
        lambda data: peer_frames.decode_peer_frame(data[0] if data else 0, memoryview(data)[1:], sender=2, to=1),
        [b"\x04" + msgspec.msgpack.encode(RAFT), b"\x05" + requests.encode_peer_message(PEER_MESSAGES[0])],
        WireError,
    ),
    "wire.snapshot_chunk": (
        lambda data: peer_frames.decode_snapshot_chunk(memoryview(data)),
        [bytes(8) + b"data"],
        WireError,
    ),
    "raft.membership_change": (
        decode_membership_change,
        [
            encode_membership_change(
                MembershipChange(steps=[MembershipStep(ChangeOperation.ADD_VOTER, 3)], context=b"context")
            )
        ],
        MalformedChange,
    ),
    "replica.manifest": (snapshots.decode_manifest, [snapshots.encode_manifest(MANIFEST)], MalformedMessage),
    "replica.sessions": (decode_session_table, [sessions.encode_session(SESSION)], MalformedMessage),
    "replica.identity": (
        identity.decode_identity,
        [msgspec.msgpack.encode(identity.Identity(1, b"s" * 16, b"c" * 16, HELD))],
        MalformedMessage,
    ),
    "replica.membership": (
        identity.decode_membership,
        [msgspec.msgpack.encode(identity.Membership(9, CONF, ROSTER, 8))],
        MalformedMessage,
    ),
    "replica.entry_record": (
        lambda data: log_store.decode_entry_record(1, data),
        [log_store._ENTRY.pack(3, 0) + b"data", log_store._ENTRY.pack(3, 1)],
        MalformedMessage,
    ),
    "replica.hard_state": (log_store.decode_hard_state, [log_store._HARD_STATE.pack(4, 2)], MalformedMessage),
    "replica.saved_snapshot": (read_head, [backup.encode_head(snapshots.encode_manifest(MANIFEST))], CorruptLogError),
}

FUNCTIONS: dict[Callable[..., Any], str] = {
    codec.decode_entry: "wire.entry",
    codec.decode_members: "wire.members",
    requests.decode_request: "wire.request",
    requests.decode_reply: "wire.reply",
    requests.decode_peer_message: "wire.peer",
    peer_frames.decode_raft_messages: "wire.raft",
    peer_frames.decode_peer_frame: "wire.peer_frame",
    peer_frames.decode_snapshot_chunk: "wire.snapshot_chunk",
    handshake.decode_hello: "wire.hello",
    handshake.decode_refusal: "wire.refusal",
    frames.decode_greeting: "wire.greeting",
    FrameDecoder: "wire.frames",
    decode_membership_change: "raft.membership_change",
    snapshots.decode_manifest: "replica.manifest",
    sessions.decode_sessions: "replica.sessions",
    identity.decode_identity: "replica.identity",
    identity.decode_membership: "replica.membership",
    log_store.decode_entry_record: "replica.entry_record",
    log_store.decode_hard_state: "replica.hard_state",
    backup.read_head: "replica.saved_snapshot",
}
"""Which case stands for which function of the package."""

each_case = pytest.mark.parametrize("name", list(CASES))


def is_decoder(name: str, value: object) -> bool:
    """Whether something in a module reads bytes from elsewhere, going by its name."""
    if inspect.isclass(value):
        return name.endswith("Decoder") and value.__module__.startswith("octopii")
    return inspect.isfunction(value) and (name.startswith("decode_") or name == "read_head")


def test_every_decoder_has_a_case() -> None:
    """All modules of the wire, the Raft core and the replica are searched; none is left out."""
    found = set()
    for package in (octopii.wire, octopii.raft, octopii.replica):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            found |= {value for name, value in vars(module).items() if is_decoder(name, value)}
    assert found == set(FUNCTIONS)
    assert set(FUNCTIONS.values()) == set(CASES)


@each_case
def test_what_was_encoded_is_understood(name: str) -> None:
    """The samples are sound, or breaking them would prove nothing."""
    decode, samples, _ = CASES[name]
    for sample in samples:
        decode(sample)


@each_case
def test_broken_bytes_end_in_the_error_that_is_named(name: str) -> None:
    """Flipped, cut, repeated, spliced: a value or that error, never another exception."""
    decode, samples, error = CASES[name]
    rng = random.Random(name)
    refused = 0
    for _ in range(4000):
        broken = mutate(rng, rng.choice(samples), samples)
        try:
            decode(broken)
        except error:
            refused += 1
    assert refused > 100


@each_case
@given(data=st.binary(max_size=300))
def test_random_bytes_end_in_the_error_that_is_named(name: str, data: bytes) -> None:
    """The same for bytes that were never a message."""
    decode, _, error = CASES[name]
    try:
        decode(data)
    except error:
        return


@each_case
def test_hostile_bytes_take_little_memory(name: str) -> None:
    """Lengths that are announced and do not come, and deep nesting, cost no more than a multiple of what is there."""
    decode, samples, error = CASES[name]
    for data in [*HOSTILE, *(sample[: len(sample) // 2] + hostile for sample in samples for hostile in HOSTILE)]:
        tracemalloc.start()
        try:
            decode(data)
        except error:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 100_000 + 50 * len(data)


def test_a_hard_state_survives() -> None:
    """What the store writes it reads."""
    assert log_store.decode_hard_state(log_store._HARD_STATE.pack(4, 2)) == HardState(term=4, vote=2)
