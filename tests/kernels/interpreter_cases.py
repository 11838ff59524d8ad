"""What the interpreter's tests share: memory that starts as NaN, fp64 as the ruler, layouts of tensors."""

from __future__ import annotations

import functools
import math
import os

import pytest
import torch
from operator_cases import Case, run

if not os.environ.get("TRITON_INTERPRET"):
    raise RuntimeError("TRITON_INTERPRET=1 must be set before Triton is imported")

import mended_interpreter  # noqa: F401

from rmadapter_kernels import rm_adapter
from rmadapter_kernels.reference import activation, layer_norm, reference
from rmadapter_kernels.triton import operators

torch.set_num_threads(1)
fused = functools.partial(rm_adapter, backend="triton")
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
DTYPES = list(NAMES)


def name_of(value: object) -> str:
    """A parameter's name in a test's: ``-k bf16`` finds all that is tested in bf16."""
    if isinstance(value, dict):
        return "-".join(map(str, value.values()))
    return NAMES.get(value) or getattr(value, "__name__", str(value))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that nobody wrote is NaN: all its bytes are 255."""

    def filled(allocate):
        def call(*arguments, **keywords):
            tensor = allocate(*arguments, **keywords)
            if tensor.dtype == torch.uint8:
                return tensor.fill_(255)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return call

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))
    operators.forget_plans()


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))


def take_ties_apart(case: Case, margin: float = 0.02) -> None:
    """Move x away from its reconstruction: where they all but meet, rounding decides l1's gradient."""
    sigma = functools.partial(activation, case.settings["activation"])
    w_down, b_down, _, _, w_rec1, b_rec1, w_rec2, b_rec2 = case.weights
    for _ in range(50):
        u = layer_norm(case.x, case.norm)
        difference = u - (sigma(sigma(u @ w_down + b_down) @ w_rec1 + b_rec1) @ w_rec2 + b_rec2)
        ties = difference.abs() < margin
        if not ties.any():
            return
        case.x[ties] += 3 * margin * difference[ties].sign()
    raise AssertionError("x meets its reconstruction again and again")


def judge(case: Case, dtype: torch.dtype, weight_dtype: torch.dtype | None = None, **how) -> None:
    """Our error against fp64 is at most that of autograd through the reference in the same dtype, and a few roundings.

    Gradients that only one side has must be zero.
    """
    if case.settings.get("objective") == "l1":
        take_ties_apart(case)
    narrow = case.to(dtype, weight_dtype)
    exact = run(narrow.to(torch.float64), implementation=reference, **how)
    theirs = run(narrow, implementation=reference, **how)
    ours = run(narrow, implementation=fused, **how)
    assert ours.keys() >= exact.keys()
    eps = torch.finfo(dtype).eps
    rounding = 4 * eps * case.x.shape[-1] ** 0.5 if dtype == torch.float32 else 2 * eps
    for name, value in ours.items():
        if not value.numel():
            continue
        assert torch.isfinite(value).all(), name
        if name not in exact:
            assert not value.any(), name
            continue
        error = relative(value, exact[name])
        bound = relative(theirs[name], exact[name]) + rounding
        assert error <= bound, f"{name}: {error:.1e}, valid: {bound:.1e}"


def permuted(tensor):
    """The same values in [tokens, batch, D] memory."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def sliced(tensor):
    """The same values as every second row of a larger tensor, behind an offset that is not aligned."""
    wide = torch.full((tensor.shape[0] + 1, 2 * tensor.shape[1], tensor.shape[2] + 3), math.nan, dtype=tensor.dtype)
    return wide[1:, ::2, 2:-1].copy_(tensor)


def columns(tensor):
    """The same values with D the slowest dimension in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)
