"""Whether tensors share memory, where one of them is written to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Memory that would take more steps than this to take apart is refused: no layout that slicing makes comes near.
MOST_STEPS = 10_000


def _extents(tensor: Tensor, factor: int) -> list[tuple[int, int]]:
    """Stride in bytes and size of each dimension with more than one element, of which ``factor`` go in one direction
    or both."""
    size = tensor.element_size()
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return [(stride * size, factor * (count - 1)) for stride, count in pairs if count > 1]


def _reachable(distance: int, steps: Sequence[tuple[int, int, int]], slack: int, budget: list[int]) -> bool:
    """Whether ``distance`` is within ``slack`` bytes of a sum of strides, each taken between two bounds.

    Args:
        steps: stride, least and most times, the largest stride first.
        budget: steps that are left; without any the answer is yes.
    """
    budget[0] -= 1
    if budget[0] < 0:
        return True
    if not steps:
        return abs(distance) <= slack
    (stride, least, most), rest = steps[0], steps[1:]
    low = sum(own * times for own, times, _ in rest) - slack
    high = sum(own * times for own, _, times in rest) + slack
    if stride == 0:
        return _reachable(distance, rest, slack, budget)
    first, last = max(least, -((high - distance) // stride)), min(most, (distance - low) // stride)
    return any(_reachable(distance - times * stride, rest, slack, budget) for times in range(first, last + 1))


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements of ``tensor`` lie in the same bytes: expanded, or with strides that meet."""
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return tensor.numel() > 0
    reach = tensor.element_size()
    for stride, last in sorted(_extents(tensor, 1)):
        if stride < reach:
            return tensor.numel() > 0
        reach += stride * last
    return False


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether an element of ``a`` lies in the bytes of one of ``b``."""
    if not a.numel() or not b.numel() or a.device != b.device:
        return False
    distance = b.data_ptr() - a.data_ptr()
    steps = [(stride, 0, last) for stride, last in _extents(a, 1)]
    steps += [(stride, -last, 0) for stride, last in _extents(b, 1)]
    slack = max(a.element_size(), b.element_size()) - 1
    return _reachable(distance, sorted(steps, reverse=True), slack, [MOST_STEPS])


def refuse_overlap(x: Tensor, residual: Tensor) -> None:
    """Raise ValueError where ``residual``, which is written to, overlaps itself, or ``x`` without being ``x``.

    In a compiled graph, and of meta and fake tensors, only what its strides tell is seen: nothing has an address there.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and any(map(torch._C._functorch.is_functorch_wrapped_tensor, (x, residual))):
        raise ValueError("residual is under a transform of torch.func, which sees no writing; valid: rm_adapter")
    expanded = any(stride == 0 and size > 1 for stride, size in zip(residual.stride(), residual.shape, strict=True))
    if expanded or (not compiling and residual.numel() > 1 and overlaps_itself(residual)):
        raise ValueError(
            f"residual overlaps itself: shape {list(residual.shape)}, strides {list(residual.stride())}; valid: a "
            "tensor whose elements lie apart, as residual.contiguous() gives"
        )
    if x is residual or compiling or x.untyped_storage().device.type == "meta":
        return
    same = (x.data_ptr(), x.stride(), x.shape, x.dtype) == (
        residual.data_ptr(), residual.stride(), residual.shape, residual.dtype,
    )  # fmt: skip
    if not same and overlap(x, residual):
        raise ValueError("residual overlaps x; valid: x itself, or memory of its own, as residual.clone() gives")
