"""What the operator gives to autograd beyond one backward pass: an error, never a wrong number."""

from __future__ import annotations

import pytest
import torch
from operator_cases import make_case
from torch.autograd import forward_ad

from rmadapter_kernels import FusedRMAdapter, explain, rm_adapter
from rmadapter_kernels.reference import reference

BACKENDS = ["eager", "cpu"]


def case_of(**settings):
    return make_case((3,), 64, 8, 8, dtype=torch.float32, **settings)


def penalised(x, weights, backend):
    """A penalty on the gradient of x, which does not require grad through what came in."""
    out, loss = rm_adapter(x, *weights, local_reconstruction=False, backend=backend)
    main = out.sum() + loss.sum()
    (gradient,) = torch.autograd.grad(main, x, create_graph=True)
    return main + gradient.square().sum()


def curved(x, weights, backend):
    """The gradient of a square, which requires grad through it."""
    (gradient,) = torch.autograd.grad(rm_adapter(x, *weights, backend=backend)[0].square().sum(), x, create_graph=True)
    return (gradient * x).sum()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("twice", [penalised, curved])
@pytest.mark.parametrize("trained", [True, False])
def test_differentiable_once(backend, twice, trained):
    case = case_of()
    x, weights = case.x.requires_grad_(), [w.requires_grad_(trained) for w in case.weights]
    total = twice(x, weights, backend)
    for call in (lambda: torch.autograd.grad(total, x, retain_graph=True), total.backward):
        with pytest.raises(RuntimeError, match="rm_adapter is differentiable once; valid: reference"):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_differentiable_once_under_torch_func(backend):
    case = case_of()

    def once(x):
        return torch.func.grad(lambda x: rm_adapter(x, *case.weights, backend=backend)[0].pow(3).sum())(x)

    expected = torch.func.grad(lambda x: reference(x, *case.weights)[0].pow(3).sum())(case.x)
    torch.testing.assert_close(once(case.x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.func.grad(lambda x: once(x).square().sum())(case.x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_of_backward_that_nobody_follows_changes_nothing(backend):
    case = case_of()
    x = case.x.requires_grad_()
    out, _ = rm_adapter(x, *case.weights, backend=backend)
    (plain,) = torch.autograd.grad(out, x, case.d_out, retain_graph=True)
    (recorded,) = torch.autograd.grad(out, x, case.d_out, create_graph=True)
    assert torch.equal(plain, recorded)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recording", [True, False])
def test_no_tangent_is_dropped_in_silence(backend, recording):
    case = case_of()
    with torch.set_grad_enabled(recording), forward_ad.dual_level():
        dual = forward_ad.make_dual(case.x, torch.ones_like(case.x))
        with pytest.raises(NotImplementedError, match="jvp"):
            rm_adapter(dual, *case.weights, backend=backend)


def test_the_reference_under_torch_func():
    case = make_case((4, 3))

    def loss(x, weights):
        out, rec_loss = reference(x, *weights, branch_grad_scale=2.0, local_reconstruction=False)
        return out.square().sum() + rec_loss.sum()

    found = torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None))(case.x, tuple(case.weights))
    for number, x in enumerate(case.x):
        leaves = [w.detach().requires_grad_() for w in case.weights]
        for one, expected in zip(found, torch.autograd.grad(loss(x, leaves), leaves), strict=True):
            torch.testing.assert_close(one[number], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trained", [True, False])
def test_compiled_where_a_tensor_comes_twice(backend, trained):
    """The residual is x, as where an adapter stands alone, and one bias is another."""
    torch._dynamo.reset()
    case = case_of()
    case.weights[7] = case.weights[3]
    tensors = [case.x.requires_grad_(trained), *(w.requires_grad_() for w in case.weights)]

    def call(x, *weights):
        return rm_adapter(x, *weights, residual=x, backend=backend)

    found = []
    for form in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
        out, loss = form(*tensors)
        found.append(torch.autograd.grad(out.square().sum() + loss.sum(), [t for t in tensors if t.requires_grad]))
    for one, expected in zip(*found, strict=True):
        assert torch.equal(one, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_where_the_tensors_of_the_norm_come_twice(backend):
    torch._dynamo.reset()
    case = case_of()
    tensors = [case.x, *(w.requires_grad_() for w in case.weights)]
    vector = torch.rand(64)

    def call(x, vector, *weights):
        return rm_adapter(x, *weights, norm=(vector, vector, 1e-5), backend=backend)

    arguments = (tensors[0], vector, *tensors[1:])
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for one, expected in zip(compiled(*arguments), call(*arguments), strict=True):
        assert torch.equal(one, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("alone", [True, False])
def test_a_gradient_of_torch_func_is_compiled(backend, alone):
    """Dynamo takes what ``func.grad`` wraps for a tensor without gradient."""
    torch._dynamo.reset()
    case = case_of()
    for weights in (case.weights, [w.requires_grad_() for w in case.weights]):

        def gradient(x, weights=weights):
            return torch.func.grad(
                lambda x: rm_adapter(x, *weights, residual=None if alone else x, backend=backend)[0].square().sum()
            )(x)

        assert torch.equal(torch.compile(gradient, backend="aot_eager")(case.x), gradient(case.x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_it_is_compiled_and_exported_while_autograd_records(backend):
    torch._dynamo.reset()
    adapter = FusedRMAdapter(64, bottleneck=8, backend=backend).requires_grad_(False)
    x = torch.randn(3, 64)
    compiled = torch.compile(adapter, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(adapter, (x, x), strict=True).module()
    for form in (compiled, exported):
        for one, expected in zip(form(x, x), adapter(x, x), strict=True):
            assert torch.equal(one, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_module_runs_while_autograd_records(backend):
    adapter = FusedRMAdapter(64, bottleneck=8, backend=backend)
    x = torch.randn(2, 64)
    exported = torch.export.export(adapter, (x, x))
    for program in (exported, exported.run_decompositions()):
        for one, expected in zip(program.module()(x, x), adapter(x, x), strict=True):
            assert torch.equal(one, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_lie_as_their_weights(backend):
    """Those of linear layers are transposed; a compiler takes it as it was told."""
    case = case_of()
    weights = [w.t().contiguous().t() for w in case.weights]
    operator = getattr(torch.ops.rmadapter, f"{backend}_backward").default
    arguments = (case.x, case.d_out, case.d_loss, None, None, None, *weights, 0.5, "gelu", "l2", True, 1.0, [True] * 9)
    torch.library.opcheck(operator, arguments)
    for gradient, weight in zip(operator(*arguments)[1:], weights, strict=True):
        assert gradient.stride() == weight.stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_may_be_changed_in_place(backend):
    case = case_of()
    _, loss = rm_adapter(case.x, *(w.requires_grad_() for w in case.weights), backend=backend)
    loss *= 0.5
    loss.sum().backward()


def test_what_autocast_changes_is_explained():
    x = torch.zeros(2, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = explain(x)
    assert inside == explain(x.bfloat16())
