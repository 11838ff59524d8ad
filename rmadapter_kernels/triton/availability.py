"""Whether the Triton backend can be used, which calls it takes, and when ``auto`` prefers it. Imports no Triton."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import torch

from rmadapter_kernels.calls import BackendStatus, Call
from rmadapter_kernels.checks import outside_limits
from rmadapter_kernels.triton.tuning import worth_preparing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOWEST_TRITON = (3, 6)
LOWEST_CAPABILITY = (8, 0)


def _constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """Asked once, and a constant for torch.compile, which would trace into the search for distributions.

    What ``torch.compiler.assume_constant_result`` does, without its import of all of Dynamo.
    """
    cached = functools.cache(function)

    @functools.wraps(function)
    def call(*arguments):
        return cached(*arguments)

    call._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as torch marks its own
    return call


@_constant
def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors and for tests alone."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _triton_version() -> str | None:
    # Under ROCm and in some conda builds the distribution has another name.
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@_constant
def status() -> BackendStatus:
    """Available with Triton from 3.6 on and a CUDA device, or under Triton's interpreter."""
    version = _triton_version()
    if version is None:
        return BackendStatus(False, "Triton is not installed; pip install triton")
    if tuple(int(part) for part in version.split(".")[:2]) < LOWEST_TRITON:
        return BackendStatus(False, f"Triton {version} is installed; valid: 3.6 or later")
    if interpreted():
        return BackendStatus(True, f"Triton {version} in its interpreter, for tests: slow")
    if torch.version.hip is not None:
        return BackendStatus(False, "torch is built for ROCm; valid: CUDA")
    if not torch.cuda.is_available():
        return BackendStatus(False, "there is no CUDA device")
    return BackendStatus(True, f"Triton {version} on {torch.cuda.get_device_name()}")


@_constant
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def refusal(call: Call) -> str | None:
    """Why it cannot take ``call``: device, dtype, or a width outside the kernels' limits."""
    x = call.x
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}; valid: {', '.join(map(str, DTYPES))}"
    if not (x.is_cuda or interpreted()):
        return f"x is on {x.device}; valid: a CUDA device"
    if x.is_cuda and _capability(x.device.index) < LOWEST_CAPABILITY:
        major, minor = _capability(x.device.index)
        return f"{x.device} has compute capability {major}.{minor}; valid: 8.0 or later"
    return outside_limits(call.x.shape[-1], call.bottleneck, call.rec_hidden)


def advantage(call: Call) -> str | None:
    """Preferred on every CUDA device that it takes; under the interpreter never."""
    return "fused kernels for CUDA devices of capability 8.0 and later" if call.x.is_cuda else None


def prepare_for(x: torch.Tensor) -> bool:
    """Whether a forward call on ``x`` and its backward share prepared weights.

    In a compiled graph always: a condition on the number of tokens would compile it again where they cross it.
    """
    return torch.compiler.is_compiling() or worth_preparing(x.numel() // x.shape[-1])
