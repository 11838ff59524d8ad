"""Rows of strided tensors as at most two nested loops, without a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Rows(NamedTuple):
    """M rows addressed as (row // inner) * stride0 + (row % inner) * stride1, for several tensors at once."""

    inner: int
    two_dims: bool
    strides: tuple[tuple[int, int], ...]


def collapse(lead: Sequence[int], strides: Sequence[Sequence[int]]) -> Rows | None:
    """The leading dimensions ``lead`` of tensors with these strides of them, merged where all allow it.

    None: more than two remain, so something must be copied.
    """
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for dim, size in enumerate(lead):
        if size == 1:
            continue
        if sizes and all(own[-1] == s[dim] * size for own, s in zip(merged, strides, strict=True)):
            sizes[-1] *= size
            for own, s in zip(merged, strides, strict=True):
                own[-1] = s[dim]
        else:
            sizes.append(size)
            for own, s in zip(merged, strides, strict=True):
                own.append(s[dim])
    if len(sizes) > 2:
        return None
    padding = [0] * (2 - len(sizes))
    inner = sizes[-1] if len(sizes) == 2 else max(1, math.prod(sizes))
    return Rows(inner, len(sizes) == 2, tuple((outer, last) for outer, last in (padding + own for own in merged)))


def stride_unit(rows: Rows, among: Sequence[int]) -> int:
    """The largest of 16, 8, 4, 2, 1 that divides the strides of the tensors ``among``: what loads may rely on."""
    return math.gcd(16, *(stride for index in among for stride in rows.strides[index]))


def largest_offset(lead: Sequence[int], strides: Sequence[int], width: int) -> int:
    """Offset of the last element that a tensor's rows of ``width`` reach."""
    return sum((size - 1) * stride for size, stride in zip(lead, strides, strict=True)) + width - 1
