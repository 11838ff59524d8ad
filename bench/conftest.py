"""Benchmarks on the CPU here and on CUDA where there is one: ``pytest bench/ --benchmark-only``."""

from __future__ import annotations

import pytest
import torch

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
