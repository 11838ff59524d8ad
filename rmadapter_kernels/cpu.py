"""The cpu backend: the operator as a compiled extension, built from ``csrc/`` where there is a compiler.

The library orders its instruction sets by their speed on this processor, known or timed at the import
(csrc/dispatch.cpp); ``RMADAPTER_CPU`` chooses one of them (amx_bf16, avx512_bf16, avx512, avx2 or portable) instead of
the fastest. A wrong name is an error at the first call that the backend would take.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch

from rmadapter_kernels.checks import outside_limits

LIBRARY = Path(__file__).with_name("_cpu.so")
# What the committed benchmarks found, by family of processors; bench/cpu_report.py writes it.
MEASURED = Path(__file__).with_name("cpu_measured.json")
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
        return _declared(ctypes.CDLL(str(path))), ""
    except (OSError, AttributeError) as error:  # the latter where it was built from other sources than these
        return None, f"the extension does not load: {error}; install the package again"


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, its functions with the types of their arguments and results (csrc/dispatch.h)."""
    library.rmadapter_cpu_choose.argtypes = [ctypes.c_char_p]
    library.rmadapter_cpu_chosen.restype = ctypes.c_char_p
    library.rmadapter_cpu_trial.argtypes, library.rmadapter_cpu_trial.restype = [ctypes.c_char_p], ctypes.c_double
    for name in ("available", "order", "processor", "left_out"):
        getattr(library, f"rmadapter_cpu_{name}").restype = ctypes.c_char_p
    return library


class Measured(NamedTuple):
    """A committed run of bench/test_cpu.py.

    Attributes:
        processors: beginnings of what ``processor()`` gives on the family that it stands for.
        instructions: the set that ran.
        results: its table.
        least: by dtype, how many times as fast as the faster of eager and torch.compile the backend was in the case
            where it was the least faster.
    """

    processors: tuple[str, ...]
    instructions: str
    results: str
    least: dict[str, float]


def read_measured(path: Path = MEASURED) -> list[Measured]:
    """Every committed run."""
    runs = json.loads(path.read_text(encoding="utf-8"))
    return [Measured(**{**run, "processors": tuple(run["processors"])}) for run in runs]


def judge(dtype: torch.dtype, instructions: str, model: str, asked_for: bool, runs: list[Measured]) -> tuple[bool, str]:
    """Whether ``auto`` prefers this backend for x of ``dtype``, and why or why not.

    It does where the kernels of ``instructions`` were faster than eager and than torch.compile in every case of the
    committed benchmark of the family of the processor ``model``, or where vector kernels were asked for by name.
    """
    if instructions == "portable":
        return False, "the cpu backend has only plain loops for this processor, not measured to be faster"
    if asked_for:
        return True, f"{instructions} kernels, asked for by name"
    name = str(dtype).removeprefix("torch.")
    for run in runs:
        if run.instructions == instructions and model.startswith(run.processors):
            least = run.least.get(name, 0.0)
            if least > 1:
                than = f"at least {least:.2f} times as fast as eager and torch.compile"
                return True, f"{instructions} kernels, {than} on such processors ({run.results})"
            found = f"is at {least:.2f} times the speed of eager or torch.compile" if least else "was not measured"
            return False, f"the cpu backend {found} in {name} on such processors ({run.results})"
    return False, f"the {instructions} kernels of the cpu backend were not measured on such processors ({model})"


_library, _reason = _load(LIBRARY)
_runs = read_measured()
# Kept here, since torch.compile reads them and does not follow a call into the library.
_chosen: str | None = None
_judgements: dict[torch.dtype, tuple[bool, str]] = {}
# Why what the environment asks for cannot be.
_wrong: str | None = None


def _read_choice(asked_for: bool) -> None:
    """What the library has chosen, and what follows from it."""
    global _chosen, _reason, _judgements, _wrong
    _wrong = None
    if _library is None:
        return
    _chosen = _library.rmadapter_cpu_chosen().decode()
    why = "asked for by name" if asked_for else f"the fastest ones, {_library.rmadapter_cpu_order().decode()}"
    left_out = _library.rmadapter_cpu_left_out().decode()
    _reason = f"{_chosen} kernels, {why}" + (f"; built without {left_out}" if left_out else "")
    _judgements = {dtype: judge(dtype, _chosen, processor() or "", asked_for, _runs) for dtype in DTYPES}


def processor() -> str | None:
    """Vendor, family and model, such as "GenuineIntel 6 207"; None without the extension."""
    return None if _library is None else _library.rmadapter_cpu_processor().decode()


def instruction_sets() -> list[str]:
    """Those that this processor has kernels for, the fastest first; none without the extension."""
    found: list[str] = []
    while _library is not None and (name := _library.rmadapter_cpu_available(len(found))) is not None:
        found.append(name.decode())
    return found


def trial_seconds(name: str) -> float:
    """What forward of 96 tokens in bf16 takes the kernels of ``name``: the order on an unknown processor."""
    if _library is None or (seconds := _library.rmadapter_cpu_trial(name.encode())) < 0:
        raise ValueError(f"the instruction set is {name!r}; valid on this processor: {', '.join(instruction_sets())}")
    return seconds


def instruction_set() -> str | None:
    """The one in use; None without the extension."""
    return _chosen


def use_instruction_set(name: str | None) -> None:
    """Use the kernels of ``name``, or with None the fastest that this processor has.

    Raises:
        ValueError: there are none of this name for this processor.
    """
    if _library is None or not _library.rmadapter_cpu_choose(None if name is None else name.encode()):
        valid = ", ".join(instruction_sets()) or f"none, since {_reason}"
        raise ValueError(f"the instruction set is {name!r}; valid on this processor: {valid}")
    _read_choice(asked_for=name is not None)


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


_read_choice(asked_for=False)
_wrong = _asked_for()
AVAILABLE = _library is not None


def reason() -> str:
    """Which kernels are in use and why, or why there are none."""
    return _wrong or _reason


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


def judgement(dtype: torch.dtype) -> tuple[bool, str]:
    """``judge`` of the kernels in use; ``dtype`` is one that the backend takes."""
    return _judgements[dtype]


def advantage(dtype: torch.dtype) -> str | None:
    """Why ``auto`` prefers this backend, or None where it does not."""
    faster, why = _judgements[dtype]
    return why if faster else None
