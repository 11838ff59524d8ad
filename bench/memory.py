"""Peak memory of a call: of the process, as Linux counts it, and of PyTorch's own allocations, one by one."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the most since it was set back) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def process_peak(device: torch.device, call: Callable[[], object]) -> int:
    """The most memory of the process (on CUDA: that PyTorch has allocated) while ``call`` runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM to what is resident now
    call()
    return resident_bytes("VmHWM")


def allocated_peak(device: torch.device, call: Callable[[], object]) -> int:
    """The most bytes of tensors that ``call`` has allocated at one time, beside those that were there before it.

    On a CPU from the profiler's record of allocations: the resident memory of a process depends on what its allocator
    kept from calls before, which for one training step moved by as much as 6 % between calls.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        return process_peak(device, call) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it calls the lack of a GPU an error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
