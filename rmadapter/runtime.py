"""What a run finds on the machine: device, precision, a compiler, versions."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rmadapter.errors import InputError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_device(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:N", a GPU with its number; InputError where it is not there.

    A GPU is made the current one: events, streams and pinned memory mean that one where none is named.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", name):
        raise InputError(f"device is {name!r}; valid: auto, cpu, cuda, cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {name!r}, but {torch.cuda.device_count()} CUDA devices are there; valid: auto, cpu"
        )
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def usable_processors() -> int:
    """How many processors this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_precision(name: str, device: torch.device) -> str:
    """ "auto" made definite for ``device``; InputError where the device does not support what was asked for."""
    bf16_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        return "bf16" if bf16_gpu or (device.type == "cpu" and cpu_has_bf16()) else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise InputError("precision is 'fp16', which needs loss scaling on a GPU; valid on cpu: bf16, fp32, auto")
    if name == "bf16" and device.type == "cuda" and not bf16_gpu:
        raise InputError(f"precision is 'bf16', which {torch.cuda.get_device_name(device)} lacks; valid: fp16, fp32")
    return name


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (AVX512_BF16 or AMX); elsewhere fp32 is faster."""
    # Named as private in torch.cpu, and the same since torch 2.5.
    return torch.cpu._is_avx512_bf16_supported() or cpu_has_amx()


def cpu_has_amx() -> bool:
    """Whether the CPU multiplies tiles of bf16 matrices (AMX)."""
    return torch.cpu._is_amx_tile_supported()


def residual_dtype(residual: str, precision: str) -> torch.dtype:
    """Dtype of the residual stream above the first adapter; "auto" is fp32, whatever the precision."""
    return DTYPES[precision] if residual == "compute" else torch.float32


def compiler_obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot make code for ``device`` here, or None where it can."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        language, variable, compilers = "C", "CC", ["gcc", "clang"]  # Triton builds its launchers with it
    else:
        language, variable, compilers = "C++", "CXX", ["g++", "clang++", "c++"]
    if os.environ.get(variable):
        compilers = shlex.split(os.environ[variable])[:1]  # "ccache g++" is a command with words of its own
    return None if any(map(shutil.which, compilers)) else f"there is no {language} compiler ({', '.join(compilers)})"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine and git revision of the code, as plain values."""
    import numpy
    import open_clip
    import torchvision

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "open_clip": open_clip.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "git": git_revision(),
    }


@cache  # the code that a process runs is what was there when it began
def git_revision() -> str | None:
    """Commit of the checkout that this code is in, with "+changes" where it is not clean; None outside one.

    An environment inside the checkout of another project is outside: git does not track the code there.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
