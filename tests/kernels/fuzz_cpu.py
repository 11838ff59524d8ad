"""Random shapes, strides, dtypes, flags, threads and instruction sets of the cpu backend, judged as its tests are.

    python tests/kernels/fuzz_cpu.py --seconds 60

A failure prints the seed that repeats it: ``--seed SEED --seconds 0``.
"""

from __future__ import annotations

import argparse
import random
import time

import torch
from cpu_cases import DTYPES, instructions, judge
from operator_cases import WEIGHTS, Case, make_case
from torch import Tensor

from rmadapter_kernels import ACTIVATIONS, OBJECTIVES, cpu


def relayout(draw: random.Random, tensor: Tensor) -> Tensor:
    """The same values in another layout: dimensions in another order, gaps, an offset, or none of these."""
    order = draw.sample(range(tensor.dim()), tensor.dim())
    if draw.random() < 0.6:  # D stays the fastest
        order = [*(d for d in order if d != tensor.dim() - 1), tensor.dim() - 1]
    inverse = [order.index(d) for d in range(tensor.dim())]
    gaps = [size + draw.choice((0, 0, 1, 5)) for size in (tensor.shape[d] for d in order)]
    memory = torch.full([draw.choice((0, 1, 3)) + torch.Size(gaps).numel()], float("nan"), dtype=tensor.dtype)
    memory = memory[len(memory) - torch.Size(gaps).numel() :].view(gaps)
    view = memory[tuple(slice(0, tensor.shape[d]) for d in order)].permute(inverse)
    return view.copy_(tensor)


def make_random(draw: random.Random) -> tuple[Case, dict]:
    """A case, and how to run it."""
    lead = tuple(draw.choice((0, 1, 1, 2, 3, 5, 17)) for _ in range(draw.randrange(4)))
    if draw.random() < 0.15:
        lead = (draw.randrange(200, 700),)
    dtype = draw.choice(DTYPES)
    case = make_case(
        lead,
        16 * draw.choice((4, 5, 6, 7, 8, 13, 48)),
        draw.choice((1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 128)),
        draw.choice((1, 3, 8, 16, 30, 32, 47, 96, 128)),
        reconstruct=draw.random() < 0.8,
        residual=draw.random() < 0.7,
        norm=draw.random() < 0.5,
        seed=draw.randrange(2**31),
        scale=draw.choice((1.0, 0.5, 0.001)),
        activation=draw.choice(ACTIVATIONS),
        objective=draw.choice(OBJECTIVES),
        local_reconstruction=draw.random() < 0.5,
        branch_grad_scale=draw.choice((1.0, 3.0, 1000.0)),
    ).to(dtype, draw.choice((dtype, torch.float32)))
    if case.residual is not None and draw.random() < 0.3:
        case.residual, case.d_out = case.residual.float(), case.d_out.float()
    for name in ("x", "residual", "d_out", "d_loss"):
        tensor = getattr(case, name)
        if tensor is not None and tensor.dim() > 0 and draw.random() < 0.5:
            setattr(case, name, relayout(draw, tensor))
    case.weights = [w if w is None or draw.random() < 0.7 else relayout(draw, w) for w in case.weights]
    how = {"use": draw.choice(("both", "both", "out", "loss"))}
    if draw.random() < 0.4:
        how["frozen"] = tuple(name for name in ("x", "residual", *WEIGHTS) if draw.random() < 0.5)
    return case, how


def check(seed: int) -> str:
    """Runs the case of ``seed``; AssertionError where it is wrong. Returns what it was."""
    draw = random.Random(seed)
    case, how = make_random(draw)
    name, threads = draw.choice(cpu.instruction_sets()), draw.randrange(1, 4)
    torch.set_num_threads(threads)
    about = f"seed {seed}: {name}, {threads} threads, x {list(case.x.shape)} {case.x.stride()} {case.x.dtype}, "
    about += f"r {case.weights[0].shape[1]}, {case.settings}, {how}"
    try:
        with instructions(name):
            # One token may cancel by chance where eager did not: a wrong kernel is off by more.
            judge(case, factor=3, steps=6, cancelling=True, **how)
    except Exception as error:
        raise AssertionError(f"{about}\n{error}") from error
    return about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="the first seed; default: the clock")
    options = parser.parse_args()
    if not cpu.AVAILABLE:
        raise SystemExit(f"the cpu backend is not available: {cpu.reason()}")
    first = seed = int(time.time()) if options.seed is None else options.seed
    end = time.monotonic() + options.seconds
    shown = 0.0
    while True:
        about = check(seed)
        seed += 1
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{seed - first} cases, the last: {about}", flush=True)
        if time.monotonic() >= end:
            break
    print(f"{seed - first} cases from seed {first} on, none wrong")


if __name__ == "__main__":
    main()
