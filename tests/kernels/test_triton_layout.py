"""Rows of strided tensors as two nested loops, against the addresses that torch itself computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmadapter_kernels.triton.layout import collapse, largest_offset, stride_unit


def addresses(rows, which: int, count: int) -> list[int]:
    stride0, stride1 = rows.strides[which]
    if not rows.two_dims:
        return [row * stride1 for row in range(count)]
    return [(row // rows.inner) * stride0 + (row % rows.inner) * stride1 for row in range(count)]


def expected(tensor: torch.Tensor) -> list[int]:
    """Offset of every row's first element, in logical order."""
    index = torch.zeros(tensor.shape[:-1], dtype=torch.long)
    for dim, size in enumerate(tensor.shape[:-1]):
        shape = [1] * index.dim()
        shape[dim] = size
        index = index + torch.arange(size).view(shape) * tensor.stride(dim)
    return index.flatten().tolist()


@settings(max_examples=200, deadline=None)
@given(
    lead=st.lists(st.integers(1, 4), min_size=0, max_size=4),
    order=st.permutations(range(4)),
    sliced=st.integers(0, 4),
    other=st.permutations(range(4)),
)
def test_addresses_are_torchs(lead, order, sliced, other):
    def make(permutation, slices):
        permutation = [dim for dim in permutation if dim < len(lead)]
        shape = [lead[dim] + (dim < slices) for dim in permutation]
        memory = torch.empty((*shape, 16))
        tensor = memory.permute([permutation.index(dim) for dim in range(len(lead))] + [len(lead)])
        return tensor[tuple(slice(0, size) for size in lead)]

    tensors = [make(order, sliced), make(other, 0)]
    rows = collapse(lead, [tensor.stride()[:-1] for tensor in tensors])
    if rows is None:
        return
    for which, tensor in enumerate(tensors):
        assert addresses(rows, which, tensor[..., 0].numel()) == expected(tensor)
        assert largest_offset(lead, tensor.stride()[:-1], 16) == max(expected(tensor)) + 15


def test_what_collapses_and_what_does_not():
    dense = torch.empty(2, 3, 4, 16)
    assert collapse((2, 3, 4), [dense.stride()[:-1]]).two_dims is False
    permuted = torch.empty(3, 2, 4, 16).transpose(0, 1)
    assert collapse((2, 3, 4), [permuted.stride()[:-1]]) is None  # three loops remain: 2, 3, 4
    assert collapse((6, 4), [torch.empty(4, 6, 16).transpose(0, 1).stride()[:-1]]).two_dims
    assert collapse((), [()]) == (1, False, ((0, 0),))
    assert collapse((1, 1), [(5, 7)]) == (1, False, ((0, 0),))


@pytest.mark.parametrize(("stride", "unit"), [(768, 16), (24, 8), (771, 1), (0, 16)])
def test_units_divide_every_stride(stride, unit):
    rows = collapse((5,), [(stride,), (16,)])
    assert stride_unit(rows, [0, 1]) == unit
