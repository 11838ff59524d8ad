"""``rm_adapter_``: the adaptation branch added to the residual in place."""

from __future__ import annotations

import pytest
import torch
from operator_cases import make_case
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rmadapter_kernels import rm_adapter, rm_adapter_


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_it_is_the_operator(norm, same):
    case = make_case(reconstruct=False, norm=norm)
    residual = case.x if same else case.residual
    expected = rm_adapter(case.x, *case.weights, residual=residual, norm=case.norm, scale=0.3)[0]
    memory = residual.data_ptr()
    found = rm_adapter_(case.x, *case.weights[:4], residual=residual, norm=case.norm, scale=0.3)
    assert found is residual
    assert found.data_ptr() == memory
    torch.testing.assert_close(found, expected)


def test_inference_only():
    case = make_case(reconstruct=False)
    case.weights[2].requires_grad_()
    with pytest.raises(ValueError, match=r"w_up requires grad; valid: rm_adapter_ under torch\.no_grad\(\)"):
        rm_adapter_(case.x, *case.weights[:4], residual=case.residual)
    before = case.residual.clone()
    with torch.no_grad():
        rm_adapter_(case.x, *case.weights[:4], residual=case.residual)
    assert not torch.equal(before, case.residual)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_the_write_is_counted(backend):
    """So that a backward pass which needs what was there is refused."""
    case = make_case((3,), 64, 8, 8, reconstruct=False, dtype=torch.float32)
    x = case.x.requires_grad_()
    y = x.exp()
    with torch.no_grad():
        rm_adapter_(case.residual, *case.weights[:4], residual=y, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_tensors_without_memory(mode):
    case = make_case((3,), 64, 8, 8, reconstruct=False, dtype=torch.float32)

    def add(x, residual, *weights):
        return rm_adapter_(x, *weights, residual=residual.t().contiguous().t())

    arguments = (case.x, case.residual, *case.weights[:4])
    graph = make_fx(add, tracing_mode=mode)(*arguments)
    expected = rm_adapter(case.x, *case.weights, residual=case.residual)[0]
    torch.testing.assert_close(graph(*arguments), expected)
    with FakeTensorMode() as fakes:
        x, residual, *weights = map(fakes.from_tensor, arguments)
        assert rm_adapter_(x.bfloat16(), *weights, residual=residual) is residual


def test_transforms_of_torch_func_are_refused():
    case = make_case((3,), 64, 8, 8, reconstruct=False, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"residual is under a transform of torch\.func"):
        torch.vmap(lambda x: rm_adapter_(x, *case.weights[:4], residual=x))(case.x)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_a_residual_that_is_negated_when_it_is_read(backend):
    case = make_case((3,), 64, 8, 8, reconstruct=False, dtype=torch.float32)
    expected = rm_adapter(case.x, *case.weights, residual=-case.residual, backend=backend)[0]
    residual = torch._neg_view(case.residual)
    rm_adapter_(case.x, *case.weights[:4], residual=residual, backend=backend)
    torch.testing.assert_close(residual, expected)
    torch.testing.assert_close(case.residual, -expected)


def test_arguments_are_checked():
    case = make_case(reconstruct=False)
    with pytest.raises(TypeError, match="residual is NoneType; valid: a tensor, which is written to"):
        rm_adapter_(case.x, *case.weights[:4], residual=None)
    with pytest.raises(ValueError, match=r"w_down has shape \[11, 5\]; valid: \[D=12, r=5\]"):
        rm_adapter_(case.x, case.weights[0][:11], *case.weights[1:4], residual=case.residual)
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        rm_adapter_(case.x, *case.weights[:4], residual=case.residual, activation="tanh")


def test_compiled():
    case = make_case(reconstruct=False, dtype=torch.float32)
    expected = rm_adapter(case.x, *case.weights, residual=case.residual)[0]
    torch._dynamo.reset()

    def add(x, residual):
        return rm_adapter_(x, *case.weights[:4], residual=residual)

    compiled = torch.compile(add, backend="aot_eager", fullgraph=True)
    compiled(case.x, case.residual)
    torch.testing.assert_close(case.residual, expected)
