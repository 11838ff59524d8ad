"""16-bit inputs, mixed dtypes and autocast, judged by the error of PyTorch's own autograd in the same dtype."""

from __future__ import annotations

import pytest
import torch
from operator_cases import Case, make_case, run

from rmadapter_kernels import OBJECTIVES, FusedRMAdapter, rm_adapter
from rmadapter_kernels.reference import reference

HALVES = [torch.bfloat16, torch.float16]


def errors(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    """Error of each tensor, relative to it, both in the Euclidean norm."""
    return {
        name: float((found[name].double() - value).norm() / value.norm().clamp_min(1e-30))
        for name, value in exact.items()
    }


def judge(case: Case, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """Our error is at most autograd's own in this dtype, plus a few roundings.

    The gradient of l1 jumps where rec crosses x, at other elements for each way of rounding: twice as much there.
    """
    narrow = case.to(dtype, weight_dtype)
    exact = run(narrow.to(torch.float64))
    ours = run(narrow)
    theirs = errors(run(narrow, implementation=reference), exact)
    factor = 2 if case.settings["objective"] == "l1" else 1
    for name, error in errors(ours, exact).items():
        bound = factor * theirs[name] + 2 * torch.finfo(dtype).eps
        assert error <= bound, f"{name}: {error:.1e} against {theirs[name]:.1e}"


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_errors_in_every_dtype(dtype, objective, norm, local):
    case = make_case((4, 33), 96, 16, 24, norm=norm, objective=objective, scale=0.5, local_reconstruction=local)
    for weight_dtype in {dtype, torch.float32}:
        judge(case, dtype, weight_dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_dtypes_of_results_and_gradients(dtype):
    case = make_case((2, 3)).to(dtype, torch.float32)
    found = run(case)
    assert found["out"].dtype == dtype
    assert found["rec_loss"].dtype == torch.float32
    assert found["grad x"].dtype == dtype
    assert found["grad w_down"].dtype == torch.float32
    case.residual, case.d_out = case.residual.float(), case.d_out.float()
    found = run(case)
    assert found["out"].dtype == found["grad residual"].dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_a_small_scale_and_a_mean_over_tokens_lose_nothing(dtype):
    """scale 1e-3 and a loss gradient of 1e-5 multiply sums in fp32; rounded first they would vanish in fp16."""
    case = make_case((512,), 64, 16, 16, residual=False, scale=1e-3, dtype=torch.float64)
    case.d_loss = torch.full_like(case.d_loss, 1e-5)
    case.d_out *= 1e-3
    narrow = case.to(dtype, torch.float32)
    exact = run(narrow.to(torch.float64))
    tolerance = 0.03 if dtype == torch.bfloat16 else 0.004
    for use in ("out", "loss"):
        exact = run(narrow.to(torch.float64), use=use)
        for name, error in errors(run(narrow, use=use), exact).items():
            if name.startswith(("grad w", "grad b")):
                assert exact[name].abs().max() == 0 or error < tolerance, f"{use} {name}: {error:.1e}"


def test_fp32_residual_keeps_what_16_bits_would_drop():
    """At scale 1e-3 a term on a residual of order one is below half a step of bf16."""
    case = make_case((64,), 32, 8, 8, scale=1e-4).to(torch.bfloat16, torch.float32)
    exact = run(case.to(torch.float64))["out"] - case.residual.double()
    case.residual = case.residual.float()
    case.d_out = case.d_out.float()
    kept = run(case)["out"] - case.residual
    assert (kept - exact).abs().max() < 0.02 * exact.abs().max()


def test_the_gradient_of_a_mean_beside_an_fp32_residual_is_in_no_half():
    """A gradient of 1e-7 for x in fp16 comes through the residual in fp32: cast first, w_down's was 8 % to 80 % off."""
    case = make_case((64,), 32, 8, 8).to(torch.float16, torch.float32)
    case.residual, case.d_out = case.residual.float(), 1e-7 * case.d_out.float()
    exact = run(case.to(torch.float64), use="out")
    for name, error in errors(run(case, use="out"), exact).items():
        if exact[name].any() and name != "grad x":  # which is in fp16
            assert error < 2e-3, f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_casts_x_and_leaves_fp32_gradients(dtype):
    torch.manual_seed(0)
    adapter = FusedRMAdapter(32, bottleneck=8, scale=0.5)
    x, residual = torch.randn(2, 4, 5, 32).unbind()
    norm = (torch.ones(32), torch.zeros(32), 1e-5)
    with torch.autocast("cpu", dtype):
        out, loss = adapter(x, residual, norm)
        (out.sum() + loss.mean()).backward()  # inside, as some do: nothing more is cast
    assert (out.dtype, loss.dtype) == (torch.float32, torch.float32)
    inside = [p.grad.clone() for p in adapter.parameters()]
    assert {g.dtype for g in inside} == {torch.float32}
    adapter.zero_grad()
    out, loss = adapter(x.to(dtype), residual, norm)
    (out.sum() + loss.mean()).backward()
    for one, other in zip(inside, [p.grad for p in adapter.parameters()], strict=True):
        assert torch.equal(one, other)
    with torch.autocast("cpu", dtype):
        assert rm_adapter(x, *adapter.parameters())[0].dtype == dtype
        assert rm_adapter(x.double(), *(p.double() for p in adapter.parameters()))[0].dtype == torch.float64


@pytest.mark.parametrize("residual", [True, False])
def test_a_scale_that_fp16_does_not_hold(residual):
    case = make_case((2, 3), residual=residual).to(torch.float16)
    arguments = {"scale": 1e6, "residual": case.residual}
    weights = [w * 1e-3 for w in case.weights]  # so that the result is in range
    found = rm_adapter(case.x, *weights, **arguments)[0]
    exact = rm_adapter(case.x.double(), *(w.double() for w in weights), **arguments | (
        {"residual": case.residual.double()} if residual else {}
    ))[0]  # fmt: skip
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), exact, rtol=0.05, atol=5.0)


def test_a_reconstruction_far_off_in_fp16():
    """Twice the difference is out of its range, the gradients are not."""
    case = make_case((2, 3), objective="l2").to(torch.float16)
    case.weights[6] = 0.05 * case.weights[6]
    case.weights[7] = torch.full_like(case.weights[7], 4e4)  # b_rec2
    case.d_loss = torch.full_like(case.d_loss, 1e-5)
    exact = run(case.to(torch.float64))
    for name, value in run(case).items():
        if name.startswith("grad w_rec"):
            assert value.isfinite().all(), name
            torch.testing.assert_close(
                value.double(), exact[name], rtol=0.02, atol=0.02 * float(exact[name].abs().max())
            )
