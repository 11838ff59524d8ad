"""Compile what the benchmarks of CUDA run, a part of it a process: caches on disk then serve the process that measures.

    python -m bench.compile_ahead --shard 3/14

torch.compile takes some 5 s for a case and direction, and needs one core; measuring takes 2 s and needs a quiet GPU.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from bench.cases import DIRECTIONS, Case, Step, cases, contenders

# Those that are measured first, in every case.
NAMES = contenders("cuda")[:2]


def work() -> list[tuple[Case, str]]:
    """Cases and directions whose code differs from the others'; the benchmarks' order."""
    # Backward's code is that of both directions.
    return [(case, direction) for case in cases("cuda") for direction in DIRECTIONS if direction != "backward"]


def main(arguments: list[str] | None = None) -> int:
    """The command; 2 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="1/1", help="NUMBER/COUNT: the part of the work to do (%(default)s)")
    given = parser.parse_args(arguments)
    number, count = map(int, given.shard.split("/"))
    if not torch.cuda.is_available():
        print(f"no CUDA device is here (torch {torch.__version__}): nothing was compiled")
        return 2
    for case, direction in work()[number - 1 :: count]:
        began = time.perf_counter()
        torch._dynamo.reset()  # it takes so many shapes of one function and no more
        for name in NAMES:
            Step(name, case, torch.device("cuda")).run(direction)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        print(f"{case} {direction}: {time.perf_counter() - began:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
