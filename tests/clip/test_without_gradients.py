"""What a block computes otherwise where no gradient is wanted: the same numbers, to the roundings of its dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rmadapter.clip import attention
from rmadapter.clip.attention import scaled_attention
from rmadapter.clip.parts import normed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_norm_in_one_pass_rounds_as_the_wide_one(dtype, monkeypatch):
    torch.manual_seed(0)
    x, norm = torch.randn(4, 50, 96).to(dtype), nn.LayerNorm(96)
    nn.init.normal_(norm.weight)
    expected = F.layer_norm(x.float(), (96,), norm.weight, norm.bias, norm.eps).to(dtype)
    calls, real = [], F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda x, *rest: calls.append(x.dtype) or real(x, *rest))
    with torch.no_grad():
        found = normed(norm, x, dtype)
    assert calls == [dtype]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected.float(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert (found != expected).float().mean() < 1e-2
    # With a gradient, in another dtype or with weights in this one it is as it was.
    normed(norm, x.clone().requires_grad_(), dtype)
    with torch.no_grad():
        normed(norm, x, torch.float32)
        normed(norm.to(dtype), x, dtype)
    assert calls[1:] == [torch.float32, torch.float32, dtype]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_attention_is_fused_on_a_processor_with_amx_where_no_gradient_is_wanted(monkeypatch, amx, gradient):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 30, 16).to(torch.bfloat16).unbind()
    calls, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(attention, "cpu_has_amx", lambda: amx)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *of, **how: calls.append(1) or real(*of, **how))
    with torch.set_grad_enabled(gradient):
        found = scaled_attention(q, k, v, None, causal=False)
    assert len(calls) == (amx and not gradient)
    exact = real(q.double(), k.double(), v.double())
    assert (found - exact).norm() / exact.norm() < 1e-2
