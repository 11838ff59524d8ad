"""The cpu backend under strides, vmap, autocast, opcheck, compilation and export, and its raw operators' errors."""

from __future__ import annotations

import os

import pytest
import torch
from cpu_cases import judge, with_backend
from grids import diagonal
from operator_cases import WEIGHTS, make_case, run
from torch._dynamo.testing import CompileCounterWithBackend

from rmadapter_kernels import FusedRMAdapter, cpu, explain, rm_adapter

pytestmark = pytest.mark.skipif(not cpu.AVAILABLE, reason=cpu.reason())
DTYPES = (torch.float32, torch.bfloat16)
SETTINGS = ("scale", "activation", "objective", "local_reconstruction", "branch_grad_scale")


def test_the_sanitized_library_is_the_one_under_test():
    """make sanitize says where it built; elsewhere nothing is asked."""
    assert os.environ.get("RMADAPTER_TEST_LIBRARY", "") in str(cpu.LIBRARY)


def permuted(tensor):
    """The same values in [tokens, batch, D] memory."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def sliced(tensor):
    """Every second row of a larger tensor, behind an odd offset: unaligned, two leading dimensions."""
    wide = torch.full((tensor.shape[0] + 1, 2 * tensor.shape[1], tensor.shape[2] + 3), float("nan"), dtype=tensor.dtype)
    return wide[1:, ::2, 2:-1].copy_(tensor)


def transposed(tensor):
    """D is not the fastest dimension."""
    return tensor.transpose(0, 2).contiguous().transpose(0, 2)


@pytest.mark.parametrize("layout", [permuted, sliced, transposed])
@pytest.mark.parametrize("which", ["x", "residual", "d_out", "all"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(layout, which, norm, dtype):
    case = make_case((3, 14), 80, 8, 8, norm=norm, local_reconstruction=False).to(dtype)
    plain = run(with_backend(case, "cpu"))
    for name in ("x", "residual", "d_out"):
        if which in (name, "all"):
            setattr(case, name, layout(getattr(case, name)))
    found = judge(case)
    for name, value in plain.items():
        assert torch.equal(found[name], value), name
    out, _ = rm_adapter(case.x, *case.weights, residual=case.residual, backend="cpu")
    assert out.stride() == torch.empty_like(case.residual).stride()
    assert found["grad x"].stride() == torch.empty_like(case.x).stride()


def test_four_leading_dimensions_that_do_not_collapse():
    case = make_case((2, 3, 2, 4), 64, 8, 8).to(torch.float32)
    plain = run(with_backend(case, "cpu"))
    for name in ("x", "residual", "d_out"):
        tensor = getattr(case, name)
        setattr(case, name, tensor.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4))
    for name, value in judge(case).items():
        assert torch.equal(value, plain[name]), name


def test_weights_of_any_stride():
    case = make_case((7,), 64, 8, 12, norm=True).to(torch.float32)
    plain = run(with_backend(case, "cpu"))
    case.weights = [w.t().contiguous().t() if w.dim() == 2 else w.repeat_interleave(2)[::2] for w in case.weights]
    found = judge(case)
    for name, value in plain.items():
        assert torch.equal(found[name], value), name


def test_expanded_inputs_and_gradients():
    case = make_case((3, 4), 64, 8, 8).to(torch.float32)
    case.d_out = torch.ones(()).expand(3, 4, 64)
    case.d_loss = torch.full((1, 1), 0.25).expand(3, 4)
    judge(case)
    case.x = case.x[:1, :1].expand(3, 4, 64)
    judge(case, frozen=("x",))


def test_vmap():
    case = make_case((5, 3), 64, 8, 8, scale=0.5).to(torch.float32)
    out, loss = torch.func.vmap(lambda x: rm_adapter(x, *case.weights, scale=0.5, backend="cpu"), in_dims=1)(case.x)
    expected = rm_adapter(case.x, *case.weights, scale=0.5, backend="cpu")
    assert torch.equal(out, expected[0].movedim(1, 0))
    assert torch.equal(loss, expected[1].movedim(1, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_x_and_leaves_fp32_gradients(dtype):
    torch.manual_seed(0)
    adapter = FusedRMAdapter(64, bottleneck=8, scale=0.5, backend="cpu")
    x, residual = torch.randn(2, 4, 5, 64).unbind()
    with torch.autocast("cpu", dtype):
        out, loss = adapter(x, residual, (torch.ones(64), torch.zeros(64), 1e-5))
        (out.sum() + loss.mean()).backward()
    assert (out.dtype, loss.dtype) == (torch.float32, torch.float32)
    assert {p.grad.dtype for p in adapter.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("layout", "reconstruct", "norm"), diagonal([None, permuted, transposed], [True, False], [True, False])
)
def test_opcheck(layout, reconstruct, norm):
    case = make_case((2, 3), 64, 8, 8, reconstruct=reconstruct, norm=norm, dtype=torch.float32)
    x, residual, d_out = (layout(t) if layout else t for t in (case.x, case.residual, case.d_out))
    shared = (*(case.norm or (None, None, None)), *case.weights, 0.5, "gelu", "l2", False, 2.0)
    torch.library.opcheck(torch.ops.rmadapter.cpu_forward.default, (x, residual, *shared))
    needs = [True] * 5 + [reconstruct] * 4
    torch.library.opcheck(
        torch.ops.rmadapter.cpu_backward.default, (x, d_out, case.d_loss if reconstruct else None, *shared, needs)
    )
    torch.library.opcheck(
        torch.ops.rmadapter.cpu_backward.default, (x, d_out, None, *shared, [False, True] + [False] * 7)
    )


def step(call, adapter, x, residual):
    """A training step's worth: results, and gradients in the parameters and x."""
    adapter.zero_grad()
    x = x.detach().requires_grad_()
    out, loss = call(x, residual, (None, None, 1e-5))
    (out.square().mean() + loss.mean()).backward()
    return [out.detach(), loss.detach(), x.grad, *(p.grad.clone() for p in adapter.parameters())]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_equals_uncompiled_with_few_recompilations(backend):
    """The operator stays in one graph; one more for a second M, one more for M = 1, then none."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    adapter = FusedRMAdapter(64, bottleneck=4, scale=0.5, backend="auto")
    assert explain(torch.zeros(1, 64)).backend in ("cpu", "eager")  # what the committed benchmark says
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(adapter, backend=counter, fullgraph=True)
    graphs = []
    for tokens in (7, 9, 12, 30, 1, 5, 1):
        x, residual = torch.randn(2, 3, tokens, 64).unbind()
        expected = step(adapter, adapter, x, residual)
        for one, other in zip(step(compiled, adapter, x, residual), expected, strict=True):
            torch.testing.assert_close(one, other)
        graphs.append(counter.frame_count)
    assert graphs[0] == 1
    assert graphs[3] <= 2
    assert graphs[-1] <= 3


def test_an_exported_module_keeps_the_operator():
    adapter = FusedRMAdapter(64, bottleneck=8, scale=0.5, backend="cpu").train()
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        dynamic = ({1: torch.export.Dim("tokens", min=2)},)
        exported = torch.export.export(adapter, (x,), dynamic_shapes=dynamic)
    assert any("rmadapter.cpu_forward" in str(node.target) for node in exported.graph.nodes)
    other = torch.randn(2, 9, 64)
    for one, expected in zip(exported.module()(other), adapter(other), strict=True):
        assert torch.equal(one, expected)


def raw(**changes):
    """The raw operator, past the checks in Python."""
    case = make_case((3,), 64, 8, 8, dtype=torch.float32)
    arguments = {
        "x": case.x,
        **dict.fromkeys(("residual", "norm_weight", "norm_bias", "norm_eps")),
        **dict(zip(WEIGHTS, case.weights, strict=True)),
        **dict(zip(SETTINGS, (1.0, "gelu", "l2", True, 1.0), strict=True)),
    }
    return torch.ops.rmadapter.cpu_forward(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 60)}, "D is not a multiple of 16"),
        ({"x": torch.zeros(3, 64).double()}, "x has another dtype"),
        ({"residual": torch.zeros(2, 64)}, "residual has another shape"),
        ({"w_up": torch.zeros(8, 32)}, "a weight has another shape"),
        ({"b_rec2": None}, "a weight is None"),
        ({"w_down": torch.zeros(64, 129)}, "r or h is not 1 to 128"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"objective": "l3"}, "objective is 'l3'"),
        ({"norm_eps": 1e-5, "norm_weight": torch.ones(3)}, "a norm tensor does not have D elements"),
    ],
)
def test_raw_operators_refuse_what_would_read_beyond_a_tensor(changes, message):
    with pytest.raises(RuntimeError, match=message):
        raw(**changes)
    assert len(raw()) == 2
