"""What the tests of training runs read of a run, and how they end one before its time."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from rmadapter.training import loop


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter.safetensors")


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(one, other):
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class FullDisk(io.RawIOBase):
    """Stands below a buffer of Python's for a file on a disk without room; what was written stays in the buffer."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def fileno(self):
        return self.file.fileno()

    def writable(self):
        return True

    def seekable(self):
        return True

    def seek(self, *place):
        return 0

    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Killed(BaseException):
    """Stands for the end of the process: nothing in between catches it."""


def stop(*arguments, **names):
    raise Killed


@contextlib.contextmanager
def stopped_before_step(at: int, monkeypatch):
    """A run in it ends before the step of that number, from 0."""
    real = loop.TrainingLoop._step

    def step(self, *arguments):
        if self.step == at:
            raise Killed
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_step", step)
        with pytest.raises(Killed):
            yield
