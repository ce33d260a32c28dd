"""What a log entry holds, what a command is answered with, and how both become bytes and come back.

A normal Raft entry's data is one `EntryPayload`, packed by the leader: its wall clock and everything that had arrived
by then, as groups of client calls and as system commands. A membership entry's context is a list of `MemberFact`.

The encoding is MessagePack. Every struct is an array; where several kinds may stand, the first element is a whole
number that says which. Fields are only ever added at the end, with a default: an older reader passes over what it does
not know, a newer one fills in what is missing. Nothing here can name a class or run code.

Every `decode_` function takes any bytes whatever. It returns a value whose numbers and lengths are within the limits
below, or raises `MalformedMessage`, and never takes more memory than a small multiple of its input.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from octopii.typed.declared_errors import MAX_ARGUMENTS_BYTES
from octopii.wire.frames import MalformedMessage

Buffer = bytes | bytearray | memoryview

MAX_COMMANDS_PER_GROUP = 65_536
"""Most commands in one group of calls: keeps the applying of one entry, and its answers, within reason."""

MAX_GROUPS_PER_ENTRY = 65_536
"""Most groups and system commands in one log entry."""

MAX_MEMBERS = 64
"""Most members that one founding or membership entry can name; clusters have 1 to 7."""

MAX_ADDRESS_CHARACTERS = 300
"""Longest "host:port": a DNS name has at most 253 characters."""

MAX_TEXT_CHARACTERS = 4_096
"""Longest text of an error that travels; longer ones are cut by `short_text`."""

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Ids, indexes, terms, positions and call numbers; each fits a signed 64-bit integer."""

Identifier = Annotated[bytes, Meta(max_length=16)]
"""A cluster id, storage id or nonce: 16 random bytes, or none where it is not known."""

Address = Annotated[str, Meta(max_length=MAX_ADDRESS_CHARACTERS)]
"""Where a node listens, "host:port"; empty where it is not known."""

ErrorArguments = Annotated[bytes, Meta(max_length=MAX_ARGUMENTS_BYTES)]
"""What a declared error was made with, as a MessagePack array."""

Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARACTERS)]
"""Something for people to read."""


def short_text(text: str) -> str:
    """Cut a text to what an answer or a refusal may carry, and replace what UTF-8 cannot carry."""
    return text[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace").decode()


# --- answers ----------------------------------------------------------------------------------------------------


class CommandErrorAnswer(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """The state machine refused the command with `CommandError`; the text is replicated."""

    text: Text


class ApplyFailedAnswer(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """`apply` raised another exception.

    `exception`, the type's name, is replicated. `text` is what the answering node saw: it goes to the caller and is
    never kept in a session, because it may differ between replicas.
    """

    exception: Text
    text: Text = ""


class DeclaredErrorAnswer(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """The state machine refused the command with an error that its class declares; all of it is replicated.

    `name` is the error's, `arguments` what it was made with, as MessagePack: a caller that declares the same error
    makes it anew, any other gets `text`.
    """

    text: Text
    name: Text
    arguments: ErrorArguments


Answer = bytes | CommandErrorAnswer | ApplyFailedAnswer | DeclaredErrorAnswer
"""What one command got: the bytes that `apply` or `query` returned, or how it was rejected."""

Answers = Annotated[list[Answer], Meta(max_length=MAX_COMMANDS_PER_GROUP)]
"""The answers of one group, in the order of its commands."""


# --- log entries ------------------------------------------------------------------------------------------------


class MemberFact(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What an entry says of a member: where it listens, and its storage id (empty while nobody has met it)."""

    node_id: Number
    address: Address
    storage_id: Identifier = b""


class CallGroup(msgspec.Struct, array_like=True, tag=0, frozen=True, kw_only=True, gc=False):
    """Commands of one client session; command i has the call number `first` + i.

    `acked` is the lowest call number whose answer the client still waits for: the answers of all lower ones may be
    forgotten. A retried group has the same numbers and the same commands; only `acked` may have grown.
    """

    session: Number
    first: Number
    acked: Number
    commands: Annotated[list[bytes], Meta(max_length=MAX_COMMANDS_PER_GROUP)]


class OpenSession(msgspec.Struct, array_like=True, tag=1, frozen=True, kw_only=True, gc=False):
    """Open a session, whose id is the index of this entry. A repeated nonce means the session it opened first."""

    nonce: Identifier
    ttl_ns: Number


class CloseSession(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """End a session and forget its answers."""

    session: Number


class Compact(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """Run the state machine's `compact` at this index, on every replica."""


class Found(msgspec.Struct, array_like=True, tag=4, frozen=True, kw_only=True, gc=False):
    """Entry 1 of a cluster: its id and its first members."""

    cluster_id: Identifier
    members: Annotated[list[MemberFact], Meta(max_length=MAX_MEMBERS)]


class UpdateAddress(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """A member listens somewhere else from now on."""

    node_id: Number
    address: Address


class AdmitStorage(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """Bind a member that nobody had met to the storage it came with."""

    node_id: Number
    storage_id: Identifier


class ActivateVersion(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """Follow this version of the state machine's commands from here on; a lower one than is active changes nothing."""

    version: Number


class CompareDigests(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """Let every replica report the digest of its answers, and of its state if it has one, as of this index."""


SystemCommand = (
    OpenSession | CloseSession | Compact | Found | UpdateAddress | AdmitStorage | ActivateVersion | CompareDigests
)
"""What Octopii itself replicates beside the user's commands."""

EntryItem = (
    CallGroup
    | OpenSession
    | CloseSession
    | Compact
    | Found
    | UpdateAddress
    | AdmitStorage
    | ActivateVersion
    | CompareDigests
)
"""One thing that an entry asks the replicas to do."""


class EntryPayload(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """The data of a normal log entry: the leader's clock (UTC, nanoseconds) and what to do, in order.

    The tag is the format's version: a reader that does not know it refuses the entry instead of guessing.
    """

    stamp: Number
    groups: Annotated[list[EntryItem], Meta(max_length=MAX_GROUPS_PER_ENTRY)]


T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_entry_decoder: msgspec.msgpack.Decoder[EntryPayload] = msgspec.msgpack.Decoder(EntryPayload)
_members_decoder: msgspec.msgpack.Decoder[list[MemberFact]] = msgspec.msgpack.Decoder(
    Annotated[list[MemberFact], Meta(max_length=MAX_MEMBERS)]
)


def decoded(decoder: "msgspec.msgpack.Decoder[T]", data: Buffer, what: str) -> T:
    """Decode bytes that may be anything; raises `MalformedMessage`, which begins with `what`, and nothing else.

    `RecursionError` comes from deep nesting in fields that a newer version may have added.
    """
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{what}: {error}") from error


def encode_entry(payload: EntryPayload) -> bytes:
    """Return the data of a normal log entry."""
    return _encoder.encode(payload)


def decode_entry(data: Buffer) -> EntryPayload:
    """Read the data of a normal log entry; raises `MalformedMessage`."""
    return decoded(_entry_decoder, data, "log entry")


def encode_members(members: list[MemberFact]) -> bytes:
    """Return the context of a membership entry: what it says of the members that it adds."""
    return _encoder.encode(members)


def decode_members(context: Buffer) -> list[MemberFact]:
    """Read the context of a membership entry (an empty one names nobody); raises `MalformedMessage`."""
    return decoded(_members_decoder, context, "membership entry") if context else []
