"""What a prediction has found so far, on the disk: a run that is stopped goes on from it without repeating an image.

    OUT.unfinished/identity.json    what the answers depend on; a run that goes on has to have the same
    OUT.unfinished/records.jsonl    a line for each image, added batch by batch

The folder is there while a run is unfinished, beside the file that it is for. A line that a kill has cut off is cut
away, and its image is read again; so are those that could not be read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rmadapter.errors import InputError, reason
from rmadapter.files import read_object, write_json
from rmadapter.locks import ProcessLock

ENDING = ".unfinished"


class Journal:
    """The records of the run whose first file is to be ``output``; one process has it at a time (``held``)."""

    def __init__(self, output: Path):
        self.folder = output.with_name(output.name + ENDING)
        self._identity_file, self._records_file = self.folder / "identity.json", self.folder / "records.jsonl"
        self._lock = ProcessLock(self.folder / ".lock")
        self._places: dict[str, int] = {}
        self._file: BinaryIO | None = None

    @property
    def exists(self) -> bool:
        """Whether a run has begun and is not finished."""
        return self._identity_file.is_file()

    def is_before(self, file: Path) -> bool:
        """Whether a run that is not finished began before ``file`` was written, as the last thing that it does."""
        return self.exists and self._identity_file.stat().st_mtime_ns <= file.stat().st_mtime_ns

    def __contains__(self, image: str) -> bool:
        return image in self._places

    def __len__(self) -> int:
        return len(self._places)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other process has this journal; a folder that is left empty is removed afterwards.

        Raises:
            InputError: another process has it, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be made: {reason(error)}") from error
        try:
            with self._lock.attempt() as mine:
                if not mine:
                    raise InputError(f"{self.folder} is in use: {self._lock.in_the_way}")
                yield
        finally:
            self._close()
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def begin(self, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Go on with what is there, or begin; ``identity`` are plain values by the names of options.

        Raises:
            InputError: an unfinished run with another identity is there (the first difference is named), which
                ``overwrite`` begins anew; a file that cannot be read or written.
        """
        if self.exists and (difference := self._difference(identity)):
            if not overwrite:
                raise InputError(
                    f"{self.folder} holds an unfinished run with another {difference}; valid: the command that began "
                    "it, which goes on, or --overwrite to begin anew"
                )
            self.remove()
        if not self.exists:
            write_json(self._identity_file, identity)
        try:
            self._file = self._records_file.open("a+b")
            self._file.truncate(self._read_places(self._file))
        except OSError as error:
            raise InputError(f"{self._records_file} cannot be written: {reason(error)}") from error

    def _difference(self, identity: Mapping[str, Any]) -> str:
        """The first value of ``identity`` that the run there does not have, in words; empty where it has them all."""
        there = read_object(self._identity_file, "the identity of an unfinished run", {})
        for name in dict.fromkeys([*identity, *there]):
            if identity.get(name) != there.get(name):
                return f"{name} ({there.get(name)!r} there, {identity.get(name)!r} here)"
        return ""

    def _read_places(self, file: BinaryIO) -> int:
        """Find where the records are, and in bytes how far the file is whole."""
        end = file.seek(0)
        for line in file:
            try:
                record = json.loads(line)
                image, unreadable = record["image"], "error" in record
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            if not unreadable:
                self._places[image] = end
            end += len(line)
        return end

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the records of a batch; each has its ``image``.

        Raises:
            InputError: they cannot be written.
            StoppedError: the lock was deleted.
        """
        assert self._file is not None  # begun
        self._lock.check_held()
        try:
            place = self._file.seek(0, 2)
            for record in records:
                line = json.dumps(record, allow_nan=False).encode() + b"\n"
                self._file.write(line)
                self._places[record["image"]] = place
                place += len(line)
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # what is left in it fails again, without the file's name
                self._close()
            raise InputError(f"{self._records_file} cannot be written: {reason(error)}") from error

    def records(self, images: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Those of ``images``, in their order, as far as there are any."""
        assert self._file is not None
        for image in images:
            if image in self._places:
                self._file.seek(self._places[image])
                yield json.loads(self._file.readline())

    def remove(self) -> None:
        """Delete what is there; what is no journal's stays."""
        self._close()
        self._places.clear()
        for file in (self._records_file, self._identity_file):
            file.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
