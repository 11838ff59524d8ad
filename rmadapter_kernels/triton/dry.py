"""Launches that go nowhere: what a call costs on the host, and what it would launch, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rmadapter_kernels.triton import backward_rows, backward_weights, forward, launch, operators, prepare, prepared

KERNELS = (
    (prepare, "rm_adapter_prepare_kernel"),
    (forward, "rm_adapter_forward_kernel"),
    (backward_rows, "rm_adapter_backward_rows_kernel"),
    (backward_weights, "rm_adapter_backward_weights_kernel"),
    (backward_weights, "rm_adapter_backward_sum_kernel"),
)


class Launched(NamedTuple):
    """One launch: kernel, whether through ``JITFunction`` or the compiled kernel, grid, arguments, options."""

    kernel: Any
    direct: bool
    grid: tuple[int, int, int]
    arguments: tuple
    options: dict[str, Any]


class _DryCompiled:
    """Stands for a ``CompiledKernel``."""

    function, packed_metadata = 1, (4, 1, 0)

    def __init__(self, kernel: Any, record: list[Launched] | None):
        self.kernel, self.record = kernel, record

    def run(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        """The launcher of Triton 3.6 to 3.9."""
        if self.record is not None:
            self.record.append(Launched(self.kernel, True, (x, y, z), arguments, {}))


class _DryKernel:
    """Stands for a ``JITFunction``."""

    def __init__(self, kernel: Any, record: list[Launched] | None):
        self.kernel, self.record = kernel, record
        self.fn, self.arg_names = kernel.fn, kernel.arg_names

    def __getitem__(self, grid: tuple[int, int, int]):
        def run(*arguments, **options):
            if self.record is not None:
                self.record.append(Launched(self.kernel, False, grid, arguments, options))
            return _DryCompiled(self.kernel, self.record)

        return run


@contextmanager
def dry_launches(record: list[Launched] | None = None) -> Iterator[None]:
    """Until it ends, kernels of this backend are not run, on tensors of any device; appends to ``record``."""
    real = [(module, name, getattr(module, name)) for module, name in KERNELS]
    stream, direct = launch.current_stream, launch.DIRECT
    operators.forget_plans()
    prepared.forget()
    try:
        for module, name, kernel in real:
            setattr(module, name, _DryKernel(kernel, record))
        launch.current_stream, launch.DIRECT = lambda device: 0, True
        yield
    finally:
        for module, name, kernel in real:
            setattr(module, name, kernel)
        launch.current_stream, launch.DIRECT = stream, direct
        operators.forget_plans()
        prepared.forget()
