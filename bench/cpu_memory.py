"""Peak memory of one call on the CPU, beyond its inputs and results: the cpu backend's beside eager's.

    python -m bench.cpu_memory > bench/results/cpu_memory.md

Read from Linux: the peak of resident memory is set back before the call (/proc/self/clear_refs) and read after it. Each
case is a process of its own, after a call on 32 tokens; forward runs without autograd, "both" is forward and backward
with gradients in x, the residual and every weight, inputs as in bench/test_cpu.py.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from pathlib import Path

CONTENDERS = ("cpu", "eager")
PROC = Path("/proc/self")
CAPTURED = {"check": True, "capture_output": True, "text": True}


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the most since it was set back) of this process."""
    lines = (PROC / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def extra_bytes(contender: str, dtype: str, direction: str, tokens: int) -> int:
    """Peak of resident memory during one call minus what was there before and what the call returns."""
    from bench.test_cpu import _function, _inputs, _step

    _step(_function(contender, 32), dtype, 32, direction)
    _inputs(dtype, tokens)
    function = _function(contender, tokens)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else the call is served from what was freed before
    before = resident_bytes("VmRSS")
    (PROC / "clear_refs").write_text("5", encoding="ascii")
    found = _step(function, dtype, tokens, direction)
    peak = resident_bytes("VmHWM")
    given = {tensor.data_ptr() for tensor in _inputs(dtype, tokens)}  # the residual's gradient is that of the output
    returned = {t.data_ptr(): t.numel() * t.element_size() for t in found if t.data_ptr() not in given}
    return peak - before - sum(returned.values())


def main() -> None:
    """Print a table in Markdown; with arguments: the bytes of that one case."""
    if not (PROC / "clear_refs").exists():
        raise SystemExit("bench.cpu_memory reads the peak of resident memory from /proc/self, which is Linux's alone")
    if len(sys.argv) > 1:
        contender, dtype, direction, tokens = sys.argv[1:]
        print(extra_bytes(contender, dtype, direction, int(tokens)))
        return
    from bench.results import processor
    from bench.test_cpu import DTYPES, TOKENS
    from rmadapter.reports.tables import compact_heading, compact_row

    print(f"{processor()}.\n")
    headings = ("dtype", "direction", "tokens", *(f"{name}, MB" for name in CONTENDERS), "ratio")
    print(compact_heading(headings, words=(0, 1)))
    for dtype in DTYPES:
        for direction in ("forward", "both"):
            for tokens in TOKENS:
                command = [sys.executable, "-m", "bench.cpu_memory"]
                found = [
                    int(subprocess.run([*command, name, dtype, direction, str(tokens)], **CAPTURED).stdout)
                    for name in CONTENDERS
                ]
                cells = [f"{bytes_ / 1e6:.1f}" for bytes_ in found]
                print(compact_row((dtype, direction, f"{tokens:,}", *cells, f"{found[0] / found[1]:.2f}")))


if __name__ == "__main__":
    main()
