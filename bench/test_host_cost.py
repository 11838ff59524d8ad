"""What a call costs on the host: kernels are not launched, tensors are small and on the CPU.

Rows of a group: the Triton backend's operator, its Function under autograd, and the eager operator, whose kernels do
run (on 16 tokens of width 64, where what they compute is a small part).
"""

from __future__ import annotations

import pytest
import torch

from rmadapter_kernels import FusedRMAdapter

pytest.importorskip("triton", reason="Triton is for Linux alone")

from rmadapter_kernels.triton.dry import dry_launches

TOKENS, D, R = 16, 64, 16


def _arguments(adapter: FusedRMAdapter, x: torch.Tensor, residual: torch.Tensor) -> tuple:
    weights = [p.detach() for p in adapter.parameters()]
    return x, residual, None, None, None, *weights, 0.5, "gelu", "l2", True, 1.0


@pytest.mark.parametrize("backend", ["triton", "eager"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_host_cost_of_the_operator(benchmark, backend: str, direction: str) -> None:
    benchmark.group = f"host cost, {direction} operator"
    adapter = FusedRMAdapter(D, bottleneck=R)
    x, residual, d_out = torch.randn(3, TOKENS, D).unbind()
    operator = getattr(torch.ops.rmadapter, f"{backend}_{direction}").default
    arguments = _arguments(adapter, x, residual)
    if direction == "backward":
        # As loss.mean() sends it: expanded.
        d_loss = torch.full((), 1 / TOKENS).expand(TOKENS)
        arguments = (x, d_out, d_loss, *arguments[2:], [True] * 9)
    with dry_launches(), torch.no_grad():
        benchmark.pedantic(lambda: operator(*arguments), rounds=200, iterations=100, warmup_rounds=20)


@pytest.mark.parametrize("backend", ["triton", "eager"])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_host_cost_of_the_module(benchmark, monkeypatch, backend: str, direction: str) -> None:
    """With argument checks, choice of backend and the autograd engine."""
    from rmadapter_kernels import functional
    from rmadapter_kernels.backends import Explanation

    benchmark.group = f"host cost, {direction} through the module"
    monkeypatch.setattr(functional, "choose", lambda call, name: Explanation(backend, "measured"))
    adapter = FusedRMAdapter(D, bottleneck=R, backend=backend)
    x, residual, d_out = torch.randn(3, TOKENS, D).unbind()
    leaf = x.clone().requires_grad_()
    leaves = [leaf, *adapter.parameters()]

    def call() -> None:
        if direction == "forward":
            with torch.no_grad():
                adapter(x, residual)
        else:
            out, loss = adapter(leaf, residual)
            torch.autograd.grad((out, loss), leaves, (d_out, torch.ones_like(loss)))

    with dry_launches():
        benchmark.pedantic(call, rounds=100, iterations=50, warmup_rounds=10)
