"""One connection, either side: bytes to frames and back, on asyncio's transports.

A `Connection` shakes hands first (`wire.handshake` has the rules), then hands each turn's frames to its owner. It knows
nothing of Raft or of requests. Faults end it: what the other side sent wrong is logged once, by the owner, and the
connection is closed. Writes go straight to the transport; whoever writes looks at `unsent_bytes` first.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Protocol, cast

from octopii.config import parse_address
from octopii.errors import BadCertificate, OctopiiError
from octopii.node.security import certificate_name
from octopii.wire.frames import FrameType, UnexpectedMessage, WireError
from octopii.wire.handshake import Handshake, Hello, decode_refusal, error_of_refusal

Frames = list[tuple[int, memoryview]]


class Owner(Protocol):
    """What a connection tells about itself."""

    def opened(self, connection: "Connection") -> None:
        """The connection is there; the handshake follows."""
        ...

    def admitted(self, connection: "Connection", peer: Hello) -> None:
        """The handshake is done."""
        ...

    def frames_arrived(self, connection: "Connection", frames: Frames) -> None:
        """Whole frames, in order; a `WireError` raised here ends the connection."""
        ...

    def closed(self, connection: "Connection", error: BaseException | None) -> None:
        """The connection is gone, before or after the handshake; `error` says why where that is known."""
        ...


class Connection(asyncio.Protocol):
    """See the module's text. `make_handshake` gets the name in the other side's certificate, None without TLS."""

    def __init__(self, owner: Owner, make_handshake: Callable[[str | None], Handshake]) -> None:
        self._owner = owner
        self._make_handshake = make_handshake
        self._handshake: Handshake | None = None
        self._transport: asyncio.Transport | None = None
        self._error: BaseException | None = None
        self._told_closed = False
        self._heard = False
        self.peer: Hello | None = None
        self.address = ""
        self.paused = False

    # --- asyncio's side -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, as the dialling side."""
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it
        name = transport.get_extra_info("peername")
        self.address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
        self._handshake = self._make_handshake(certificate_name(transport.get_extra_info("peercert")))
        self._owner.opened(self)
        transport.write(self._handshake.start())

    def data_received(self, data: bytes) -> None:
        """Cut what came into frames."""
        self._heard = True
        try:
            if self.peer is None:
                self._shake_hands(data)
            else:
                assert self._handshake is not None
                self._take(self._handshake.decoder.feed(data))
        except (WireError, OctopiiError) as error:
            self.close(error)

    def _shake_hands(self, data: bytes) -> None:
        handshake, transport = self._handshake, self._transport
        assert handshake is not None
        assert transport is not None
        if handshake.error is not None:
            return
        transport.write(handshake.receive(data))
        if handshake.error is not None:
            self.close(handshake.error)
        elif handshake.peer is not None:
            self.peer = handshake.peer
            self._owner.admitted(self, handshake.peer)
            self._take(handshake.decoder.feed(b""))

    def _take(self, frames: Frames) -> None:
        if frames and frames[0][0] == FrameType.REFUSAL:
            raise error_of_refusal(decode_refusal(frames[0][1]))
        if frames:
            self._owner.frames_arrived(self, frames)

    def pause_writing(self) -> None:
        """The other side does not read fast enough."""
        self.paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self.paused = False

    def connection_lost(self, error: BaseException | None) -> None:
        """Tell the owner, once."""
        if not self._told_closed:
            self._told_closed = True
            self._owner.closed(self, self._error or self._why_lost(error))

    def _why_lost(self, error: BaseException | None) -> BaseException | None:
        handshake, transport = self._handshake, self._transport
        if handshake is None or transport is None or self._heard or not handshake.is_dialer:
            return error if error is None else explained(error)
        # Both sides greet at once. In TLS 1.3 the accepting one looks at certificates last, when the dialling one
        # thinks that all is well, and these event loops close such a connection without telling the reason.
        if transport.get_extra_info("sslcontext") is not None:
            return BadCertificate("the other side closed the connection when it had seen this one's certificate")
        return WireError("the other side closed the connection without a word; it may expect TLS")

    # --- the owner's side ---------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether anything can still be written."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def was_refused(self) -> bool:
        """Whether it was the other side that refused this one in the handshake, and not the other way round."""
        return self._handshake is not None and self._handshake.was_refused

    def give_up_after(self, seconds: float) -> None:
        """End the connection when the other side acknowledges nothing of what was written for so long.

        Without it TCP goes on for a quarter of an hour, with pauses that double: when a broken link is whole again, it
        may stay silent for as long as it was broken. Only Linux has the setting.
        """
        name = getattr(socket, "TCP_USER_TIMEOUT", None)
        if name is not None and self._transport is not None:
            used = self._transport.get_extra_info("socket")
            used.setsockopt(socket.IPPROTO_TCP, name, max(1, round(seconds * 1000)))

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the operating system has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def write(self, data: bytes) -> None:
        """Send bytes; dropped when the connection is closing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_parts(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send buffers one after the other."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(list(parts))

    def pause_reading(self) -> None:
        """Take nothing more from the other side for now."""
        if self.is_open:
            assert self._transport is not None
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on taking."""
        if self.is_open:
            assert self._transport is not None
            self._transport.resume_reading()

    def close(self, error: BaseException | None = None) -> None:
        """Close, sending first what was written."""
        if self._error is None:
            self._error = error
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, dropping what was not sent."""
        if self._transport is not None:
            self._transport.abort()


def unexpected(frame_type: int, where: str) -> UnexpectedMessage:
    """The error for a frame that has no place on this kind of connection."""
    return UnexpectedMessage(f"a frame of type {frame_type} on {where}")


def explained(error: BaseException) -> BaseException:
    """What TLS says of certificates as the package's own error; anything else as it is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return BadCertificate(f"the other side's certificate is not accepted: {error.verify_message}")
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        said = error.reason.rpartition("ALERT_")[2].replace("_", " ").lower()
        return BadCertificate(f"the other side does not accept this one's certificate: {said}")
    return error


def reason_of(error: BaseException | None) -> str:
    """Why a connection could not be made, or ended, in words for people."""
    if error is None:
        return "it closed the connection"
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG"):
        return "it does not speak TLS"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


async def dial(address: str, connection: Connection, *, tls: ssl.SSLContext | None, seconds: float) -> None:
    """Connect to "host:port"; raises `OSError`, which timeouts and `ssl.SSLError` are. The handshake follows."""
    host, port = parse_address(address)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds):
        # The certificate is checked against the cluster's authority; whose it is, the handshake checks by node id.
        await loop.create_connection(lambda: connection, host, port, ssl=tls, server_hostname="" if tls else None)
