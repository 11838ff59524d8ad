"""Compile every launch configuration for GPUs that are not here, and print what each takes of them.

python -m rmadapter_kernels.report --arch sm_80,sm_90,sm_100 --json report.json

One row a kernel, dtype, bottleneck and configuration, with the most demanding flags (LayerNorm with weight and bias,
gelu, fp32 residual's share left out, every gradient needed; forward l2, backward the non-local l2). Compiled rows are
kept in ``RMADAPTER_CACHE`` (~/.cache/rmadapter) under a hash of the kernels' source.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from rmadapter_kernels.triton.options import configure
from rmadapter_kernels.triton.tuning import (
    KNOWN_DEVICES,
    SHARED_LIMIT,
    TABLE,
    TMEM_LIMIT,
    Config,
    Problem,
    config_for,
    padded,
)

WIDTHS = (16, 32, 64, 128)
TOKENS = (6304, 65536)
D = 768
DTYPES = {
    "bf16": (torch.bfloat16, ""),
    "fp16": (torch.float16, ""),
    "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"),
    "tf32x3": (torch.float32, "tf32x3"),
}
MOST_COMPILES = 400
KERNELS = ("forward", "rows", "weights")


@dataclass(frozen=True)
class Case:
    """One compilation."""

    arch: str
    kernel: str
    dtype: str
    d: int
    r: int
    h: int
    config: Config

    @property
    def key(self) -> str:
        c = self.config
        tile = f"{c.block_m}x{c.block_d} warps={c.num_warps} stages={c.num_stages}"
        return f"{self.arch} {self.kernel} {self.dtype} D={self.d} r={self.r} h={self.h} {tile}"


@dataclass(frozen=True)
class Row:
    """What one compiled kernel takes: per thread registers and bytes of stack, spilled words (stores and loads of
    local memory in the machine code), per program bytes of shared memory and columns of tensor memory."""

    arch: str
    kernel: str
    dtype: str
    d: int
    r: int
    h: int
    block_m: int
    block_d: int
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    spills: int
    shared: int
    tmem: int
    instruction: str
    bytes_token: int
    floor_token: int

    @property
    def case(self) -> Case:
        """What was compiled."""
        config = Config(self.block_m, self.block_d, self.num_warps, self.num_stages)
        return Case(self.arch, self.kernel, self.dtype, self.d, self.r, self.h, config)

    @property
    def clean(self) -> bool:
        """Neither stack nor spills, within the architecture's shared and tensor memory."""
        fits = self.shared <= SHARED_LIMIT[self.arch] and self.tmem <= TMEM_LIMIT
        return not self.stack and not self.spills and fits


def cases(archs: Iterable[str], dtypes: Iterable[str] = tuple(DTYPES), widths: Iterable[int] = WIDTHS,
          kernels: Iterable[str] = KERNELS) -> list[Case]:  # fmt: skip
    """Each configuration that the table or the heuristic gives, once."""
    found: dict[Case, None] = {}
    for arch in archs:
        device = KNOWN_DEVICES[arch]
        for kernel in kernels:
            for name in dtypes:
                dtype, precision = DTYPES[name]
                for width in widths:
                    for tokens in TOKENS:
                        config = config_for(Problem(kernel, dtype, precision, D, width, width, tokens), device)
                        found[Case(arch, kernel, name, D, width, width, config)] = None
        for (capability, kernel, dtype, precision, d, r, h, _), config in TABLE.items():
            name = next(name for name, own in DTYPES.items() if own == (dtype, precision))
            if capability == device.capability and kernel in kernels and name in dtypes:
                found[Case(arch, kernel, name, d, r, h, config)] = None
    return list(found)


def _bytes(case: Case) -> tuple[int, int]:
    """Bytes of HBM a token that the kernel moves if x stays in cache between its reads, and the floor of kernels.md.

    The floor is that of the operator's direction with the bottleneck tensors between the backward kernels left out.
    """
    size = DTYPES[case.dtype][0].itemsize
    row = case.d * size
    narrow = 2 if case.dtype == "bf16" else 4
    between = (padded(case.r) + padded(case.h)) * (size + narrow) + 8
    if case.kernel == "forward":
        return 3 * row + 4, 3 * row + 4
    if case.kernel == "rows":
        return 3 * row + 4 + between, 3 * row + 4
    return 2 * row + 4 + between, 2 * row + 4


def launch_of(case: Case) -> tuple[Any, list[torch.dtype | None]]:
    """The launch, and the dtypes of its pointers, with the most demanding flags."""
    from rmadapter_kernels.triton.layout import Rows
    from rmadapter_kernels.triton.plans import Addresses, BackwardPlan, ForwardPlan, Shape

    dtype, _ = DTYPES[case.dtype]
    shape = Shape(dtype, case.d, case.r, case.h, TOKENS[-1], True, "gelu", "l2")
    addresses = Addresses(Rows(TOKENS[-1], False, ((0, case.d),) * 3 + ((0, 1),)), 16, False)
    weight = torch.float32  # trained in fp32, rounded on load
    if case.kernel == "forward":
        launch = ForwardPlan(shape, addresses, None).launch.build(case.config)
        return launch, [dtype, dtype, *[weight] * 10, dtype, torch.float32]
    plan = BackwardPlan(shape, addresses, [True] * 9, True, True, False, None)
    if case.kernel == "rows":
        tuned, pointers = plan.rows, [dtype, dtype, torch.float32, *[weight] * 9, dtype]
    else:
        tuned, pointers = plan.weights, [dtype, dtype, torch.float32, *[weight] * 4]
    assert tuned is not None  # every gradient is needed
    launch = tuned.build(case.config)
    return launch, pointers + [None if part is None else part.dtype for part in launch.scratch]


def compile_case(case: Case) -> Any:
    """The compiled kernel; needs ptxas from Triton's wheel and no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    precision = DTYPES[case.dtype][1]
    with configure(fp32_precision=precision or None):
        launch, pointers = launch_of(case)
    kernel = launch.kernel
    names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    signature, constants, attributes = {}, {}, {}
    values = [*pointers, *launch.scalars]
    first_constant = len(kernel.arg_names) - len(launch.constants)
    for index, name in enumerate(kernel.arg_names):
        if index >= first_constant:
            signature[name], constants[(index,)] = "constexpr", launch.constants[index - first_constant]
        elif index < len(pointers) and values[index] is None:
            signature[name], constants[(index,)] = "constexpr", None
        elif index < len(pointers):
            signature[name], attributes[(index,)] = names[values[index]], [["tt.divisibility", 16]]
        else:
            signature[name] = kernel.params[index].annotation_type
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", int(case.arch[3:]), 32), options=launch.options)


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers and bytes of stack a thread, and spilled words, by the cuobjdump of Triton's wheel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def dump(*flags: str) -> str:
            return subprocess.run([tool, *flags, path], check=True, capture_output=True, text=True).stdout

        usage = dump("--dump-resource-usage")
        code = dump("--dump-sass")

    def used(name: str) -> int:
        found = re.search(rf"{name}:(\d+)", usage)
        if found is None:
            raise ValueError(f"cuobjdump says nothing of {name}: {usage}")
        return int(found[1])

    return used("REG"), used("STACK"), len(re.findall(r"\b(?:STL|LDL)\b", code))


def _instruction(ptx: str) -> str:
    for name, mark in (("tcgen05", "tcgen05.mma"), ("wgmma", "wgmma.mma_async"), ("mma", "mma.sync")):
        if mark in ptx:
            return name
    return "fma"


def examine(case: Case) -> Row:
    """Compile one case and read what it takes."""
    compiled = compile_case(case)
    registers, stack, spills = _resources(compiled.asm["cubin"])
    moved, floor = _bytes(case)
    c = case.config
    return Row(
        case.arch, case.kernel, case.dtype, case.d, case.r, case.h, c.block_m, c.block_d, c.num_warps, c.num_stages,
        registers, stack, spills, compiled.metadata.shared, getattr(compiled.metadata, "tmem_size", None) or 0,
        _instruction(compiled.asm["ptx"]), moved, floor,
    )  # fmt: skip


def _cache_file() -> Path:
    import triton

    from rmadapter_kernels.triton.autotune import cache_folder, source_hash

    return cache_folder() / f"report-triton{triton.__version__}-{source_hash()}.json"


def report(chosen: list[Case], jobs: int = 1, progress: bool = True) -> Iterator[Row]:
    """Rows of ``chosen``, in their order of completion; those compiled before come from the cache.

    Raises:
        RuntimeError: where some do not compile, after all the others; names each.
    """
    path = _cache_file()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = {}
    missing = [case for case in chosen if case.key not in stored]
    yield from (Row(**stored[case.key]) for case in chosen if case.key in stored)
    if not missing:
        return
    done = len(chosen) - len(missing)
    failures = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(examine, case): case for case in missing}
        for future in as_completed(futures):
            case = futures[future]
            try:
                row = future.result()
            except Exception as error:  # the others are worth their row
                failures.append(f"{case.key}: {type(error).__name__}: {error}")
                continue
            stored[case.key] = asdict(row)
            _store(path, stored)
            done += 1
            if progress:
                print(f"\r{done}/{len(chosen)} compiled", end="", file=sys.stderr, flush=True)
            yield row
    if progress:
        print(file=sys.stderr)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(missing)} do not compile\n" + "\n".join(failures))


def _store(path: Path, stored: dict[str, Any]) -> None:
    """Whole or not at all: an interrupted report goes on from here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(stored), encoding="utf-8")
    os.replace(temporary, path)


def table(rows: list[Row]) -> str:
    """Rows as text."""
    lines = [
        f"{'arch':7}{'kernel':9}{'dtype':8}{'D':>5}{'r=h':>5}  {'tile':8}{'warps':>5}{'stages':>7}{'regs':>6}"
        f"{'stack':>6}{'spills':>7}{'shared':>8}{'tmem':>6}  {'unit':8}{'B/token':>8}{'floor':>7}"
    ]
    for row in rows:
        tile = f"{row.block_m}x{row.block_d}"
        lines.append(
            f"{row.arch:7}{row.kernel:9}{row.dtype:8}{row.d:5}{row.r:5}  {tile:8}{row.num_warps:5}{row.num_stages:7}"
            f"{row.registers:6}{row.stack:6}{row.spills:7}{row.shared:8}{row.tmem:6}  {row.instruction:8}"
            f"{row.bytes_token:8}{row.floor_token:7}{'' if row.clean else '  !'}"
        )
    return "\n".join(lines)


def _chosen(text: str, valid: Iterable[str], name: str) -> list[str]:
    values = text.split(",")
    for value in values:
        if value not in valid:
            raise SystemExit(f"{name} is {value!r}; valid: {', '.join(valid)}")
    return values


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_80,sm_90,sm_100", help=f"any of {','.join(KNOWN_DEVICES)}")
    parser.add_argument("--dtype", default=",".join(DTYPES), help="any of %(default)s")
    parser.add_argument("--kernel", default=",".join(KERNELS), help="any of %(default)s")
    parser.add_argument("--width", default=",".join(map(str, WIDTHS)), help="r = h, any of %(default)s")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time (%(default)s)")
    given = parser.parse_args(arguments)
    chosen = cases(
        _chosen(given.arch, KNOWN_DEVICES, "--arch"),
        _chosen(given.dtype, DTYPES, "--dtype"),
        [int(width) for width in _chosen(given.width, list(map(str, WIDTHS)), "--width")],
        _chosen(given.kernel, KERNELS, "--kernel"),
    )
    if len(chosen) > MOST_COMPILES:
        raise SystemExit(f"{len(chosen)} compilations; valid: at most {MOST_COMPILES}, choose fewer --arch or --dtype")
    order = {case.key: index for index, case in enumerate(chosen)}
    rows: list[Row] = []
    failure = None
    try:
        rows.extend(report(chosen, given.jobs))
    except RuntimeError as error:
        failure = str(error)
    rows.sort(key=lambda row: order[row.case.key])
    print(table(rows))
    print(f"{sum(row.clean for row in rows)} of {len(rows)} clean; ! marks stack, spills, or memory beyond the limit")
    if given.json:
        _store(given.json, {"rows": [asdict(row) for row in rows]})
    if failure is not None:
        raise SystemExit(failure)


if __name__ == "__main__":
    main()
