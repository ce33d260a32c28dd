"""Reading text commands: the same on every Python version, with `CommandError` for whatever does not fit.

`int()` and `float()` alone take digits of any script, underscores and surrounding blanks, and what counts as a blank or
a digit in Unicode changes between Python versions, as does what `repr` escapes. Replicas must agree, on the text of an
error too, so only ASCII is taken and shown here.
"""

import math

from octopii.errors import CommandError

MAX_NUMBER_LENGTH = 64
"""Longest text of a number, in characters."""


def words(command: bytes, *, least: int, most: int, usage: str) -> list[str]:
    """Split at ASCII blanks into `least` to `most` words; `usage` is the text of the `CommandError` otherwise."""
    parts = command.split()
    if not least <= len(parts) <= most:
        raise CommandError(f"usage: {usage}")
    return [text(part) for part in parts]


def text(part: bytes) -> str:
    """Decode UTF-8; raises `CommandError`."""
    try:
        return part.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"not valid UTF-8 at byte {error.start}") from None


def whole_number(digits: str, *, name: str, least: int, most: int) -> int:
    """Read a whole number from `least` to `most`, with an optional sign; raises `CommandError` that names it."""
    unsigned = digits[1:] if digits[:1] in ("+", "-") else digits
    if len(digits) <= MAX_NUMBER_LENGTH and unsigned.isascii() and unsigned.isdigit():
        number = int(digits)
        if least <= number <= most:
            return number
    raise CommandError(f"{name} has to be a whole number from {least} to {most}, not {digits[:MAX_NUMBER_LENGTH]!a}")


def finite_number(digits: str, *, name: str) -> float:
    """Read a finite decimal number; raises `CommandError` that names it."""
    if len(digits) <= MAX_NUMBER_LENGTH and digits.isascii() and "_" not in digits:
        try:
            number = float(digits)
        except ValueError:
            pass
        else:
            if math.isfinite(number):
                return number
    raise CommandError(f"{name} has to be a finite number, not {digits[:MAX_NUMBER_LENGTH]!a}")


def unknown(verb: bytes) -> CommandError:
    """Return the error for a command that starts with `verb`, shortened."""
    return CommandError(f"unknown command {verb[:32].decode('ascii', 'backslashreplace')!r}")
