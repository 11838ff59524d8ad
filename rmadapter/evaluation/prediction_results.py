"""Where predictions go: to standard output as they come, to files once all are there, kept by a journal until then."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rmadapter.errors import InputError
from rmadapter.evaluation import embeddings_file
from rmadapter.evaluation.embeddings_file import check_embeddings_name, write_embeddings
from rmadapter.evaluation.image_paths import STANDARD_INPUT
from rmadapter.evaluation.journal import Journal
from rmadapter.evaluation.prediction_formats import CsvRows, JsonLines, JsonList, Record, Shape, TableRows, Writer
from rmadapter.files import check_file_name, write_atomic

STANDARD_OUTPUT = STANDARD_INPUT  # "-" by the same convention


@dataclass(frozen=True)
class Destinations:
    """What is written: files, or "-" for standard output; ``json`` is a list there, and without all of it a table.

    Raises:
        InputError: two that are the same, a name that embeddings cannot have.
    """

    csv: str | None = None
    jsonl: str | None = None
    embeddings: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.embeddings is not None:
            check_embeddings_name(self.embeddings)
        named = [("csv", self.csv), ("jsonl", self.jsonl), ("embeddings", self.embeddings)]
        given = [(name, value) for name, value in named if value is not None]
        given += [("json", STANDARD_OUTPUT)] if self.json else []
        for number, (name, value) in enumerate(given):
            for other, same in given[:number]:
                if value == same:
                    where = "standard output" if value == STANDARD_OUTPUT else value
                    raise InputError(f"{other} and {name} both go to {where}; valid: one of them")

    @property
    def files(self) -> dict[str, Path]:
        """Name of the option -> file; the journal is beside the first."""
        named = {"csv": self.csv, "jsonl": self.jsonl, "embeddings": self.embeddings}
        return {name: Path(path) for name, path in named.items() if path is not None and path != STANDARD_OUTPUT}

    @property
    def journal(self) -> Journal | None:
        """What keeps an unfinished run; None where there are no files."""
        return next((Journal(path) for path in self.files.values()), None)

    @property
    def printed(self) -> Callable[[TextIO, Shape], Writer] | None:
        """What standard output gets, if anything."""
        if self.json:
            return JsonList
        if STANDARD_OUTPUT in (self.csv, self.jsonl):
            return CsvRows if self.csv == STANDARD_OUTPUT else JsonLines
        return TableRows if self.csv is None and self.jsonl is None else None

    def check(self, overwrite: bool) -> None:
        """Before any work: may the files be written?

        Raises:
            InputError: a folder in a file's place, a file in a folder's; a file that is there already, unless it may be
                written over or an unfinished run has written it.
        """
        for name, path in self.files.items():
            check_file_name(name, path)
        journal = self.journal
        if overwrite or journal is None:
            return
        for name, path in self.files.items():
            if path.exists() and not journal.is_before(path):
                raise InputError(f"{name} {path} is there already; valid: another name, or --overwrite to replace it")

    @contextlib.contextmanager
    def opened(self, identity: Mapping[str, Any], shape: Shape, *, overwrite: bool = False) -> Iterator[Results]:
        """Inside, the results, with what an unfinished run of this ``identity`` has found.

        Raises:
            InputError: what ``Journal.held`` and ``Journal.begin`` raise.
        """
        journal = self.journal
        with contextlib.nullcontext() if journal is None else journal.held():
            if journal is not None:
                journal.begin(identity, overwrite=overwrite)
            yield Results(self, shape, journal)


class Results:
    """Takes the records of ``shape.images``; made by ``Destinations.opened``. ``unreadable`` are those with errors."""

    def __init__(self, destinations: Destinations, shape: Shape, journal: Journal | None):
        self._destinations, self._shape, self._journal = destinations, shape, journal
        self.unreadable: list[Record] = []
        printed = destinations.printed
        self._printer = None if printed is None else printed(sys.stdout, shape)
        done = [] if journal is None else [image for image in shape.images if image in journal]
        self.left: Sequence[str] = shape.images
        if journal is not None and done:
            known = set(done)
            self.left = [image for image in shape.images if image not in known]
            for record in journal.records(done):
                self._print(record)

    @property
    def done(self) -> int:
        """How many images an earlier run has found."""
        return len(self._shape.images) - len(self.left)

    def add(self, records: Sequence[Record]) -> None:
        """Keep the records of a batch, and print them."""
        if self._journal is not None:
            self._journal.add(records)
        for record in records:
            if "error" in record:
                self.unreadable.append(record)
            self._print(record)

    def finish(self) -> None:
        """Write the files, and end the journal.

        Raises:
            InputError: no image could be read, or a file cannot be written; the journal then stays.
        """
        if self.done == 0 and len(self.unreadable) == len(self.left):
            if self._journal is not None:
                self._journal.remove()
            more = f", and so on: none of {len(self.left)} images could be read" if len(self.left) > 1 else ""
            raise InputError(f"{self.unreadable[0]['error']}{more}")
        for name, path in self._destinations.files.items():
            self._write(name, path)
            if self._printer is None:
                print(f"{name}: {path}")
        if self._printer is not None:
            self._printer.close()
        if self._journal is not None:
            self._journal.remove()

    def _write(self, name: str, path: Path) -> None:
        assert self._journal is not None  # there are files
        records = self._journal.records(self._shape.images)
        if name == "embeddings":
            write_embeddings(path, records)
            return
        make: Callable[[TextIO, Shape], Writer] = CsvRows if name == "csv" else JsonLines

        def write(temporary: Path) -> None:
            # As in files.write_text: a file's name need not be UTF-8.
            with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                writer = make(stream, self._shape)
                for record in records:
                    writer.write(_without_embedding(record))
                writer.close()

        write_atomic(path, write)

    def _print(self, record: Record) -> None:
        if self._printer is not None:
            self._printer.write(_without_embedding(record))


def _without_embedding(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != embeddings_file.KEY}
