"""The Triton kernels in Triton's interpreter, on CPU tensors. Run by test_triton.py in a process of its own:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/triton_interpreter.py

fp32 and fp16; the interpreter's product of bf16 tiles is wrong (upstream knows), so bf16 is left to a GPU. Every tensor
that the backend allocates starts as NaN.
"""

from __future__ import annotations

import functools
import math
import os

import pytest
import torch
from operator_cases import WEIGHTS, Case, make_case, run

if not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("TRITON_INTERPRET=1 must be set before Triton is imported", allow_module_level=True)

import interpreter_scalars  # noqa: F401
from triton.runtime import interpreter

from rmadapter_kernels import ACTIVATIONS, FusedRMAdapter, available_backends, explain, rm_adapter, rm_adapter_
from rmadapter_kernels.reference import activation, layer_norm, reference
from rmadapter_kernels.triton import configure, operators, plans

torch.set_num_threads(1)
fused = functools.partial(rm_adapter, backend="triton")
DTYPES = [torch.float32, torch.float16]


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
    rounding = 2 * eps if dtype == torch.float16 else 4 * eps * case.x.shape[-1] ** 0.5
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(map(str, flags.values())))
def test_every_flag(dtype, flags):
    """Two row blocks, the last of them not full; a width of which a tile takes a part; r below 16, h above."""
    judge(make_case((2, 10), 80, 5, 20, scale=0.3, branch_grad_scale=3.0, **flags), dtype, torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_without_reconstruction(activation):
    case = make_case((35,), 96, 16, 16, reconstruct=False, norm=True, activation=activation, branch_grad_scale=7.0)
    judge(case, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lead", "d", "r", "h"),
    [
        ((1,), 64, 1, 1),
        ((1, 1), 208, 128, 3),
        ((16,), 128, 32, 32),
        ((33,), 1152, 3, 17),
        ((5, 7), 112, 33, 128),
        ((), 64, 8, 8),
    ],
)
def test_shapes(dtype, lead, d, r, h):
    judge(make_case(lead, d, r, h, norm=True, local_reconstruction=False, scale=0.5), dtype)


@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_without_weight_or_bias(affine, dtype):
    case = make_case((21,), 80, 7, 9, norm=True, local_reconstruction=False)
    case.norm = (*(t if kept else None for t, kept in zip(case.norm, affine, strict=False)), 1e-3)
    judge(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_inputs_with_a_large_mean(dtype):
    """A mean of ten deviations cancels in the accumulator unless it is taken out before."""
    case = make_case((20,), 256, 8, 8, norm=True, local_reconstruction=False)
    case.x += 10
    judge(case, dtype)


@pytest.mark.parametrize("use", ["out", "loss"])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("norm", [False, True])
def test_one_result_unused(use, local, norm):
    judge(make_case((9,), 64, 4, 4, local_reconstruction=local, norm=norm), torch.float32, use=use)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    "trained",
    [{"x"}, {"w_rec1"}, {"b_rec1"}, {"b_rec2"}, {"w_rec2"}, {"b_up"}, {"w_down", "b_up"}, {"b_down"}, {"w_up"}],
)
def test_partly_frozen(local, trained):
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


@pytest.mark.parametrize("residual_dtype", DTYPES)
def test_a_small_scale_and_a_mean_over_tokens_lose_nothing_in_fp16(residual_dtype):
    """scale 1e-3 and a loss gradient of 1e-6 multiply sums in fp32; rounded to fp16 first they would vanish."""
    case = make_case((64,), 64, 16, 16, scale=1e-3, local_reconstruction=False)
    case.d_loss = torch.full_like(case.d_loss, 1e-6)
    case.d_out *= 1e-3 if residual_dtype == torch.float16 else 1e-7
    narrow = case.to(torch.float16, torch.float32)
    narrow.residual, narrow.d_out = case.residual.to(residual_dtype), case.d_out.to(residual_dtype)
    for use in ("out", "loss"):
        exact = run(narrow.to(torch.float64), implementation=reference, use=use)
        found = run(narrow, implementation=fused, use=use)
        for name in WEIGHTS:
            if f"grad {name}" in exact and exact[f"grad {name}"].any():
                error = relative(found[f"grad {name}"], exact[f"grad {name}"])
                assert error < 4e-3, f"{use} {name}: {error:.1e}"


def test_fp32_residual_keeps_what_16_bits_would_drop():
    case = make_case((32,), 64, 8, 8, scale=1e-4).to(torch.float16, torch.float32)
    exact = run(case.to(torch.float64), implementation=reference)["out"] - case.residual.double()
    case.residual, case.d_out = case.residual.float(), case.d_out.float()
    kept = run(case, implementation=fused)
    assert kept["out"].dtype == kept["grad residual"].dtype == torch.float32
    assert (kept["out"] - case.residual - exact).abs().max() < 0.02 * exact.abs().max()


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


@pytest.mark.parametrize("layout", [permuted, sliced, columns])
@pytest.mark.parametrize("which", ["x", "residual", "d_out", "all"])
def test_strides(layout, which):
    case = make_case((3, 6), 64, 4, 4, norm=True, local_reconstruction=False).to(torch.float32)
    plain = run(case, implementation=fused)
    for name in ("x", "residual", "d_out"):
        if which in (name, "all"):
            setattr(case, name, layout(getattr(case, name)))
    found = run(case, implementation=fused)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert found["out"].stride() == torch.empty_like(case.residual).stride()
    assert found["grad x"].stride() == torch.empty_like(case.x).stride()


def test_three_dimensions_that_do_not_collapse_and_weights_that_are_views():
    case = make_case((2, 3, 4), 64, 4, 4, norm=True, local_reconstruction=False).to(torch.float32)
    plain = run(case, implementation=fused)
    case.x = case.x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
    case.weights = [w.t().contiguous().t() if w.dim() == 2 else w.repeat_interleave(2)[::2] for w in case.weights]
    found = run(case, implementation=fused)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_expanded_gradients():
    case = make_case((3, 4), 64, 4, 4).to(torch.float32)
    case.d_out = torch.ones(()).expand(3, 4, 64)
    case.d_loss = torch.full((1, 1), 0.25).expand(3, 4)
    expected = run(case, implementation=reference)
    for name, value in run(case, implementation=fused).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [None, permuted])
def test_two_runs_and_64_bit_addresses_give_the_same_bits(dtype, layout, monkeypatch):
    case = make_case((3, 11), 80, 5, 20, norm=True, objective="cosine", local_reconstruction=False).to(dtype)
    if layout is not None:
        case.x = layout(case.x)
    first, second = run(case, implementation=fused), run(case, implementation=fused)
    monkeypatch.setattr(plans, "force_wide", True)
    operators.forget_plans()
    wide = run(case, implementation=fused)
    for name, value in first.items():
        assert torch.equal(second[name], value), name
        assert torch.equal(wide[name], value), name


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm", [False, True])
def test_what_is_not_finite_stays_where_the_reference_has_it(value, norm):
    case = make_case((20,), 80, 5, 20, norm=norm, local_reconstruction=False, activation="relu").to(torch.float32)
    case.x[3, 7] = value
    case.d_out[11, 70] = value
    ours, theirs = run(case, implementation=fused), run(case, implementation=reference)
    for name in ("out", "rec_loss", "grad x", "grad residual"):
        assert torch.equal(ours[name].isfinite(), theirs[name].isfinite()), name
    for name in ("out", "rec_loss"):
        assert torch.equal(ours[name].isnan(), theirs[name].isnan()), name


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("layout", [lambda t: t, permuted, columns])
def test_in_place(same, layout):
    case = make_case((3, 7), 64, 4, 4, norm=True, reconstruct=False).to(torch.float32)
    residual = layout(case.x if same else case.residual)
    x = residual if same else case.x
    arguments = {"norm": case.norm, "scale": 0.5}
    expected = rm_adapter(x, *case.weights, residual=residual, **arguments)[0]
    storage = residual.data_ptr()
    assert rm_adapter_(x, *case.weights[:4], residual=residual, backend="triton", **arguments) is residual
    assert residual.data_ptr() == storage
    torch.testing.assert_close(residual, expected, rtol=1e-5, atol=1e-5)


def test_backends_and_refusals():
    assert available_backends()["triton"].available
    assert explain(torch.zeros(2, 64)).backend == "eager" or "triton" not in explain(torch.zeros(2, 64)).backend
    assert explain(torch.zeros(2, 64), backend="triton").backend == "triton"
    for x, r, h, message in (
        (torch.zeros(2, 64).double(), 32, 32, "x is torch.float64; valid: torch.float32, torch.bfloat16"),
        (torch.zeros(2, 48), 32, 32, "D=48; valid: 64 to 2048 in multiples of 16"),
        (torch.zeros(2, 72), 32, 32, "D=72; valid: 64 to 2048 in multiples of 16"),
        (torch.zeros(2, 2064), 32, 32, "D=2064"),
        (torch.zeros(2, 64), 129, 32, "bottleneck r is 129; valid: 1 to 128"),
        (torch.zeros(2, 64), 32, 200, "reconstruction width h is 200; valid: 1 to 128"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(x, bottleneck=r, rec_hidden=h, backend="triton")


@pytest.mark.parametrize("layout", [None, permuted])
@pytest.mark.parametrize("reconstruct", [True, False])
def test_opcheck(layout, reconstruct):
    case = make_case((2, 3), 64, 4, 4, reconstruct=reconstruct, norm=True, dtype=torch.float32)
    x, residual, d_out = (layout(t) if layout else t for t in (case.x, case.residual, case.d_out))
    shared = (*case.norm, *case.weights, 0.5, "gelu", "l2", False, 2.0)
    torch.library.opcheck(torch.ops.rmadapter.triton_forward.default, (x, residual, *shared))
    needs = [True] * 5 + [reconstruct] * 4
    torch.library.opcheck(
        torch.ops.rmadapter.triton_backward.default, (x, d_out, case.d_loss if reconstruct else None, *shared, needs)
    )
    torch.library.opcheck(
        torch.ops.rmadapter.triton_backward.default, (x, d_out, None, *shared, [False, True] + [False] * 7)
    )
    if not reconstruct:
        torch.library.opcheck(
            torch.ops.rmadapter.triton_forward_.default, (x, residual, *case.norm, *case.weights[:4], 0.5, "gelu")
        )


def test_compiled_equals_eager():
    torch._dynamo.reset()
    torch.manual_seed(0)
    adapter = FusedRMAdapter(64, bottleneck=4, scale=0.5, backend="triton")
    compiled = torch.compile(adapter, backend="aot_eager", fullgraph=True)
    for tokens in (7, 1):
        x, residual = torch.randn(2, 2, tokens, 64).unbind()
        found = []
        for call in (adapter, compiled):
            adapter.zero_grad()
            leaf = x.clone().requires_grad_()
            out, loss = call(leaf, residual, (None, None, 1e-5))
            (out.square().mean() + loss.mean()).backward()
            found.append([out, loss, leaf.grad, *(p.grad.clone() for p in adapter.parameters())])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)


def test_vmap_over_x():
    case = make_case((3, 5), 64, 4, 4).to(torch.float32)
    out, loss = torch.func.vmap(lambda x: fused(x, *case.weights))(case.x)
    expected = fused(case.x, *case.weights)
    assert torch.equal(out, expected[0])
    assert torch.equal(loss, expected[1])


def test_a_short_training_run_follows_the_reference():
    curves = []
    for backend in ("eager", "triton"):
        torch.manual_seed(0)
        adapter = FusedRMAdapter(64, bottleneck=8, scale=0.1, backend=backend)
        optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-3, momentum=0.9)
        x, goal = torch.randn(2, 12, 64).unbind()
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            out, rec_loss = adapter(x, x)
            loss = (out - goal).square().mean() + rec_loss.mean() / 64
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[1][-1] < curves[1][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


class Traffic:
    """Loads and stores of the interpreter by element of the tensors that are watched."""

    def __init__(self, monkeypatch, **tensors):
        self.tensors = tensors
        self.loads = {name: torch.zeros(t.numel(), dtype=torch.long) for name, t in tensors.items()}
        self.stores = {name: torch.zeros(t.numel(), dtype=torch.long) for name, t in tensors.items()}
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def masked_load(own, pointers, mask, *rest):
            self._count(self.loads, pointers.data, mask.data)
            return load(own, pointers, mask, *rest)

        def masked_store(own, pointers, value, mask, *rest):
            self._count(self.stores, pointers.data, mask.data)
            return store(own, pointers, value, mask, *rest)

        monkeypatch.setattr(builder, "create_masked_load", masked_load)
        monkeypatch.setattr(builder, "create_masked_store", masked_store)

    def _count(self, counts, addresses, mask):
        found = torch.from_numpy(addresses[mask].astype("int64")).flatten()
        for name, tensor in self.tensors.items():
            index = (found - tensor.data_ptr()) // tensor.element_size()
            inside = index[(index >= 0) & (index < tensor.numel())]
            counts[name].index_add_(0, inside, torch.ones_like(inside))


def loads_of_x(objective: str, norm: bool, local: bool, need_x: bool) -> int:
    """What kernels.md allows K1: two, once more for the cosine, once more for LayerNorm or the non-local gradient."""
    return 2 + (objective == "cosine") + (need_x and (norm or not local))


@pytest.mark.parametrize(
    ("dtype", "objective", "norm", "local"),
    [
        (torch.float32, "l2", False, True),
        (torch.float16, "l2", False, True),
        (torch.float32, "l2", True, True),
        (torch.float16, "l1", True, False),
        (torch.float32, "l2", False, False),
        (torch.float16, "cosine", False, True),
        (torch.float32, "cosine", True, False),
    ],
)
def test_traffic(dtype, objective, norm, local, monkeypatch):
    case = make_case((21,), 80, 5, 20, norm=norm, objective=objective, local_reconstruction=local).to(dtype)
    shared = (*(case.norm or (None, None, None)), *case.weights, 0.5, "gelu", objective, local, 2.0)
    forward, backward = operators.forward, operators.backward
    with monkeypatch.context() as patch:
        traffic = Traffic(patch, x=case.x, residual=case.residual)
        seen = []
        empty_like = torch.empty_like
        patch.setattr(torch, "empty_like", lambda t: seen.append(empty_like(t)) or seen[-1])
        launch = plans.TunedLaunch.__call__

        def watched(self, device, tensors, *rest):
            traffic.tensors["out"] = seen[0]
            for counts in (traffic.loads, traffic.stores):
                counts["out"] = torch.zeros(seen[0].numel(), dtype=torch.long)
            return launch(self, device, tensors, *rest)

        patch.setattr(plans.TunedLaunch, "__call__", watched)
        forward(case.x, case.residual, *shared)
    assert traffic.loads["x"].max() <= 2
    assert set(traffic.loads["residual"].tolist()) == {1}
    assert set(traffic.stores["out"].tolist()) == {1}
    assert not traffic.loads["out"].any()
    assert not traffic.stores["x"].any()
    for need_x in (True, False):
        with monkeypatch.context() as patch:
            traffic = Traffic(patch, x=case.x, d_out=case.d_out)
            launch = plans.TunedLaunch.__call__
            counted = []

            def watched(self, *arguments, launch=launch, traffic=traffic, counted=counted):
                before = {name: count.clone() for name, count in traffic.loads.items()}
                launch(self, *arguments)
                counted.append({name: traffic.loads[name] - before[name] for name in before})

            patch.setattr(plans.TunedLaunch, "__call__", watched)
            backward(case.x, case.d_out, case.d_loss, *shared, [need_x] + [True] * 8)
        rows, weights = counted
        assert rows["x"].max() <= loads_of_x(objective, norm, local, need_x)
        assert set(rows["d_out"].tolist()) == {1}
        assert set(weights["x"].tolist()) == {1}
        assert set(weights["d_out"].tolist()) == {1}


def test_precision_is_torchs_or_the_option():
    assert plans.precision_of(torch.float16) == ""
    assert plans.precision_of(torch.float32) == "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert plans.precision_of(torch.float32) == "tf32"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert plans.precision_of(torch.float32) == "ieee"
    with configure(fp32_precision="tf32x3"):
        assert plans.precision_of(torch.float32) == "tf32x3"
    assert plans.precision_of(torch.float32) == "ieee"
    with pytest.raises(ValueError, match="fp32_precision is 'half'; valid: None, ieee, tf32, tf32x3"):
        configure(fp32_precision="half")
