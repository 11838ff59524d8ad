"""The eager backend: forward and written-out backward in PyTorch's own operations.

With u = LayerNorm(x) or x, z = sigma(u W_down + b_down), h = sigma(z W_rec1 + b_rec1), rec = h W_rec2 + b_rec2,
c = branch_grad_scale and dl the gradient of rec_loss, the backward pass is

    dz_b = scale d_out W_up^T                     dz_r = dh W_rec1^T,  dh = (e W_rec2^T) sigma'
    dz   = (c dz_b + dz_r) sigma'                 e, t: gradients of the loss to rec and to its target u
    dW_down = u^T dz,  dW_up = c scale z^T d_out,  dW_rec1 = z^T dh,  dW_rec2 = h^T e,  biases: column sums
    du = v W_down^T (+ t),  v = dz_b sigma' (local reconstruction) or (dz_b + dz_r) sigma'

``scale``, ``c`` and ``dl`` multiply after the products, in fp32: rounding d_out * scale or e * dl to 16 bits first
loses 1.7e-2 and 42 % of their gradients. Weight gradients are summed in fp32 whatever the dtype of x.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rmadapter_kernels.reference import COSINE_EPS, QUICK_GELU_SLOPE, activation, layer_norm, reconstruction_loss


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses and sums: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plain(implementation):
    """Without autocast, which would cast the fp32 products inside (the caller has cast x already), and without
    autograd, which an exported program that is run outside of ``no_grad`` would send through ``out=``."""

    @functools.wraps(implementation)
    def wrapped(x: Tensor, *arguments):
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            return implementation(x, *arguments)

    return wrapped


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias.to(x.dtype), x, weight.to(x.dtype))


@_plain
def forward(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    w_down: Tensor,
    b_down: Tensor,
    w_up: Tensor,
    b_up: Tensor,
    w_rec1: Tensor | None,
    b_rec1: Tensor | None,
    w_rec2: Tensor | None,
    b_rec2: Tensor | None,
    scale: float,
    activation_name: str,
    objective: str,
    local_reconstruction: bool,
    branch_grad_scale: float,
) -> tuple[Tensor, Tensor]:
    """``out`` like the residual (or x), and ``rec_loss`` [...], empty without reconstruction weights."""
    norm = None if norm_eps is None else (norm_weight, norm_bias, norm_eps)
    u = layer_norm(x, norm).reshape(-1, x.shape[-1])
    z = activation(activation_name, _linear(u, w_down, b_down))
    base = _linear(z, w_up, b_up).view(x.shape)
    if residual is None:
        out = torch.mul(base, scale, out=torch.empty_like(x))
    else:
        # ``alpha`` must be a number of the dtype.
        term = base if abs(scale) <= torch.finfo(base.dtype).max else base.to(wide_dtype(base.dtype))
        out = torch.add(residual, term, alpha=scale, out=torch.empty_like(residual))
    if w_rec1 is None or b_rec1 is None or w_rec2 is None or b_rec2 is None:  # all of them, or none
        return out, x.new_empty(0, dtype=wide_dtype(x.dtype))
    rec = _linear(activation(activation_name, _linear(z, w_rec1, b_rec1)), w_rec2, b_rec2)
    return out, _token_losses(u.view(x.shape), rec.view(x.shape), objective)


def _token_losses(u: Tensor, rec: Tensor, objective: str) -> Tensor:
    """``reference.reconstruction_loss`` in the memory of ``rec``: two temporaries of its size less."""
    if objective == "cosine":
        return reconstruction_loss(u, rec, objective)
    difference = rec.to(wide_dtype(rec.dtype)).sub_(u)
    return (difference.square_() if objective == "l2" else difference.abs_()).sum(-1)


def activation_backward(name: str, gradient: Tensor, x: Tensor) -> Tensor:
    """``gradient`` times the derivative of ``activation(name, x)``, elementwise.

    PyTorch's own kernels: the formula of gelu written out gives denormals for x below -13, which adapters see, and
    on a CPU a product with them took 30 ms in place of 1.6 (x^T dz, 6,304 tokens of width 768).
    """
    if name == "gelu":
        return torch.ops.aten.gelu_backward(gradient, x)
    if name == "silu":
        return torch.ops.aten.silu_backward(gradient, x)
    if name == "relu":
        return torch.ops.aten.threshold_backward(gradient, x, 0)
    s = torch.sigmoid(QUICK_GELU_SLOPE * x)
    return gradient * (s + QUICK_GELU_SLOPE * x * s * (1 - s))


def _loss_gradients(u: Tensor, rec: Tensor, objective: str, need_target: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of each token's loss to ``rec`` and to its target ``u``, [M, D], not yet times dl; half of l2's."""
    if objective in ("l2", "l1"):
        e = rec - u
        if objective == "l1":
            e.sign_()
        return e, -e if need_target else None
    u_norm, rec_norm = (t.norm(dim=-1, keepdim=True) for t in (u, rec))
    u_clamped, rec_clamped = (norm.clamp_min(COSINE_EPS) for norm in (u_norm, rec_norm))
    product = u_clamped * rec_clamped
    cosine = (u * rec).sum(-1, keepdim=True) / product

    def toward(own: Tensor, own_norm: Tensor, own_clamped: Tensor, other: Tensor) -> Tensor:
        # Below the clamp the norm is a constant and its own term is gone.
        along = torch.where(own_norm >= COSINE_EPS, cosine / own_clamped.square(), 0.0)
        return along * own - other / product

    e = toward(rec, rec_norm, rec_clamped, u)
    return e, toward(u, u_norm, u_clamped, rec) if need_target else None


def _norm_backward(du: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Gradient of LayerNorm to its input, [M, D]; ``du`` and ``x`` in the wide dtype."""
    centred = x - x.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    x_hat = centred * rstd
    d_hat = du if weight is None else du * weight.to(du.dtype)
    return rstd * (d_hat - d_hat.mean(-1, keepdim=True) - x_hat * (d_hat * x_hat).mean(-1, keepdim=True))


@_plain
def backward(
    x: Tensor,
    d_out: Tensor | None,
    d_loss: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    w_down: Tensor,
    b_down: Tensor,
    w_up: Tensor,
    b_up: Tensor,
    w_rec1: Tensor | None,
    b_rec1: Tensor | None,
    w_rec2: Tensor | None,
    b_rec2: Tensor | None,
    scale: float,
    activation_name: str,
    objective: str,
    local_reconstruction: bool,
    branch_grad_scale: float,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    """Gradients of x and of the eight weights, in this order; an empty tensor where ``needs`` is False."""
    wide = wide_dtype(x.dtype)
    norm = None if norm_eps is None else (norm_weight, norm_bias, norm_eps)
    u = layer_norm(x, norm).reshape(-1, x.shape[-1])
    pre = _linear(u, w_down, b_down)
    z = activation(activation_name, pre)
    need_x, need_down, need_b_down, need_up, need_b_up, *need_rec = needs
    need_z = need_x or need_down or need_b_down
    gradients: list[Tensor | None] = [None] * 9

    dz_base = dz_rec = t = None
    if d_out is not None:
        d_out = d_out.reshape(-1, x.shape[-1])
        if need_z:
            # The gradient of a mean is out of the range of fp16, that of a residual in fp32 need not come in it.
            factor = wide if x.dtype == torch.float16 else x.dtype
            dz_base = scale * (d_out.to(factor) @ w_up.to(x.dtype).to(factor).t()).to(wide)
        if need_up:
            gradients[3] = branch_grad_scale * scale * (z.to(wide).t() @ d_out.to(wide))
        if need_b_up:
            gradients[4] = branch_grad_scale * scale * d_out.sum(0, dtype=wide)
    # All of the four weights are there, or none.
    if not (d_loss is None or w_rec1 is None or b_rec1 is None or w_rec2 is None or b_rec2 is None):
        d_loss = d_loss.reshape(-1, 1).to(wide)
        if objective == "l2":  # the factor 2 of its gradient, which takes e out of the range of fp16
            d_loss = 2 * d_loss
        pre_h = _linear(z, w_rec1, b_rec1)
        h = activation(activation_name, pre_h)
        rec = _linear(h, w_rec2, b_rec2)
        e, t = _loss_gradients(u.to(wide), rec.to(wide), objective, need_x and not local_reconstruction)
        t = None if t is None else t * d_loss
        if need_rec[2]:
            # The sum over tokens carries dl on h: e alone is of order one and rounds well.
            gradients[7] = (h.to(wide) * d_loss).t() @ e
        if need_rec[3]:
            gradients[8] = (d_loss.t() @ e).squeeze(0)
        if need_z or need_rec[0] or need_rec[1]:
            dh = d_loss * (e.to(x.dtype) @ w_rec2.to(x.dtype).t()).to(wide)
            dh = activation_backward(activation_name, dh, pre_h.to(wide))
            if need_rec[0]:
                gradients[5] = z.to(wide).t() @ dh
            if need_rec[1]:
                gradients[6] = dh.sum(0)
            dz_rec = dh @ w_rec1.to(wide).t()

    dz = None
    if need_down or need_b_down:
        dz = _sum(None if dz_base is None else branch_grad_scale * dz_base, dz_rec)
    if dz is not None:
        dz = activation_backward(activation_name, dz, pre.to(wide))
        if need_down:
            gradients[1] = u.to(wide).t() @ dz
        if need_b_down:
            gradients[2] = dz.sum(0)
    if need_x:
        v = _sum(dz_base, None if local_reconstruction else dz_rec)
        if v is None:
            du = torch.zeros_like(u, dtype=wide)
        else:
            du = activation_backward(activation_name, v, pre.to(wide)) @ w_down.to(wide).t()
        du = du if t is None else du + t
        if norm is not None:
            du = _norm_backward(du, x.reshape(u.shape).to(wide), norm[0], norm[2])
        gradients[0] = _like(x, du.view(x.shape))

    weights = (w_down, b_down, w_up, b_up, w_rec1, b_rec1, w_rec2, b_rec2)
    for index, weight in enumerate(weights, start=1):
        if needs[index] and weight is not None:
            found = gradients[index]
            gradients[index] = torch.zeros_like(weight) if found is None else _like(weight, found)
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _like(tensor: Tensor, found: Tensor) -> Tensor:
    """``found`` in the dtype and strides of ``tensor``."""
    fits = found.dtype == tensor.dtype and found.stride() == tensor.stride()
    return found if fits else torch.empty_like(tensor).copy_(found)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of what is there."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
