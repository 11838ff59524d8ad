"""Locks between processes: who has one, who may look, and what stands in for them where the file system has none."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import warnings

import filelock
import pytest

from rmadapter import locks
from rmadapter.errors import InputError, StoppedError
from rmadapter.locks import ProcessLock


@pytest.fixture
def lock(tmp_path):
    return ProcessLock(tmp_path / ".lock")


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def without_locks(request, monkeypatch):
    """A file system that refuses locks, as NFS and Lustre do by their mounts."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(locks, "_has_locks", {})
    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def ended():
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def other(lock):
    return ProcessLock(lock.path)


def test_one_has_it_the_others_see_who_and_nothing_is_left(lock, tmp_path):
    assert lock.holder is None
    with lock.attempt() as mine:
        assert mine
        with other(lock).attempt() as too:
            assert not too
        found = other(lock).holder
        assert found.pid == os.getpid()
        assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in other(lock).in_the_way
    assert list(tmp_path.iterdir()) == []
    with other(lock).wait():
        assert lock.holder is not None


def test_who_looks_takes_nothing(lock, monkeypatch):
    """Else a worker that tries at that moment finds the run taken."""
    with lock.attempt(), monkeypatch.context() as patch:
        patch.setattr(filelock.FileLock, "acquire", None)
        patch.setattr(fcntl, "flock", None)
        assert other(lock).holder is not None


def test_what_a_killed_process_has_left_holds_nothing(lock, ended):
    lock.path.with_name(".lock.holder").write_text(f"{ended}\n{socket.gethostname()}\n")
    lock.path.write_text("")
    assert lock.holder is None
    with lock.attempt() as mine:
        assert mine
    # Of another machine's nobody here can tell.
    lock.path.with_name(".lock.holder").write_text(f"{ended}\nelsewhere\n")
    assert "on elsewhere" in str(lock.holder)


def test_a_lock_that_was_deleted_is_lost(lock):
    with lock.attempt():
        lock.check_held()
        lock.path.unlink()
        with pytest.raises(StoppedError, match=r"\.lock was deleted, or its folder moved, while this process had it"):
            lock.check_held()
        with other(lock).attempt() as mine:
            assert mine
            with pytest.raises(StoppedError, match="another process may have taken its place"):
                lock.check_held()
    lock.check_held()  # which no longer has it


def test_without_locks_a_file_with_host_and_process_stands_in_for_them(lock, without_locks, tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with lock.attempt() as mine:
            assert mine
            pid, host, *_ = lock.path.read_text().splitlines()
            assert (int(pid), host.partition("?")[0]) == (os.getpid(), socket.gethostname())
            with other(lock).attempt() as too:
                assert not too
            assert f"process {os.getpid()} on {socket.gethostname()}" in other(lock).in_the_way
            assert other(lock).in_the_way.endswith(f"if that process has ended, delete {lock.path}")
            lock.check_held()
    (one,) = said
    assert str(one.message).startswith(f"the file system of {tmp_path} has no locks (")
    assert list(tmp_path.iterdir()) == []
    with other(lock).wait():
        pass


@pytest.mark.filterwarnings("ignore:the file system of")
def test_a_lock_file_of_a_process_that_has_ended_is_taken_over_on_its_own_machine_alone(
    lock, without_locks, ended, monkeypatch
):
    with lock.attempt():
        _, host, *_ = lock.path.read_text().splitlines()
    lock.path.write_text(f"{ended}\n{host}\n")
    assert lock.holder is None
    with lock.attempt() as mine:
        assert mine
        assert lock.holder.pid == os.getpid()
    lock.path.write_text(f"{ended}\nelsewhere\n")
    monkeypatch.setattr(locks, "LONGEST_WAIT", 0.1)
    with other(lock).attempt() as mine:
        assert not mine
    said = rf"process {ended} on elsewhere, since .*; if that process has ended, delete"
    with pytest.raises(InputError, match=said), other(lock).wait():
        pass


def test_a_folder_that_cannot_be_written_is_said(lock, monkeypatch):
    def acquire(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    said = r"the lock .*\.lock cannot be taken: Read-only file system"
    with pytest.raises(InputError, match=said), lock.attempt():
        pass
