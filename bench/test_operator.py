"""The operator's backends against the same mathematics in plain PyTorch, by autograd and by torch.compile.

One group a case and direction, one row a contender; correctness is checked before anything is timed. On CUDA each row
also has, as extra_info, the GPU's own time with a cold L2, its share of a copy's bandwidth, and memory.
"""

from __future__ import annotations

import functools

import pytest
import torch

from bench import measure
from bench.cases import DIRECTIONS, Case, Step, cases, check, contenders

KINDS = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PARAMETERS = [
    pytest.param(kind, case, direction, contender, id=f"{kind}-{case}-{direction}-{contender}".replace(" ", "-"))
    for kind in KINDS
    for case in cases(kind)
    for direction in DIRECTIONS
    for contender in contenders(kind)
]


@functools.cache
def copy_rate() -> float:
    """Of this run."""
    return measure.copy_bytes_a_second()


@pytest.mark.parametrize(("kind", "case", "direction", "contender"), PARAMETERS)
def test_operator(benchmark, kind: str, case: Case, direction: str, contender: str) -> None:
    benchmark.group = f"{kind} {case} {direction}"
    if kind == "cpu" and contender == "triton":
        pytest.skip("the interpreter is not measured")
    torch._dynamo.reset()
    step = Step(contender, case, torch.device(kind))
    check(step, case, direction)

    def timed() -> None:
        step.run(direction)
        if kind == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=15, iterations=1, warmup_rounds=3)
    if kind == "cuda":
        benchmark.extra_info |= measure.on_cuda(contender, case, direction, copy_rate())
        benchmark.extra_info["copy_gb_s"] = copy_rate() / 1e9
