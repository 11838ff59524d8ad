"""Errors that the command line tells a user in a sentence, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


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


def check_range(
    field: str, value: float, low: float | None = None, high: float | None = None, *, open_low: bool = False
) -> None:
    """Raise InputError unless ``low <= value <= high`` (``low < value`` with ``open_low``); None is no bound."""
    inside = (
        isinstance(value, (int, float))
        and value == value
        and (low is None or (value > low if open_low else value >= low))
        and (high is None or value <= high)
    )
    if not inside:
        bounds = [f"{'>' if open_low else '>='} {low}"] if low is not None else []
        bounds += [f"<= {high}"] if high is not None else []
        raise InputError(f"{field} is {value!r}; valid: a number {' and '.join(bounds)}")
