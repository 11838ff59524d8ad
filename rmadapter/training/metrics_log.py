"""``metrics.jsonl``: what training says of itself, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from rmadapter.errors import InputError, StoppedError


class MetricsLog:
    """``metrics.jsonl``, opened at ``length`` bytes, so that a resumed run repeats no line.

    Where the file is shorter, or gone, lines that the run wrote before are lost; that is said and the run goes on.

    Raises:
        InputError: the file cannot be written, now or at a later line.
    """

    def __init__(self, path: Path, length: int):
        try:
            self._file = path.open("ab")
            there = self.length
            if there < length:
                print(f"{path} has {there} bytes of the {length} that this run had written: lines are missing in it")
            self._file.truncate(min(there, length))
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        self.path = path

    def write(self, values: dict[str, Any]) -> None:
        """Append a line and hand it to the operating system.

        Raises:
            StoppedError: the file was deleted, most likely with its folder.
        """
        try:
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise StoppedError(
                    f"{self.path} was deleted while the run was writing to it; --resume goes on from the last state "
                    "that was saved, if that is still there"
                )
            self._file.write(json.dumps(values).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # what is left in it fails again, without the file's name
                self._file.close()
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from error

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self._file.seek(0, 2)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
