"""Every kernel that a call launches compiles: the prepare kernel and K3 too, whose code nothing else looks at.

The interpreter runs Python, so it takes what the compiler refuses: a name that has another shape in a branch, say.
"""

from __future__ import annotations

import os

import pytest
import torch
from grids import slow

pytest.importorskip("triton", reason="Triton is for Linux alone")

from bench.compiled import DTYPES, compile_launch, pointer_dtype
from rmadapter_kernels.triton.layout import Rows
from rmadapter_kernels.triton.plans import Addresses, BackwardPlan, PreparePlan, Shape

pytestmark = pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="the interpreter compiles nothing")


@pytest.mark.parametrize(
    ("kind", "d", "r", "h", "norm"),
    [
        ("bf16", 768, 32, 32, True), ("bf16", 768, 32, 0, False), ("fp16", 80, 3, 100, True),
        ("tf32", 768, 32, 32, True), ("ieee", 1024, 64, 16, False),
        *(slow(kind, *sizes, norm) for kind in ("bf16", "fp16", "tf32", "ieee")
          for sizes in ((768, 32, 0), (80, 3, 100), (1024, 64, 16)) for norm in (False, True)),
    ],
)  # fmt: skip
def test_the_prepare_kernel(kind, d, r, h, norm):
    dtype, precision = DTYPES[kind]
    plan = PreparePlan(dtype, d, r, h, norm, precision)
    compiled = compile_launch(plan.launch, "sm_90", lambda name: torch.float32)
    assert compiled.metadata.num_warps == 4


@pytest.mark.parametrize(("kind", "h", "norm"), [("bf16", 32, True), ("tf32", 0, False), slow("bf16", 0, True)])
def test_the_sum_kernel(kind, h, norm):
    dtype, precision = DTYPES[kind]
    shape = Shape(dtype, 768, 32, h, 6304, norm, "gelu", "l2", precision, True)
    addresses = Addresses(Rows(6304, False, ((0, 768),) * 3 + ((0, 1),)), 16, False)
    plan = BackwardPlan(shape, addresses, [True] * 5 + [h > 0] * 4, True, h > 0, True, None)
    compiled = compile_launch(plan.sum, "sm_90", lambda name: pointer_dtype(name, dtype))
    assert compiled.metadata.num_warps == 4
