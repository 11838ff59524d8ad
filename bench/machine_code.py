"""What the kernels' machine code takes of GPUs that are not here: instructions, waits, bytes and the times they bound.

    python -m bench.machine_code --arch sm_80,sm_90,sm_100 [--dtype bf16] [--tokens 6304,65536] [--json rows.json]
    python -m bench.machine_code --arch sm_90 --check        # fails where a promised figure is not held

One row a kernel, configuration and kind of norm. Triton is the installed one; put another's folder into PYTHONPATH for
its figures (make test-triton has those of 3.6 and of the newest). Everything is a token's share, counted in the code
and not measured: instructions that a warp issues, cycles of shared memory without conflicts, bytes from L2 into the
multiprocessors as the loads ask for them, bytes of HBM if each row of a wide tensor comes from there once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.compiled import DTYPES, Case, compile_case, launch_of
from bench.results import write_json
from bench.sass import Load, Loop, counterparts, loops_of, machine_of
from rmadapter_kernels.triton.buffers import padded
from rmadapter_kernels.triton.devices import KNOWN_DEVICES
from rmadapter_kernels.triton.tuning import KERNELS, STACK, config_for

TOKENS = (6304, 65536)
WIDTHS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Row:
    """One compiled kernel; counts are a token's.

    Attributes:
        registers, stack: a thread's, bytes for the stack.
        spills: loads and stores of the stack inside of loops.
        shared: bytes a program. ``programs``: how many fit a multiprocessor.
        instructions, classes: issued by warps, all and by class.
        exposed: waits of a program for a copy with nothing behind it, and loads that are not asynchronous, in loops.
        ahead: the fewest tiles on their way in a loop, while one is worked on.
        synchronous: names of wide tensors' loads in loops that are not asynchronous.
        hbm, l2, weights: bytes from HBM (both ways), from L2 into the multiprocessors, and those of the weights.
        issue_ns, shared_ns, l2_ns, hbm_ns: what each bounds the whole device's time for a token by.
    """

    case: str
    arch: str
    kernel: str
    dtype: str
    r: int
    tokens: int
    norm: bool
    block_m: int
    block_d: int
    num_warps: int
    num_stages: int
    triton: str
    unit: str
    registers: int
    stack: int
    spills: int
    shared: int
    programs: int
    instructions: float
    classes: dict[str, float]
    exposed: int
    ahead: float
    synchronous: int
    hbm: float
    l2: float
    weights: float
    issue_ns: float
    shared_ns: float
    l2_ns: float
    hbm_ns: float

    @property
    def bound_ns(self) -> float:
        """The largest of the four."""
        return max(self.issue_ns, self.shared_ns, self.l2_ns, self.hbm_ns)


def hbm_bytes(case: Case) -> float:
    """Of a token: each row of a wide tensor once, and what lies between the backward kernels."""
    size = DTYPES[case.dtype][0].itemsize
    row = case.d * size
    narrow = 2 if case.dtype == "bf16" else 4
    between = (padded(case.r) + padded(case.h)) * (size + narrow) + 8
    return {"forward": 3 * row + 4, "rows": 3 * row + 4 + between, "weights": 2 * row + 4 + between}[case.kernel]


def _weights_chunk(case: Case) -> int:
    return int(launch_of(case).fixed["chunk_rows"])


def examine(case: Case) -> Row:
    """Compile one case and count."""
    import triton

    compiled = compile_case(case)
    machine = machine_of(compiled.asm["cubin"])
    loops, before = loops_of(compiled.asm["ttgir"])
    c, device = case.config, KNOWN_DEVICES[case.arch]
    # K2's programs for D run its first loop, its last program the second; the others one after the other.
    repeats, rows = [1.0] * len(loops), float(c.block_m)
    if case.kernel == "weights":
        rows = _weights_chunk(case)
        repeats = [-(-case.d // c.block_d), *[1.0] * (len(loops) - 1)]
    classes: dict[str, float] = {}
    shared, l2, weights, exposed, synchronous = 0.0, 0.0, 0.0, 0.0, 0

    def add(code: Any, times: float) -> None:
        nonlocal shared
        for name, count in code.classes.items():
            classes[name] = classes.get(name, 0.0) + count * times * c.num_warps / rows
        shared += code.shared * times * c.num_warps / rows

    def fetch(loads: Iterable[Load], times: float) -> None:
        nonlocal l2, weights
        for load in loads:
            l2 += load.size * times / rows
            weights += load.size * times / rows if load.role == "weight" else 0

    for (loop, code, unrolled), times in zip(counterparts(loops, machine), repeats, strict=True):
        trips = rows / loop.step if loop.trips is None else loop.trips
        if code is not None:
            add(code, times * trips / unrolled)
        fetch(loop.loads, times * trips)
        late = _late(loop)
        exposed += trips * late / (len(loops) if case.kernel == "weights" else 1)
        synchronous += sum(load.role == "rows" and not load.asynchronous for load in loop.loads)
    add(machine.outside, sum(repeats) / len(repeats) if case.kernel == "weights" else 1)
    # What is copied ahead of a loop is masked off at its end, so it is counted there already.
    fetch((load for load in before if not load.asynchronous), repeats[0])
    tmem = getattr(compiled.metadata, "tmem_size", None) or 0
    registers, shared_bytes = machine.registers, compiled.metadata.shared
    programs = device.programs(registers, shared_bytes, c.num_warps, tmem)
    total = sum(classes.values())
    hbm = hbm_bytes(case)
    return Row(
        str(case), case.arch, case.kernel, case.dtype, case.r, case.tokens, case.norm, c.block_m, c.block_d,
        c.num_warps, c.num_stages, triton.__version__, _unit(compiled.asm["ptx"]), registers, machine.stack,
        machine.spills, shared_bytes, programs, total, classes, round(exposed),
        min((loop.ahead for loop in loops if loop.groups), default=0.0), synchronous, hbm, l2, weights,
        issue_ns=1e9 * total / (4 * device.multiprocessors * device.clock),
        shared_ns=1e9 * shared / (device.multiprocessors * device.clock),
        l2_ns=1e9 * l2 / device.l2_rate, hbm_ns=1e9 * hbm / device.hbm_rate,
    )  # fmt: skip


def _late(loop: Loop) -> int:
    """Waits in an iteration for a copy that has just been issued, and loads that are not copied ahead."""
    waits = sum(wait < loop.groups for wait in loop.waits)
    return waits + sum(not load.asynchronous and load.role != "vector" for load in loop.loads)


def _unit(ptx: str) -> str:
    for name, mark in (("tcgen05", "tcgen05.mma"), ("wgmma", "wgmma.mma_async"), ("mma", "mma.sync")):
        if mark in ptx:
            return name
    return "fma"


def cases(archs: Iterable[str], dtypes: Iterable[str], widths: Iterable[int], kernels: Iterable[str],
          tokens: Iterable[int], norms: Iterable[bool] = (False, True), d: int = 768) -> list[Case]:  # fmt: skip
    """Each configuration that is chosen, once."""
    found: dict[str, Case] = {}
    for arch in archs:
        for kernel in kernels:
            for dtype in dtypes:
                for width in widths:
                    for count in tokens:
                        for norm in norms:
                            case = Case(arch, kernel, dtype, d, width, width, count, norm, None)  # type: ignore[arg-type]
                            config = config_for(case.problem, KNOWN_DEVICES[arch])
                            case = Case(arch, kernel, dtype, d, width, width, count, norm, config)
                            found.setdefault(case.key + f" {count if kernel == 'weights' else ''}", case)
    return list(found.values())


def rows_of(chosen: list[Case], jobs: int = 1, progress: bool = False) -> Iterator[Row]:
    """Rows of ``chosen``, in their order of completion.

    Raises:
        RuntimeError: where some do not compile, after all the others; names each.
    """
    failures = []
    if jobs == 1:
        for case in chosen:
            try:
                yield examine(case)
            except Exception as error:  # the others are worth their row
                failures.append(f"{case}: {type(error).__name__}: {error}")
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(examine, case): case for case in chosen}
            for done, future in enumerate(as_completed(futures), 1):
                try:
                    row = future.result()
                except Exception as error:  # as above
                    failures.append(f"{futures[future]}: {type(error).__name__}: {error}")
                    continue
                if progress:
                    print(f"\r{done}/{len(chosen)} compiled", end="", file=sys.stderr, flush=True)
                yield row
        if progress:
            print(file=sys.stderr)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(chosen)} do not compile\n" + "\n".join(failures))


def table(rows: list[Row]) -> str:
    """Rows as text."""
    lines = [
        f"{'arch':7}{'kernel':8}{'dtype':7}{'r':>4}{'tokens':>7} {'norm':5}{'tile':>7}{'warps':>6}{'stages':>7}"
        f"{'unit':>8}{'regs':>5}{'stack':>6}{'shared':>7}{'a SM':>5}{'instr':>6}{'exposed':>8}{'ahead':>6}{'sync':>5}"
        f"{'HBM B':>6}{'L2 B':>6}{'weights':>8}{'issue':>6}{'shared':>7}{'L2':>5}{'HBM':>5} ns"
    ]
    for r in rows:
        tile = f"{r.block_m}x{r.block_d}"
        lines.append(
            f"{r.arch:7}{r.kernel:8}{r.dtype:7}{r.r:4}{r.tokens:7} {'norm' if r.norm else '':5}{tile:>7}{r.num_warps:6}"
            f"{r.num_stages:7}{r.unit:>8}{r.registers:5}{r.stack:6}{r.shared:7}{r.programs:5}{r.instructions:6.0f}"
            f"{r.exposed:8}{r.ahead:6.1f}{r.synchronous:5}{r.hbm:6.0f}{r.l2:6.0f}{r.weights:8.0f}{r.issue_ns:6.2f}"
            f"{r.shared_ns:7.2f}{r.l2_ns:5.2f}{r.hbm_ns:5.2f}{'  !' if r.stack or r.spills else ''}"
        )
    return "\n".join(lines)


def by_class(rows: list[Row]) -> str:
    """Instructions a token by class."""
    names = sorted({name for row in rows for name in row.classes})
    lines = [f"{'case':78}" + "".join(f"{name:>14}" for name in names)]
    lines += [f"{row.case:78}" + "".join(f"{row.classes.get(name, 0):14.0f}" for name in names) for row in rows]
    return "\n".join(lines)


# Held on sm_90, bf16, D = 768, r = h = 32, on every Triton: instructions a token by kernel, tokens and norm; bytes of
# weights a token from L2, half of what programs fetched that took fp32 weights in the configurations of their time (64
# rows, 32 with 6,304 tokens; W_rec1 once a program, K1 twice).
INSTRUCTIONS = {
    ("forward", 65536, False): 450, ("forward", 65536, True): 720, ("forward", 6304, False): 520,
    ("forward", 6304, True): 800, **{("rows", tokens, norm): 1000 if norm else 700 for tokens in TOKENS
                                     for norm in (False, True)},
}  # fmt: skip
WEIGHT_BYTES = {
    (kernel, tokens): (weights * 768 * 32 + small * 32 * 32) * 4 / rows / 2
    for kernel, weights, small in (("forward", 3, 1), ("rows", 4, 2))
    for tokens, rows in ((65536, 64), (6304, 32))
}


def faults(rows: list[Row]) -> list[str]:
    """What does not hold.

    - In 16 bits up to r = h = 64: no loop uses a stack, two tiles are ahead.
    - In 16 bits up to r = h = 32: at most STACK bytes of stack.
    - In bf16 up to r = h = 32 on sm_90: no synchronous load of rows.
    - In bf16 at r = h = 32 on sm_90: INSTRUCTIONS and WEIGHT_BYTES.
    """
    found = []
    for row in rows:
        if row.dtype in ("bf16", "fp16") and row.r <= 64:
            if row.spills or (row.stack > STACK and row.r <= 32):
                found.append(f"{row.case}: {row.stack} bytes of stack, {row.spills} spills")
            if row.synchronous and (row.arch, row.dtype) == ("sm_90", "bf16") and row.r <= 32:
                found.append(f"{row.case}: {row.synchronous} loads of a wide tensor in a loop are synchronous")
            if row.ahead < 2:
                found.append(f"{row.case}: {row.ahead:.1f} tiles ahead; valid: 2")
        if (row.arch, row.dtype, row.r) != ("sm_90", "bf16", 32):
            continue
        most = INSTRUCTIONS.get((row.kernel, row.tokens, row.norm))
        if most is not None and row.instructions > most:
            found.append(f"{row.case}: {row.instructions:.0f} instructions a token; valid: at most {most}")
        bytes_ = WEIGHT_BYTES.get((row.kernel, row.tokens))
        if bytes_ is not None and row.weights > bytes_:
            found.append(f"{row.case}: {row.weights:.0f} bytes of weights a token from L2; valid: at most {bytes_:.0f}")
    return found


def _chosen(text: str, valid: Iterable[str], name: str) -> list[str]:
    values = text.split(",")
    for value in values:
        if value not in valid:
            raise SystemExit(f"{name} is {value!r}; valid: {', '.join(valid)}")
    return values


def main(arguments: list[str] | None = None) -> int:
    """The command; 1: a figure is not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_80,sm_90,sm_100", help=f"any of {','.join(KNOWN_DEVICES)}")
    parser.add_argument("--dtype", default="bf16", help=f"any of {','.join(DTYPES)} (%(default)s)")
    parser.add_argument("--kernel", default=",".join(KERNELS), help="any of %(default)s")
    parser.add_argument("--r", default="32", help=f"r = h, any of {','.join(map(str, WIDTHS))} (%(default)s)")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)), help="numbers of tokens (%(default)s)")
    parser.add_argument("--classes", action="store_true", help="also instructions by class")
    parser.add_argument("--check", action="store_true", help="end with 1 where a promised figure is not held")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time (%(default)s)")
    given = parser.parse_args(arguments)
    if not all(count.isdigit() and int(count) for count in given.tokens.split(",")):
        raise SystemExit(f"--tokens is {given.tokens!r}; valid: numbers from 1 on, with commas between them")
    chosen = cases(
        _chosen(given.arch, KNOWN_DEVICES, "--arch"),
        _chosen(given.dtype, DTYPES, "--dtype"),
        [int(width) for width in _chosen(given.r, list(map(str, WIDTHS)), "--r")],
        _chosen(given.kernel, KERNELS, "--kernel"),
        [int(count) for count in given.tokens.split(",")],
    )
    order = {str(case): index for index, case in enumerate(chosen)}
    rows: list[Row] = []
    failure = None
    try:
        rows.extend(rows_of(chosen, given.jobs, progress=True))
    except RuntimeError as error:
        failure = str(error)
    rows.sort(key=lambda row: order[row.case])
    print(table(rows))
    if given.classes:
        print(by_class(rows))
    if given.json:
        write_json(given.json, [asdict(row) for row in rows])
    if failure is not None:
        raise SystemExit(failure)
    found = faults(rows)
    print(*found, sep="\n")
    if not found:
        print(f"{len(rows)} rows, all as promised")
    return int(given.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
