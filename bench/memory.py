"""Memory of a call: of the tensors that it holds from call to call, and of those that it allocates meanwhile.

Both are PyTorch's own, counted one by one. What the operating system says of a process depends on what its allocator
kept from calls before: for one training step it moved by as much as 6 % between calls, and between processes by more.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType, ModuleType

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def allocated_peak(device: torch.device, call: Callable[[], object]) -> int:
    """The most bytes of tensors that ``call`` has allocated at one time, beside those that were there before it.

    On a CPU from the profiler's record of allocations, so that the call takes longer than usual.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it calls the lack of a GPU an error
    # What earlier calls have left in reference cycles is freed before this one; freed meanwhile it would lower the sum,
    # by 2 KB or nothing as it happened.
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            call()
    finally:
        if enabled:
            gc.enable()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def held_bytes(call: Callable[[], object]) -> int:
    """Bytes of the tensors that ``call`` can reach, their gradients included; memory that several share counts once.

    Followed are what functions close over, attributes, and what lists, tuples, sets and dictionaries hold.
    """
    memory: dict[tuple[torch.device, int], int] = {}
    seen: set[int] = set()
    todo: list[object] = [call]
    while todo:
        found = todo.pop()
        if id(found) in seen or isinstance(found, (type, ModuleType, str)):
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            if found.is_mkldnn:  # which has no storage that PyTorch knows of
                memory[found.device, id(found)] = found.numel() * found.itemsize
            else:
                storage = found.untyped_storage()
                memory[storage.device, storage.data_ptr()] = storage.nbytes()
            todo += [found.grad] if found.is_leaf else []
            continue
        if isinstance(found, Mapping):
            todo += [*found.keys(), *found.values()]
        elif isinstance(found, (list, tuple, set, frozenset)):
            todo += found
        elif isinstance(found, MethodType):
            todo += [found.__self__, found.__func__]
        elif isinstance(found, FunctionType):
            todo += [cell.cell_contents for cell in found.__closure__ or ()]
        todo += getattr(found, "__dict__", {}).values()
    return sum(memory.values())
