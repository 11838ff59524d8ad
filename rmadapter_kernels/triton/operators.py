"""Forward, in-place forward and backward operators on the kernels: what a call still does once its plan is made."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor

from rmadapter_kernels.triton.launch import on_device
from rmadapter_kernels.triton.plans import (
    WEIGHTS,
    Addresses,
    BackwardPlan,
    ForwardPlan,
    Needs,
    PreparePlan,
    Shape,
    precision_of,
)
from rmadapter_kernels.triton.prepared import kept
from rmadapter_kernels.triton.tuning import worth_preparing

# The last four are all there, or none.
Weights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]

# Shapes that vary without end (padded batches) would fill the memory with plans.
MOST_PLANS = 1024
GRADIENTS = ("dx", *(f"d{name}" for name in WEIGHTS))
_prepare_plans: dict[tuple, Any] = {}
_forward_plans: dict[tuple, Any] = {}
_backward_plans: dict[tuple, Any] = {}


def _remember(plans: dict, key: tuple, plan: Any) -> Any:
    if len(plans) >= MOST_PLANS:
        plans.clear()
    plans[key] = plan
    return plan


def forget_plans() -> None:
    """Make every plan anew, for tests and measurements."""
    for plans in (_prepare_plans, _forward_plans, _backward_plans):
        plans.clear()


def _dense(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous()


def _dtype(tensor: Tensor | None) -> torch.dtype | None:
    return None if tensor is None else tensor.dtype


def prepare(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    w_down: Tensor,
    b_down: Tensor,
    w_up: Tensor,
    w_rec1: Tensor | None,
    w_rec2: Tensor | None,
) -> Tensor:
    """The weights as forward and backward on inputs like ``x`` take them: bytes, laid out by ``prepared_parts``."""
    d, r, h = w_down.shape[0], w_down.shape[1], 0 if w_rec1 is None else w_rec1.shape[1]
    precision = precision_of(x.dtype)
    key = (
        x.dtype, x.device, d, r, h, norm_eps is None, precision,
        *map(_dtype, (norm_weight, norm_bias, w_down, b_down, w_up, w_rec1, w_rec2)),
    )  # fmt: skip
    plan = _prepare_plans.get(key)
    if plan is None:
        plan = _remember(_prepare_plans, key, PreparePlan(x.dtype, d, r, h, norm_eps is not None, precision))
    values: dict[str, Any] = {
        "norm_weight": _dense(norm_weight), "norm_bias": _dense(norm_bias), "w_down": _dense(w_down),
        "b_down": _dense(b_down), "w_up": _dense(w_up), "w_rec1": _dense(w_rec1), "w_rec2": _dense(w_rec2),
    }  # fmt: skip

    def make() -> Tensor:
        buffer = torch.empty(plan.bytes, dtype=torch.uint8, device=x.device)
        on_device(x.device, plan.launch, x.device, values | {"prepared": buffer}, plan.grid)
        return buffer

    return kept(key, (norm_weight, norm_bias, w_down, b_down, w_up, w_rec1, w_rec2), make)


def _prepare_all(
    x: Tensor, norm: tuple[Tensor | None, Tensor | None], norm_eps: float | None, weights: Weights
) -> Tensor:
    w_down, b_down, w_up, _, w_rec1, _, w_rec2, _ = weights
    return prepare(x, *norm, norm_eps, w_down, b_down, w_up, w_rec1, w_rec2)


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
    activation: str,
    objective: str,
    local_reconstruction: bool,
    branch_grad_scale: float,
    prepared: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``out`` like the residual (or x), and ``rec_loss`` [...], empty without reconstruction weights.

    ``prepared`` is what ``prepare`` made of these weights; without it that is done here where it is worth it.
    """
    out = torch.empty_like(x if residual is None else residual)
    loss = torch.empty(0 if w_rec1 is None else x.shape[:-1], dtype=torch.float32, device=x.device)
    weights = (w_down, b_down, w_up, b_up, w_rec1, b_rec1, w_rec2, b_rec2)
    _run_forward(out, loss, x, residual, (norm_weight, norm_bias), norm_eps, weights, scale, activation, objective,
                 prepared)  # fmt: skip
    return out, loss


def forward_(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    w_down: Tensor,
    b_down: Tensor,
    w_up: Tensor,
    b_up: Tensor,
    scale: float,
    activation: str,
) -> None:
    """Add the adaptation branch to ``residual`` in place; there is no reconstruction."""
    weights = (w_down, b_down, w_up, b_up, None, None, None, None)
    _run_forward(residual, None, x, residual, (norm_weight, norm_bias), norm_eps, weights, scale, activation, "l2",
                 None)  # fmt: skip


def _run_forward(
    out: Tensor, loss: Tensor | None, x: Tensor, residual: Tensor | None, norm: tuple[Tensor | None, Tensor | None],
    norm_eps: float | None, weights: Weights, scale: float, activation: str, objective: str, prepared: Tensor | None,
) -> None:  # fmt: skip
    if not x.numel():
        return
    w_rec1 = weights[4]
    if w_rec1 is None:
        objective = "l2"
    precision = precision_of(x.dtype)
    key = (
        x.shape, x.stride(), x.dtype, x.device, out.stride(), None if residual is None else residual.stride(),
        out.dtype, norm_eps is None, _dtype(norm[0]), _dtype(norm[1]), weights[0].shape[1],
        0 if w_rec1 is None else w_rec1.shape[1], *map(_dtype, weights), activation, objective, prepared is None,
        precision,
    )  # fmt: skip
    plan = _forward_plans.get(key, False)
    if plan is False:
        plan = _forward_plan(out, x, residual, norm_eps, weights, activation, objective, prepared, precision)
        _remember(_forward_plans, key, plan)
    if plan is None:
        _run_forward_copied(out, loss, x, residual, norm, norm_eps, weights, scale, activation, objective, prepared)
        return
    if prepared is None and plan.shape.prepared:
        prepared = _prepare_all(x, norm, norm_eps, weights)
    values: dict[str, Any] = dict(zip(WEIGHTS, map(_dense, weights), strict=True))
    values |= {
        "x": x, "residual": residual, "norm_weight": _dense(norm[0]), "norm_bias": _dense(norm[1]), "out": out,
        "rec_loss": loss, "scale": scale, "eps": 0.0 if norm_eps is None else norm_eps, "prepared": prepared,
    }  # fmt: skip
    on_device(x.device, plan.launch, x.device, values)


def _forward_plan(
    out: Tensor, x: Tensor, residual: Tensor | None, norm_eps: float | None, weights: Weights, activation: str,
    objective: str, prepared: Tensor | None, precision: str,
) -> ForwardPlan | None:  # fmt: skip
    addresses = Addresses.of([x, out if residual is None else residual, out], [], 1)
    if addresses is None:
        return None
    d, r, h = x.shape[-1], weights[0].shape[1], 0 if weights[4] is None else weights[4].shape[1]
    tokens = x.numel() // d
    shape = Shape(x.dtype, d, r, h, tokens, norm_eps is not None, activation, objective, precision,
                  prepared is not None or worth_preparing(tokens))  # fmt: skip
    return ForwardPlan(shape, addresses, x.device.index)


def _run_forward_copied(out: Tensor, loss: Tensor | None, x: Tensor, residual: Tensor | None, *rest: Any) -> None:
    """Through contiguous copies: three dimensions that do not collapse, or a stride other than 1 in D."""
    copy = torch.empty(out.shape, dtype=out.dtype, device=out.device)
    _run_forward(copy, loss, x.contiguous(), None if residual is None else residual.contiguous(), *rest)
    out.copy_(copy)


def _expanded(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


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
    activation: str,
    objective: str,
    local_reconstruction: bool,
    branch_grad_scale: float,
    needs: list[bool],
    prepared: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of x and of the eight weights, in this order; an empty tensor where ``needs`` is False.

    ``prepared`` as in ``forward``.
    """
    weights = (w_down, b_down, w_up, b_up, w_rec1, b_rec1, w_rec2, b_rec2)
    if w_rec1 is None:
        d_loss = None
    tensors: tuple[Any, ...] = (x, *weights)  # an absent one is never needed
    gradients = [torch.empty_like(t) if needed else x.new_empty(0) for t, needed in zip(tensors, needs, strict=True)]
    if not x.numel():
        return tuple(gradient.zero_() for gradient in gradients)
    precision = precision_of(x.dtype)
    key = (
        x.shape, x.stride(), x.dtype, x.device, None if d_out is None else (d_out.stride(), d_out.dtype),
        None if d_loss is None else (d_loss.stride(), d_loss.dtype), norm_eps is None, _dtype(norm_weight),
        _dtype(norm_bias), w_down.shape[1], 0 if w_rec1 is None else w_rec1.shape[1], *map(_dtype, weights), activation,
        objective, local_reconstruction, *needs, prepared is None, precision,
    )  # fmt: skip
    plan = _backward_plans.get(key, False)
    if plan is False:
        plan = _backward_plan(x, d_out, d_loss, gradients[0], norm_eps, weights, activation, objective,
                              local_reconstruction, needs, prepared, precision)  # fmt: skip
        _remember(_backward_plans, key, plan)
    if plan is None:
        return _backward_copied(x, d_out, d_loss, gradients, norm_weight, norm_bias, norm_eps, *weights, scale,
                                activation, objective, local_reconstruction, branch_grad_scale, needs,
                                prepared)  # fmt: skip
    if prepared is None and plan.shape.prepared:
        prepared = _prepare_all(x, (norm_weight, norm_bias), norm_eps, weights)
    dense = tuple(map(_dense, weights))
    found = gradients if all(map(is_, dense, weights)) else _dense_gradients(gradients, weights)
    values: dict[str, Any] = dict(zip(WEIGHTS, dense, strict=True))
    values |= dict(zip(GRADIENTS, found, strict=True))
    values |= {
        "x": x, "d_out": d_out, "d_loss": d_loss, "norm_weight": _dense(norm_weight),
        "norm_bias": _dense(norm_bias), "eps": 0.0 if norm_eps is None else norm_eps, "scale": scale,
        "branch_grad_scale": branch_grad_scale, "up_factor": branch_grad_scale * scale, "prepared": prepared,
    }  # fmt: skip
    on_device(x.device, _run_backward, plan, x.device, values)
    if found is not gradients:
        for gradient, own in zip(gradients, found, strict=True):
            if own is not gradient:
                gradient.copy_(own)
    for index in plan.zeros:  # which no kernel has written, nor the dense copy of one
        gradients[index].zero_()
    return tuple(gradients)


def _backward_plan(
    x: Tensor, d_out: Tensor | None, d_loss: Tensor | None, dx: Tensor, norm_eps: float | None,
    weights: Weights, activation: str, objective: str, local: bool, needs: list[bool], prepared: Tensor | None,
    precision: str,
) -> BackwardPlan | None:  # fmt: skip
    has_out, has_loss = d_out is not None, d_loss is not None
    if (d_out is not None and _expanded(d_out)) or (d_loss is not None and d_loss.dtype != torch.float32):
        return None
    d, r, h = x.shape[-1], weights[0].shape[1], 0 if weights[4] is None else weights[4].shape[1]
    has_dx = Needs.of(needs, has_out, has_loss, local).x
    # Present tensors stand for absent ones, so that three of width D and a loss are addressed in every case.
    addresses = Addresses.of(
        [x, x if d_out is None else d_out, dx if has_dx else x],
        [x.select(-1, 0) if d_loss is None else d_loss],
        max(r, h, 16) * 2,
    )
    if addresses is None:
        return None
    tokens = x.numel() // d
    shape = Shape(x.dtype, d, r, h, tokens, norm_eps is not None, activation, objective if has_loss else "l2",
                  precision, prepared is not None or worth_preparing(tokens))  # fmt: skip
    return BackwardPlan(shape, addresses, needs, has_out, has_loss, local, x.device.index)


def _run_backward(plan: BackwardPlan, device: torch.device, values: dict[str, Any]) -> None:
    """K1 and K2 of one slice of rows after the other, while what both read lies in L2, then K3."""
    values["scratch"] = torch.empty(plan.scratch_bytes, dtype=torch.uint8, device=device)
    for piece in plan.slices:
        values["first_row"], values["last_row"], values["first_chunk"] = piece
        rows = piece.last_row - piece.first_row
        if plan.rows is not None:
            plan.rows(device, values, rows)
        if plan.weights is not None:
            plan.weights(device, values, rows)
    if plan.sum is not None:
        plan.sum(device, values, plan.sum_grid)


def _dense_gradients(gradients: list[Tensor], weights: Weights) -> list[Tensor]:
    """``gradients`` with contiguous memory for those of the weights that have other strides, as the kernels write."""
    found = gradients[:1]
    for gradient, weight in zip(gradients[1:], weights, strict=True):
        own = weight is None or gradient.is_contiguous()
        found.append(gradient if own else torch.empty_like(gradient, memory_format=torch.contiguous_format))
    return found


def _backward_copied(
    x: Tensor, d_out: Tensor | None, d_loss: Tensor | None, gradients: list[Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    """Through contiguous copies: of what ``_run_forward_copied`` copies, and of expanded or other loss gradients."""
    d_out = None if d_out is None else d_out.contiguous()
    d_loss = None if d_loss is None else d_loss.to(torch.float32, memory_format=torch.contiguous_format)
    if d_loss is not None:
        d_loss = d_loss.contiguous()
    # x keeps its layout where that is all that was wrong.
    found = backward(x.contiguous(), d_out, d_loss, *rest)
    first = gradients[0]
    return (first.copy_(found[0]) if first.numel() else found[0], *found[1:])
