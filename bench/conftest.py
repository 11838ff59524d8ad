"""Benchmarks on the CPU here and on CUDA where there is one: ``pytest bench/ --benchmark-only``."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch

if sys.platform == "linux":
    # Large temporaries otherwise go back to the system and are paged in anew: whoever came first in a process was
    # timed at 16.5 ms where it later took 8.4. Options of glibc: M_MMAP_MAX none, M_TRIM_THRESHOLD the largest.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine."""
    return torch.device(request.param)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Results say what they were measured with."""
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
