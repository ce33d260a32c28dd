"""Errors of the wire (frames follow)."""

from octopii.errors import OctopiiError


class WireError(OctopiiError):
    """Bytes from the other side broke the protocol: the connection cannot go on."""


class MalformedMessage(WireError):
    """A message is not what its type says."""
