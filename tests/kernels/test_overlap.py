"""What ``rm_adapter_`` may not write to: memory that overlaps itself or x, whatever the backend."""

from __future__ import annotations

import random

import pytest
import torch
from operator_cases import make_case

from rmadapter_kernels import available_backends, rm_adapter_
from rmadapter_kernels.overlap import overlap, overlaps_itself

BACKENDS = [name for name, status in available_backends().items() if status.available]


def places(tensor: torch.Tensor) -> list[int]:
    """Offset of every element in its storage."""
    index = torch.full(tensor.shape, tensor.storage_offset())
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        shape = [1] * tensor.dim()
        shape[dim] = size
        index = index + (torch.arange(size) * stride).view(shape)
    return index.flatten().tolist()


def test_it_is_exact_for_any_two_tensors_and_careful_for_one():
    draw = random.Random(0)
    memory = torch.zeros(2000)
    seen = set()
    for _ in range(500):
        tensors = []
        for _ in range(2):
            dims = draw.randint(1, 3)
            sizes = [draw.randint(1, 6) for _ in range(dims)]
            strides = [draw.choice([0, 1, 2, 3, 4, 6, 8, 12, 64]) for _ in range(dims)]
            tensors.append(memory.as_strided(sizes, strides, draw.randint(0, 60)))
        a, b = map(places, tensors)
        shared = bool(set(a) & set(b))
        assert overlap(*tensors) == shared
        assert overlaps_itself(tensors[0]) or len(set(a)) == len(a)
        seen.add((shared, len(set(a)) == len(a)))
    assert len(seen) == 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad", [False, True])
def test_it_is_refused(backend, grad):
    case = make_case((6,), 64, 4, 4, reconstruct=False).to(torch.float32)
    memory = torch.randn(20, 64)

    def call(x, residual):
        with torch.set_grad_enabled(grad):
            return rm_adapter_(x, *case.weights[:4], residual=residual, backend=backend)

    for residual in (memory[0].expand(6, 64), memory.as_strided((6, 64), (32, 1))):
        with pytest.raises(ValueError, match=r"residual overlaps itself: shape \[6, 64\], strides \[\d+, 1\]; valid"):
            call(case.x, residual)
    before = memory.clone()
    for x, residual in ((memory[:6], memory[3:9]), (memory[:12:2], memory[:6]), (memory[:6], memory[:6].t().t()[:, :])):
        if x.data_ptr() == residual.data_ptr() and x.stride() == residual.stride():
            continue  # x itself
        with pytest.raises(ValueError, match="residual overlaps x; valid: x itself, or memory of its own"):
            call(x, residual)
    assert torch.equal(memory, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_interleaved_memory_is_taken(backend):
    """As the parts of one projection's result lie."""
    case = make_case((6,), 64, 4, 4, reconstruct=False).to(torch.float32)
    memory = torch.randn(6, 192)
    x, residual, other = memory.chunk(3, dim=1)
    expected = rm_adapter_(x.clone(), *case.weights[:4], residual=residual.clone(), backend=backend)
    kept = x.clone(), other.clone()
    rm_adapter_(x, *case.weights[:4], residual=residual, backend=backend)
    torch.testing.assert_close(residual, expected)
    assert torch.equal(x, kept[0])
    assert torch.equal(other, kept[1])
    meta = [tensor.to("meta") for tensor in (case.x, case.residual, *case.weights[:4])]
    rm_adapter_(meta[0], *meta[2:], residual=meta[1])
    same = case.x
    rm_adapter_(same, *case.weights[:4], residual=same.view(6, 64), backend=backend)
