"""Names and messages on their way into a format: whatever run folders hold, it is shown as it is and does nothing.

One function a format: ``markdown``, ``plot`` and ``csv_lines``; the page's template takes ``readable`` text and escapes
it by itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Marks that turn or override the direction of what follows; letters have one of their own.
_TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_ISOLATE, _END = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"
# What is Markdown inside a line: an underscore in a word is none, nor is the last star, nor an ampersand that begins no
# entity.
_MARKS = re.compile(r"[\\`|$]|\*(?=.*\*)|~(?=~)|(?<=~)~|(?<!\w)_|_(?!\w)|(?<=\])\(")
_ENTITIES = re.compile(r"<|&(?=#?\w+;)")
# A list, a heading or a quotation where a line begins: its mark is to be escaped, behind a number the dot.
_BLOCKS = re.compile(r"(\d+(?=[.)](?:\s|$)))|[-+*](?=\s|$)|#+(?=\s|$)|>")
LONGEST = 60


def readable(text: str) -> str:
    """``text`` in one line; a control character, half a surrogate pair and a turn of direction is a ``REPLACEMENT``."""
    return "".join(_shown(one) for one in text)


def _shown(one: str) -> str:
    if one in "\t\n\r\v\f\x85\u2028\u2029":
        return " "
    return REPLACEMENT if unicodedata.category(one) in ("Cc", "Cs") or one in _TURNS else one


def csv_lines(lines: Iterable[Sequence[object]]) -> Iterator[list[object]]:
    """``lines`` of values for a CSV file."""
    return ([readable(value) if isinstance(value, str) else value for value in line] for line in lines)


def markdown(text: str) -> str:
    """``text`` in a line or a cell of Markdown (CommonMark, tables and formulas as GitHub has them).

    What is written from right to left is isolated, so that what stands around it keeps its order.
    """
    escaped = _MARKS.sub(r"\\\g<0>", readable(text))
    # Not every reader of Markdown knows a backslash before these.
    escaped = _ENTITIES.sub(lambda found: {"<": "&lt;", "&": "&amp;"}[found[0]], escaped)
    return f"{_ISOLATE}{escaped}{_END}" if _is_right_to_left(escaped) else escaped


def paragraph(text: str) -> str:
    """``markdown``, where a line begins: no list, heading or quotation."""
    escaped = markdown(text.lstrip())
    begun = _BLOCKS.match(escaped)
    if begun is None:
        return escaped
    place = len(begun[1] or "")
    return f"{escaped[:place]}\\{escaped[place:]}"


def _is_right_to_left(text: str) -> bool:
    return any(unicodedata.bidirectional(one) in ("R", "AL") for one in text)


def plot(text: str) -> str:
    """``text`` in a figure of matplotlib: no formula, no hidden label, at most ``LONGEST`` characters."""
    shown = readable(text)
    if len(shown) > LONGEST:
        shown = shown[: LONGEST - 1] + "…"
    # matplotlib takes an underscore at the beginning of a label as a sign to hide it.
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")
