"""``rm_adapter_``: the adaptation branch added to the residual in place."""

from __future__ import annotations

import pytest
import torch
from operator_cases import make_case

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
