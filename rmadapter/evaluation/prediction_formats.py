"""Predictions as people and programs take them: a table, CSV, JSON lines, one JSON list.

A record is ``{"image", "answer", "predictions": [{"class", "index", "probability"}, ...]}``, the classes by their
probability; with ``--unknown zeroshot`` it has ``answered_by`` too, with ``--sets`` ``set``, the names in it.
``answer`` is the first class, or None where its probability is below the threshold. Of an image that cannot be read
it is ``{"image", "error"}``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rmadapter.errors import InputError, printable_line

NONE_OF_THESE = "none of these"
BETWEEN = "|"  # the classes of a set, in CSV
Record = Mapping[str, Any]


class Writer(Protocol):
    """Writes records, one at a time."""

    def write(self, record: Record) -> None:
        """Write a record, or keep it until ``close``."""

    def close(self) -> None:
        """Write what is left."""


@dataclass(frozen=True)
class Shape:
    """What is known of all records before the first: ``top`` classes each, of ``names``, for ``images``."""

    top: int
    names: list[str]
    images: list[str]
    answered_by: bool = False
    sets: bool = False


def check_set_names(names: Iterable[str]) -> None:
    """Raise InputError where sets of these classes could not be taken apart in CSV."""
    odd = next((name for name in names if BETWEEN in name), None)
    if odd is not None:
        raise InputError(
            f"class {odd!r} has a {BETWEEN!r}, which stands between the classes of a set in a CSV file; valid with "
            "--sets: --jsonl in place of --csv"
        )


class CsvRows:
    """Comma-separated values with a heading; a row for each image, also for those that cannot be read."""

    def __init__(self, stream: TextIO, shape: Shape):
        self._rows, self._shape = csv.writer(stream, lineterminator="\n"), shape
        ranks = [f"{what}_{rank}" for rank in range(1, shape.top + 1) for what in ("class", "probability")]
        more = [*(["answered_by"] if shape.answered_by else []), *(["set"] if shape.sets else [])]
        self._rows.writerow(["image", "answer", *ranks, *more, "error"])

    def write(self, record: Record) -> None:
        """A row."""
        who = [record.get("answered_by", "")] if self._shape.answered_by else []
        who += [BETWEEN.join(record.get("set", ()))] if self._shape.sets else []
        if "error" in record:
            self._rows.writerow([record["image"], "", *[""] * (2 * self._shape.top), *who, record["error"]])
            return
        ranks = [value for found in record["predictions"] for value in (found["class"], found["probability"])]
        answer = NONE_OF_THESE if record["answer"] is None else record["answer"]
        self._rows.writerow([record["image"], answer, *ranks, *who, ""])

    def close(self) -> None:
        """Nothing is left."""


class JsonLines:
    """A record a line, in ASCII."""

    def __init__(self, stream: TextIO, shape: Shape):
        self._stream = stream

    def write(self, record: Record) -> None:
        """A line."""
        self._stream.write(json.dumps(record, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing is left."""


class JsonList:
    """One list of all records, in ASCII, once the last is there."""

    def __init__(self, stream: TextIO, shape: Shape):
        self._stream, self._records = stream, list[Record]()

    def write(self, record: Record) -> None:
        """Keep it."""
        self._records.append(record)

    def close(self) -> None:
        """Write the list."""
        self._stream.write(json.dumps(self._records, indent=2, allow_nan=False) + "\n")


class TableRows:
    """A table for people: a line for each class of an image, the image's name at the first."""

    def __init__(self, stream: TextIO, shape: Shape):
        self._stream = stream
        self._image = _width(["image", *shape.images])
        self._class = _width(["class", NONE_OF_THESE, *shape.names])
        self._row("image", "class", "probability")

    def write(self, record: Record) -> None:
        """The lines of an image."""
        shown = printable_line(record["image"])
        if "error" in record:
            self._row(shown, "cannot be read", "")
            return
        if record["answer"] is None:
            self._row(shown, NONE_OF_THESE, "")
            shown = ""
        for found in record["predictions"]:
            self._row(shown, printable_line(found["class"]), f"{100 * found['probability']:9.2f} %")
            shown = ""
        if "set" in record:
            self._row("", f"set: {', '.join(map(printable_line, record['set']))}", "")

    def close(self) -> None:
        """Nothing is left."""

    def _row(self, image: str, name: str, probability: str) -> None:
        self._stream.write(f"{image:{self._image}}  {name:{self._class}}  {probability}".rstrip() + "\n")


def _width(texts: Iterable[str]) -> int:
    return max(len(printable_line(text)) for text in texts)
