"""All that a CUDA machine can tell about the kernels, in one call that ends by itself.

python bench/gpu_check.py --out results [--minutes 9] [--jobs 12] [--steps tests,benchmarks]

Environment; the tests marked gpu in parallel processes, the most telling first, and beside them the sanitizers over one
case that runs every kernel; benchmarks, compiled ahead in parallel, the most telling first, with triton and
torch.compile before the others; profiles of training steps and the host's time of a call; the beginning of a sweep of
launch configurations; a short table last. What needs no GPU is not here: bench.machine_code, bench.plot.
Benchmarks go on where an earlier call with the same --out has left them, on the same card with the same code; the sweep
on any card of that name, with the same Triton and kernels.
Needs torch, Triton, numpy and pytest; what needs more is left out with a line that says so.

Ends with 1 where a test, a sanitizer or a correctness check fails or runs out of time, with 2 where there is no CUDA
device.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

# Seconds of nine minutes that each step may have; more or less time is shared out alike. A test that compiles on 12 of
# 16 cores takes some 10 s for a few kernels: 169 tests took 141 s in 11 processes, and now there are 204.
# torch.compile's contenders take the most of the benchmarks, which go on in a second call.
BUDGETS = {"tests": 190, "compilation": 60, "benchmarks": 190, "profile": 20, "sweep": 50}
# A process of tests ends by itself so many seconds before it would be ended, and so tells what it has found.
REPORT_SECONDS = 12
# What a benchmark of one case and direction takes at most; where it was not compiled ahead, with its compilation.
BENCHMARK_SECONDS = 12.0
# test_every_kernel_once has the prepare kernel, the forward and the backward kernels in it; its fp16 goes through the
# rarely used products of K2. It has no other matrix product on the device: initcheck does not see what cuBLAS writes
# through the copy engine, and took it for memory that nobody has written.
SANITIZED = ("memcheck", "racecheck", "initcheck")

KERNEL_TESTS = ROOT / "tests" / "kernels"


def gpu_tests() -> list[str]:
    """The files with tests marked gpu: collecting the others takes longer, and more packages, than running these."""
    return [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]


def say(text: str) -> None:
    """A line of progress, at once."""
    print(text, flush=True)


class Machine:
    """The clock, the device and the processes of this machine; a test has another."""

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def has_device(self) -> bool:
        """Whether there is a CUDA device."""
        return torch.cuda.is_available()

    def has_tool(self, name: str) -> bool:
        """Whether there is a command or a Python package of this name."""
        return shutil.which(name) is not None or importlib.util.find_spec(name) is not None

    def run(self, commands: Sequence[Sequence[str]], logs: Sequence[Path], seconds: float) -> list[int | None]:
        """Exit statuses of commands that run at the same time; None: it ran out of time and was ended."""
        path = os.pathsep.join([str(ROOT), str(KERNEL_TESTS), os.environ.get("PYTHONPATH", "")])
        # Each of several would else begin as many threads as there are cores.
        threads = {"OMP_NUM_THREADS": "1"} if len(commands) > 1 else {}
        environment = threads | os.environ | {"PYTHONPATH": path}
        end = self.now() + max(1.0, seconds)
        running: list[subprocess.Popen] = []
        found: list[int | None] = []
        try:
            for command, log in zip(commands, logs, strict=True):
                with log.open("w", encoding="utf-8") as file:
                    running.append(
                        subprocess.Popen(
                            list(command), stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
                            start_new_session=True,
                        )
                    )  # fmt: skip
            for process in running:
                try:
                    found.append(process.wait(max(0.0, end - self.now())))
                except subprocess.TimeoutExpired:
                    found.append(None)
        finally:  # where this process is to end, too: nothing else would end them
            for process in running:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # what a sanitizer has started too
                    process.wait()
        return found

    def contest(self, names: Sequence[str], case: Any, direction: str, copy_rate: float) -> dict[str, dict[str, float]]:
        """Check the contenders and measure them in turns."""
        from bench import cases, measure

        torch._dynamo.reset()  # once: what the check compiles is what is measured
        for name in names:
            cases.check(cases.Step(name, case, torch.device("cuda")), case, direction)
        return measure.contest(names, case, direction, copy_rate)

    def copy_rate(self) -> float:
        """Bytes a second of a copy."""
        from bench import measure

        return measure.copy_bytes_a_second()

    def environment(self) -> dict[str, Any]:
        """What the numbers are measured with."""
        from bench import results

        return results.environment()

    def profile(self, out: Path) -> None:
        """Training steps under torch's profiler."""
        from bench import profiled

        profiled.profile(out)


class Check:
    """One check: where it writes, its machine, its end, and whether something failed.

    Args:
        out: folder of the results.
        minutes: time for everything.
        jobs: processes at a time.
        steps: of ``BUDGETS``, in their order.

    Attributes:
        environment: the machine's.
    """

    def __init__(self, out: Path, minutes: float, jobs: int, steps: Sequence[str], machine: Machine):
        self.out, self.machine, self.jobs, self.steps = out, machine, jobs, steps
        self.scale = minutes * 60 / sum(BUDGETS[step] for step in steps)
        self.end = machine.now() + 60 * minutes
        self.environment = machine.environment()
        self.failed = False
        self.rows: list[dict[str, Any]] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.end - self.machine.now())

    def budget(self, step: str) -> float:
        """Seconds of a step: its share, and what those before it left, but not what those after it need."""
        after = self.steps[self.steps.index(step) + 1 :]
        return max(0.0, self.left - self.scale * sum(BUDGETS[name] for name in after))

    def outcome(self, statuses: Sequence[int | None]) -> str:
        """In words. A run that was ended has shown nothing, so it is a failure too."""
        late = sum(status is None for status in statuses)
        bad = [status for status in statuses if status]
        self.failed |= bool(late or bad)
        if not late and not bad:
            return "passed"
        return "FAILED: " + ", ".join(
            [*([f"{late} of {len(statuses)} processes out of time"] if late else []),
             *([f"status {', '.join(map(str, bad))}"] if bad else [])]
        )  # fmt: skip

    def tests(self) -> str:
        """Those marked gpu, dealt out to processes, the most telling first in each; the sanitizers beside them."""
        whole = all(self.machine.has_tool(name) for name in ("open_clip", "hypothesis", "pytest_timeout"))
        if not whole:
            say("tests: open_clip, hypothesis or pytest-timeout is missing, so the kernels' own files alone are run")
        own = [str(path) for path in sorted(KERNEL_TESTS.glob("test_triton_gpu*.py"))]
        target = gpu_tests() if whole else ["--confcutdir", str(KERNEL_TESTS), *own]
        seconds = self.budget("tests")
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "gpu", "-q", "-ra", "--durations", "5"]
        command += ["-p", "no:cacheprovider", "-p", "interpreter_shards"]
        if self.machine.has_tool("pytest_timeout"):
            command += ["--session-timeout", f"{max(1.0, seconds - REPORT_SECONDS):.0f}"]
        commands = [[*command, "--shard", f"{i}/{self.jobs}", *target] for i in range(1, self.jobs + 1)]
        logs = [self.out / f"tests-{i}.log" for i in range(1, self.jobs + 1)]
        sanitizers = SANITIZED if self.machine.has_tool("compute-sanitizer") else ()
        if not sanitizers:
            say("tests: there is no compute-sanitizer, so none is run")
        once = f"{KERNEL_TESTS / 'test_triton_gpu.py'}::test_every_kernel_once"
        commands += [
            ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q",
             "-o", "addopts=", "-p", "no:cacheprovider", "--confcutdir", str(KERNEL_TESTS), once]
            for tool in sanitizers
        ]  # fmt: skip
        logs += [self.out / f"{tool}.log" for tool in sanitizers]
        statuses = self.machine.run(commands, logs, seconds)
        # 5: pytest found no test for this process.
        found = [self.outcome([0 if status == 5 else status for status in statuses[: self.jobs]])]
        found += [
            f"{tool} {self.outcome([status])}" for tool, status in zip(sanitizers, statuses[self.jobs :], strict=True)
        ]
        return "; ".join(found)

    def compilation(self) -> str:
        """What the benchmarks run, in parallel; what is not reached is compiled when it is measured."""
        command = [sys.executable, "-m", "bench.compile_ahead", "--shard"]
        commands = [[*command, f"{i}/{self.jobs}"] for i in range(1, self.jobs + 1)]
        logs = [self.out / f"compilation-{i}.log" for i in range(1, self.jobs + 1)]
        statuses = self.machine.run(commands, logs, self.budget("compilation"))
        return f"{sum(status == 0 for status in statuses)} of {self.jobs} parts"

    def benchmarks(self) -> str:
        """Every case and direction: triton and torch.compile in all of them, then the other contenders.

        What an earlier run has measured on the same card, with the same code, is kept and not measured again.
        """
        from bench import results
        from bench.cases import DIRECTIONS, cases, contenders

        end = self.machine.now() + self.budget("benchmarks")
        rate = self.machine.copy_rate()
        path, log = self.out / "benchmark.json", self.out / "failures.log"
        log.unlink(missing_ok=True)
        if path.exists():
            self.rows = results.rows_to_keep(path, self.environment)
            say(f"benchmarks: {len(self.rows)} rows of {path} are of this card and code, and are kept")
        done = {(row["case"], row["direction"], row["contender"]) for row in self.rows}
        failures: list[str] = []
        skipped = 0

        def save() -> None:
            state = {"rows": self.rows, "failures": failures, "not_reached": skipped}
            results.write_json(path, {"environment": self.environment} | state)
            results.write_csv(self.out / "benchmark.csv", self.rows)

        names = contenders("cuda")
        for group in (names[:2], names[2:-1], names[-1:]):
            for case in cases("cuda"):
                for direction in DIRECTIONS:
                    if all((str(case), direction, name) in done for name in group):
                        continue
                    if self.machine.now() + BENCHMARK_SECONDS > end:
                        skipped += len(group)
                        continue
                    try:
                        found = self.machine.contest(group, case, direction, rate)
                    except Exception as error:  # a row that fails is a finding; the others still count
                        failures.append(f"{case} {direction} {group}: {type(error).__name__}: {error}")
                        text = "\n".join([*failures, traceback.format_exc()])
                        log.write_text(text, encoding="utf-8")
                        continue
                    fields = vars(case) | {"dtype": str(case.dtype).removeprefix("torch."), "case": str(case)}
                    fields |= {"direction": direction, "copy_gb_s": rate / 1e9}
                    self.rows += [fields | {"contender": name} | row for name, row in found.items()]
                    save()
        save()
        self.failed |= bool(failures)
        text = f"{len(self.rows)} rows, {len(failures)} failed, {skipped} not reached"
        return f"{text}; a copy moves {rate / 1e9:.0f} GB/s"

    def sweep(self) -> str:
        """Launch configurations of the most telling problems, in what time is left; a finding, never a failure."""
        again = f"python -m bench.tune --out {self.out} goes on"
        if self.left < 30:
            return f"left out: {self.left:.0f} s are left; {again}"
        minutes = (
            f"{self.left / 60 - 0.4:.2f}"  # before and after it: torch's import, the last configuration, the table
        )
        command = [sys.executable, "-m", "bench.tune", "--out", str(self.out), "--minutes", minutes]
        (status,) = self.machine.run([command], [self.out / "tune.log"], self.left)
        how = {0: "", None: ", out of time"}.get(status, f", ended with {status}: tune.log")
        return f"tune.json, tune.csv, the table{how}; {again}"

    def profile(self) -> str:
        """Training steps of the module under torch's profiler: tables, and traces for chrome://tracing."""
        if self.budget("profile") < 5:
            return "left out: no time"
        self.machine.profile(self.out)
        return "profile.txt, trace-*.json"

    def run(self) -> None:
        """Every step; one that fails does not keep the others from telling something."""
        steps: dict[str, Callable[[], str]] = {
            "tests": self.tests,
            "compilation": self.compilation,
            "benchmarks": self.benchmarks,
            "profile": self.profile,
            "sweep": self.sweep,
        }
        assert list(steps) == list(BUDGETS)
        for name in self.steps:
            step = steps[name]
            say(f"{name} ... ({self.left:.0f} s left)")
            try:
                found = step()
            except Exception as error:
                found = f"FAILED: {type(error).__name__}: {error}"
                self.failed |= name != "sweep"
                log = self.out / f"{name.replace(' ', '-')}-error.log"
                log.write_text(traceback.format_exc(), encoding="utf-8")
            say(f"{name}: {found}")


def main(arguments: list[str] | None = None, machine: Machine | None = None) -> int:
    """The command; returns the exit status."""
    machine = machine or Machine()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (%(default)s)")
    jobs = max(1, min(12, (os.cpu_count() or 1) - 2))
    parser.add_argument("--jobs", type=int, default=jobs, help="processes that test at a time (%(default)s)")
    parser.add_argument("--steps", default=",".join(BUDGETS), help="any of %(default)s")
    given = parser.parse_args(arguments)
    asked = given.steps.split(",")
    if unknown := [name for name in asked if name not in BUDGETS]:
        parser.error(f"--steps has {', '.join(map(repr, unknown))}; valid: any of {','.join(BUDGETS)}")
    for name in ("minutes", "jobs"):
        if getattr(given, name) <= 0:
            parser.error(f"--{name} is {getattr(given, name)}; valid: more than 0")
    if not machine.has_device():
        say(f"no CUDA device is here (torch {torch.__version__}): nothing was run, nothing was written")
        return 2
    from bench import results

    given.out.mkdir(parents=True, exist_ok=True)
    check = Check(given.out, given.minutes, given.jobs, [name for name in BUDGETS if name in asked], machine)
    facts = check.environment
    results.write_json(given.out / "environment.json", facts)
    say(f"{facts['device']}, torch {facts['torch']}, Triton {facts['triton']}, commit {facts['commit']}")
    check.run()
    say(results.table(check.rows))
    return int(check.failed)


if __name__ == "__main__":
    # As an error, so that what was started is ended too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
