"""Hardware counters of each kernel by Nsight Compute: time, bytes of memory and of L2 a token, occupancy, issue.

    python -m bench.counters --out results [--tokens 6304,65536] [--norm both]

Each kernel is seen once, in the order of a training step and with a cold L2 before it, so that what backward's second
kernel finds in L2 is what the first has left there. Needs ``ncu`` and the right to read counters; no clock is changed.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import results
from rmadapter.files import write_text

METRICS = {
    "gpu__time_duration.sum": "us",
    "dram__bytes_read.sum": "memory_read",
    "dram__bytes_write.sum": "memory_written",
    "lts__t_bytes.sum": "l2_bytes",
    "lts__t_sector_hit_rate.pct": "l2_hits_pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_pct",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue_pct",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "programs",
    "launch__block_size": "threads",
}
SCALES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "ns": 1e-3, "us": 1.0, "usecond": 1.0, "nsecond": 1e-3,
          "ms": 1e3, "msecond": 1e3}  # fmt: skip
COLUMNS = ("tokens", "norm", "kernel", *METRICS.values())
FLUSH_BYTES = 256 << 20
# The kernel of torch.cuda._sleep, before each step.
MARK = "spin_kernel"


def work(tokens: int, norm: bool) -> None:
    """One training step of the operator behind one that compiles, each with a cold L2."""
    from rmadapter_kernels import FusedRMAdapter

    adapter = FusedRMAdapter(768, scale=0.001, device="cuda", backend="triton")
    x = torch.randn(tokens, 768, device="cuda", dtype=torch.bfloat16)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    d_out = torch.randn_like(x)
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        torch.cuda._sleep(100)
        flush.zero_()
        out, loss = adapter(leaf, x, (None, None, 1e-5) if norm else None)
        flush.zero_()
        torch.autograd.backward((out, loss.mean()), (d_out, None))
        torch.cuda.synchronize()


def rows_of(text: str, problems: Sequence[tuple[int, bool]]) -> list[dict[str, object]]:
    """A row a kernel of each problem's second step, which compiles nothing.

    Args:
        text: ncu's CSV with raw metrics, whose second line has the units.
        problems: tokens, and whether there is a norm, in the order of ``work``.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    head, units, *rest = list(csv.reader(lines))
    steps: list[list[dict[str, object]]] = []
    for values in rest:
        row: dict[str, object] = {}
        for name, unit, value in zip(head, units, values, strict=True):
            if name == "Kernel Name":
                row["kernel"] = value.split("(")[0].removeprefix("rm_adapter_")
            elif name in METRICS:
                row[METRICS[name]] = float(value.replace(",", "")) * SCALES.get(unit, 1.0)
        if MARK in str(row["kernel"]):
            steps.append([])
        else:
            steps[-1].append(row)
    return [
        {"tokens": tokens, "norm": norm} | row
        for (tokens, norm), step in zip(problems, steps[1::2], strict=True)
        for row in step
    ]


def table(rows: list[dict[str, object]]) -> str:
    """By kernel; bytes a token."""
    lines = [f"{'tokens':>7} {'norm':5} {'kernel':24}{'us':>8}{'GB/s':>7}{'read':>8}{'written':>8}{'L2':>8}{'hits':>6}"
             f"{'warps':>7}{'issue':>7}{'regs':>6}{'grid':>6}"]  # fmt: skip
    for row in rows:
        read, written, l2, us = (float(row[name]) for name in ("memory_read", "memory_written", "l2_bytes", "us"))
        n = int(row["tokens"])
        lines.append(
            f"{n:7} {row['norm']!s:5} {row['kernel']:24}{us:8.1f}{(read + written) / us / 1e3:7.0f}{read / n:8.0f}"
            f"{written / n:8.0f}{l2 / n:8.0f}{row['l2_hits_pct']:5.0f}%{row['warps_pct']:6.0f}%{row['issue_pct']:6.0f}%"
            f"{row['registers']:6.0f}{row['programs']:6.0f}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; 2 without a CUDA device or without ncu."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of counters.csv")
    parser.add_argument("--tokens", default="6304,65536", help="(%(default)s)")
    parser.add_argument("--norm", choices=("no", "yes", "both"), default="both", help="LayerNorm inside (%(default)s)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # what ncu looks at
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"no CUDA device is here (torch {torch.__version__}): nothing was counted")
        return 2
    if shutil.which("ncu") is None and not given.work:
        print("ncu is not here (Nsight Compute, with the CUDA toolkit): nothing was counted")
        return 2
    norms = {"no": [False], "yes": [True], "both": [False, True]}[given.norm]
    problems = [(int(tokens), norm) for tokens in given.tokens.split(",") for norm in norms]
    if given.work:
        for problem in problems:
            work(*problem)
        return 0
    command = ["ncu", "--clock-control", "none", "--cache-control", "none", "--csv", "--page", "raw"]
    command += ["--kernel-name", f"regex:rm_adapter|{MARK}", "--metrics", ",".join(METRICS)]
    command += [sys.executable, "-m", "bench.counters", "--out", str(given.out), "--work"]
    command += ["--tokens", given.tokens, "--norm", given.norm]
    ran = subprocess.run(command, capture_output=True, text=True)
    write_text(given.out / "counters.log", ran.stdout + ran.stderr)
    if ran.returncode:
        print(ran.stdout[-2000:], ran.stderr[-2000:])
        return 1
    rows = rows_of(ran.stdout, problems)
    results.write_csv(given.out / "counters.csv", rows, COLUMNS)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
