"""A device that fails under a worker: everything the process does on it afterwards fails too, whatever the run.

The worker ends itself and its run is left to others, which count its faults: one that a second process meets fails.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from rmadapter.errors import InputError, StoppedError, causes
from rmadapter.files import read_json, write_json

FAULTS = "faults.json"
# A run that so many processes met a fault in has failed: it is not the device, or it is every one.
MOST_FAULTS = 2
# Of a worker that ended itself for a fault.
FAULT_STATUS = 3
# What CUDA's errors begin with; PyTorch has a class of its own for most of them.
_SIGNS = ("CUDA error", "CUDA driver error", "CUDNN_STATUS", "cuDNN error")


class DeviceFaultError(StoppedError):
    """The device of this process has failed."""


def is_device_fault(error: BaseException) -> bool:
    """Whether ``error``, or one that it was raised from, is a device's failure, after which it does nothing more."""
    return any(
        isinstance(found, torch.AcceleratorError)
        or (isinstance(found, RuntimeError) and any(sign in str(found) for sign in _SIGNS))
        for found in causes(error)
    )


def count_fault(folder: Path, error: BaseException) -> int:
    """Note a fault that the run in ``folder`` met; how many there were since it last failed."""
    file = folder / FAULTS
    before = []
    if file.is_file():
        with contextlib.suppress(InputError):  # damaged: counted anew
            before = read_json(file, "faults file")
    faults = [*before, f"{type(error).__name__}: {error}"]
    write_json(file, faults)
    return len(faults)
