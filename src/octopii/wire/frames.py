"""Frames: how messages lie in a stream of bytes, and how a connection begins.

A connection begins with one greeting in each direction. Its layout is the same in every version of the protocol, for
ever, so that any two versions can at least refuse each other in words. Numbers are little-endian.

    offset  bytes  greeting
    0       8      magic: 93 4f 63 74 6f 70 69 0a (never the start of a TLS record, of HTTP or of text)
    8       2      oldest protocol version spoken
    10      2      newest protocol version spoken
    12      2      status: 0 go on, 1 no common version, 2 refused for the reason in the text
    14      2      length of the text in bytes, at most 512
    16      ...    text, UTF-8, for people

The highest version that both speak is the one spoken. After the greetings come frames:

    offset  bytes  frame
    0       4      length of the payload in bytes, at most the reader's `max_frame_bytes`
    4       1      type of the payload (`FrameType`)
    5       8      XXH3-64 of the payload, seeded with length | type << 32, so that it covers the whole header
    13      ...    payload

The checksum guards against broken memory, drivers and middle boxes, not against people: TLS does that. Anything that
is not exactly this raises a `WireError` and ends the connection: after damage nobody can tell where frames begin.
"""

import enum
import struct
import sys

import msgspec
import xxhash

from octopii.errors import OctopiiError

Buffer = bytes | bytearray | memoryview

MAGIC = b"\x93Octopi\n"
OLDEST_VERSION = 1
"""Oldest protocol version that this program speaks."""
NEWEST_VERSION = 1
"""Newest protocol version that this program speaks."""

MAX_GREETING_TEXT_BYTES = 512
"""Longest text of a greeting: it is read before anything is known of the other side."""

MAX_HANDSHAKE_FRAME_BYTES = 4096
"""Longest frame taken before the other side has been admitted: nobody makes a node hold more by connecting."""

DEFAULT_MAX_FRAME_BYTES = 16 << 20
"""Longest payload taken after the handshake, unless the configuration says otherwise."""

HEADER_BYTES = 13

_GREETING = struct.Struct("<8sHHHH")
_HEADER = struct.Struct("<IBQ")
_MAX_LENGTH = 2**32 - 1
_checksum = xxhash.xxh3_64_intdigest


class WireError(OctopiiError):
    """Bytes from the other side broke the protocol: the connection cannot go on."""


class NotOctopii(WireError):
    """The other side speaks another protocol altogether."""


class UnsupportedVersion(WireError):
    """No version of the protocol is spoken by both sides; `theirs` and `ours` are (oldest, newest)."""

    def __init__(self, message: str, *, theirs: tuple[int, int], ours: tuple[int, int]) -> None:
        super().__init__(message)
        self.theirs = theirs
        self.ours = ours


class GreetingRefused(WireError):
    """The other side refused at once, in words; the message is its text."""


class FrameTooLarge(WireError):
    """A frame announces, or a payload has, more bytes than allowed."""

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class DamagedFrame(WireError):
    """A frame's checksum is wrong."""


class MalformedMessage(WireError):
    """A payload is not what its type says."""


class UnexpectedMessage(WireError):
    """A well-formed message has no place in the connection's present state."""


class FrameType(enum.IntEnum):
    """What a payload is; `UnexpectedMessage` for any other number, once the frame is whole."""

    HELLO = 1
    WELCOME = 2
    REFUSAL = 3
    RAFT = 4
    PEER = 5
    SNAPSHOT_CHUNK = 6
    REQUEST = 7
    REPLY = 8


# --- frames -----------------------------------------------------------------------------------------------------


def encode_frame(frame_type: int, payload: Buffer) -> bytes:
    """Return a payload as a frame; raises `FrameTooLarge` where the length field cannot say its size."""
    length = len(payload)
    if length > _MAX_LENGTH:
        raise FrameTooLarge(f"a payload of {length} bytes fits no frame", size=length, limit=_MAX_LENGTH)
    return _HEADER.pack(length, frame_type, _checksum(payload, length | frame_type << 32)) + payload


def encode_frame_parts(frame_type: int, *parts: Buffer) -> list[Buffer]:
    """Return a frame around `parts`, byte buffers that are not copied: the header, then the parts themselves."""
    length = sum(map(len, parts))
    if length > _MAX_LENGTH:
        raise FrameTooLarge(f"a payload of {length} bytes fits no frame", size=length, limit=_MAX_LENGTH)
    state = xxhash.xxh3_64(seed=length | frame_type << 32)
    for part in parts:
        state.update(part)
    return [_HEADER.pack(length, frame_type, state.intdigest()), *parts]


class FrameDecoder:
    """Cuts a stream of bytes into frames.

    It holds at most one unfinished frame: `max_frame_bytes` plus what one `feed` brings. Memory is taken as bytes
    arrive, never for what a header merely announces. `max_frame_bytes` may be raised between two feeds, when the other
    side was admitted.
    """

    __slots__ = ("_broken", "_buffer", "_needed", "max_frame_bytes")

    def __init__(self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._needed = HEADER_BYTES
        self._broken: WireError | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the unfinished frame that are here."""
        return len(self._buffer)

    def feed(self, data: bytes, *, most: int = sys.maxsize) -> list[tuple[int, memoryview]]:
        """Take what the socket gave; return (type, payload) of each frame that is complete by now.

        With `most`, the frames after that many stay as they are, unchecked, until the next call (with no data, say).
        Payloads are read-only views: of `data`, which has to be `bytes`, or of a buffer of their own. Raises
        `FrameTooLarge` and `DamagedFrame`; complete frames before the fault in the same `data` are lost with the
        connection. From then on each call raises the same error again.
        """
        if self._broken is not None:
            raise self._broken
        buffer = self._buffer
        if not buffer:
            return self._cut(data, most)
        buffer += data
        if len(buffer) < self._needed:
            return []
        self._buffer = bytearray()
        return self._cut(buffer, most)

    def _cut(self, data: Buffer, most: int) -> list[tuple[int, memoryview]]:
        frames: list[tuple[int, memoryview]] = []
        view = memoryview(data).toreadonly()
        at, end = 0, len(view)
        needed = HEADER_BYTES
        while end - at >= HEADER_BYTES and len(frames) < most:
            length, frame_type, checksum = _HEADER.unpack_from(view, at)
            if length > self.max_frame_bytes:
                raise self._fail(
                    FrameTooLarge(
                        f"a frame announces {length} bytes, more than the {self.max_frame_bytes} allowed",
                        size=length,
                        limit=self.max_frame_bytes,
                    )
                )
            start = at + HEADER_BYTES
            if end - start < length:
                needed = HEADER_BYTES + length
                break
            at = start + length
            payload = view[start:at]
            if _checksum(payload, length | frame_type << 32) != checksum:
                raise self._fail(DamagedFrame(f"a frame of type {frame_type} with {length} bytes has a wrong checksum"))
            frames.append((frame_type, payload))
        self._needed = needed
        if at < end:
            self._buffer += view[at:]
        return frames

    def _fail(self, error: WireError) -> WireError:
        self._broken = error
        self._buffer = bytearray()
        return error


# --- greetings --------------------------------------------------------------------------------------------------


class GreetingStatus(enum.IntEnum):
    """Whether the sender of a greeting goes on."""

    GO_ON = 0
    NO_COMMON_VERSION = 1
    REFUSED = 2


class Greeting(msgspec.Struct, frozen=True, gc=False):
    """The first bytes of a connection, as one side sent them."""

    oldest: int = OLDEST_VERSION
    newest: int = NEWEST_VERSION
    status: int = GreetingStatus.GO_ON
    text: str = ""


def encode_greeting(greeting: Greeting) -> bytes:
    """Return a greeting as bytes; a longer text is cut."""
    text = greeting.text.encode("utf-8", "replace")[:MAX_GREETING_TEXT_BYTES]
    return _GREETING.pack(MAGIC, greeting.oldest, greeting.newest, greeting.status, len(text)) + text


def decode_greeting(data: Buffer) -> tuple[Greeting, int] | None:
    """Read a greeting from the start of what has arrived: (greeting, its length in bytes), or None for too little.

    Raises `NotOctopii` at the first byte that no greeting has there, `MalformedMessage` for a text that is too long or
    a version range that is none.
    """
    begin = bytes(data[: len(MAGIC)])
    if begin != MAGIC[: len(begin)]:
        raise NotOctopii(f"the connection began with {begin!r}: not the Octopii protocol")
    if len(data) < _GREETING.size:
        return None
    _, oldest, newest, status, length = _GREETING.unpack_from(data)
    if length > MAX_GREETING_TEXT_BYTES or oldest > newest:
        raise MalformedMessage(f"greeting: versions {oldest} to {newest}, a text of {length} bytes")
    end = _GREETING.size + length
    if len(data) < end:
        return None
    text = bytes(data[_GREETING.size : end]).decode("utf-8", "replace")
    return Greeting(oldest=oldest, newest=newest, status=status, text=text), end


def common_version(theirs: Greeting, *, oldest: int = OLDEST_VERSION, newest: int = NEWEST_VERSION) -> int:
    """Return the protocol version to speak.

    Raises `UnsupportedVersion` when there is none, `GreetingRefused` when the other side does not go on.
    """
    version = min(newest, theirs.newest)
    if theirs.status == GreetingStatus.NO_COMMON_VERSION or version < max(oldest, theirs.oldest):
        raise UnsupportedVersion(
            f"the other side speaks versions {theirs.oldest} to {theirs.newest} of the protocol, "
            f"this one {oldest} to {newest}",
            theirs=(theirs.oldest, theirs.newest),
            ours=(oldest, newest),
        )
    if theirs.status != GreetingStatus.GO_ON:
        raise GreetingRefused(theirs.text or f"refused with status {theirs.status}")
    return version
