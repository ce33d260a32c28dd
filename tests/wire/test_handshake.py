"""The first exchange: who is admitted, who is refused and in which words, from both sides."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.errors import BadCertificate, RefusedError, RemovedNode, WipedNode, WrongCluster
from octopii.wire.frames import (
    MAX_HANDSHAKE_FRAME_BYTES,
    DamagedFrame,
    FrameTooLarge,
    FrameType,
    Greeting,
    GreetingRefused,
    MalformedMessage,
    NotOctopii,
    UnexpectedMessage,
    UnsupportedVersion,
    WireError,
    encode_frame,
    encode_greeting,
)
from octopii.wire.handshake import (
    Handshake,
    Hello,
    Judge,
    Refusal,
    RefusalKind,
    Role,
    Standing,
    decode_hello,
    decode_refusal,
    encode_hello,
    encode_refusal,
    error_of_refusal,
    judge,
)

CLUSTER, OTHER = b"c" * 16, b"d" * 16


def storage(node_id: int) -> bytes:
    return bytes([node_id]) * 16


def node(node_id: int, **facts: object) -> Hello:
    hello = Hello(role=Role.NODE, node_id=node_id, storage_id=storage(node_id), cluster_id=CLUSTER)
    return msgspec.structs.replace(hello, **facts)


def standing(**facts: object) -> Standing:
    members = {number: storage(number) for number in (1, 2, 3)}
    ours = Standing(node_id=1, cluster_id=CLUSTER, storage_id=storage(1), storage_of=members, removed={9})
    return msgspec.structs.replace(ours, **facts)


def kind(refusal: Refusal | None) -> RefusalKind | None:
    return None if refusal is None else refusal.kind


def admit(hello: Hello) -> None:
    """Rules without rules."""


# --- rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hello", "facts", "expected"),
    [
        (node(2), {}, None),
        (node(2, target=1), {}, None),
        (node(2, role=Role.SNAPSHOT), {}, None),
        (node(2, cluster_id=b""), {}, None),  # a member that was never appended to
        (node(7), {}, None),  # not yet a member as far as we have applied
        (node(7, cluster_id=b""), {}, None),
        (node(2), {"cluster_id": b"", "storage_of": {}}, None),  # we are the empty one
        (node(2), {"storage_of": {2: b""}}, None),  # named, never met
        (node(2, target=3), {}, RefusalKind.WRONG_NODE),
        (node(1), {}, RefusalKind.SELF_CONNECTION),
        (node(1, storage_id=storage(8)), {}, RefusalKind.SAME_ID),
        (node(2, cluster_id=OTHER), {}, RefusalKind.WRONG_CLUSTER),
        (node(7, cluster_id=OTHER), {}, RefusalKind.WRONG_CLUSTER),
        (node(9), {}, RefusalKind.REMOVED_NODE),
        (node(9, cluster_id=b""), {}, RefusalKind.REMOVED_NODE),
        (node(2, storage_id=storage(5)), {}, RefusalKind.WIPED_NODE),
        (node(2, storage_id=storage(5), cluster_id=b""), {}, RefusalKind.WIPED_NODE),
        (node(2, group=2), {}, RefusalKind.WRONG_GROUP),
        (Hello(role=Role.CLIENT), {}, None),
        (Hello(role=Role.CLIENT, cluster_id=CLUSTER), {}, None),
        (Hello(role=Role.CLIENT, cluster_id=OTHER), {}, RefusalKind.WRONG_CLUSTER),
        (Hello(role=Role.CLIENT, group=2), {}, RefusalKind.WRONG_GROUP),
        (Hello(role=Role.CLIENT, cluster_id=OTHER), {"cluster_id": b""}, None),
    ],
)
def test_rules(hello: Hello, facts: dict[str, object], expected: RefusalKind | None) -> None:
    """Who is admitted by member 1 of a cluster of 1, 2, 3 from which 9 was removed."""
    assert kind(judge(hello, standing(**facts))) is expected


@pytest.mark.parametrize(
    ("role", "name", "admitted"),
    [
        (Role.NODE, "node-2", True),
        (Role.SNAPSHOT, "node-2", True),
        (Role.NODE, "node-3", False),
        (Role.NODE, "node-02", False),
        (Role.NODE, "NODE-2", False),
        (Role.NODE, "client", False),
        (Role.NODE, "client-2", False),
        (Role.SNAPSHOT, "client", False),
        (Role.NODE, None, False),
        (Role.CLIENT, "client", True),
        (Role.CLIENT, "client-billing", True),
        (Role.CLIENT, "node-2", True),
        (Role.CLIENT, "clients", False),
        (Role.CLIENT, "node-", False),
        (Role.CLIENT, "node", False),
        (Role.CLIENT, "", False),
        (Role.CLIENT, None, False),
    ],
)
def test_certificates(role: Role, name: str | None, admitted: bool) -> None:
    """With TLS the certificate's name has to fit the role and the id; without, it is not looked at."""
    hello = Hello(role=Role.CLIENT) if role is Role.CLIENT else node(2, role=role)
    refusal = judge(hello, standing(secure=True), certificate_name=name)
    assert kind(refusal) is (None if admitted else RefusalKind.BAD_CERTIFICATE)
    assert judge(hello, standing(), certificate_name=name) is None


def test_a_bad_certificate_comes_before_everything_else() -> None:
    """Who cannot show who he is learns nothing of the cluster."""
    refusal = judge(node(9, cluster_id=OTHER), standing(secure=True), certificate_name="node-2")
    assert refusal is not None
    assert refusal.kind is RefusalKind.BAD_CERTIFICATE
    assert CLUSTER.hex() not in refusal.text


def test_a_dialler_notices_that_an_address_leads_elsewhere() -> None:
    """Addresses that were mixed up are named with both ids."""
    refusal = judge(node(2), standing(), expected=3)
    assert refusal is not None
    text = "node 2 listens there, not node 3: check the address of peer 3"
    assert (refusal.kind, refusal.text) == (RefusalKind.WRONG_NODE, text)


def test_a_client_judges_nodes_too() -> None:
    """A client has no members to go by, but keeps to its cluster and to node certificates."""
    pinned = Standing(cluster_id=CLUSTER, secure=True)
    assert judge(node(2), pinned, certificate_name="node-2") is None
    assert kind(judge(node(2, cluster_id=OTHER), pinned, certificate_name="node-2")) is RefusalKind.WRONG_CLUSTER
    assert kind(judge(node(2), pinned, certificate_name="client")) is RefusalKind.BAD_CERTIFICATE


@pytest.mark.parametrize(
    ("refusal_kind", "error"),
    [
        (RefusalKind.WRONG_CLUSTER, WrongCluster),
        (RefusalKind.WIPED_NODE, WipedNode),
        (RefusalKind.REMOVED_NODE, RemovedNode),
        (RefusalKind.BAD_CERTIFICATE, BadCertificate),
        (RefusalKind.BUSY, RefusedError),
    ],
)
def test_refusals_become_the_errors_of_the_tree(refusal_kind: RefusalKind, error: type[Exception]) -> None:
    """Each refusal is the exception that its name says, with its text, also after the wire."""
    refusal = decode_refusal(encode_refusal(Refusal(refusal_kind, "because", 3)))
    assert type(error_of_refusal(refusal)) is error
    assert str(error_of_refusal(refusal)) == "because"


# --- the exchange -----------------------------------------------------------------------------------------------


def pair(
    dialer_hello: Hello, acceptor_hello: Hello, *, at_dialer: Judge = admit, at_acceptor: Judge = admit
) -> tuple[Handshake, Handshake]:
    dialer = Handshake(dialer_hello, at_dialer, dialer=True)
    return dialer, Handshake(acceptor_hello, at_acceptor, dialer=False)


def run(dialer: Handshake, acceptor: Handshake, *, step: int = 1 << 20) -> tuple[bytes, bytes]:
    """Carry bytes between both in pieces of `step` until all is quiet; return what was left unread on each side."""
    to_acceptor, to_dialer = dialer.start(), acceptor.start()
    while to_acceptor or to_dialer:
        if to_acceptor and acceptor.peer is None and acceptor.error is None:
            piece, to_acceptor = to_acceptor[:step], to_acceptor[step:]
            to_dialer += acceptor.receive(piece)
        elif to_dialer and dialer.peer is None and dialer.error is None:
            piece, to_dialer = to_dialer[:step], to_dialer[step:]
            to_acceptor += dialer.receive(piece)
        else:
            break
    return to_dialer, to_acceptor


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_both_sides_learn_who_the_other_is(step: int) -> None:
    """In one round trip, in whatever pieces it arrives."""
    dialer, acceptor = pair(node(2, target=1, last_index=7), node(1))
    assert run(dialer, acceptor, step=step) == (b"", b"")
    assert acceptor.peer == node(2, target=1, last_index=7)
    assert dialer.peer == node(1)
    assert dialer.version == acceptor.version == 1


def test_an_acceptors_refusal_reaches_the_dialler_as_its_error() -> None:
    """A wiped node learns from the member that it dialled that it is wiped."""
    dialer, acceptor = pair(node(2, storage_id=storage(5)), node(1), at_acceptor=lambda hello: judge(hello, standing()))
    run(dialer, acceptor)
    assert isinstance(dialer.error, WipedNode)
    assert isinstance(acceptor.error, WipedNode)
    assert (dialer.was_refused, acceptor.was_refused) == (True, False)
    assert dialer.peer is acceptor.peer is None


def test_a_refusal_always_fits_the_handshake() -> None:
    """However long the name that a certificate shows, and in whatever script, the words of refusal arrive."""
    secure = standing(secure=True)
    dialer, acceptor = pair(
        node(2), node(1), at_acceptor=lambda hello: judge(hello, secure, certificate_name="\U0001f419" * 5000)
    )
    run(dialer, acceptor)
    assert isinstance(dialer.error, BadCertificate)


def test_a_diallers_refusal_reaches_the_acceptor_as_its_first_frame() -> None:
    """A wiped node learns it also from a member that dials it."""
    dialer, acceptor = pair(
        node(1), node(2, storage_id=storage(5)), at_dialer=lambda hello: judge(hello, standing(), expected=2)
    )
    _, rest = run(dialer, acceptor)
    assert isinstance(dialer.error, WipedNode)
    assert not dialer.was_refused  # the error is about the other: a member must not take it for its own
    [(frame_type, payload)] = acceptor.decoder.feed(rest)
    assert frame_type == FrameType.REFUSAL
    assert decode_refusal(payload).kind is RefusalKind.WIPED_NODE


def test_frames_right_behind_the_handshake_are_kept() -> None:
    """What an acceptor sends behind its welcome comes out of the decoder, under the limit for admitted peers."""
    dialer, acceptor = pair(node(2), node(1))
    large = bytes(MAX_HANDSHAKE_FRAME_BYTES + 1)
    dialer.receive(acceptor.receive(dialer.start()) + encode_frame(FrameType.RAFT, large))
    assert dialer.peer is not None
    assert [(kind, bytes(payload)) for kind, payload in dialer.decoder.feed(b"")] == [(FrameType.RAFT, large)]


def test_an_acceptor_of_another_version_refuses_in_words() -> None:
    """Both sides learn which versions the other speaks."""
    dialer = Handshake(node(2), admit, dialer=True, versions=(3, 4))
    acceptor = Handshake(node(1), admit, dialer=False, versions=(1, 2))
    run(dialer, acceptor)
    for side, theirs in ((dialer, (1, 2)), (acceptor, (3, 4))):
        assert isinstance(side.error, UnsupportedVersion)
        assert side.error.theirs == theirs


def test_a_busy_node_says_so_before_it_was_asked() -> None:
    """A refusal in the greeting needs no hello."""
    dialer, acceptor = pair(node(2), node(1))
    dialer.receive(acceptor.refuse(RefusalKind.BUSY, "node 1 has all the connections it may have"))
    assert isinstance(dialer.error, GreetingRefused)
    assert "all the connections" in str(dialer.error)
    assert isinstance(acceptor.error, RefusedError)


GREETING = encode_greeting(Greeting())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", NotOctopii),
        (GREETING + encode_frame(FrameType.RAFT, b"\x90"), UnexpectedMessage),
        (GREETING + encode_frame(FrameType.WELCOME, encode_hello(node(2))), UnexpectedMessage),
        (GREETING + encode_frame(200, b""), UnexpectedMessage),
        (GREETING + encode_frame(FrameType.HELLO, b""), MalformedMessage),
        (GREETING + encode_frame(FrameType.HELLO, encode_hello(node(0))), MalformedMessage),
        (GREETING + encode_frame(FrameType.HELLO, encode_hello(node(2, storage_id=b"short"))), MalformedMessage),
        (GREETING + encode_frame(FrameType.HELLO, bytes(MAX_HANDSHAKE_FRAME_BYTES + 1))[:20], FrameTooLarge),
        (GREETING + encode_frame(FrameType.HELLO, b"\x90")[:-1] + b"\x91", DamagedFrame),
    ],
)
def test_an_acceptor_refuses_what_is_no_handshake(data: bytes, error: type[Exception]) -> None:
    """Garbage, other frames, oversized and damaged ones end the connection with an error that says which it was."""
    acceptor = Handshake(node(1), admit, dialer=False)
    acceptor.receive(data)
    assert type(acceptor.error) is error
    assert acceptor.peer is None
    assert acceptor.receive(GREETING) == b"", "nothing more is said"


def test_a_client_cannot_answer_as_a_node() -> None:
    """A dialler takes a welcome from nodes only."""
    dialer = Handshake(Hello(role=Role.CLIENT), admit, dialer=True)
    dialer.receive(GREETING + encode_frame(FrameType.WELCOME, encode_hello(Hello(role=Role.CLIENT))))
    assert isinstance(dialer.error, UnexpectedMessage)


def test_silence_is_not_an_error_and_costs_nothing() -> None:
    """Half a greeting just waits: the time limit is the caller's."""
    acceptor = Handshake(node(1), admit, dialer=False)
    assert acceptor.receive(GREETING[:-1]) == b""
    assert acceptor.error is None
    assert acceptor.peer is None


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_random_bytes_end_in_an_error_or_a_wait(data: bytes, dialer: bool, greeted: bool) -> None:
    """`receive` raises nothing, and nobody is admitted by chance."""
    side = Handshake(node(1), admit, dialer=dialer)
    side.receive((GREETING if greeted else b"") + data)
    assert side.peer is None
    assert side.error is None or isinstance(side.error, WireError)


def test_mutated_hellos_are_admitted_only_if_well_formed() -> None:
    """A hello with changed bytes inside an intact frame decodes within limits or is malformed."""
    rng = random.Random(2)
    hello = encode_hello(node(2, target=1, address="host:5001", last_index=1 << 40))
    for _ in range(5000):
        broken = bytearray(hello)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            found = decode_hello(bytes(broken))
        except MalformedMessage:
            continue
        assert decode_hello(encode_hello(found)) == found
        judge(found, standing())


def test_a_newer_hello_with_more_fields_is_understood() -> None:
    """Fields that a later version adds at the end are passed over."""
    fields = msgspec.msgpack.decode(encode_hello(node(2)))
    assert decode_hello(msgspec.msgpack.encode([*fields, {"new": [1, 2, 3]}])) == node(2)
    assert decode_hello(msgspec.msgpack.encode([int(Role.CLIENT)])) == Hello(role=Role.CLIENT)
