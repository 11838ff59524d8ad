"""Launching a kernel: through Triton the first time, afterwards straight through the compiled kernel.

``JITFunction.run`` binds 40 arguments and looks its cache up anew at every call. A plan (``plans.py``) holds for
dtypes, shapes, strides, device and options, so all that can still change the compiled code is the alignment of the
pointers, and a launch with a known one goes to the compiled kernel at once.

Arguments go by name. A kernel's signature is the one place that says which there are and in which order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

from rmadapter_kernels.triton.buffers import Part
from rmadapter_kernels.triton.devices import current_stream
from rmadapter_kernels.triton.tuning import Config, smaller

# Versions whose launcher has been read: (grid x 3, stream, function, metadata, launch metadata, two hooks, *arguments),
# pointers as integers. A later one is launched through JITFunction.run until it has been looked at.
KNOWN_TRITON = {(3, 6), (3, 7), (3, 8), (3, 9)}
DIRECT = tuple(int(part) for part in triton.__version__.split(".")[:2]) in KNOWN_TRITON

Grid = tuple[int, int, int]

# Pinned: its default changes in Triton 3.10, and results with it.
PINNED = {"enable_fp_fusion": True}


_RUNTIME = triton.knobs.runtime


def _hooked() -> bool:
    """Whether a profiler wants to see launches: from 3.6 on a hook is a chain of calls."""
    return bool(_RUNTIME.launch_enter_hook.calls or _RUNTIME.launch_exit_hook.calls)


class Launch:
    """One kernel under one plan.

    Args:
        kernel: the function under ``triton.jit``. What of its parameters is annotated with a type is a scalar or, as
            ``tl.constexpr``, a constant; all others are pointers.
        fixed: parameters whose value the plan knows: constants, strides, None for an absent tensor.
        parts: parameters that point into a buffer.
        options: num_warps, num_stages and the like.

    A call passes the other parameters. Names that the kernel does not have are an error; those that a call leaves out
    are absent tensors.
    """

    def __init__(
        self,
        kernel: Any,
        fixed: Mapping[str, Any],
        parts: Mapping[str, Part | None],
        options: Mapping[str, Any],
    ):
        self.kernel = kernel
        self.fixed = dict(fixed) | {name: None for name, part in parts.items() if part is None}
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.options = dict(options) | PINNED
        parameters = inspect.signature(kernel.fn).parameters
        unknown = (self.fixed.keys() | self.parts.keys()) - parameters.keys()
        if unknown:
            raise TypeError(f"{kernel.fn.__name__} has no parameter {', '.join(sorted(unknown))}")
        open_ = {name: p for name, p in parameters.items() if name not in self.fixed and name not in self.parts}
        unbound = [name for name, p in open_.items() if p.annotation is tl.constexpr]
        if unbound:
            raise TypeError(f"{kernel.fn.__name__} lacks a value of {', '.join(unbound)}")
        places = {name: place for place, name in enumerate(parameters)}
        # As the compiled kernel gets them, where an absent pointer is 0.
        self._template = [0 if self.fixed.get(name) is None else self.fixed[name] for name in parameters]
        empty = inspect.Parameter.empty
        self._pointers = [(name, places[name]) for name, p in open_.items() if p.annotation is empty]
        self._scalars = [(name, places[name]) for name, p in open_.items() if p.annotation is not empty]
        self._parts = [(part.buffer, part.offset, places[name]) for name, part in self.parts.items()]
        self._names = list(parameters)
        self.compiled: dict[Any, Any] = {}

    def __call__(self, device: torch.device, values: Mapping[str, Any], grid: Grid) -> None:
        """Launch on the current stream of ``device``, which must be the current device.

        ``values`` are tensors, numbers and buffers by name; those that the kernel does not take are left alone.
        """
        arguments = self._template.copy()
        aligned = 0
        for name, place in self._pointers:
            tensor = values.get(name)
            if tensor is not None:
                pointer = arguments[place] = tensor.data_ptr()
                aligned |= pointer
        key = None
        if aligned & 15:
            key = tuple(arguments[place] & 15 == 0 for _, place in self._pointers)
        compiled = self.compiled.get(key)
        if compiled is None or _hooked():
            self._launch_slowly(key, values, grid)
            return
        for name, place in self._scalars:
            arguments[place] = values[name]
        for name, offset, place in self._parts:
            arguments[place] = values[name].data_ptr() + offset
        run, function, metadata, _ = compiled
        run(*grid, current_stream(device), function, metadata, None, None, None, *arguments)

    def _launch_slowly(self, key: Any, values: Mapping[str, Any], grid: Grid) -> None:
        found: dict[str, Any] = {name: part.view(values[part.buffer]) for name, part in self.parts.items()}
        found |= {name: values[name] for name, _ in self._scalars}
        found |= {name: values.get(name) for name, _ in self._pointers}
        found |= self.fixed
        compiled = self.kernel[grid](*(found[name] for name in self._names), **self.options)
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
    """One kernel under one plan, in the configuration that the table or the model gives (``tuning.py``).

    Where it does not fit the device it is made smaller, before anything ran. Nothing is ever measured here, so it does
    not matter whether the first call is recorded into a graph, or whether another thread is recording one.

    Args:
        config: the configuration.
        build: the launch in a configuration.
        grid: the grid for a number of rows in a configuration.
        rows: those of the plan.
        fixed: ``config`` must not be replaced by a smaller one: it is being measured.
    """

    def __init__(
        self, config: Config, build: Callable[[Config], Launch], grid: Callable[[Config, int], Grid], rows: int,
        fixed: bool = False,
    ):  # fmt: skip
        self.build, self.grid_of, self.rows, self.fixed = build, grid, rows, fixed
        self._choose(config)

    def _choose(self, config: Config) -> None:
        self.config, self.launch, self.grid = config, self.build(config), self.grid_of(config, self.rows)

    def __call__(self, device: torch.device, values: Mapping[str, Any], rows: int | None = None) -> None:
        """Launch for the plan's rows, or for the first ``rows`` of them."""
        while True:
            try:
                self.launch(device, values, self.grid if rows is None else self.grid_of(self.config, rows))
            except OutOfResources:
                config = None if self.fixed else smaller(self.config)
                if config is None:
                    raise
                self._choose(config)
            else:
                return
