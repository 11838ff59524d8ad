"""The definition of the operator, in plain PyTorch that ordinary autograd differentiates.

Every backend is tested against ``reference`` in fp64. Equations: RMAdapter (Lin et al., AAAI 2026), with the
parallel placement and the gradient convention of MMA (Multi-Modal Adapter, CVPR 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = ("gelu", "relu", "quick_gelu", "silu")
OBJECTIVES = ("l2", "l1", "cosine")
COSINE_EPS = 1e-8
QUICK_GELU_SLOPE = 1.702

Norm = tuple[Tensor | None, Tensor | None, float]


def activation(name: str, x: Tensor) -> Tensor:
    """``name`` of ``x``, elementwise: gelu (exact, by erf), relu, quick_gelu (x sigmoid(1.702 x)) or silu."""
    if name == "gelu":
        return F.gelu(x)
    if name == "relu":
        return F.relu(x)
    if name == "quick_gelu":
        return x * torch.sigmoid(QUICK_GELU_SLOPE * x)
    if name == "silu":
        return F.silu(x)
    raise ValueError(f"activation is {name!r}; valid: {', '.join(ACTIVATIONS)}")


# ``activation`` is also the name of an argument of ``reference``.
_activated = activation


def reconstruction_loss(x: Tensor, rec: Tensor, objective: str) -> Tensor:
    """Loss of each token [...] of ``x`` and ``rec`` [..., D], computed in fp32 (fp64 for fp64 inputs).

    l2: sum (x - rec)^2; l1: sum |x - rec|; cosine: 1 - cos(x, rec), norms clamped at 1e-8.
    """
    x, rec = (t if t.dtype == torch.float64 else t.float() for t in (x, rec))
    if objective == "l2":
        return (x - rec).square().sum(-1)
    if objective == "l1":
        return (x - rec).abs().sum(-1)
    if objective == "cosine":
        norms = (t.norm(dim=-1).clamp_min(COSINE_EPS) for t in (x, rec))
        return 1 - (x * rec).sum(-1) / (next(norms) * next(norms))
    raise ValueError(f"objective is {objective!r}; valid: {', '.join(OBJECTIVES)}")


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself; its gradient is multiplied by ``factor`` on the way back."""
    return _ScaleGradient.apply(x, factor)


def layer_norm(x: Tensor, norm: Norm | None) -> Tensor:
    """``x`` [..., D] through LayerNorm ``(weight, bias, eps)`` in fp32 or fp64, in the dtype of ``x``; None: ``x``."""
    if norm is None:
        return x
    weight, bias, eps = norm
    wide = x if x.dtype == torch.float64 else x.float()
    weight, bias = (t if t is None else t.to(wide.dtype) for t in (weight, bias))
    return F.layer_norm(wide, x.shape[-1:], weight, bias, eps).to(x.dtype)


def reference(
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor,
    w_up: Tensor,
    b_up: Tensor,
    w_rec1: Tensor | None = None,
    b_rec1: Tensor | None = None,
    w_rec2: Tensor | None = None,
    b_rec2: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    norm: Norm | None = None,
    scale: float = 1.0,
    activation: str = "gelu",
    objective: str = "l2",
    local_reconstruction: bool = True,
    branch_grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The operator ``rm_adapter`` by its definition; arguments and results are described there."""

    def linear(t: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return t @ weight.to(t.dtype) + bias.to(t.dtype)

    u = layer_norm(x, norm)
    # The weights of the adaptation branch see its gradient times branch_grad_scale, u sees it as it is.
    z = _activated(activation, linear(scale_gradient(u, 1.0 / branch_grad_scale), w_down, b_down))
    base = scale_gradient(linear(z, w_up, b_up), branch_grad_scale)
    out = scale * base if residual is None else residual + scale * base
    out = out.to(x.dtype if residual is None else residual.dtype)
    if w_rec1 is None or b_rec1 is None or w_rec2 is None or b_rec2 is None:  # all of them, or none
        return out, x.new_empty(0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    target = u.detach() if local_reconstruction else u
    z = _activated(activation, linear(target, w_down, b_down))
    rec = linear(_activated(activation, linear(z, w_rec1, b_rec1)), w_rec2, b_rec2)
    return out, reconstruction_loss(target, rec, objective)
