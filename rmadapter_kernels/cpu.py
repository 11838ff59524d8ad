"""The cpu backend: the operator as a compiled extension, built from ``csrc/`` where there is a compiler.

``RMADAPTER_CPU`` chooses its instruction set (avx512_bf16, avx512, avx2 or portable) instead of the processor's best; a
wrong name is an error at the first call that the backend would take.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from rmadapter_kernels.checks import outside_limits

LIBRARY = Path(__file__).with_name("_cpu.so")
VARIABLE = "RMADAPTER_CPU"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The extension at ``path``, its kernels registered with torch; None and the reason where there is none."""
    if not path.exists():
        return None, (
            f"the extension was not built ({path.name} is not in {path.parent}); it needs a C++17 compiler, and torch "
            "before the install: pip install torch, then pip install this package again"
        )
    try:
        torch.ops.load_library(str(path))
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"the extension does not load: {error}"
    library.rmadapter_cpu_choose.argtypes = [ctypes.c_char_p]
    library.rmadapter_cpu_chosen.restype = ctypes.c_char_p
    library.rmadapter_cpu_available.restype = ctypes.c_char_p
    return library, ""


_library, _reason = _load(LIBRARY)
# Kept here, since torch.compile reads it and does not follow a call into the library.
_chosen = None if _library is None else _library.rmadapter_cpu_chosen().decode()
# Why what the environment asks for cannot be.
_wrong: str | None = None


def instruction_sets() -> list[str]:
    """Those that this processor has kernels for, the best first; none without the extension."""
    found: list[str] = []
    while _library is not None and (name := _library.rmadapter_cpu_available(len(found))) is not None:
        found.append(name.decode())
    return found


def instruction_set() -> str | None:
    """The one in use; None without the extension."""
    return _chosen


def use_instruction_set(name: str | None) -> None:
    """Use the kernels of ``name``, or with None the best that this processor has.

    Raises:
        ValueError: there are none of this name for this processor.
    """
    if _library is None or not _library.rmadapter_cpu_choose(None if name is None else name.encode()):
        valid = ", ".join(instruction_sets()) or f"none, since {_reason}"
        raise ValueError(f"the instruction set is {name!r}; valid on this processor: {valid}")
    global _chosen, _wrong
    _chosen, _wrong = _library.rmadapter_cpu_chosen().decode(), None


def _asked_for() -> str | None:
    """Use what the environment asks for; returns why that cannot be, or None where it can.

    The import itself must not fail for it: ``rmadapter --help`` comes here, and so does all work on a GPU.
    """
    asked = os.environ.get(VARIABLE)
    if _library is None or not asked:
        return None
    try:
        use_instruction_set(asked)
    except ValueError as error:
        return f"{VARIABLE}: {error}; or unset it"
    return None


_wrong = _asked_for()
AVAILABLE = _library is not None
REASON = _wrong or (f"compiled for this processor's {instruction_set()}" if AVAILABLE else _reason)


def refusal(x: torch.Tensor, bottleneck: int, rec_hidden: int) -> str | None:
    """Why the backend cannot take x [..., D] with weights of these widths (h = 0: none), or None where it can.

    Raises:
        ValueError: it could, but ``RMADAPTER_CPU`` asks for an instruction set that is not there; the message says so.
    """
    if x.device.type != "cpu":
        return f"x is on {x.device.type}; valid: a CPU tensor"
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}; valid: {', '.join(map(str, DTYPES))}"
    outside = outside_limits(x.shape[-1], bottleneck, rec_hidden)
    if outside is None and _wrong is not None:
        raise ValueError(_wrong)
    return outside


def advantage() -> str | None:
    """Why ``auto`` prefers this backend, or None where it was not measured to be faster than eager."""
    if _chosen == "portable":
        return None  # plain loops against torch's own library
    return f"{_chosen} kernels, faster than eager at every size of bench/results/cpu.md"
