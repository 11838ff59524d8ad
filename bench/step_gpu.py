"""What a step has the GPU do, by torch's profiler: kernels, seconds in which one of them runs, the longest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Of the kernels, by their seconds; the names of libraries' kernels are long.
NAMED, LETTERS = 12, 90


class Work(NamedTuple):
    """One kernel or copy on the GPU, nanoseconds of its begin and end."""

    name: str
    begin: int
    end: int


def gpu_work(call: Callable[[], object]) -> dict[str, Any]:
    """``summary`` of one call, which has run before."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    events = found.profiler.kineto_results.events()
    return summary(
        Work(event.name(), event.start_ns(), event.end_ns())
        for event in events
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()
    )


def summary(work: Iterable[Work]) -> dict[str, Any]:
    """How many, the seconds in which at least one is under way, and the seconds of those with the most, by name."""
    count, busy, until = 0, 0, 0
    by_name: dict[str, int] = defaultdict(int)
    for name, begin, end in sorted(work, key=lambda one: one.begin):
        count += 1
        busy += max(0, end - max(begin, until))
        until = max(until, end)
        by_name[name[:LETTERS]] += end - begin
    longest = sorted(by_name, key=lambda name: -by_name[name])[:NAMED]
    return {"kernels": count, "busy_seconds": busy / 1e9, "longest": {name: by_name[name] / 1e9 for name in longest}}
