"""Strides of x, of the residual and of incoming gradients; vmap; the registered operators; compilation."""

from __future__ import annotations

import pytest
import torch
from grids import diagonal
from operator_cases import against_reference, make_case, run
from torch._dynamo.testing import CompileCounterWithBackend

from rmadapter_kernels import FusedRMAdapter, rm_adapter


def permuted(tensor):
    """The same values in [tokens, batch, D] memory."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def sliced(tensor):
    """The same values as every second row of a larger tensor, behind an offset."""
    wide = torch.full((tensor.shape[0] + 1, 2 * tensor.shape[1], tensor.shape[2] + 3), float("nan"), dtype=tensor.dtype)
    view = wide[1:, ::2, 2:-1]
    return view.copy_(tensor)


@pytest.mark.parametrize("layout", [permuted, sliced])
@pytest.mark.parametrize("which", ["x", "residual", "d_out", "all"])
@pytest.mark.parametrize("norm", [False, True])
def test_strides(layout, which, norm):
    case = make_case((3, 4), norm=norm, local_reconstruction=False)
    plain = run(case)
    for name in ("x", "residual", "d_out"):
        if which in (name, "all"):
            setattr(case, name, layout(getattr(case, name)))
    against_reference(case)
    found = run(case)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    out, _ = rm_adapter(case.x, *case.weights, residual=case.residual)
    assert out.stride() == torch.empty_like(case.residual).stride()
    out, _ = rm_adapter(case.x, *case.weights)
    assert out.stride() == torch.empty_like(case.x).stride()


def test_expanded_gradients():
    case = make_case((3, 4))
    case.d_out = torch.ones((), dtype=torch.float64).expand(3, 4, 12)
    case.d_loss = torch.full((1, 1), 0.25, dtype=torch.float64).expand(3, 4)
    against_reference(case)


@pytest.mark.parametrize("batched_residual", [True, False])
def test_vmap_over_x(batched_residual):
    case = make_case((5, 3), scale=0.5)
    residual = case.residual if batched_residual else case.residual[0]
    out, loss = torch.func.vmap(
        lambda x, residual: rm_adapter(x, *case.weights, residual=residual, scale=0.5),
        in_dims=(0, 0 if batched_residual else None),
    )(case.x, residual)
    expected = rm_adapter(case.x, *case.weights, residual=residual.expand_as(case.x), scale=0.5)
    assert torch.equal(out, expected[0])
    assert torch.equal(loss, expected[1])
    columns = case.x.movedim(0, 1)
    out, _ = torch.func.vmap(lambda x: rm_adapter(x, *case.weights[:4]), in_dims=1, out_dims=1)(columns)
    assert torch.equal(out, rm_adapter(case.x, *case.weights[:4])[0].movedim(0, 1))


def test_vmap_gives_gradients_to_the_weights():
    case = make_case((5, 3))
    weights = [w.requires_grad_() for w in case.weights]
    out, loss = torch.func.vmap(lambda x: rm_adapter(x, *weights))(case.x)
    (out.sum() + loss.sum()).backward()
    together = [w.grad.clone() for w in weights]
    for weight in weights:
        weight.grad = None
    out, loss = rm_adapter(case.x, *weights)
    (out.sum() + loss.sum()).backward()
    for one, weight in zip(together, weights, strict=True):
        torch.testing.assert_close(one, weight.grad)
    with pytest.raises(ValueError, match="unbatched weights"):
        torch.func.vmap(lambda w: rm_adapter(case.x, w, *case.weights[1:]))(case.weights[0].expand(2, -1, -1))


@pytest.mark.parametrize(("layout", "reconstruct", "norm"), diagonal([None, permuted], [True, False], [True, False]))
def test_opcheck(layout, reconstruct, norm):
    case = make_case((2, 3), reconstruct=reconstruct, norm=norm, dtype=torch.float32)
    x, residual, d_out = (layout(t) if layout else t for t in (case.x, case.residual, case.d_out))
    shared = (*(case.norm or (None, None, None)), *case.weights, 0.5, "gelu", "l2", False, 2.0)
    torch.library.opcheck(torch.ops.rmadapter.eager_forward.default, (x, residual, *shared))
    needs = [True] * 5 + [reconstruct] * 4
    torch.library.opcheck(
        torch.ops.rmadapter.eager_backward.default, (x, d_out, case.d_loss if reconstruct else None, *shared, needs)
    )
    torch.library.opcheck(
        torch.ops.rmadapter.eager_backward.default, (x, d_out, None, *shared, [False, True] + [False] * 7)
    )


def step(adapter, x, residual):
    """A training step's worth: loss, and gradients in the parameters and x."""
    adapter.zero_grad()
    x = x.detach().requires_grad_()
    out, loss = adapter(x, residual, (None, None, 1e-5))
    (out.square().mean() + loss.mean()).backward()
    return [out.detach(), loss.detach(), x.grad, *(p.grad.clone() for p in adapter.parameters())]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_equals_eager_with_few_recompilations(backend):
    """One graph without a break; one more for a second M, one more for M = 1, then none."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    adapter = FusedRMAdapter(16, bottleneck=4, scale=0.5)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(adapter, backend=counter, fullgraph=True)
    graphs = []
    for tokens in (7, 9, 12, 30, 1, 5, 1):
        x, residual = torch.randn(2, 3, tokens, 16).unbind()
        expected = step(adapter, x, residual)

        class Compiled:
            parameters, zero_grad, __call__ = adapter.parameters, adapter.zero_grad, staticmethod(compiled)

        for one, other in zip(step(Compiled(), x, residual), expected, strict=True):
            torch.testing.assert_close(one, other)
        graphs.append(counter.frame_count)
    assert graphs[0] == 1
    assert graphs[3] <= 2
    assert graphs[-1] <= 3
