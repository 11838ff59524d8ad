"""What ``bench.tune`` measures with on a CUDA device: inputs, compilation ahead, check and time of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from bench import measure
from bench.cases import SCALE, WEIGHTS, Case, Step, check
from rmadapter_kernels import FusedRMAdapter
from rmadapter_kernels.triton import operators
from rmadapter_kernels.triton.tuning import LARGEST, Config, Problem, forced

# Bucket of the table -> tokens that stand for it: 4, 16, 32 and 128 images of 197, and many.
TOKENS = {1024: 788, 4096: 3152, 8192: 6304, 32768: 25216, LARGEST: 65536}
KINDS = {"bf16": (torch.bfloat16, ""), "fp16": (torch.float16, ""), "tf32": (torch.float32, "tf32"),
         "ieee": (torch.float32, "ieee")}  # fmt: skip
# Seconds of a configuration's calls before one counts: the one before it has left the device busy.
BUSY = 0.05
# The least tokens of the buckets for which weights are prepared, and as many for a check with a block that is not full.
FEW_PREPARED, CHECKED_PREPARED = 3152, 3150


@dataclass(frozen=True)
class Group:
    """Problems that one compilation serves: a kernel, a kind of product, D and r = h, at every number of tokens."""

    kernel: str
    kind: str
    d: int
    r: int

    def __str__(self) -> str:
        return f"{self.kernel} {self.kind} D={self.d} r={self.r}"

    def problem(self, tokens: int) -> Problem:
        """With a number of tokens."""
        return Problem(self.kernel, *KINDS[self.kind], self.d, self.r, self.r, tokens)


@contextmanager
def in_force(group: Group, config: Config) -> Iterator[None]:
    """Calls take ``config`` for the group's kernel; where it does not fit, the launch fails and is not made smaller."""
    operators.forget_plans()
    try:
        with forced(group.kernel, config):
            yield
    finally:
        operators.forget_plans()


@contextmanager
def fp32_precision(kind: str) -> Iterator[None]:
    """Products of fp32 as ``kind`` says, in torch too."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


class DeviceLostError(RuntimeError):
    """A kernel has left the device's context unusable: whatever came after it in this process would fail too."""


class OutOfTimeError(RuntimeError):
    """A configuration was not compiled before the time was over: nothing is known of it."""


class Inputs:
    """Tensors of the operator for one group and number of tokens, in as many sets as L2 cannot hold, or in ``sets``."""

    def __init__(self, group: Group, tokens: int, device: torch.device, sets: int | None = None):
        dtype, _ = KINDS[group.kind]
        adapter = FusedRMAdapter(group.d, bottleneck=group.r, device=device)
        weights = [getattr(adapter, name).detach() for name in WEIGHTS]
        self.rest = (None, None, None, *weights, SCALE, "gelu", "l2", True, 1.0)
        self.forward = group.kernel == "forward"
        if sets is None:
            sets = measure.rotations(2 * tokens * group.d * dtype.itemsize)
        draw = torch.randn(sets, 2, tokens, group.d, device=device).to(dtype)
        self.sets = [tuple(pair.unbind()) for pair in draw]
        self.d_loss = torch.full((tokens,), 1 / tokens, device=device)

    def calls(self) -> list[Callable[[], Any]]:
        """The operator on each set: x with residual, or x with d_out and every gradient needed."""
        if self.forward:
            return [lambda x=x, other=other: operators.forward(x, other, *self.rest) for x, other in self.sets]
        needs = [True] * 9
        return [
            lambda x=x, other=other: operators.backward(x, other, self.d_loss, *self.rest, needs)
            for x, other in self.sets
        ]


def check_cases(group: Group) -> list[Case]:
    """What each configuration is checked on, as its kernels take few tokens and as they take many; the last block of
    rows is not full."""
    dtype = KINDS[group.kind][0]
    return [Case(300, group.d, group.r, dtype, norm=True), Case(CHECKED_PREPARED, group.d, group.r, dtype)]


def compile_on_device(group: Group, config: Config) -> None:
    """In a worker: what is measured, on few tokens, leaves the compiled kernels in Triton's cache."""
    cuda = torch.device("cuda")
    with fp32_precision(group.kind), in_force(group, config), suppress(Exception):  # measured, it fails again
        for case in check_cases(group):
            Step("triton", case, cuda).both()
        for tokens in (64, FEW_PREPARED):
            Inputs(group, tokens, cuda, sets=1).calls()[0]()


class OnCuda:
    """Measures on the current CUDA device; kernels are compiled ahead in ``jobs`` processes.

    Args:
        time_left: seconds that a compilation is waited for.
    """

    def __init__(self, jobs: int, time_left: Callable[[], float]):
        self.pool, self.time_left = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")), time_left
        self.inputs: dict[int, Inputs] = {}
        self.ahead: dict[tuple[Group, Config], Any] = {}

    def expect(self, wanted: list[tuple[Group, Config]]) -> None:
        """Compile ahead."""
        self.ahead = {pair: self.pool.submit(compile_on_device, *pair) for pair in wanted}

    def prepare(self, group: Group) -> None:
        """Make the inputs."""
        self.inputs.clear()
        self.inputs.update({bucket: Inputs(group, t, torch.device("cuda")) for bucket, t in TOKENS.items()})

    def measure(self, group: Group, config: Config) -> dict[int, float]:
        """Checked, then timed in every bucket."""
        # A lost worker costs time and nothing else.
        if wait([self.ahead[group, config]], max(0.0, self.time_left())).not_done:
            raise OutOfTimeError
        try:
            return self._measure(group, config)
        except Exception as error:
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                raise DeviceLostError(str(error)) from error
            raise

    def _measure(self, group: Group, config: Config) -> dict[int, float]:
        with fp32_precision(group.kind), in_force(group, config):
            for case in check_cases(group):
                check(Step("triton", case, torch.device("cuda")), case, "both")
            with torch.no_grad():
                return {bucket: measure.graph_seconds(own.calls(), 10, BUSY) for bucket, own in self.inputs.items()}

    def close(self) -> None:
        """End the workers, whatever they are at: what is lost is compiled again when it is measured."""
        for process in list((self.pool._processes or {}).values()):  # kill_workers() from Python 3.14 on
            process.kill()
        self.pool.shutdown(cancel_futures=True)
