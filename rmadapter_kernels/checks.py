"""Checks of the operator's arguments, driven by a table of what each tensor looks like."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from rmadapter_kernels.reference import ACTIVATIONS, OBJECTIVES, Norm

# D is the width of x, r and h are those of w_down and w_rec1.
SHAPES = {
    "w_down": ("D", "r"),
    "b_down": ("r",),
    "w_up": ("r", "D"),
    "b_up": ("D",),
    "w_rec1": ("r", "h"),
    "b_rec1": ("h",),
    "w_rec2": ("h", "D"),
    "b_rec2": ("D",),
}

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPE_NAMES = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
LARGEST = sys.float_info.max

# What the fused kernels take; others go to the reference, or are an error where a fused backend was named.
WIDTHS, WIDTH_STEP, BOTTLENECKS = (64, 2048), 16, (1, 128)


def outside_limits(d: int, r: int, h: int) -> str | None:
    """Why fused kernels do not take these widths, naming the first that is outside; None where they do.

    Args:
        d, r, h: widths of x, of the bottleneck and of the reconstruction (0 without one).
    """
    if not WIDTHS[0] <= d <= WIDTHS[1] or d % WIDTH_STEP:
        return f"x has width D={d}; valid: {WIDTHS[0]} to {WIDTHS[1]} in multiples of {WIDTH_STEP}"
    for name, value, lowest in (("bottleneck r", r, BOTTLENECKS[0]), ("reconstruction width h", h, 0)):
        if not lowest <= value <= BOTTLENECKS[1]:
            return f"{name} is {value}; valid: {BOTTLENECKS[0]} to {BOTTLENECKS[1]}"
    return None


def check_x(x: Tensor) -> None:
    """Raise TypeError or ValueError, naming what is valid, unless ``x`` is an input of the operator."""
    if not isinstance(x, Tensor) or x.dtype not in DTYPES:
        raise TypeError(f"x is {_describe(x)}; valid: a floating-point tensor [..., D] ({DTYPE_NAMES})")
    _check_layout("x", x)
    if x.dim() < 1:
        raise ValueError("x has no dimension; valid: [..., D]")


def check_settings(
    scale: float, branch_grad_scale: float, activation: str, objective: str, local_reconstruction: bool
) -> None:
    """Raise TypeError or ValueError, naming argument, value and what is valid, unless the settings are plain values.

    A tensor in place of a number would be read once and get no gradient, silently.
    """
    for name, value in (("scale", scale), ("branch_grad_scale", branch_grad_scale)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            hint = " (a tensor would get no gradient)" if isinstance(value, Tensor) else ""
            raise TypeError(f"{name} is {_describe(value)}; valid: a number{hint}")
        if not -LARGEST <= value <= LARGEST:  # NaN and infinity, and whole numbers that no float holds
            raise ValueError(f"{name} is {value}; valid: a finite number")
    if branch_grad_scale == 0:
        raise ValueError("branch_grad_scale is 0; valid: any other number (to freeze weights, unset requires_grad)")
    for name, chosen, valid in (("activation", activation, ACTIVATIONS), ("objective", objective, OBJECTIVES)):
        if not isinstance(chosen, str):
            raise TypeError(f"{name} is {_describe(chosen)}; valid: {', '.join(valid)}")
        if chosen not in valid:
            raise ValueError(f"{name} is {chosen!r}; valid: {', '.join(valid)}")
    if not isinstance(local_reconstruction, bool):
        raise TypeError(f"local_reconstruction is {_describe(local_reconstruction)}; valid: True, False")


def check_tensors(x: Tensor, weights: tuple[Tensor | None, ...], residual: Tensor | None, norm: Norm | None) -> None:
    """Raise TypeError or ValueError, naming argument, value and what is valid, unless these go with ``x``."""
    if not _all_fit(x, weights, residual):
        _find_fault(x, weights, residual)
    if norm is not None:
        _check_norm(norm, x)


def _all_fit(x: Tensor, weights: tuple[Tensor | None, ...], residual: Tensor | None) -> bool:
    """Whether there is no fault to find: the same rules without their messages, in a quarter of the 20 us that those
    take at each call."""
    w_down, w_rec1 = weights[0], weights[4]
    if not isinstance(w_down, Tensor) or w_down.is_nested or w_down.dim() != 2:
        return False
    d, r = x.shape[-1], w_down.shape[1]
    shapes: list[tuple[int, ...]] = [(d, r), (r,), (r, d), (d,)]
    if w_rec1 is not None:
        if not isinstance(w_rec1, Tensor) or w_rec1.is_nested or w_rec1.dim() != 2:
            return False
        h = w_rec1.shape[1]
        if not h:  # which the backends would take for no branch
            return False
        shapes += [(r, h), (h,), (h, d), (d,)]
    elif any(weight is not None for weight in weights[5:]):
        return False
    tensors = [*weights[: len(shapes)]]
    if residual is not None:
        tensors.append(residual)
        shapes.append(x.shape)
    dtypes, device = (x.dtype, torch.float32), x.device
    for tensor, shape in zip(tensors, shapes, strict=True):
        if (
            not isinstance(tensor, Tensor)
            or tensor.is_nested
            or tensor.layout is not torch.strided
            or tensor.shape != shape
            or tensor.dtype not in dtypes
            or tensor.device != device
        ):
            return False
    return True


def _find_fault(x: Tensor, weights: tuple[Tensor | None, ...], residual: Tensor | None) -> None:
    sizes = {"D": x.shape[-1]}
    for (name, dimensions), weight in zip(SHAPES.items(), weights, strict=True):
        if weight is None:
            if (weights[4] is None) and name.endswith(("rec1", "rec2")):
                continue
            raise TypeError(f"{name} is None; the reconstruction branch takes all of its four weights or none")
        _check_tensor(name, weight, x)
        for dimension, size in zip(dimensions, weight.shape, strict=False):
            sizes.setdefault(dimension, size)
        if tuple(weight.shape) != tuple(sizes.get(d) for d in dimensions):
            expected = ", ".join(f"{d}={sizes[d]}" if d in sizes else d for d in dimensions)
            raise ValueError(f"{name} has shape {list(weight.shape)}; valid: [{expected}]")
        if name == "w_rec1" and not sizes["h"]:
            raise ValueError(f"w_rec1 has shape {list(weight.shape)}; valid: [r={sizes['r']}, h] with h >= 1, or None")
    if weights[4] is None and any(weight is not None for weight in weights[5:]):
        raise TypeError("w_rec1 is None; the reconstruction branch takes all of its four weights or none")
    if residual is not None:
        _check_tensor("residual", residual, x)
        if residual.shape != x.shape:
            raise ValueError(f"residual has shape {list(residual.shape)}; valid: that of x, {list(x.shape)}")


def _check_norm(norm: Norm, x: Tensor) -> None:
    if not isinstance(norm, tuple) or len(norm) != 3:
        raise TypeError(f"norm is {_describe(norm)}; valid: (weight or None, bias or None, eps)")
    if not isinstance(norm[2], float):
        raise TypeError(f"norm's eps is {_describe(norm[2])}; valid: a float")
    for name, tensor in zip(("norm's weight", "norm's bias"), norm[:2], strict=True):
        if tensor is None:
            continue
        _check_tensor(name, tensor, x)
        if tuple(tensor.shape) != (x.shape[-1],):
            raise ValueError(f"{name} has shape {list(tensor.shape)}; valid: [D={x.shape[-1]}]")
        if tensor.requires_grad:
            raise ValueError(f"{name} requires grad; valid: a frozen LayerNorm, the operator gives it no gradient")


def _check_tensor(name: str, tensor: Tensor, x: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {_describe(tensor)}; valid: a tensor")
    _check_layout(name, tensor)
    if tensor.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"{name} is {tensor.dtype}; valid: the dtype of x, {x.dtype}, or torch.float32")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}; valid: the device of x, {x.device}")


def _check_layout(name: str, tensor: Tensor) -> None:
    if tensor.is_nested:
        raise TypeError(f"{name} is a nested tensor; valid: a dense one (torch.nested.to_padded_tensor)")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} is a tensor of layout {tensor.layout}; valid: a dense one (to_dense())")


def _describe(value: object) -> str:
    if isinstance(value, torch.nn.Parameter):
        return f"a parameter of {value.dtype}"
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
