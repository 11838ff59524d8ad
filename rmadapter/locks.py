"""Locks between processes: of a run, a sweep, a search. The operating system drops them with the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class ProcessLock:
    """A lock that the file ``path`` stands for; its folder is there."""

    def __init__(self, path: Path):
        self.path = path

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Inside, this process has the lock; it waits for it."""
        with FileLock(self.path):
            yield

    @contextlib.contextmanager
    def attempt(self) -> Iterator[bool]:
        """Inside, whether this process has the lock; it does not wait."""
        lock = FileLock(self.path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
