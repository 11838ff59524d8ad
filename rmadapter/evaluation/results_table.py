"""``results.jsonl``: many finished results in one file, a line each, in place of a folder a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmadapter.errors import InputError
from rmadapter.files import write_text
from rmadapter.locks import ProcessLock

RESULTS_TABLE = "results.jsonl"
_Signature = tuple[int, int, int]


@dataclass(frozen=True)
class KeptResult:
    """One line of a table.

    Attributes:
        run: the run's name, such as ``rmadapter/emoji_food@fluent/seed1``.
        on: the data set that the run was tested on, None where it is the one that it was trained on.
        results: what results.json holds; ``commit`` is in it, None where it is not known.
        table: the file.
        line: the number of the line in it, from 1.
    """

    run: str
    on: str | None
    results: dict[str, Any]
    table: Path
    line: int

    @property
    def name(self) -> str:
        """Of the run and the data set, for people."""
        return self.run if self.on is None else f"{self.run} on {self.on}"

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.table}, line {self.line} ({self.name})"


class ResultsTable:
    """The finished results in the file ``path``, which need not be there yet.

    Any number of processes may add at once, on all machines that see the file: a lock beside it keeps them apart, and
    the file is replaced as a whole, so that who reads sees all of a run or nothing. It is read again only after it has
    changed.
    """

    def __init__(self, path: Path):
        self.path = path
        self._read: tuple[_Signature, tuple[KeptResult, ...]] | None = None
        self._by_run: dict[str, dict[str | None, KeptResult]] = {}

    def lines(self) -> tuple[KeptResult, ...]:
        """Every line, in order; none where there is no file.

        Raises:
            InputError: a line that is damaged or whose result stands in an earlier one too; the message names both.
        """
        try:
            with self.path.open("rb") as file:
                # Of the open file: on a network's file system a name's own times may lag behind.
                found = os.fstat(file.fileno())
                signature = (found.st_ino, found.st_mtime_ns, found.st_size)
                if self._read is None or self._read[0] != signature:
                    self._read = signature, _parsed(self.path, file.read())
                    self._by_run = {}
                    for line in self._read[1]:
                        self._by_run.setdefault(line.run, {})[line.on] = line
        except FileNotFoundError:
            self._read, self._by_run = None, {}
        except OSError as error:
            raise InputError(f"results table {self.path} cannot be read: {error.strerror or error}") from error
        return self._read[1] if self._read else ()

    def of(self, run: str) -> Mapping[str | None, KeptResult]:
        """The results of ``run`` that are here, by ``KeptResult.on``.

        Raises:
            InputError: what ``lines`` raises.
        """
        self.lines()
        return self._by_run.get(run, {})

    def add(self, run: str, results: Mapping[str | None, dict[str, Any]]) -> None:
        """Add the ``results`` of ``run``, all at once and on disk when this returns; what is here already stays.

        Raises:
            InputError: what ``lines`` raises, or the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            here = self.of(run)
            new = [_line(run, on, values) for on, values in results.items() if on not in here]
            if new:
                write_text(self.path, "".join([*self._texts(), *new]))

    def drop(self, run: str) -> None:
        """Take every result of ``run`` out, as far as there is any.

        Raises:
            InputError: what ``lines`` raises, or the file cannot be written.
        """
        if not self.of(run):
            return
        with self._alone():
            kept = [text for text, line in zip(self._texts(), self.lines(), strict=True) if line.run != run]
            write_text(self.path, "".join(kept))

    def _alone(self) -> AbstractContextManager[None]:
        return ProcessLock(self.path.with_name(f".{self.path.name}.lock")).wait()

    def _texts(self) -> list[str]:
        """The lines as they stand in the file."""
        return [_line(line.run, line.on, line.results) for line in self.lines()]


def _line(run: str, on: str | None, results: dict[str, Any]) -> str:
    first = {"run": run, "on": on, "commit": results.get("commit")}
    return json.dumps({**first, **results}, ensure_ascii=False) + "\n"


def _parsed(path: Path, content: bytes) -> tuple[KeptResult, ...]:
    lines: list[KeptResult] = []
    seen: dict[tuple[str, str | None], int] = {}
    for number, text in enumerate(content.splitlines(), start=1):
        place = f"results table {path}, line {number}"
        try:
            values = json.loads(text)
            run, on = values.pop("run"), values.pop("on")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{place}, is damaged: {type(error).__name__}: {error}; valid: a JSON object with run and on"
            ) from error
        if not isinstance(run, str) or not isinstance(on, str | None):
            raise InputError(f"{place}, is damaged: run is {run!r}, on is {on!r}; valid: names, for on null too")
        line = KeptResult(run, on, values, path, number)
        if (run, on) in seen:
            raise InputError(f"{place}: {line.name} stands in line {seen[run, on]} too; valid: one of the two")
        seen[run, on] = number
        lines.append(line)
    return tuple(lines)
