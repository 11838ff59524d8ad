"""Room in a folder of files that several processes write to: what they take together stays below a limit.

    FOLDER/.lock    held while room is taken or given back
    FOLDER/.bytes   what all files take, those that are being written included

A file has its full size before anything is written to it. So a process that begins finds in the folder itself what is
taken, also by those at work and by those that were killed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from rmadapter.files import clear_temporaries, is_temporary
from rmadapter.locks import ProcessLock


class CacheRoom:
    """The room in ``folder``, which is there, for files ``*.npy`` of ``limit`` bytes together.

    Attributes:
        bytes: size of all files as this process last knew it.
        own: what this process has read or written, and does not delete. Others do not where they began before that.

    Raises:
        OSError: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self.own: set[Path] = set()
        self._threads = threading.Lock()
        clear_temporaries(folder)
        with self._locked():
            files = {path: path.stat() for path in folder.iterdir() if _counts(path.name)}
            self.bytes = sum(state.st_size for state in files.values())
            self._write_bytes()
        kept = {path: state.st_mtime_ns for path, state in files.items() if path.suffix == ".npy"}
        # The longest unused at the end.
        self._old = {path: kept[path] for path in sorted(kept, key=kept.__getitem__, reverse=True)}

    def use(self, file: Path) -> None:
        """Say that ``file`` has been read, to this process and by its time to others."""
        if file not in self.own:
            self.own.add(file)
            self._old.pop(file, None)
            with contextlib.suppress(OSError):  # somebody else's cache, which is only read
                file.touch()

    def take(self, temporary: Path, size: int, file: Path) -> bool:
        """Whether ``temporary``, on its way to be ``file``, may take ``size`` bytes, which it then has.

        Files that no process has read for long are deleted for it.

        Raises:
            OSError: the disk is full, or the folder cannot be written any more.
        """
        with self._locked():
            self._delete(file)  # torn
            while self.bytes + size > self.limit and self._old:
                other, time = self._old.popitem()
                with contextlib.suppress(FileNotFoundError):
                    if other.stat().st_mtime_ns == time:  # else another process uses it
                        self._delete(other)
            taken = self.bytes + size <= self.limit
            if taken:
                os.truncate(temporary, size)
                self.bytes += size
            self._write_bytes()
            return taken

    def give_back(self, size: int) -> None:
        """What was taken is not needed after all, and the temporary file is deleted."""
        with contextlib.suppress(OSError), self._locked():
            self.bytes -= size
            self._write_bytes()

    def _delete(self, file: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            size = file.stat().st_size
            file.unlink()
            self.bytes -= size

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Inside, no other thread or process changes what is taken, and ``bytes`` is what it is."""
        with self._threads, ProcessLock(self.folder / ".lock").wait():
            with contextlib.suppress(OSError, ValueError):  # not yet there, or torn by a kill: as it was
                self.bytes = int((self.folder / ".bytes").read_text(encoding="ascii"))
            yield

    def _write_bytes(self) -> None:
        (self.folder / ".bytes").write_text(str(self.bytes), encoding="ascii")


def _counts(name: str) -> bool:
    return name.endswith(".npy") or is_temporary(name)
