"""What the tests and the fuzzer of the cpu backend share: fp64 as the ruler, eager's own error as the measure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from operator_cases import Case, run
from torch import Tensor

from rmadapter_kernels import cpu
from rmadapter_kernels.reference import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def asked_for() -> str | None:
    """The set that was asked for by name, which `auto` treats otherwise than one that runs as the fastest (None)."""
    return cpu.instruction_set() if "asked for by name" in cpu.reason() else None


@contextlib.contextmanager
def instructions(name: str | None) -> Iterator[None]:
    """The kernels of ``name`` inside, those of before after it."""
    before = asked_for()
    cpu.use_instruction_set(name)
    try:
        yield
    finally:
        cpu.use_instruction_set(before)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Whatever torch allocates is full of NaN, so that an output nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def with_backend(case: Case, backend: str) -> Case:
    """The same inputs, asked of one backend."""
    return Case(
        case.x, case.weights, case.residual, case.norm, case.d_out, case.d_loss, {**case.settings, "backend": backend}
    )


def relative_error(found: Tensor, exact: Tensor, least: float = 1e-30) -> float:
    """Norm of the difference over that of the exact value, or over ``least`` if that is more.

    Infinite where one is not finite and the other is.
    """
    if found.numel() == 0:
        return 0.0
    error = (found.double() - exact.double()).norm() / exact.double().norm().clamp_min(least)
    return float("inf") if error.isnan() else error.item()


def terms_of(name: str, exact: dict[str, Tensor]) -> float:
    """Of a bias's gradient the size of what it sums: a row of its weight's gradient sums the same times the input."""
    weight = exact.get(name.replace(" b_", " w_")) if name.startswith("grad b_") else None
    return 0.0 if weight is None else (weight.norm() / weight.shape[0] ** 0.5).item()


def judge(case: Case, factor: float = 1.3, steps: float = 1, cancelling: bool = False, **how: Any) -> dict[str, Tensor]:
    """The cpu backend's results, after comparing each with fp64.

    The error is at most ``factor`` times eager's in the same dtypes plus ``steps`` of the dtype, times the square root
    of the reduction's length in fp32, whose sums both round in an order of their own. With ``cancelling`` that of a
    bias's gradient is relative to the terms of its sum where those are larger: at r = 1 it is one number, which may be
    a hundredth of each of them.
    """
    if case.settings.get("objective") == "l1" and case.x.dtype != torch.float32 and case.weights[7] is not None:
        # The sign of a difference near zero is rounding's, and one of a thousand moves a gradient by 6 %.
        case.weights[7] = case.weights[7] + torch.tensor([8.0, -8.0]).repeat(case.x.shape[-1] // 2).to(case.x.dtype)
    wide = case.to(torch.float64)
    # fp32 weights are rounded to the dtype of x for the products; which side of zero relu falls on follows from that.
    wide.weights = [None if w is None else w.detach().to(case.x.dtype).double() for w in case.weights]
    exact = run(wide, implementation=reference, **how)
    eager = run(with_backend(case, "eager"), **how)
    with poisoned_memory():
        found = run(with_backend(case, "cpu"), **how)
    length = max(case.x.shape[-1], case.x.numel() // case.x.shape[-1])
    step = torch.finfo(case.x.dtype).eps * (length**0.5 if case.x.dtype == torch.float32 else 1)
    for name, value in found.items():
        assert value.dtype == eager[name].dtype, name
        assert value.shape == eager[name].shape, name
        if name not in exact:
            assert not value.any(), f"{name} should not be there"
            continue
        least = max(1e-30, terms_of(name, exact)) if cancelling else 1e-30
        error = relative_error(value, exact[name], least)
        allowed = factor * relative_error(eager[name], exact[name], least) + steps * step
        assert error <= allowed, f"{name}: {error:.1e}, allowed {allowed:.1e}"
    assert eager.keys() <= found.keys()
    return found
