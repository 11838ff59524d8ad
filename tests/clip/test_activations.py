"""Activations between an MLP's layers: against fp64 beside the module's own error, and what they keep."""

from __future__ import annotations

import copy

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn
from torch.nn import functional as F

from rmadapter.clip.activations import activated, quick_gelu
from rmadapter.clip.frozen_linear import frozen_linear, inference_linear, packing_obstacle

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PACKED = [dtype for dtype in DTYPES if packing_obstacle(CPU, dtype) is None]
ACTS = {
    "gelu": nn.GELU(),
    "tanh gelu": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "quick gelu": QuickGELU(),
    "relu": nn.ReLU(),
}


def values(dtype: torch.dtype) -> torch.Tensor:
    """From far below zero to far above, and zero."""
    return torch.linspace(-12, 12, 1201, dtype=torch.float64).to(dtype)


def both_ways(function, hidden):
    """What it gives and the gradient of its weighted sum."""
    hidden = hidden.detach().requires_grad_()
    out = function(hidden)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype))
    return out.detach().double(), hidden.grad.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quick_gelu_is_open_clip_s_to_the_bit_and_its_gradient_no_worse(dtype):
    hidden = values(dtype)
    exact = both_ways(QuickGELU(), hidden.double())
    own, found = both_ways(QuickGELU(), hidden), both_ways(quick_gelu, hidden)
    assert torch.equal(found[0], own[0])
    assert (found[1] - exact[1]).norm() <= 1.2 * (own[1] - exact[1]).norm()


def test_quick_gelu_s_gradient_is_that_of_its_formula():
    assert torch.autograd.gradcheck(quick_gelu, torch.randn(50, dtype=torch.float64, requires_grad=True))


def test_quick_gelu_keeps_its_input_alone():
    kept = []
    hidden = torch.randn(4, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        quick_gelu(hidden)
    assert [tensor.data_ptr() for tensor in kept] == [hidden.data_ptr()]


@pytest.mark.parametrize("linear", [F.linear, frozen_linear, inference_linear], ids=lambda linear: linear.__name__)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", PACKED, ids=str)
def test_errors_of_a_layer_are_those_of_its_modules(dtype, act, linear):
    torch.manual_seed(0)
    act, layer = ACTS[act], nn.Linear(48, 40).to(dtype).requires_grad_(False)
    x = torch.randn(3, 5, 48).to(dtype)
    exact = act(copy.deepcopy(layer).double()(x.double()))
    with torch.no_grad():
        found = activated(linear, x, layer, act)
        own = act(layer(x))
    assert found.dtype == dtype
    assert (found - exact).norm() <= 1.5 * (own - exact).norm() + 1e-7 * exact.norm()


@pytest.mark.skipif(not PACKED, reason="oneDNN is for x86 processors")
def test_a_product_takes_its_activation_with_it_where_nothing_is_trained(monkeypatch):
    layer, x = nn.Linear(48, 40).requires_grad_(False), torch.randn(5, 48)

    def calls(linear, act):
        seen = []
        monkeypatch.setattr(type(act), "forward", lambda self, hidden: seen.append(1) or hidden)
        activated(linear, x, layer, act)
        monkeypatch.undo()
        return len(seen)

    with torch.no_grad():
        assert [calls(inference_linear, ACTS[name]) for name in ("gelu", "tanh gelu", "silu", "relu")] == [0, 0, 0, 1]
        assert calls(frozen_linear, nn.GELU()) == 1
    assert calls(inference_linear, nn.GELU()) == 1  # a graph may be wanted


def test_a_graph_goes_through_all_of_them():
    layer = nn.Linear(48, 40).requires_grad_(False)
    x = torch.randn(5, 48, requires_grad=True)
    for act in ACTS.values():
        (expected,) = torch.autograd.grad(act(layer(x)).sum(), x)
        for linear in (frozen_linear, inference_linear) if PACKED else ():
            (found,) = torch.autograd.grad(activated(linear, x, layer, act).sum(), x)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
