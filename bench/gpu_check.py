"""All that a CUDA machine can tell about the kernels, in one call that ends by itself.

python bench/gpu_check.py --out results [--minutes 9]

Environment, the tests marked gpu, benchmarks, the compile report of this architecture, a profile of a training step,
plots, the beginning of a sweep of launch configurations; a short table last. Needs torch, Triton, numpy and pytest;
what needs more is left out with a line that says so.
Ends with 1 where a test or a correctness check fails, with 2 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

# Shares of the time that is left when a step begins; of the whole for the sweep, which comes last.
TESTS_SHARE, REPORT_SHARE, TUNE_SHARE = 0.45, 0.3, 0.15


class Clock:
    """The time that is left."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())


def say(text: str) -> None:
    """A line of progress, at once."""
    print(text, flush=True)


def run(command: list[str], log: Path, seconds: float) -> int | None:
    """Exit status of a Python command whose output goes to ``log``; None: it ran out of time and was ended."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
                timeout=max(1.0, seconds), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
    return done.returncode


def outcome(status: int | None) -> str:
    return "out of time" if status is None else "passed" if status == 0 else f"FAILED ({status})"


def tests(out: Path, clock: Clock) -> str:
    """The tests marked gpu; those that need open_clip only where it is."""
    whole = all(importlib.util.find_spec(name) for name in ("open_clip", "hypothesis", "pytest_timeout"))
    if not whole:
        say("tests: open_clip, hypothesis or pytest-timeout is missing, so the kernels' own file alone is run")
    folder = str(ROOT / "tests" / "kernels")
    target = ["tests"] if whole else ["--confcutdir", folder, f"{folder}/test_triton_gpu.py"]
    command = ["-m", "pytest", "-m", "gpu", "-q", "-x" if clock.left < 120 else "-ra", *target]
    return outcome(run(command, out / "tests.log", clock.left * TESTS_SHARE))


def report(out: Path, clock: Clock) -> str:
    """Registers, spills and memory of every configuration, compiled for this architecture."""
    from rmadapter_kernels.triton.tuning import KNOWN_DEVICES

    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if arch not in KNOWN_DEVICES:
        return f"left out: {arch} is not one of {', '.join(KNOWN_DEVICES)}"
    command = ["-m", "rmadapter_kernels.report", "--arch", arch, "--json", str(out / "report.json")]
    return outcome(run(command, out / "report.log", clock.left * REPORT_SHARE))


def benchmarks(out: Path, clock: Clock, reserve: float) -> tuple[str, list[dict[str, Any]]]:
    """Every contender on every case, the most telling first, until ``reserve`` seconds are left."""
    from bench import measure, results
    from bench.cases import DIRECTIONS, Step, cases, check, contenders

    rate = measure.copy_bytes_a_second()
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    skipped = 0
    for case in cases("cuda"):
        for direction in DIRECTIONS:
            for contender in contenders("cuda"):
                if clock.left < reserve:
                    skipped += 1
                    continue
                where = f"{case} {direction} {contender}"
                try:
                    check(Step(contender, case, torch.device("cuda")), case, direction)
                    found = measure.on_cuda(contender, case, direction, rate)
                except Exception as error:  # a row that fails is a finding; the others still count
                    failures.append(f"{where}: {type(error).__name__}: {error}")
                    (out / "failures.log").write_text("\n".join([*failures, traceback.format_exc()]), encoding="utf-8")
                    torch.cuda.empty_cache()
                    continue
                fields = vars(case) | {"dtype": str(case.dtype).removeprefix("torch."), "case": str(case)}
                rows.append(fields | {"direction": direction, "contender": contender} | found)
                state = {"environment": results.environment(), "copy_gb_s": rate / 1e9, "rows": rows}
                results.write_json(out / "benchmark.json", state | {"failures": failures, "not_reached": skipped})
                results.write_csv(out / "benchmark.csv", rows)
    text = f"{len(rows)} rows, {len(failures)} failed, {skipped} not reached; a copy moves {rate / 1e9:.0f} GB/s"
    return text, rows


def profile(out: Path) -> str:
    """One training step of the module under torch's profiler: its table, and a trace for chrome://tracing."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from rmadapter_kernels import FusedRMAdapter

    adapter = FusedRMAdapter(768, scale=0.001, device="cuda", backend="triton")
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(32, 197, 768, device="cuda", dtype=torch.bfloat16)

    def step() -> None:
        optimizer.zero_grad()
        leaf = x.detach().requires_grad_()
        out, loss = adapter(leaf, x, (None, None, 1e-5))
        (out.float().square().mean() + loss.mean()).backward()
        optimizer.step()

    for _ in range(5):
        step()
    torch.cuda.synchronize()
    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    found.export_chrome_trace(str(out / "trace.json"))
    (out / "profile.txt").write_text(
        found.key_averages().table(sort_by="cuda_time_total", row_limit=40), encoding="utf-8"
    )
    return "profile.txt, trace.json"


def plots(out: Path) -> str:
    """Figures of the benchmarks."""
    if importlib.util.find_spec("matplotlib") is None:
        return "left out: matplotlib is missing"
    from bench import plot

    return ", ".join(path.name for path in plot.draw(plot.load(out / "benchmark.json"), out))


def tune(out: Path, clock: Clock) -> str:
    """Launch configurations of the most telling problems, in what time is left; a finding, never a failure."""
    minutes = clock.left / 60
    if minutes < 0.5:
        return f"left out: {clock.left:.0f} s are left; python -m bench.tune --out {out}"
    command = ["-m", "bench.tune", "--out", str(out), "--minutes", f"{minutes - 0.25:.2f}"]
    status = run(command, out / "tune.log", clock.left)
    how = {0: "", None: ", out of time"}.get(status, f", ended with {status}: tune.log")
    return f"tune.json, tune.csv, tune.txt{how}; python -m bench.tune --out {out} goes on"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (%(default)s)")
    given = parser.parse_args(arguments)
    if given.minutes <= 0:
        parser.error(f"--minutes is {given.minutes}; valid: more than 0")
    if not torch.cuda.is_available():
        say(f"no CUDA device is here (torch {torch.__version__}): nothing was run, nothing was written")
        return 2
    from bench import results

    clock = Clock(given.minutes)
    given.out.mkdir(parents=True, exist_ok=True)
    facts = results.environment()
    results.write_json(given.out / "environment.json", facts)
    say(f"{facts['device']}, torch {facts['torch']}, Triton {facts['triton']}, commit {facts['commit']}")
    failed = False
    reserve = TUNE_SHARE * 60 * given.minutes
    rows: list[dict[str, Any]] = []
    steps = {
        "tests": lambda: tests(given.out, clock),
        "report": lambda: report(given.out, clock),
        "profile": lambda: profile(given.out),
        "benchmarks": lambda: benchmarks(given.out, clock, 30 + reserve),
        "plots": lambda: plots(given.out),
        "sweep": lambda: tune(given.out, clock),
    }
    for name, step in steps.items():
        say(f"{name} ... ({clock.left:.0f} s left)")
        try:
            found = step()
        except Exception as error:  # the steps after it still tell something
            found = f"FAILED: {type(error).__name__}: {error}"
            (given.out / f"{name}-error.log").write_text(traceback.format_exc(), encoding="utf-8")
        if isinstance(found, tuple):
            found, rows = found
            failed |= (given.out / "failures.log").exists()
        failed |= "FAILED" in found and name != "sweep"
        say(f"{name}: {found}")
    say(results.table(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
