"""The cpu backend against eager and torch.compile, and against the rate of the library's matmul in the same run.

    pytest bench/test_cpu.py --benchmark-only --benchmark-json=cpu.json
    python bench/cpu_report.py cpu.json --results bench/results/cpu_intel.md   # or cpu_amd.md, cpu_amd_avx2.md

Tokens of width 768 with r = h = 32: 788 are 4 images of 197 tokens, 3,152 are 16, 12,608 are 64. Forward runs without
autograd, "both" is forward and backward with gradients in x, the residual and every weight, through autograd for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rmadapter_kernels import cpu, rm_adapter
from rmadapter_kernels.reference import reference

pytestmark = pytest.mark.skipif(not cpu.AVAILABLE, reason=cpu.reason())

D, R, SCALE = 768, 32, 0.001
TOKENS = (788, 3152, 12608)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CONTENDERS = ("cpu", "eager", "compile", "compile-max")
SHAPES = ((D, R), (R,), (R, D), (D,), (R, R), (R,), (R, D), (D,))
MATMUL = 2048


@functools.cache
def _inputs(dtype: str, tokens: int) -> tuple[Tensor, ...]:
    """x, residual, d_out, d_loss and the eight weights, which are fp32 as in training."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, residual, d_out = (draw(tokens, D).to(DTYPES[dtype]) for _ in range(3))
    weights = [(draw(*shape) / shape[0] ** 0.5).requires_grad_() for shape in SHAPES]
    return x.requires_grad_(), residual.requires_grad_(), d_out, torch.full((tokens,), 1 / tokens), *weights


@functools.cache
def _function(contender: str, tokens: int) -> Callable:
    """Called with x, the eight weights and residual=."""
    if contender in ("cpu", "eager"):
        return functools.partial(rm_adapter, backend=contender, scale=SCALE)
    mode = {"compile": None, "compile-max": "max-autotune"}[contender]
    return torch.compile(functools.partial(reference, scale=SCALE), dynamic=False, mode=mode)


def _step(function: Callable, dtype: str, tokens: int, direction: str) -> list[Tensor]:
    x, residual, d_out, d_loss, *weights = _inputs(dtype, tokens)
    if direction == "forward":
        with torch.no_grad():
            return list(function(x, *weights, residual=residual))
    out, loss = function(x, *weights, residual=residual)
    gradients = torch.autograd.grad((out, loss), (x, residual, *weights), (d_out, d_loss))
    return [out.detach(), loss.detach(), *gradients]


@functools.cache
def _exact(dtype: str, tokens: int, direction: str) -> list[Tensor]:
    """In fp32 from the same inputs, by the definition."""
    x, residual, d_out, d_loss, *weights = _inputs(dtype, tokens)
    x, residual = (t.detach().float().requires_grad_() for t in (x, residual))
    out, loss = reference(x, *weights, residual=residual, scale=SCALE)
    if direction == "forward":
        return [out.detach(), loss.detach()]
    gradients = torch.autograd.grad((out, loss), (x, residual, *weights), (d_out.float(), d_loss))
    return [out.detach(), loss.detach(), *gradients]


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_cpu(benchmark, contender: str, dtype: str, direction: str, tokens: int) -> None:
    benchmark.group = f"{dtype} {direction} {tokens}"
    benchmark.extra_info.update(contender=contender, dtype=dtype, direction=direction, tokens=tokens)
    function = _function(contender, tokens)
    with torch._dynamo.config.patch(recompile_limit=64):
        found = _step(function, dtype, tokens, direction)
        for one, exact in zip(found, _exact(dtype, tokens, direction), strict=True):
            error = ((one.detach().float() - exact).norm() / exact.norm()).item()
            assert error < (1e-4 if dtype == "fp32" else 2e-2), f"relative error {error:.1e}"
        del found
        rounds = 40 if tokens == TOKENS[0] else 15
        benchmark.pedantic(
            lambda: _step(function, dtype, tokens, direction), rounds=rounds, iterations=1, warmup_rounds=3
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_matmul(benchmark, dtype: str) -> None:
    """The rate that the shares of the floor refer to: a large square matmul of the library."""
    if dtype == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("without AVX-512 the library's bf16 matmul is plain loops: 0.2 GFLOP/s, a minute a product")
    benchmark.group = f"{dtype} matmul"
    a, b = torch.randn(2, MATMUL, MATMUL, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    benchmark.extra_info.update(contender="matmul", dtype=dtype, flop=2 * MATMUL**3)
    benchmark.extra_info.update(
        threads=torch.get_num_threads(), instructions=cpu.instruction_set(), processor=cpu.processor()
    )
    benchmark.pedantic(lambda: a @ b, rounds=8, iterations=1, warmup_rounds=2)
