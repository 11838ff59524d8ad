"""Errors that the command line tells a user in a sentence, without a traceback."""

from __future__ import annotations

import difflib
import errno
import math
import re
from collections.abc import Iterable, Iterator

LARGEST_COUNT = 2**31 - 1


class InputError(ValueError):
    """A bad argument, file or folder. The message names the field, the value and what is valid."""


class StoppedError(RuntimeError):
    """A run that cannot go on, though neither its input nor the code is at fault; the command line exits with 1."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it was raised from or while handling, the last first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def nearest(value: object, choices: Iterable[str]) -> str:
    """``"; did you mean 'X'?"`` for the choice most like ``value``, or an empty string."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    found = difflib.get_close_matches(str(value).lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean '{by_lower[found[0]]}'?" if found else ""


def check_choice(field: str, value: object, choices: Iterable[object]) -> None:
    """Raise InputError unless ``value`` is one of ``choices``; the message lists them and the nearest."""
    choices = list(choices)
    if value not in choices:
        valid = ", ".join(map(repr, choices))
        raise InputError(f"{field} is {value!r}; valid: {valid}{nearest(value, map(str, choices))}")


def is_finite_number(value: float) -> bool:
    """Whether a float can hold ``value``; a whole number may be too large for it."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_range(
    field: str, value: float, low: float | None = None, high: float | None = None, *, open_low: bool = False
) -> None:
    """Raise InputError unless ``low <= value <= high`` (``low < value`` with ``open_low``).

    None is no bound, but for what any number may be: finite, and a whole one of 32 bits.
    """
    if high is None and isinstance(value, int) and value > LARGEST_COUNT:
        high = LARGEST_COUNT
    inside = (
        isinstance(value, (int, float))
        and is_finite_number(value)
        and (low is None or (value > low if open_low else value >= low))
        and (high is None or value <= high)
    )
    if not inside:
        bounds = [f"{'>' if open_low else '>='} {low}"] if low is not None else []
        bounds += [f"<= {high}"] if high is not None else []
        raise InputError(f"{field} is {value!r}; valid: a number {' and '.join(bounds)}")


# What a terminal obeys, or what turns the order of what it shows: escape sequences, and marks of writing direction.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with escapes such as ``\\x1b`` in place of what a terminal would obey; lines and tabs stay.

    Names of classes and files may hold anything, bytes that are no text too.
    """
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_line(text: object) -> str:
    """``text`` as ``printable`` gives it, in one line: a line end and the blanks around it are one blank."""
    return printable(re.sub(r"\s*[\r\n]\s*", " ", str(text).strip()))


_REMEDIES = {
    errno.EACCES: "a path that this user may read and write",
    errno.EPERM: "a path that this user may read and write",
    errno.EROFS: "a folder that can be written",
    errno.ENOSPC: "more room there, or a folder on another disk",
    errno.EDQUOT: "more room there, or a folder on another disk",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EMFILE: "fewer --workers, or a higher limit of open files (ulimit -n)",
    errno.ENFILE: "fewer --workers, or a higher limit of open files in this system",
}


def reason(error: OSError) -> str:
    """What the operating system says, and a remedy where there is one: "Permission denied; valid: ..."."""
    said = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{said}; valid: {remedy}" if remedy else said
