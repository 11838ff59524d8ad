"""Launching a kernel: through Triton the first time, afterwards straight through the compiled kernel.

``JITFunction.run`` binds 40 arguments and looks its cache up anew at every call. A plan (``operators.py``) holds for
dtypes, shapes, strides, device and options, so all that can still change the compiled code is the alignment of the
pointers, and a launch with a known one goes to the compiled kernel at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from rmadapter_kernels.triton.autotune import choose_config
from rmadapter_kernels.triton.tuning import Config, Device, Problem, smaller

# Versions whose launcher has been read: (grid x 3, stream, function, metadata, launch metadata, two hooks, *arguments),
# pointers as integers. A later one is launched through JITFunction.run until it has been looked at.
KNOWN_TRITON = {(3, 6), (3, 7), (3, 8), (3, 9)}
DIRECT = tuple(int(part) for part in triton.__version__.split(".")[:2]) in KNOWN_TRITON

# Pinned: its default changes in Triton 3.10, and results with it.
PINNED = {"enable_fp_fusion": True}


class Part:
    """A piece of a scratch buffer, in bytes."""

    __slots__ = ("dtype", "offset", "shape", "size")

    def __init__(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype):
        self.offset, self.shape, self.dtype = offset, shape, dtype
        self.size = torch.Size(shape).numel() * dtype.itemsize

    def view(self, scratch: Tensor) -> Tensor:
        """The piece of ``scratch`` [bytes] as a tensor."""
        return scratch[self.offset : self.offset + self.size].view(self.dtype).view(self.shape)


class Scratch:
    """The pieces of one scratch buffer, each at a multiple of 256 bytes."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Part:
        """Room for a tensor."""
        part = Part(self.size, shape, dtype)
        self.size += -(-part.size // 256) * 256
        return part


def current_stream(device: torch.device) -> int:
    """The handle of torch's current stream on ``device``."""
    return torch._C._cuda_getCurrentRawStream(device.index)


_RUNTIME = triton.knobs.runtime


def _hooked() -> bool:
    """Whether a profiler wants to see launches: from 3.6 on a hook is a chain of calls."""
    return bool(_RUNTIME.launch_enter_hook.calls or _RUNTIME.launch_exit_hook.calls)


class Launch:
    """One kernel under one plan.

    Args:
        kernel: the function under ``triton.jit``; its parameters are pointers, then scalars, then constants.
        grid: three sizes.
        scratch: parts of a scratch buffer that follow the tensors among the pointers, None where absent.
        scalars: those that the plan knows (M, strides).
        constants: values of the constexpr parameters.
        options: num_warps, num_stages and the like.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        scratch: Sequence[Part | None],
        scalars: tuple,
        constants: tuple,
        options: dict[str, Any],
    ):
        self.kernel, self.grid, self.scratch = kernel, grid, tuple(scratch)
        self.offsets = tuple(None if part is None else part.offset for part in scratch)
        self.scalars, self.constants, self.options = scalars, constants, options | PINNED
        self.compiled: dict[Any, Any] = {}

    def __call__(
        self, device: torch.device, tensors: Sequence[Tensor | None], scratch: Tensor | None = None, scalars: tuple = ()
    ) -> None:
        """Launch on the current stream of ``device``, which must be the current device."""
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        aligned = 0
        for pointer in pointers:
            aligned |= pointer
        key = tuple(pointer & 15 == 0 for pointer in pointers) if aligned & 15 else None
        compiled = self.compiled.get(key)
        if compiled is None or _hooked():
            self._launch_slowly(key, tensors, scratch, scalars)
            return
        if scratch is not None:
            base = scratch.data_ptr()
            pointers += [0 if offset is None else base + offset for offset in self.offsets]
        run, function, metadata, _ = compiled
        grid = self.grid
        run(
            grid[0], grid[1], grid[2], current_stream(device), function, metadata, None, None, None,
            *pointers, *self.scalars, *scalars, *self.constants,
        )  # fmt: skip

    def _launch_slowly(
        self, key: Any, tensors: Sequence[Tensor | None], scratch: Tensor | None, scalars: tuple
    ) -> None:
        parts = [None if part is None or scratch is None else part.view(scratch) for part in self.scratch]
        compiled = self.kernel[self.grid](*tensors, *parts, *self.scalars, *scalars, *self.constants, **self.options)
        # None in the interpreter, and where a hook of Triton's took the compilation over. The kernel itself is kept
        # too: its end would unload the code.
        if DIRECT and compiled is not None:
            self.compiled[key] = (compiled.run, compiled.function, compiled.packed_metadata, compiled)


def on_device(device: torch.device, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` with ``device`` current: kernels launch where their tensors are."""
    if device.type != "cuda" or torch._C._cuda_getDevice() == device.index:
        return function(*arguments)
    with torch.cuda.device(device):
        return function(*arguments)


class TunedLaunch:
    """One kernel under one plan, in the best configuration known: the table's, the heuristic's, or a measured one.

    Args:
        problem, device: what the choice depends on.
        build: the launch in a configuration.
    """

    def __init__(self, problem: Problem, device: Device, build: Callable[[Config], Launch]):
        self.problem, self.device, self.build = problem, device, build
        self.config: Config | None = None
        self.launch: Launch | None = None

    def __call__(
        self,
        device: torch.device,
        tensors: Sequence[Tensor | None],
        scratch: Tensor | None = None,
        scalars: tuple = (),
        repeatable: bool = True,
    ) -> None:
        """Launch; ``repeatable``: running it several times does no harm, so it may be measured."""
        launch = self.launch
        if launch is None:
            measure = self._measure(device, tensors, scratch, scalars) if repeatable else None
            self.config = choose_config(self.problem, self.device, measure)
            launch = self.launch = self.build(self.config)
        try:
            launch(device, tensors, scratch, scalars)
        except OutOfResources:
            # A device with less than the heuristic thought: nothing ran yet.
            config = None if self.config is None else smaller(self.config)
            if config is None:
                raise
            self.config, self.launch = config, self.build(config)
            self(device, tensors, scratch, scalars, repeatable=False)

    def _measure(self, device: torch.device, *arguments: Any) -> Callable[[Config], float] | None:
        """Milliseconds in a configuration, or None where none may be taken: off CUDA, and during capture."""
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return None

        def measure(config: Config) -> float:
            launch = self.build(config)
            try:
                return triton.testing.do_bench(lambda: launch(device, *arguments), warmup=5, rep=20)
            except OutOfResources:
                return float("inf")

        return measure
