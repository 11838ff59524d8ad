"""What is measured: sizes, contenders, directions. Shared by pytest's benchmarks and bench/gpu_check.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch._functorch.config
from torch import Tensor

from rmadapter_kernels import FusedRMAdapter, available_backends
from rmadapter_kernels.reference import reference

WEIGHTS = ("w_down", "b_down", "w_up", "b_up", "w_rec1", "b_rec1", "w_rec2", "b_rec2")
DIRECTIONS = ("forward", "backward", "both")
BACKENDS = tuple(name for name, status in available_backends().items() if status.available)
COMPILED = {"compile": "default", "compile-max": "max-autotune-no-cudagraphs"}
SCALE = 0.001


@dataclass(frozen=True)
class Case:
    """Tokens of width ``d`` with r = h, one dtype of x; weights are fp32, as they are trained."""

    tokens: int
    d: int = 768
    r: int = 32
    dtype: torch.dtype = torch.bfloat16
    residual: bool = True
    norm: bool = False

    def __str__(self) -> str:
        flags = ("" if self.residual else " no-residual") + (" norm" if self.norm else "")
        return f"M={self.tokens} D={self.d} r={self.r} {str(self.dtype).removeprefix('torch.')}{flags}"

    def bytes_moved(self, direction: str) -> int:
        """Bytes of HBM that no implementation can do without: rows of x, residual and out, of x, d_out and dx."""
        row = self.d * self.dtype.itemsize * self.tokens
        return {"forward": (2 + self.residual) * row, "backward": 3 * row, "both": (5 + self.residual) * row}[direction]


def cases(device_type: str) -> list[Case]:
    """The most telling first: a run that is cut off has measured those."""
    if device_type == "cpu":
        base = Case(1576, dtype=torch.float32)
        return [base, replace(base, tokens=6304), replace(base, residual=False, norm=True)]
    base = Case(6304)
    large = replace(base, tokens=65536)
    found = [large, base]
    found += [replace(base, tokens=tokens) for tokens in (788, 3152, 25216, 262144)]
    for at in (base, large):
        found += [replace(at, norm=True), replace(at, residual=False), replace(at, dtype=torch.float32)]
        found += [replace(at, r=r) for r in (16, 64, 128)] + [replace(at, d=d) for d in (512, 1024)]
        found += [replace(at, dtype=torch.float16)]
    return found


def contenders(device_type: str) -> list[str]:
    """Backends, torch.compile of the definition, and autograd through it; on CUDA the slowest to compile last."""
    if device_type != "cuda":
        return [*BACKENDS, "autograd", "compile"]
    return ["triton", "compile", "eager", "autograd", "compile-max"]


class Step:
    """One contender on one case and one set of inputs: ``forward()``, ``backward()`` and ``both()``.

    Args:
        seed: of the inputs.
        reuse: whose weights and compiled code it takes.
        data: whose inputs it takes, in place of drawing its own.
    """

    def __init__(self, contender: str, case: Case, device: torch.device, seed: int = 0, reuse: Step | None = None,
                 data: Step | None = None):  # fmt: skip
        generator = torch.Generator(device).manual_seed(seed)

        def draw() -> Tensor:
            return torch.randn(case.tokens, case.d, device=device, dtype=case.dtype, generator=generator)

        if reuse is None:
            torch.manual_seed(0)
            self.adapter = FusedRMAdapter(case.d, bottleneck=case.r, scale=SCALE, device=device, dtype=torch.float32)
            self.call = _contender(contender, self.adapter)
        else:
            self.adapter, self.call = reuse.adapter, reuse.call
        if data is None:
            self.x = draw().requires_grad_()
            self.residual = draw().requires_grad_() if case.residual else None
            self.d_out = draw()
        else:
            self.x, self.residual, self.d_out = data.x, data.residual, data.d_out
        self.norm = None
        if case.norm:
            self.norm = (torch.ones(case.d, device=device), torch.zeros(case.d, device=device), 1e-5)
        self.leaves = [self.x, *([] if self.residual is None else [self.residual]), *self.adapter.parameters()]
        self._graph: tuple[Tensor, Tensor] | None = None

    def forward(self) -> list[Tensor]:
        """Both results, without a graph."""
        with torch.no_grad():
            return list(self.call(self.x, self.residual, self.norm))

    def record(self) -> tuple[Tensor, Tensor]:
        """Both results with a graph: the sum of loss is divided by the tokens, as training does."""
        out, loss = self.call(self.x, self.residual, self.norm)
        return out, loss.mean()

    def _gradients(self, results: tuple[Tensor, Tensor], keep: bool) -> list[Tensor]:
        return list(torch.autograd.grad(results, self.leaves, (self.d_out, None), retain_graph=keep))

    def backward(self) -> list[Tensor]:
        """Gradients of everything, from a graph recorded once."""
        if self._graph is None:
            self._graph = self.record()
        return self._gradients(self._graph, keep=True)

    def both(self) -> list[Tensor]:
        """Results and gradients."""
        results = self.record()
        return [*results, *self._gradients(results, keep=False)]

    def run(self, direction: str) -> list[Tensor]:
        """One of ``DIRECTIONS``."""
        return getattr(self, direction)()


def _contender(name: str, adapter: FusedRMAdapter) -> Callable[..., tuple[Tensor, Tensor]]:
    if name in BACKENDS:
        adapter.backend = name
        return adapter
    # Graphs of backward are kept here for several calls.
    torch._functorch.config.donated_buffer = False
    function = reference
    if name in COMPILED:
        # As one graph: a break would be timed as if it were the compiler's best.
        function = torch.compile(reference, dynamic=False, fullgraph=True, mode=COMPILED[name])
    weights = {weight: getattr(adapter, weight) for weight in WEIGHTS}
    return lambda x, residual, norm: function(x, **weights, residual=residual, norm=norm, scale=SCALE)


def check(step: Step, case: Case, direction: str) -> None:
    """Equal to the definition: its own error against fp64 in this dtype, a fifth of that, and some roundings.

    Raises:
        AssertionError: with both errors; nothing is timed then.
    """
    names = {"forward": ["out", "rec_loss"], "both": ["out", "loss"]}.get(direction, [])
    if direction != "forward":
        names = [*names, "x", *([] if step.residual is None else ["residual"]), *WEIGHTS]
    plain = Step("autograd", case, step.x.device)
    wide = Step("autograd", replace(case, dtype=torch.float64), step.x.device)
    wide.adapter.double()
    for own, given in ((plain, step), (wide, step)):
        with torch.no_grad():
            own.x.copy_(given.x)
            own.d_out.copy_(given.d_out)
            if own.residual is not None:
                own.residual.copy_(given.residual)
    exact, theirs = wide.run(direction), plain.run(direction)
    rounding = 4 * torch.finfo(case.dtype).eps
    if case.dtype == torch.float32:
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        rounding = 4 * 2**-11 if tf32 else rounding * case.d**0.5
    for name, ours, value, same in zip(names, step.run(direction), exact, theirs, strict=True):
        size = value.double().norm().clamp_min(1e-30)
        error, allowed = (float(((t.double() - value.double()).norm() / size).detach()) for t in (ours, same))
        assert error <= 1.2 * allowed + rounding, f"{name}: error {error:.1e}, of autograd {allowed:.1e}"
