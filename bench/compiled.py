"""The backend's kernels compiled for a GPU that is not here: needs ptxas from Triton's wheel, and no device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rmadapter_kernels.triton.layout import Rows
from rmadapter_kernels.triton.plans import Addresses, BackwardPlan, ForwardPlan, Shape
from rmadapter_kernels.triton.tuning import Config, Problem, worth_preparing

DTYPES = {
    "bf16": (torch.bfloat16, ""),
    "fp16": (torch.float16, ""),
    "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"),
    "tf32x3": (torch.float32, "tf32x3"),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel on contiguous rows, fp32 weights, gelu, every gradient needed.

    ``local``: the loss's gradient ends at x, as it is by default; else K1 also forms that of the target.
    """

    arch: str
    kernel: str
    dtype: str
    d: int
    r: int
    h: int
    tokens: int
    norm: bool
    config: Config
    objective: str = "l2"
    local: bool = True

    def __str__(self) -> str:
        c = self.config
        flags = f"{' norm' if self.norm else ''}{'' if self.local else ' nonlocal'}"
        flags += "" if self.objective == "l2" else f" {self.objective}"
        return (
            f"{self.arch} {self.kernel} {self.dtype} D={self.d} r={self.r} h={self.h} M={self.tokens}{flags} "
            f"{c.block_m}x{c.block_d} warps={c.num_warps} stages={c.num_stages}"
        )

    @property
    def problem(self) -> Problem:
        """What a configuration is chosen for."""
        return Problem(self.kernel, *DTYPES[self.dtype], self.d, self.r, self.h, self.tokens)

    @property
    def key(self) -> str:
        """The same for cases that compile the same code."""
        head = str(self).split(" M=")
        tail = head[1].split(" ", 1)[1]
        return f"{head[0]} {'prepared' if worth_preparing(self.tokens) else 'raw'} {tail}"


def launch_of(case: Case) -> Any:
    """The launch of a case."""
    dtype, precision = DTYPES[case.dtype]
    shape = Shape(dtype, case.d, case.r, case.h, case.tokens, case.norm, "gelu", case.objective, precision,
                  worth_preparing(case.tokens))  # fmt: skip
    addresses = Addresses(Rows(case.tokens, False, ((0, case.d),) * 3 + ((0, 1),)), 16, False)
    if case.kernel == "forward":
        return ForwardPlan(shape, addresses, None).launch.build(case.config)
    plan = BackwardPlan(shape, addresses, [True] * 5 + [case.h > 0] * 4, True, case.h > 0, case.local, None)
    tuned = plan.rows if case.kernel == "rows" else plan.weights
    assert tuned is not None  # every gradient is needed
    return tuned.build(case.config)


def pointer_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Of an argument of the call: weights, statistics and losses are fp32, rows are in the dtype of x."""
    return dtype if name in ("x", "residual", "out", "d_out", "dx") else torch.float32


def compile_launch(launch: Any, arch: str, dtype_of: Callable[[str], torch.dtype]) -> Any:
    """The compiled kernel of a launch, with every pointer at a multiple of 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        value = launch.fixed.get(name)
        if parameter.is_constexpr or (name in launch.fixed and value is None):
            signature[name], constants[(place,)] = "constexpr", value
        elif parameter.annotation_type:
            signature[name] = parameter.annotation_type
        else:
            part = launch.parts.get(name)
            signature[name] = POINTERS[part.dtype if part is not None else dtype_of(name)]
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", int(arch[3:]), 32), options=launch.options)


def compile_case(case: Case) -> Any:
    """The compiled kernel of a case."""
    return compile_launch(launch_of(case), case.arch, lambda name: pointer_dtype(name, DTYPES[case.dtype][0]))
