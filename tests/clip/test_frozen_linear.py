"""Products with frozen matrices in oneDNN's layout: values and gradients against fp64, and matrices that change."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch.nn import functional as F

from rmadapter.clip import frozen_linear as module
from rmadapter.clip.frozen_linear import frozen_linear, packing_obstacle

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(packing_obstacle(CPU, torch.float32) is not None, reason="oneDNN is for x86 processors")
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if packing_obstacle(CPU, dtype) is None]


def make(dtype: torch.dtype, rows: tuple[int, ...] = (3, 5)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, 48, generator=generator).to(dtype).requires_grad_()
    weight, bias = torch.randn(40, 48, generator=generator), torch.randn(40, generator=generator)
    return x, weight.to(dtype), bias.to(dtype)


def product(function, x, weight, bias) -> list[torch.Tensor]:
    """The output, and the gradient of its weighted sum, in fp64."""
    out = function(x, weight, bias)
    factors = torch.linspace(-1, 1, out.shape[-1], dtype=torch.float64).to(out.dtype)
    (gradient,) = torch.autograd.grad((out * factors).sum(), x)
    return [out.detach().double(), gradient.double()]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [(3, 5), (1,), (1, 70)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errors_are_those_of_pytorch_s_own_product(dtype, rows, with_bias):
    x, weight, bias = make(dtype, rows)
    bias = bias if with_bias else None
    exact = product(F.linear, *(None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)))
    own, found = product(F.linear, x, weight, bias), product(frozen_linear, x, weight, bias)
    for one, other, true in zip(found, own, exact, strict=True):
        assert one.shape == other.shape
        assert (one - true).norm() <= 2 * (other - true).norm() + 1e-6 * true.norm()


def test_what_is_not_contiguous():
    _, weight, bias = make(torch.float32)
    x = torch.randn(48, 6).t().requires_grad_()
    for one, other in zip(product(frozen_linear, x, weight, bias), product(F.linear, x, weight, bias), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["in place", "another tensor"])
def test_a_matrix_that_was_changed_is_packed_anew(change):
    x, weight, bias = make(torch.float32)
    product(frozen_linear, x, weight, bias)
    if change == "in place":
        weight.mul_(2)
    else:
        weight.data = weight.data + 1
    for one, other in zip(product(frozen_linear, x, weight, bias), product(F.linear, x, weight, bias), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_matrix_is_packed_once_and_forgotten_with_its_model():
    x, weight, bias = make(torch.float32)
    gc.collect()
    before = len(module._packed)
    product(frozen_linear, x, weight, bias)
    kept = module._packed[weight]
    first = dict(kept)
    assert set(first) == {False, True}
    product(frozen_linear, x, weight, bias)
    assert all(kept[transposed] is first[transposed] for transposed in first)
    assert copy.deepcopy(weight) not in module._packed
    assert len(module._packed) == before + 1
    del weight, first, kept
    gc.collect()
    assert len(module._packed) == before


def test_where_it_does_not_apply():
    assert "x86" in packing_obstacle(torch.device("cuda"), torch.float32)
    assert "float64" in packing_obstacle(CPU, torch.float64)
