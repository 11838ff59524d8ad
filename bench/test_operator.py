"""The operator's backends against the same mathematics in plain PyTorch, by autograd and by torch.compile.

One row a contender, one group a size and direction; correctness is checked before anything is timed. Sizes are tokens
of width 768 with r = h = 32, ViT-B's: 1,576 are 8 images of 197 tokens, 6,304 are 32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rmadapter_kernels import FusedRMAdapter, available_backends
from rmadapter_kernels.reference import reference

D, R = 768, 32
TOKENS = {"cpu": (1576, 6304), "cuda": (6304, 65536)}
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
BACKENDS = [name for name, status in available_backends().items() if status.available]
CONTENDERS = [*BACKENDS, "autograd", "compile"]
WEIGHTS = ("w_down", "b_down", "w_up", "b_up", "w_rec1", "b_rec1", "w_rec2", "b_rec2")


def _contender(name: str, adapter: FusedRMAdapter) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function of x and residual that gives out and rec_loss."""
    if name in BACKENDS:
        adapter.backend = name
        return adapter
    function = torch.compile(reference, dynamic=False) if name == "compile" else reference
    weights = {weight: getattr(adapter, weight) for weight in WEIGHTS}
    return lambda x, residual: function(x, **weights, residual=residual, scale=adapter.scale)


def _step(call: Callable, x: Tensor, residual: Tensor, direction: str) -> list[Tensor]:
    """Forward alone, or forward and backward with gradients in x, residual and the weights."""
    if direction == "forward":
        with torch.no_grad():
            return list(call(x, residual))
    out, loss = call(x, residual)
    torch.autograd.backward((out, loss.mean()), (torch.ones_like(out), None))
    return [out, loss]


@functools.cache
def _inputs(device: torch.device, tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (tokens, D)
    x, residual = (torch.randn(shape, device=device, dtype=DTYPE[device.type], generator=generator) for _ in range(2))
    return x.requires_grad_(), residual.requires_grad_()


def _adapter(device: torch.device) -> FusedRMAdapter:
    torch.manual_seed(0)
    return FusedRMAdapter(D, bottleneck=R, scale=0.001, device=device, dtype=torch.float32)


def _check(call: Callable, adapter: FusedRMAdapter, x: Tensor, residual: Tensor, direction: str) -> None:
    """Equal to the reference in this dtype, results and gradients."""
    weights = {weight: getattr(adapter, weight) for weight in WEIGHTS}
    plain = functools.partial(reference, **weights, scale=adapter.scale)
    found = {}
    for name, function in (("ours", call), ("reference", lambda x, residual: plain(x, residual=residual))):
        for leaf in (x, residual, *adapter.parameters()):
            leaf.grad = None
        results = _step(function, x, residual, direction)
        found[name] = results + [leaf.grad for leaf in (x, *adapter.parameters()) if leaf.grad is not None]
    tolerance = 1e-4 if x.dtype == torch.float32 else 3e-2
    for ours, expected in zip(found["ours"], found["reference"], strict=True):
        error = (ours.detach().float() - expected.detach().float()).norm() / expected.detach().float().norm()
        assert error < tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize("size", [0, 1], ids=["small", "large"])
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("contender", CONTENDERS)
def test_operator(benchmark, device: torch.device, size: int, direction: str, contender: str) -> None:
    tokens = TOKENS[device.type][size]
    benchmark.group = f"{direction}, {tokens} tokens, {device.type} {str(DTYPE[device.type]).removeprefix('torch.')}"
    adapter = _adapter(device)
    x, residual = _inputs(device, tokens)
    call = _contender(contender, adapter)
    _check(call, adapter, x, residual, direction)

    def timed() -> None:
        _step(call, x, residual, direction)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=15, iterations=1, warmup_rounds=3)
