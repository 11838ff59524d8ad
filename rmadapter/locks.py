"""Locks between processes: of a run, a sweep, a search, a table of results.

The operating system's lock on a file, which it drops with the process; where the file system has none (some NFS and
Lustre mounts), a lock file with host and process id, made where it is not there yet. ``filelock`` has both, and takes
over a lock file whose process, of this machine, is gone.

Who has a lock stands in a file, so that others can look without taking it: taking it, even for a moment, would turn
away a worker that tries at that moment. A process that was killed on another machine is taken for alive by those who
look; by those who try to lock, only where the file system has no locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from rmadapter.errors import InputError, StoppedError

try:
    import fcntl
except ImportError:  # Windows, whose locks every file system has
    fcntl = None  # type: ignore[assignment]

# What file systems without locks answer.
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
# Locks that are waited for are held for a moment; a lock file that lies there for longer was left on another machine.
LONGEST_WAIT = 60
# The first try may find that a lock file was left by a process that has ended, and the next one take it.
SECOND_TRY = 0.2
# The number that Linux gives to the process numbers of the machine itself, outside containers.
_MACHINE_NAMESPACE = 0xEFFFFFFC
# By device: whether its file system has locks, as far as this process has looked.
_has_locks: dict[int, bool] = {}


@dataclass(frozen=True)
class Holder:
    """The process that has a lock: its number on its host, and since when, in seconds since 1970."""

    pid: int
    host: str
    since: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host.partition('?')[0]}, since {since}"

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended: it was of this machine, or of this container, and is not there."""
        if self.host not in _own_names() or os.name == "nt":  # where os.kill would end it
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False  # another user's, or no number that a process can have
        return False


class ProcessLock:
    """A lock that the file ``path`` stands for; its folder is there. The file is gone once nobody has the lock."""

    def __init__(self, path: Path):
        self.path = path
        self._holder_file = path.with_name(f"{path.name}.holder")  # a lock file that stands for itself needs none
        self._taken: tuple[int, int] | None = None

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Inside, this process has the lock; it waits for it.

        Raises:
            InputError: the folder cannot be written; a lock file that another machine's process has left for longer
                than ``LONGEST_WAIT`` seconds.
        """
        soft = not has_locks(self.path.parent)
        with self._attempt(soft, LONGEST_WAIT if soft else -1) as mine:
            if not mine:
                raise InputError(f"the lock {self.path} does not come free: {self.in_the_way}")
            yield

    @contextlib.contextmanager
    def attempt(self) -> Iterator[bool]:
        """Inside, whether this process has the lock; it does not wait. InputError as ``wait`` raises it."""
        soft = not has_locks(self.path.parent)
        with self._attempt(soft, SECOND_TRY if soft else 0) as mine:
            yield mine

    @contextlib.contextmanager
    def _attempt(self, soft: bool, seconds: float) -> Iterator[bool]:
        lock: BaseFileLock = SoftFileLock(self.path) if soft else FileLock(self.path)
        if not self._acquired(lock, seconds):
            yield False
            return
        try:
            with contextlib.suppress(OSError):
                if not soft:
                    self._holder_file.write_text(f"{os.getpid()}\n{_own_names()[-1]}\n", encoding="utf-8")
                self._taken = _identity(self.path)
            yield True
        finally:
            mine, self._taken = self._taken is not None and _identity(self.path) == self._taken, None
            with contextlib.suppress(OSError):  # also of a folder that is gone
                if mine and not soft:
                    self._holder_file.unlink()
                    self.path.unlink()  # while it is locked: who has opened it meanwhile finds that it is gone
            with contextlib.suppress(OSError):
                lock.release()

    def _acquired(self, lock: BaseFileLock, seconds: float) -> bool:
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            return False
        except OSError as error:
            raise InputError(f"the lock {self.path} cannot be taken: {error.strerror or error}") from error
        return True

    def check_held(self) -> None:
        """Raise StoppedError where this process no longer has the lock that it took: its file was deleted."""
        if self._taken is not None and _identity(self.path) != self._taken:
            raise StoppedError(
                f"the lock {self.path} was deleted, or its folder moved, while this process had it: another process "
                "may have taken its place, so this one stops"
            )

    @property
    def holder(self) -> Holder | None:
        """Who has the lock, as far as one can see without taking it; None where nobody has."""
        for file in (self._holder_file, self.path):
            with contextlib.suppress(OSError, ValueError):
                since = file.stat().st_mtime
                pid, host, *_ = file.read_text(encoding="utf-8").splitlines()
                found = Holder(int(pid), host, since)
                if not found.ended:
                    return found
        return None

    @property
    def in_the_way(self) -> str:
        """Who has the lock, for people, and what is to be done about one that will not give it back."""
        found = self.holder
        text = str(found) if found is not None else "another process"
        if not has_locks(self.path.parent):
            text += f"; if that process has ended, delete {self.path}"
        return text


def has_locks(folder: Path) -> bool:
    """Whether the file system of ``folder`` has locks; where it has none, that is said once."""
    if fcntl is None:
        return True
    try:
        device = folder.stat().st_dev
        if device not in _has_locks:
            with tempfile.TemporaryFile(dir=folder) as file:
                _has_locks[device] = _can_lock(file.fileno(), folder)
    except OSError:
        return True  # whatever it is, taking the lock says it
    return _has_locks[device]


def _can_lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}); files with host and process id stand in "
            "for them",
            stacklevel=2,
        )
        return False
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _own_names() -> tuple[str, ...]:
    """What this machine is called in lock files; in a container also with the number of its processes' namespace."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
        if namespace != _MACHINE_NAMESPACE:
            return name, f"{name}?pidns-{namespace:x}"  # as filelock writes it
    return (name,)
