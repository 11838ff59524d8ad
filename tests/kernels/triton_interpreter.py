"""The Triton kernels in Triton's interpreter, on CPU tensors: results and gradients against fp64.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/triton_interpreter.py

test_triton.py runs this file and triton_interpreter_calls.py, in parts and in processes of their own. fp32, fp16 and
bf16, whose products and casts mended_interpreter.py puts right. Every tensor that the backend allocates starts as NaN.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from grids import diagonal, slow
from interpreter_cases import DTYPES, fused, judge, name_of, permuted, poisoned, relative  # noqa: F401
from operator_cases import WEIGHTS, make_case, run

from rmadapter_kernels import ACTIVATIONS
from rmadapter_kernels.reference import reference
from rmadapter_kernels.triton import configure, operators, plans, tuning

FLAGS = [
    {"objective": "l2", "norm": False, "local_reconstruction": True, "activation": "gelu"},
    {"objective": "l2", "norm": True, "local_reconstruction": False, "activation": "gelu"},
    {"objective": "l2", "norm": True, "local_reconstruction": True, "activation": "silu", "residual": False},
    {"objective": "l2", "norm": False, "local_reconstruction": False, "activation": "relu"},
    {"objective": "l1", "norm": False, "local_reconstruction": True, "activation": "quick_gelu"},
    {"objective": "l1", "norm": True, "local_reconstruction": False, "activation": "gelu"},
    {"objective": "cosine", "norm": False, "local_reconstruction": False, "activation": "gelu", "residual": False},
    {"objective": "cosine", "norm": True, "local_reconstruction": False, "activation": "relu"},
    {"objective": "cosine", "norm": True, "local_reconstruction": True, "activation": "silu"},
]


@pytest.fixture
def as_with_many_tokens(monkeypatch):
    """Prepared weights, and backward in two slices of rows."""
    monkeypatch.setattr(tuning, "LAUNCH", 0.0)
    monkeypatch.setattr(plans, "slice_rows", lambda problem, config, device: 16)


@pytest.mark.parametrize(("flags", "dtype", "many"), diagonal(FLAGS, DTYPES, [True, False]), ids=name_of)
def test_every_flag(flags, dtype, many, request):
    """Two row blocks, the last of them not full; a width of which a tile takes a part; r below 16, h above."""
    if many:
        request.getfixturevalue("as_with_many_tokens")
    judge(make_case((2, 10), 80, 5, 20, scale=0.3, branch_grad_scale=3.0, **flags), dtype, torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_without_reconstruction(activation):
    case = make_case((35,), 96, 16, 16, reconstruct=False, norm=True, activation=activation, branch_grad_scale=7.0)
    judge(case, torch.float32)


SHAPES = [
    ((1,), 64, 1, 1),
    ((1, 1), 80, 128, 3),
    ((16,), 128, 32, 32),
    ((3,), 144, 20, 17),
    ((3, 7), 80, 33, 128),
    ((), 64, 8, 8),
]
LARGE_SHAPES = [((3,), 528, 20, 17), ((5, 7), 112, 33, 128), ((1, 1), 208, 128, 3), ((33,), 1152, 3, 17)]


@pytest.mark.usefixtures("as_with_many_tokens")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*diagonal(SHAPES, DTYPES), *itertools.starmap(slow, itertools.product(LARGE_SHAPES, DTYPES))],
    ids=name_of,
)
def test_shapes(shape, dtype):
    judge(make_case(*shape, norm=True, local_reconstruction=False, scale=0.5), dtype)


@pytest.mark.parametrize(
    ("affine", "dtype"), diagonal([(True, False), (False, True), (False, False)], DTYPES), ids=name_of
)
def test_norm_without_weight_or_bias(affine, dtype):
    case = make_case((21,), 80, 7, 9, norm=True, local_reconstruction=False)
    case.norm = (*(t if kept else None for t, kept in zip(case.norm, affine, strict=False)), 1e-3)
    judge(case, dtype)


@pytest.mark.parametrize(("dtype", "many"), diagonal(DTYPES, [True, False]), ids=name_of)
def test_norm_of_inputs_with_a_large_mean(dtype, many, request):
    """A mean of ten deviations cancels in the accumulator unless it is taken out before."""
    if many:
        request.getfixturevalue("as_with_many_tokens")
    case = make_case((20,), 256, 8, 8, norm=True, local_reconstruction=False)
    case.x += 10
    judge(case, dtype)


@pytest.mark.parametrize(("name", "first"), [("an outlier", 100.0), ("the mean", 0.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=name_of)
def test_statistics_of_rows_whose_first_element_is(name, first, dtype):
    """What LayerNorm's sums are taken relative to: at its worst it makes nearly all of the variance itself."""
    case = make_case((5,), 256, 8, 8, norm=True, local_reconstruction=False)
    case.x[:, 0] = first
    judge(case, dtype)


@pytest.mark.parametrize("use", ["out", "loss"])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("norm", [False, True])
def test_one_result_unused(use, local, norm):
    judge(make_case((9,), 64, 4, 4, local_reconstruction=local, norm=norm), torch.float32, use=use)


TRAINED = [{"x"}, {"w_rec1"}, {"b_rec1"}, {"b_rec2"}, {"w_rec2"}, {"b_up"}, {"w_down", "b_up"}, {"b_down"}, {"w_up"}]


@pytest.mark.parametrize(("trained", "local"), diagonal(TRAINED, [True, False]))
def test_partly_frozen(trained, local):
    frozen = tuple({"x", "residual", *WEIGHTS} - trained)
    case = make_case((5,), 64, 4, 4, local_reconstruction=local, branch_grad_scale=3.0, norm=True)
    judge(case, torch.float32, frozen=frozen)
    found = run(case.to(torch.float32), implementation=fused, frozen=frozen)
    assert {name for name in found if name.startswith("grad")} == {f"grad {name}" for name in trained}


@pytest.mark.parametrize("lead", [(0,), (3, 0)])
def test_no_tokens_give_empty_results_and_zero_gradients(lead):
    found = run(make_case(lead, 64, 4, 4, norm=True).to(torch.float32), implementation=fused)
    assert found["out"].shape == (*lead, 64)
    assert found["rec_loss"].shape == lead
    for name in WEIGHTS:
        assert not found[f"grad {name}"].any()


@pytest.mark.parametrize(
    ("dtype", "residual_dtype"),
    [(torch.float16, torch.float32), (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16)],
    ids=name_of,
)
def test_a_small_scale_and_a_mean_over_tokens_lose_nothing(dtype, residual_dtype):
    """scale 1e-3 and a loss gradient of 1e-6 multiply sums in fp32; rounded to fp16 first they would vanish."""
    case = make_case((64,), 64, 16, 16, scale=1e-3, local_reconstruction=False)
    case.d_loss = torch.full_like(case.d_loss, 1e-6)
    case.d_out *= 1e-3 if residual_dtype == torch.float16 else 1e-7
    narrow = case.to(dtype, torch.float32)
    narrow.residual, narrow.d_out = case.residual.to(residual_dtype), case.d_out.to(residual_dtype)
    for use in ("out", "loss"):
        exact = run(narrow.to(torch.float64), implementation=reference, use=use)
        found = run(narrow, implementation=fused, use=use)
        for name in WEIGHTS:
            if f"grad {name}" in exact and exact[f"grad {name}"].any():
                error = relative(found[f"grad {name}"], exact[f"grad {name}"])
                assert error < 4 * torch.finfo(dtype).eps, f"{use} {name}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_fp32_residual_keeps_what_16_bits_would_drop(dtype):
    case = make_case((32,), 64, 8, 8, scale=1e-4).to(dtype, torch.float32)
    exact = run(case.to(torch.float64), implementation=reference)["out"] - case.residual.double()
    case.residual, case.d_out = case.residual.float(), case.d_out.float()
    kept = run(case, implementation=fused)
    assert kept["out"].dtype == kept["grad residual"].dtype == torch.float32
    assert (kept["out"] - case.residual - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, "tf32"), (torch.float16, None)], ids=name_of)
def test_tf32_rounds_to_nearest(dtype, precision, many, request):
    """The units cut 13 bits off; of positive numbers that alone would make every gradient 2^-11 to 2^-10 too small."""
    if many:
        request.getfixturevalue("as_with_many_tokens")
    case = make_case((96,), 64, 8, 8, activation="relu", branch_grad_scale=1.0, local_reconstruction=False)
    case.weights = [weight.abs() / 4 for weight in case.weights]
    case.x, case.d_out, case.d_loss = case.x.abs(), case.d_out.abs(), case.d_loss.abs()
    narrow = case.to(dtype, torch.float32)
    with configure(fp32_precision=precision):
        found = run(narrow, implementation=fused, use="out")
    exact = run(narrow.to(torch.float64), implementation=reference, use="out")
    for name in ("w_down", "w_up"):
        ratio = found[f"grad {name}"].double() / exact[f"grad {name}"]
        assert abs(float(ratio.mean()) - 1) < 1e-4, f"{name}: {float(ratio.mean()) - 1:.1e}"


def test_fast_gelu_is_that_of_erf():
    """In 16 bits gelu takes a series in place of erf; forward and gradient stay below the rounding of the result."""
    x = torch.cat([torch.linspace(-12, 12, 63), torch.tensor([math.inf])]).reshape(1, 64)
    eye = torch.eye(64)
    for dtype, bound in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        narrow = x.to(dtype)
        weights = [eye, torch.zeros(64), eye.clone(), torch.zeros(64)]
        leaf = torch.where(narrow.isinf(), 0, narrow).requires_grad_()
        out, _ = fused(leaf, *weights)
        out.sum().backward()
        exact = leaf.detach().double().requires_grad_()
        expected = torch.nn.functional.gelu(exact)
        expected.sum().backward()
        torch.testing.assert_close(out.double(), expected.detach(), rtol=bound, atol=2e-7)
        torch.testing.assert_close(
            leaf.grad.double(), exact.grad, rtol=bound, atol=2e-4 if dtype == torch.float16 else 4e-3
        )


@pytest.mark.parametrize("tokens", [6, slow(11)])
@pytest.mark.parametrize(("dtype", "layout"), diagonal(DTYPES, [None, permuted]), ids=name_of)
def test_two_runs_and_64_bit_addresses_give_the_same_bits(layout, dtype, tokens, monkeypatch):
    case = make_case((3, tokens), 80, 5, 20, norm=True, objective="cosine", local_reconstruction=False).to(dtype)
    if layout is not None:
        case.x = layout(case.x)
    first, second = run(case, implementation=fused), run(case, implementation=fused)
    monkeypatch.setattr(plans, "force_index64", True)
    operators.forget_plans()
    wide = run(case, implementation=fused)
    for name, value in first.items():
        assert torch.equal(second[name], value), name
        assert torch.equal(wide[name], value), name


@pytest.mark.parametrize(("value", "norm"), diagonal([math.inf, -math.inf, math.nan], [False, True]))
def test_what_is_not_finite_stays_where_the_reference_has_it(value, norm):
    case = make_case((20,), 80, 5, 20, norm=norm, local_reconstruction=False, activation="relu").to(torch.float32)
    case.x[3, 7] = value
    case.d_out[11, 70] = value
    ours, theirs = run(case, implementation=fused), run(case, implementation=reference)
    for name in ("out", "rec_loss", "grad x", "grad residual"):
        assert torch.equal(ours[name].isfinite(), theirs[name].isfinite()), name
    for name in ("out", "rec_loss"):
        assert torch.equal(ours[name].isnan(), theirs[name].isnan()), name
