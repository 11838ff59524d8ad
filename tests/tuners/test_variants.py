"""The ablation's adapters in plain PyTorch: against the operator where they meet, and against the formulas."""

from __future__ import annotations

import pytest
import torch
from conftest import small_clip
from torch.nn import functional as F

from rmadapter import RMAdapterConfig, inject
from rmadapter.tuners.variants import SharedLayer, VariantAdapter
from rmadapter_kernels import FusedRMAdapter

D, R, H = 12, 5, 7


def make(**arguments) -> VariantAdapter:
    torch.manual_seed(0)
    adapter = VariantAdapter(D, **{"bottleneck": R, "rec_hidden": H, "scale": 0.3, **arguments}).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return adapter


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("objective", ["l2", "l1", "cosine"])
@pytest.mark.parametrize("norm", [True, False])
def test_two_layers_on_the_shared_down_projection_are_the_operator(local, objective, norm):
    arguments = {"objective": objective, "local_reconstruction": local, "branch_grad_scale": 3.0}
    variant = make(**arguments)
    fused = FusedRMAdapter(D, bottleneck=R, rec_hidden=H, scale=0.3, **arguments).double()
    fused.load_state_dict(variant.state_dict())
    x, residual = torch.randn(2, 2, 4, D, dtype=torch.float64).unbind()
    layer_norm = (torch.randn(D).double(), torch.randn(D).double(), 1e-5) if norm else None
    results = []
    for adapter in (variant, fused):
        inputs = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
        out, loss = adapter(*inputs, layer_norm)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        ((out * weights).sum() + (loss * torch.arange(4.0)).sum()).backward()
        parameters = dict(sorted(adapter.named_parameters()))
        results.append([out, loss, *(i.grad for i in inputs), *(p.grad for p in parameters.values())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, check_dtype=False, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("separate", [False, True])
def test_reconstruction_of_one_to_three_layers(layers, separate):
    adapter = make(rec_layers=layers, separate_down=separate)
    x = torch.randn(3, D, dtype=torch.float64)
    _, loss = adapter(x)
    down = "w_down_rec" if separate else "w_down"
    rec = F.gelu(x @ getattr(adapter, down) + getattr(adapter, down.replace("w", "b", 1)))
    for number in range(1, layers + 1):
        rec = rec @ getattr(adapter, f"w_rec{number}") + getattr(adapter, f"b_rec{number}")
        rec = F.gelu(rec) if number < layers else rec
    torch.testing.assert_close(loss.double(), (x - rec).square().sum(-1), rtol=1e-6, atol=1e-6)
    assert sum(name.startswith("w_rec") for name, _ in adapter.named_parameters()) == layers
    loss.sum().backward()
    assert (adapter.w_down.grad is None) == separate


def test_mma_with_its_gradient_convention():
    """Explicit gradient scaling around the branch: the weights' gradients times c, the input's as it is."""

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.factor = factor
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.factor, None

    torch.manual_seed(0)
    shared = SharedLayer(R)
    scale = 0.01
    adapter = make(reconstruct=False, shared=shared, activation="relu", scale=scale, branch_grad_scale=1 / scale)
    x = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    out, loss = adapter(x)
    assert loss.numel() == 0
    out.square().sum().backward()
    ours = [x.grad.clone(), *(p.grad.clone() for p in adapter.parameters())]
    x.grad = None
    adapter.zero_grad()
    z = F.relu(Scale.apply(x, scale) @ adapter.w_down + adapter.b_down)
    z = F.relu(z @ shared.weight + shared.bias)
    expected = scale * Scale.apply(z @ adapter.w_up + adapter.b_up, 1 / scale)
    torch.testing.assert_close(out, expected)
    expected.square().sum().backward()
    for one, other in zip(ours, [x.grad, *(p.grad for p in adapter.parameters())], strict=True):
        torch.testing.assert_close(one, other)


def test_the_shared_layer_is_one_object_in_both_towers():
    model = inject(small_clip(), RMAdapterConfig(layers="last:2", shared_layer=True, reconstruct=False))
    layers = {tower: [a.adapter.branch.shared for a in model.adapters(tower)] for tower in ("vision", "text")}
    assert layers["vision"][0] is layers["text"][0] is not layers["vision"][1]
    names = set(model.adapter_tensors())
    assert {"shared.1.weight", "shared.1.bias", "shared.2.weight", "vision.2.w_down", "text.3.b_up"} <= names
    assert len(names) == 2 * 2 + 2 * 2 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_input_with_fp32_weights(dtype):
    adapter = VariantAdapter(D, bottleneck=R, rec_layers=3, scale=0.3)
    x, residual = torch.randn(2, 3, D).unbind()
    exact = adapter(x, residual)
    out, loss = adapter(x.to(dtype), residual.to(dtype))
    assert (out.dtype, loss.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.float(), exact[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(loss, exact[1], rtol=0.1, atol=0.1)


def test_zero_up_and_eval_mode():
    adapter = VariantAdapter(D, bottleneck=R, init="zero_up", rec_layers=1).eval()
    x = torch.randn(3, D)
    out, loss = adapter(x, x)
    assert torch.equal(out, x)
    assert loss.shape == (0,)
