"""What the tests on a CUDA device share: cases that are moved there, kinds of product, and the judge of errors."""

from __future__ import annotations

import contextlib
import copy
import functools

import torch
from operator_cases import Case, run

from rmadapter_kernels import rm_adapter
from rmadapter_kernels.reference import reference

fused = functools.partial(rm_adapter, backend="triton")
KINDS = {
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "ieee": (torch.float32, "ieee"),
}


def on(case: Case, device: torch.device | str) -> Case:
    """The case on a device."""
    moved = copy.copy(case)
    moved.x, moved.d_out, moved.d_loss = (t.to(device) for t in (case.x, case.d_out, case.d_loss))
    moved.residual = case.residual if case.residual is None else case.residual.to(device)
    moved.weights = [w if w is None else w.to(device) for w in case.weights]
    moved.norm = case.norm and (*(t if t is None else t.to(device) for t in case.norm[:2]), case.norm[2])
    return moved


@contextlib.contextmanager
def kind_in_force(kind: str):
    """One dtype and kind of product, in torch and in the kernels."""
    from rmadapter_kernels.triton import configure

    _, precision = KINDS[kind]
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        with configure(fp32_precision=precision):
            yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))


def judge(case: Case, kind: str, weight_dtype: torch.dtype | None = None, judge_on: str = "cuda", **how) -> None:
    """No larger an error against fp64 than autograd through the reference has in this dtype, and a few roundings.

    The reference runs on ``judge_on``.
    """
    with kind_in_force(kind):
        _judge(case, kind, weight_dtype, judge_on, **how)


def _judge(case: Case, kind: str, weight_dtype: torch.dtype | None, judge_on: str, **how) -> None:
    dtype, precision = KINDS[kind]
    narrow = on(case.to(dtype, weight_dtype), "cuda")
    there = on(case.to(dtype, weight_dtype), judge_on)
    exact = run(there.to(torch.float64), implementation=reference, **how)
    theirs = run(there, implementation=reference, **how)
    for _ in range(2):  # through Triton's launcher, then through the compiled kernel
        ours = {name: value.to(judge_on) for name, value in run(narrow, implementation=fused, **how).items()}
        eps = {"tf32": 2**-11, "tf32x3": 2**-21}.get(precision, torch.finfo(dtype).eps)
        for name, value in ours.items():
            if not value.numel() or name not in exact:
                assert not value.any(), name
                continue
            assert torch.isfinite(value).all(), name
            # l1's gradient jumps where rec crosses x, at other elements for each way of rounding.
            factor = 3 if case.settings.get("objective") == "l1" else 1
            bound = factor * relative(theirs[name], exact[name]) + 4 * eps
            if precision in ("ieee", "tf32x3"):
                bound += eps * case.x.shape[-1] ** 0.5 * 4
            error = relative(value, exact[name])
            assert error <= bound, f"{name}: {error:.1e}, valid: {bound:.1e}"
