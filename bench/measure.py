"""How it is measured on CUDA: wall time with the host's share, GPU time with a cold L2, memory, bandwidth of a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.cases import Case, Step

ROUNDS = 20


def wall_seconds(call: Callable[[], Any], rounds: int = ROUNDS, calls: int = 10) -> float:
    """Median seconds a call, host and device together: ``calls`` in a row, then a synchronisation."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def graph_seconds(calls: list[Callable[[], Any]], rounds: int = ROUNDS) -> float:
    """Median GPU seconds a call: all of ``calls``, each with inputs of its own, captured in one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    graph.replay()
    for _ in range(rounds):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / len(calls))
    return statistics.median(times)


def rotations(bytes_a_call: int, most: int = 16) -> int:
    """Sets of inputs whose bytes fill L2 four times over, so that none is left there when its turn comes again."""
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(2, min(most, -(-4 * l2 // max(1, bytes_a_call))))


def copy_bytes_a_second() -> float:
    """Bytes read and written a second by copies of 256 MiB, the yardstick of every other figure."""
    pairs = [torch.empty(2, 64 << 20, dtype=torch.float32, device="cuda").unbind() for _ in range(2)]
    seconds = graph_seconds([lambda a=a, b=b: b.copy_(a) for a, b in pairs])
    return 2 * pairs[0][0].numel() * 4 / seconds


def memory_bytes(step: Step, direction: str) -> tuple[int, int]:
    """Peak of one call above what was there, and what a recorded forward keeps besides its results."""
    step.run(direction)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = step.run(direction)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del found
    before = torch.cuda.memory_allocated()
    out, loss = step.record()
    kept = torch.cuda.memory_allocated() - before - out.numel() * out.element_size() - 4 * loss.numel()
    return peak, max(0, kept)


def on_cuda(contender: str, case: Case, direction: str, copy_rate: float) -> dict[str, float]:
    """Everything about one contender: times in microseconds, rates, bytes. The caller has checked it."""
    device = torch.device("cuda")
    first = Step(contender, case, device)
    moved = case.bytes_moved(direction)
    wall = wall_seconds(lambda: first.run(direction))
    peak, kept = memory_bytes(first, direction)
    steps = [first, *(Step(contender, case, device, seed, first) for seed in range(1, rotations(moved)))]
    for step in steps:
        step.run(direction)  # graphs of backward are recorded before the capture
    cold = graph_seconds([lambda step=step: step.run(direction) for step in steps])
    return {
        "wall_us": wall * 1e6,
        "cold_us": cold * 1e6,
        "gb_s": moved / cold / 1e9,
        "share_of_copy": moved / cold / copy_rate,
        "peak_bytes": peak,
        "saved_bytes": kept,
    }
