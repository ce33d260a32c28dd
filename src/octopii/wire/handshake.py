"""Who is there, and may they come in: the first exchange on every connection, as rules and as a machine without I/O.

    dialer                                    acceptor
    greeting, HELLO frame            ->
                                     <-       greeting (with status 1 or 2: refused, closed)
                                     <-       WELCOME frame, or REFUSAL frame and closed
    anything, or REFUSAL and closed  ->

HELLO and WELCOME hold the same struct, `Hello`, and both sides put the other's through the same rules (`judge`),
because either may be the one that knows better: a member refuses a wiped node whichever of the two dialled. The rules,
in order:

    certificate    with TLS, a node's certificate is named "node-<id>" after the id that it claims; a client's is named
                   "client" or "client-<anything>" (a node may act as a client, a client never as a node)
    group          there is one Raft group today
    itself         a node that reaches its own address, or another node that claims the same id
    wrong node     the address led to another node than the one that was meant
    cluster        both belong to a cluster, and not to the same one
    removed        the id was removed from the cluster
    wiped          the id is a member's, but its storage is not the one that this member came with

An empty node (no cluster yet) passes the cluster rule on either side: that is how the initial leader learns that its
peers are empty, and how a member reaches a node that is about to join.
"""

import enum
from collections.abc import Callable, Mapping, Set
from typing import Annotated

import msgspec
from msgspec import Meta

from octopii.errors import BadCertificate, OctopiiError, RefusedError, RemovedNode, WipedNode, WrongCluster
from octopii.wire.codec import Address, Buffer, Identifier, Number, decoded, short_text
from octopii.wire.frames import (
    DEFAULT_MAX_FRAME_BYTES,
    MAX_HANDSHAKE_FRAME_BYTES,
    NEWEST_VERSION,
    OLDEST_VERSION,
    FrameDecoder,
    FrameType,
    Greeting,
    GreetingStatus,
    MalformedMessage,
    UnexpectedMessage,
    UnsupportedVersion,
    WireError,
    common_version,
    decode_greeting,
    encode_frame,
    encode_greeting,
)

STORAGE_ID_BYTES = 16
MAX_REFUSAL_CHARACTERS = 500
"""Longest text of a refusal: in any script it fits a frame of the handshake."""

THE_GROUP = 1
"""Number of the one Raft group that a node has today."""


class Role(enum.IntEnum):
    """What a connection is for."""

    NODE = 1
    CLIENT = 2
    SNAPSHOT = 3
    """A node again, on a connection of its own for snapshots."""


class RefusalKind(enum.IntEnum):
    """Why a connection was refused."""

    WRONG_CLUSTER = 1
    WIPED_NODE = 2
    REMOVED_NODE = 3
    BAD_CERTIFICATE = 4
    SELF_CONNECTION = 5
    SAME_ID = 6
    WRONG_NODE = 7
    WRONG_GROUP = 8
    BUSY = 9
    OTHER = 10


class Hello(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """One side of a handshake. A client has node id 0 and no storage; an empty node has no cluster id.

    `target` is the node that the dialer means to reach, 0 where it does not matter. `last_index` and `last_term` are
    the end of the node's log: a member whose log ends before what it acknowledged is noticed by them.
    `max_frame_bytes` is the longest payload that the sender reads after the handshake, 0 where it is not said.
    """

    role: Role
    node_id: Number = 0
    cluster_id: Identifier = b""
    storage_id: Identifier = b""
    target: Number = 0
    group: Number = THE_GROUP
    address: Address = ""
    python_minor: Number = 0
    last_index: Number = 0
    last_term: Number = 0
    max_frame_bytes: Number = 0

    @property
    def is_node(self) -> bool:
        """Whether this is a node's side, not a client's."""
        return self.role is not Role.CLIENT

    @property
    def empty(self) -> bool:
        """Whether the sender belongs to no cluster yet (or is a client that takes any)."""
        return not self.cluster_id


class Refusal(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The payload of a REFUSAL frame; `node_id` is who refuses (0: a client)."""

    kind: RefusalKind
    text: Annotated[str, Meta(max_length=MAX_REFUSAL_CHARACTERS)]
    node_id: Number = 0


_encoder = msgspec.msgpack.Encoder()
_hello_decoder: msgspec.msgpack.Decoder[Hello] = msgspec.msgpack.Decoder(Hello)
_refusal_decoder: msgspec.msgpack.Decoder[Refusal] = msgspec.msgpack.Decoder(Refusal)


def encode_hello(hello: Hello) -> bytes:
    """Return the payload of a HELLO or WELCOME frame."""
    return _encoder.encode(hello)


def decode_hello(payload: Buffer) -> Hello:
    """Read the payload of a HELLO or WELCOME frame; raises `MalformedMessage`, also for a node without a storage id."""
    hello = decoded(_hello_decoder, payload, "hello")
    if hello.is_node and (not hello.node_id or len(hello.storage_id) != STORAGE_ID_BYTES):
        raise MalformedMessage(f"hello: node {hello.node_id} comes with a storage id of {len(hello.storage_id)} bytes")
    return hello


def encode_refusal(refusal: Refusal) -> bytes:
    """Return the payload of a REFUSAL frame."""
    return _encoder.encode(refusal)


def decode_refusal(payload: Buffer) -> Refusal:
    """Read the payload of a REFUSAL frame; raises `MalformedMessage`."""
    return decoded(_refusal_decoder, payload, "refusal")


_ERROR_OF_REFUSAL: dict[RefusalKind, type[RefusedError]] = {
    RefusalKind.WRONG_CLUSTER: WrongCluster,
    RefusalKind.WIPED_NODE: WipedNode,
    RefusalKind.REMOVED_NODE: RemovedNode,
    RefusalKind.BAD_CERTIFICATE: BadCertificate,
}


def error_of_refusal(refusal: Refusal) -> RefusedError:
    """Return the exception that a refusal stands for."""
    return _ERROR_OF_REFUSAL.get(refusal.kind, RefusedError)(refusal.text)


# --- rules ------------------------------------------------------------------------------------------------------


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the judging side knows at this moment: itself, and the members as far as it has applied the log.

    `storage_of` maps the members' ids to their storage ids (empty while nobody has met one). A client has node id 0,
    and a cluster id if it insists on one. `secure` says that connections run over TLS.
    """

    node_id: int = 0
    cluster_id: bytes = b""
    storage_id: bytes = b""
    storage_of: Mapping[int, bytes] = {}
    removed: Set[int] = frozenset()
    secure: bool = False


def node_certificate_name(node_id: int) -> str:
    """Return the name that a node's certificate must have."""
    return f"node-{node_id}"


def is_client_certificate_name(name: str) -> bool:
    """Whether a certificate of this name may open a client's connection."""
    kind, dash, rest = name.partition("-")
    return kind == "client" or (kind == "node" and dash == "-" and rest.isascii() and rest.isdigit())


def judge(
    hello: Hello, standing: Standing, *, certificate_name: str | None = None, expected: int = 0
) -> Refusal | None:
    """Put the other side's hello through the rules of the module's text; None admits it.

    `certificate_name` is the name in its verified certificate (None: it has none), `expected` the node that was dialled
    (0: any, or it dialled us).
    """
    for rule in (_judge_certificate(hello, standing, certificate_name), _judge_place(hello, standing, expected)):
        if rule is not None:
            return rule
    return _judge_member(hello, standing) if hello.is_node and standing.node_id else None


def _refuse(standing: Standing, kind: RefusalKind, text: str) -> Refusal:
    return Refusal(kind, short_text(text)[:MAX_REFUSAL_CHARACTERS], standing.node_id)


def _judge_certificate(hello: Hello, standing: Standing, name: str | None) -> Refusal | None:
    if not standing.secure:
        return None
    if name is None:
        return _refuse(standing, RefusalKind.BAD_CERTIFICATE, "no certificate was shown")
    if hello.is_node and name != node_certificate_name(hello.node_id):
        text = f"the certificate is named {name!r}, node {hello.node_id} needs {node_certificate_name(hello.node_id)!r}"
        return _refuse(standing, RefusalKind.BAD_CERTIFICATE, text)
    if not hello.is_node and not is_client_certificate_name(name):
        text = f"the certificate is named {name!r}, a client needs 'client' or 'client-<name>'"
        return _refuse(standing, RefusalKind.BAD_CERTIFICATE, text)
    return None


def _judge_place(hello: Hello, standing: Standing, expected: int) -> Refusal | None:
    """Whether the two mean each other: group, ids, cluster."""
    own = standing.node_id
    if hello.group != THE_GROUP:
        return _refuse(standing, RefusalKind.WRONG_GROUP, f"there is no group {hello.group} here")
    if hello.is_node and own and hello.node_id == own:
        if hello.storage_id == standing.storage_id:
            return _refuse(
                standing, RefusalKind.SELF_CONNECTION, f"node {own} reached itself: check its peers' addresses"
            )
        return _refuse(standing, RefusalKind.SAME_ID, f"two nodes call themselves {own}")
    if own and hello.target not in (0, own):
        return _refuse(standing, RefusalKind.WRONG_NODE, _led_elsewhere(own, hello.target))
    if expected not in (0, hello.node_id):
        return _refuse(standing, RefusalKind.WRONG_NODE, _led_elsewhere(hello.node_id, expected))
    if hello.cluster_id and standing.cluster_id and hello.cluster_id != standing.cluster_id:
        text = f"here is cluster {standing.cluster_id.hex()}, there is cluster {hello.cluster_id.hex()}"
        return _refuse(standing, RefusalKind.WRONG_CLUSTER, text)
    return None


def _led_elsewhere(found: int, meant: int) -> str:
    return f"node {found} listens there, not node {meant}: check the address of peer {meant}"


def _judge_member(hello: Hello, standing: Standing) -> Refusal | None:
    """Whether a node may act under its id in our cluster."""
    if hello.node_id in standing.removed:
        text = f"node {hello.node_id} was removed from the cluster ({standing.cluster_id.hex()})"
        return _refuse(standing, RefusalKind.REMOVED_NODE, text)
    known = standing.storage_of.get(hello.node_id, b"")
    if known and known != hello.storage_id:
        text = (
            f"in cluster {standing.cluster_id.hex()} node {hello.node_id} is known with storage {known.hex()} and came "
            f"with {hello.storage_id.hex()}: its disk was wiped or swapped. Remove it and add it again under a new id"
        )
        return _refuse(standing, RefusalKind.WIPED_NODE, text)
    return None


# --- the exchange -----------------------------------------------------------------------------------------------

Judge = Callable[[Hello], Refusal | None]
"""The rules, with everything but the hello filled in; asked once, when the hello is there."""


class Handshake:
    """One connection's first exchange, for either side.

    Send what `start` and `receive` return. After each `receive` look at `peer`, the other side once it is admitted, and
    at `error`, why the connection must be closed (after sending what was returned). When `peer` is there, go on with
    `decoder`: `decoder.feed(b"")` gives frames that came along with the handshake. A dialer that refuses the acceptor
    does so by a REFUSAL frame after the acceptor's WELCOME, so an acceptor must be ready for one as its first frame.

    How long a silent side may take, and how many of them there may be, is for the caller to limit.
    """

    def __init__(
        self,
        hello: Hello,
        judge: Judge,
        *,
        dialer: bool,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        versions: tuple[int, int] = (OLDEST_VERSION, NEWEST_VERSION),
    ) -> None:
        self.peer: Hello | None = None
        self.error: OctopiiError | None = None
        self.was_refused = False
        """Whether `error` is what the other side said, and not what this side thinks of it."""
        self.version = 0
        self.decoder = FrameDecoder(MAX_HANDSHAKE_FRAME_BYTES)
        self._hello = hello
        self._judge = judge
        self._dialer = dialer
        self._max_frame_bytes = max_frame_bytes
        self._oldest, self._newest = versions
        self._greeting = bytearray()

    @property
    def is_dialer(self) -> bool:
        """Whether this is the side that has dialled."""
        return self._dialer

    def start(self) -> bytes:
        """Return what to send at once: all that a dialer has to say, nothing for an acceptor."""
        if not self._dialer:
            return b""
        return self._own_greeting(GreetingStatus.GO_ON) + encode_frame(FrameType.HELLO, encode_hello(self._hello))

    def refuse(self, kind: RefusalKind, text: str) -> bytes:
        """Turn the other side away before it said anything (a node that is busy, say); return what to send."""
        self.error = error_of_refusal(Refusal(kind, text, self._hello.node_id))
        return self._own_greeting(GreetingStatus.REFUSED, text)

    def receive(self, data: bytes) -> bytes:
        """Take what arrived and return what to send. Never raises; a finished handshake must not be fed."""
        assert self.peer is None, "after the handshake, bytes belong to the decoder"
        if self.error is not None:
            return b""
        try:
            return self._receive(data)
        except (WireError, RefusedError) as error:
            self.error = error
            if isinstance(error, UnsupportedVersion) and not self._dialer:
                return self._own_greeting(GreetingStatus.NO_COMMON_VERSION, str(error))
            return b""

    def _own_greeting(self, status: GreetingStatus, text: str = "") -> bytes:
        return encode_greeting(Greeting(oldest=self._oldest, newest=self._newest, status=status, text=text))

    def _receive(self, data: bytes) -> bytes:
        answer = b""
        if not self.version:
            self._greeting += data
            found = decode_greeting(self._greeting)
            if found is None:
                return b""
            greeting, end = found
            self.version = common_version(greeting, oldest=self._oldest, newest=self._newest)
            data = bytes(self._greeting[end:])
            self._greeting.clear()
            if not self._dialer:
                answer = self._own_greeting(GreetingStatus.GO_ON)
        for frame_type, payload in self.decoder.feed(data, most=1):
            answer += self._handle(frame_type, payload)
        return answer

    def _handle(self, frame_type: int, payload: Buffer) -> bytes:
        if self._dialer and frame_type == FrameType.REFUSAL:
            self.was_refused = True
            raise error_of_refusal(decode_refusal(payload))
        if frame_type != (FrameType.WELCOME if self._dialer else FrameType.HELLO):
            raise UnexpectedMessage(f"a frame of type {frame_type} in the middle of a handshake")
        hello = decode_hello(payload)
        if self._dialer and not hello.is_node:
            raise UnexpectedMessage("a client answered where a node was dialled")
        refusal = self._judge(hello)
        if refusal is not None:
            self.error = error_of_refusal(refusal)
            return encode_frame(FrameType.REFUSAL, encode_refusal(refusal))
        self.peer = hello
        self.decoder.max_frame_bytes = self._max_frame_bytes
        return b"" if self._dialer else encode_frame(FrameType.WELCOME, encode_hello(self._hello))
