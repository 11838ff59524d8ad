"""How it is measured on CUDA: wall time with the host's share, GPU time with a cold L2, memory, bandwidth of a copy.

The GPU's time of a call comes from graphs of many calls, each with inputs and results of its own, together four times
what L2 holds, so that nothing of a call is there when its turn comes. Contenders get the same inputs and take turns,
graph by graph: a clock that moves moves for all. The device is kept busy before the first one counts, and each graph
stands behind work that is queued already, so that no launch is waited for.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench.cases import Case, Step

ROUNDS = 20
# Graphs of several contenders live at the same time.
MOST_SETS = 256
# A share of a copy's bandwidth above this says that the measurement is wrong: L2 was not cold.
MOST_SHARE = 1.02
SETTLE_SECONDS = 0.3
# Of the work that a graph is queued behind: a millisecond on an H100; more where a launch takes longer.
BACKLOG_CYCLES, MOST_BACKLOG_CYCLES = 2_000_000, 128_000_000
# Behind four times as much a time that holds the host's part falls by more than this; the device's own does not.
SAME_TIME = 0.98


class WrongMeasurementError(RuntimeError):
    """A figure that cannot be."""


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


@functools.cache
def side_stream() -> torch.cuda.Stream:
    """Where everything is measured. Autograd runs a node where its forward ran: recorded on the default stream, which
    cannot be captured, it would pull a capture there."""
    return torch.cuda.Stream()


def graph_of(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """A replay of all of ``calls``, recorded on ``side_stream`` with results in memory of their own."""
    side = side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        results = [call() for call in calls]

    def replay() -> None:
        graph.replay()

    # Alive as long as the graph: what it writes, and what it reads, such as tensors that a forward has saved.
    replay.results, replay.calls = results, calls  # type: ignore[attr-defined]
    return replay


def settle(replay: Callable[[], Any], seconds: float = SETTLE_SECONDS) -> None:
    """Keep the device busy until its clocks have gone where this load takes them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        replay()
        torch.cuda.synchronize()


def timed_once(replay: Callable[[], Any]) -> float:
    """GPU seconds of one replay that was queued before the device came to it.

    Where the device was there first, it is queued again behind more work. That may never help: a launch into a full
    queue waits for the device, and not the device for it. Such a time does not depend on how much lies before it.

    Raises:
        WrongMeasurementError: the host takes too long to queue it, which would count as the device's time.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    backlog, times = BACKLOG_CYCLES, []
    while backlog <= MOST_BACKLOG_CYCLES:
        torch.cuda._sleep(backlog)
        start.record()
        replay()
        end.record()
        waited = start.query()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
        if not waited:
            return times[-1]
        backlog *= 4
    if times[-1] > SAME_TIME * times[-2]:
        return times[-1]
    raise WrongMeasurementError(f"the device waits for a graph behind {MOST_BACKLOG_CYCLES} cycles of other work")


def in_turns(
    replays: Mapping[str, Callable[[], Any]], timed: Callable[[Callable[[], Any]], float], rounds: int
) -> dict[str, float]:
    """Median seconds of each replay: all of them once a round, and each round begins with another."""
    names = list(replays)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(timed(replays[name]))
    return {name: statistics.median(found) for name, found in times.items()}


def graph_seconds(calls: Sequence[Callable[[], Any]], rounds: int = ROUNDS, busy: float = SETTLE_SECONDS) -> float:
    """Median GPU seconds a call of one contender, after ``busy`` seconds of them."""
    replay = graph_of(calls)
    settle(replay, busy)
    return in_turns({"": replay}, timed_once, rounds)[""] / len(calls)


def sets_of_inputs(bytes_read: int, l2_bytes: int, most: int = MOST_SETS) -> int:
    """Sets whose bytes fill L2 four times over, so that none is left there when its turn comes again.

    Args:
        bytes_read: by one call, results not counted: they may stay unwritten in L2.
    """
    return max(2, min(most, -(-4 * l2_bytes // max(1, bytes_read))))


def rotations(bytes_read: int) -> int:
    """``sets_of_inputs`` for the current device."""
    return sets_of_inputs(bytes_read, torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def bytes_read(case: Case, direction: str) -> int:
    """By the fused operator in one call: rows of x, and of the residual or the incoming gradient."""
    rows = 2 if case.residual or direction != "forward" else 1
    return rows * case.tokens * case.d * case.dtype.itemsize


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


def share_of_copy(moved: int, seconds: float, copy_rate: float) -> float:
    """Bandwidth of a call as a share of a copy's.

    Raises:
        WrongMeasurementError: above ``MOST_SHARE``.
    """
    share = moved / seconds / copy_rate
    if share > MOST_SHARE:
        raise WrongMeasurementError(f"{share:.2f} of a copy's bandwidth; valid: at most {MOST_SHARE}: L2 was not cold")
    return share


def contest(contenders: Sequence[str], case: Case, direction: str, copy_rate: float,
            rounds: int = ROUNDS) -> dict[str, dict[str, float]]:  # fmt: skip
    """Everything about each contender: times in microseconds, rates, bytes.

    All have the same inputs and weights, and take turns. The caller has checked them, and reset Dynamo before: each
    call of a compiled function looks through all that was compiled of it for other cases.
    """
    with torch.cuda.stream(side_stream()):
        return _contest(contenders, case, direction, copy_rate, rounds)


def _contest(contenders: Sequence[str], case: Case, direction: str, copy_rate: float,
             rounds: int) -> dict[str, dict[str, float]]:  # fmt: skip
    device = torch.device("cuda")
    moved = case.bytes_moved(direction)
    sets = rotations(bytes_read(case, direction))
    found: dict[str, dict[str, float]] = {}
    replays = {}
    given: list[Step] = []
    for name in contenders:
        first = Step(name, case, device, data=given[0] if given else None)
        steps = [first]
        for seed in range(1, sets):
            steps.append(Step(name, case, device, seed, first, given[seed] if given else None))
        given = given or steps
        wall = wall_seconds(lambda step=first: step.run(direction))
        peak, kept = memory_bytes(first, direction)
        found[name] = {"wall_us": wall * 1e6, "peak_bytes": peak, "saved_bytes": kept}
        for step in steps:
            step.run(direction)  # graphs of backward are recorded before the capture
        replays[name] = graph_of([lambda step=step: step.run(direction) for step in steps])
    settle(next(iter(replays.values())))
    for name, seconds in in_turns(replays, timed_once, rounds).items():
        cold = seconds / sets
        found[name] |= {
            "cold_us": cold * 1e6, "gb_s": moved / cold / 1e9, "share_of_copy": share_of_copy(moved, cold, copy_rate),
        }  # fmt: skip
    return found


def on_cuda(contender: str, case: Case, direction: str, copy_rate: float) -> dict[str, float]:
    """Everything about one contender."""
    return contest([contender], case, direction, copy_rate)[contender]
