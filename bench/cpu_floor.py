"""Share of the arithmetic floor that the cpu backend reaches where memory for outputs is there already.

    python -m bench.cpu_floor > bench/results/cpu_floor.md

The floor is 6 D r floating-point operations a token forward and 22 D r both ways at the rate of a 2048 x 2048 matmul in
the same dtype and run. bench/test_cpu.py gives every call new outputs, as training does, whose pages the kernel of the
operating system fills with zeros first; here glibc is told to keep freed memory, so that calls reuse it. Each round
times the matmul and then five calls of every case, whose median counts; a share is the median over rounds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable

CALLS = 5
# Read by glibc when a process starts.
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench.cpu_floor", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    if any(os.environ.get(name) != value for name, value in KEEP_FREED.items()):
        arguments = [sys.executable, "-m", "bench.cpu_floor", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, **KEEP_FREED})

    import torch

    from bench.cpu_report import FLOP
    from bench.results import processor
    from bench.test_cpu import DTYPES, MATMUL, TOKENS, _function, _step
    from rmadapter.reports.tables import compact_heading, compact_row

    def seconds(call: Callable[..., object], *arguments: object) -> float:
        times = []
        for _ in range(CALLS):
            began = time.perf_counter()
            call(*arguments)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    print(f"{processor()}, {rounds} rounds.\n")
    headings = ("dtype", "matmul, GFLOP/s", "direction", *(f"{tokens:,} tokens" for tokens in TOKENS))
    print(compact_heading(headings, words=(0, 2)))
    for dtype, kind in DTYPES.items():
        a, b = torch.randn(2, MATMUL, MATMUL, generator=torch.Generator().manual_seed(0)).to(kind)
        shares: dict[tuple[str, int], list[float]] = {}
        rates = []
        for measured in (False, *(True for _ in range(rounds))):
            rate = 2 * MATMUL**3 / seconds(torch.mm, a, b)
            for direction, tokens in itertools.product(FLOP, TOKENS):
                taken = seconds(_step, _function("cpu", tokens), dtype, tokens, direction)
                if measured:
                    shares.setdefault((direction, tokens), []).append(FLOP[direction] * tokens / rate / taken)
                    rates.append(rate)
        for direction in FLOP:
            cells = [f"{statistics.median(shares[direction, tokens]):.0%}" for tokens in TOKENS]
            print(compact_row((dtype, f"{statistics.median(rates) / 1e9:.0f}", direction, *cells)), flush=True)


if __name__ == "__main__":
    main()
