"""Every exception a user of Octopii can meet, sorted by what it means for the command.

    OctopiiError
      NotApplied        the command was not and will never be applied: trying again is safe
      OutcomeUnknown    the command may or may not have been applied
      Rejected          the replicated state machine answered with an error
      ConfigError       a setting is wrong; nothing was started
      RefusedError      a node refused to talk to this one, or to start
      WalrusError       the write-ahead log refused or failed

Each exception carries its facts as typed attributes beside the message, so that programs never parse text.
"""

from collections.abc import Mapping
from typing import Any, Self


class OctopiiError(Exception):
    """Root of all exceptions raised by this package."""


# --- the command was not applied --------------------------------------------------------------------------------


class NotApplied(OctopiiError):
    """The call was not applied and never will be; it is safe to try again."""


class NoLeader(NotApplied):
    """No leader was known or reachable; `leader` is the last one heard of, if any.

    `unreachable` says of the addresses that a client has tried in vain what was the matter with each.
    """

    def __init__(
        self,
        message: str = "the cluster has no leader at the moment",
        *,
        leader: int | None = None,
        unreachable: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.leader = leader
        self.unreachable = dict(unreachable or {})


class Overloaded(NotApplied):
    """A named limit of the node was reached; `limit` is its name."""

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class TooLarge(NotApplied):
    """A command or batch has more bytes than allowed."""

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class DiskFull(NotApplied):
    """The disk has no room for more entries; freeing space on the volume is enough to go on."""


class ShuttingDown(NotApplied):
    """The node is stopping or has stopped."""


class VersionNotActive(NotApplied):
    """The call needs version `needed` of the state machine, and the cluster still runs version `active` of it."""

    def __init__(self, message: str, *, needed: int, active: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.active = active


# --- the outcome is unknown -------------------------------------------------------------------------------------


class OutcomeUnknown(OctopiiError):
    """The call may or may not have been applied, now or later, at most once."""


class CallTimeout(OutcomeUnknown, TimeoutError):
    """The time given to the call ran out before its answer came."""


class ConnectionLost(OutcomeUnknown):
    """The connection broke after the call was sent and before its answer came."""


class SessionExpired(OutcomeUnknown):
    """The client's session had expired when the call reached the state machine, so an earlier try may have counted."""


# --- the state machine said no ----------------------------------------------------------------------------------


class Rejected(OctopiiError):
    """The replicated state machine answered with an error."""


class CommandError(Rejected):
    """Raised by a state machine's `apply` or `query` to refuse a command: a normal, replicated answer.

    `made_with` holds the arguments that it was made with. `declared` is set where a typed machine declares the class
    among its `errors`: name and encoded arguments, by which the caller gets the same exception.
    """

    made_with: tuple[tuple[Any, ...], dict[str, Any]]
    declared: tuple[str, bytes] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments, whatever `__init__` makes of them."""
        error = super().__new__(cls, *args, **kwargs)
        error.made_with = (args, kwargs)
        return error


class ApplyFailed(Rejected):
    """The machine raised something other than `CommandError`; `exception` is the type's name, and begins the text.

    What follows it is what the answering node saw, and may be missing: only the name is part of the replicated state.
    The node whose machine raised logs the traceback.
    """

    def __init__(self, message: str, *, exception: str) -> None:
        super().__init__(message)
        self.exception = exception


class QueryNotSupported(Rejected):
    """The state machine has no `query`."""


# --- configuration and admission --------------------------------------------------------------------------------


class ConfigError(OctopiiError):
    """A setting is missing or wrong; `field` names it where there is one."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class RefusedError(OctopiiError):
    """A node was refused by the others, or refused to start."""


class WrongCluster(RefusedError):
    """The other side belongs to another cluster."""


class WipedNode(RefusedError):
    """A known node id came back with another storage: its disk was wiped or swapped."""


class RemovedNode(RefusedError):
    """This node was removed from the cluster."""


class BadCertificate(RefusedError):
    """A TLS certificate is missing, expired, from another authority, or names another node."""


# --- the write-ahead log ----------------------------------------------------------------------------------------


class WalrusError(OctopiiError):
    """Root of the write-ahead log's exceptions."""


class CorruptLogError(WalrusError):
    """Bytes that were durable are damaged; `path`, `position` (bytes) and `topic` say where."""

    def __init__(self, message: str, *, path: str, position: int | None = None, topic: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.position = position
        self.topic = topic


class LogInUse(WalrusError):
    """Another instance, in this or another process, has the folder open."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class LogPoisoned(WalrusError):
    """A write or a sync failed, so what is on disk is not known: close, repair the cause (`error`), open again."""

    def __init__(self, message: str, *, path: str, error: OSError) -> None:
        super().__init__(message)
        self.path = path
        self.error = error


class LogClosed(WalrusError):
    """The log was closed."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class EntryTooLarge(WalrusError):
    """An entry or a batch has more bytes than the log's limit."""

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class InvalidTopic(WalrusError, ValueError):
    """A topic or cursor name is empty, too long or not text."""

    def __init__(self, message: str, *, topic: object) -> None:
        super().__init__(message)
        self.topic = topic


class OffsetTrimmedError(WalrusError):
    """The offset asked for lies below the topic's trim point."""

    def __init__(self, message: str, *, topic: str, offset: int, first_offset: int) -> None:
        super().__init__(message)
        self.topic = topic
        self.offset = offset
        self.first_offset = first_offset


class OffsetBeyondEndError(WalrusError, ValueError):
    """The offset asked for lies beyond the topic's end."""

    def __init__(self, message: str, *, topic: str, offset: int, next_offset: int) -> None:
        super().__init__(message)
        self.topic = topic
        self.offset = offset
        self.next_offset = next_offset


class LogFull(WalrusError):
    """The disk has no room for what was to be written; nothing was. Make room and go on."""

    def __init__(self, message: str, *, path: str, needed: int) -> None:
        super().__init__(message)
        self.path = path
        self.needed = needed


class UnknownFormatError(WalrusError):
    """The folder holds no log, or one of a newer format; `version` is the one found, None for none."""

    def __init__(self, message: str, *, path: str, version: int | None) -> None:
        super().__init__(message)
        self.path = path
        self.version = version
