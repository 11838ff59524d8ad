"""``rmadapter sweep``: all runs of a table, by any number of workers, continued wherever it stopped.

    OUT/sweep.json                            what the table is made of
    OUT/environments.json                     what its workers ran on
    OUT/runs/METHOD/DATA/seedN/run/           the training run (a run folder as ``rmadapter train`` makes it)
    OUT/runs/METHOD/DATA/seedN/on/TARGET/     results.json on another data set, for cross and domain
    OUT/runs/METHOD/DATA/seedN/log.txt, failed.json

``--keep results`` leaves of a finished run its results.json files alone.

A run is claimed by a lock that the operating system drops with the process, so that a killed worker leaves none. What
is finished is never made again; a run that was stopped goes on from its last state; one that failed is tried again
by the next sweep command. ``make_run`` makes one run: a task of a scheduler (Slurm, Ray) may call it, after ``enter``,
or start the command on as many machines as share the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from rmadapter.config import TrainConfig
from rmadapter.errors import InputError
from rmadapter.evaluation import EvalConfig, load_model, run_eval
from rmadapter.files import read_json, shown_names, write_json
from rmadapter.methods import METHODS
from rmadapter.protocols import PlannedRun, load_planned, placed, short_name
from rmadapter.runtime import environment, resolve_device, resolve_precision
from rmadapter.sweep_config import FREE, Sweep, parse_sweep
from rmadapter.sweep_jobs import run_jobs

FORMAT = 1
MANIFEST = "sweep.json"
ENVIRONMENTS = "environments.json"
FAILURE = "failed.json"
SWEEP_LOCK, LOCK = ".sweep.lock", ".lock"


def run_sweep(argv: list[str]) -> int:
    """``rmadapter sweep``; the exit status is 1 where a run failed or is left open."""
    config, sweep = parse_sweep(argv)
    check_folder(sweep)
    if config.dry_run:
        from rmadapter.sweep_cost import describe_cost

        print(describe_cost(sweep))
        return 0
    for name in dict.fromkeys(name for run in sweep.runs() for name in (run.data, *run.targets)):
        # Before any work: is it there, and is its split made?
        for note in load_planned(name, sweep.data_root).notes:
            print(note)
    began = enter(sweep)
    if config.jobs > 1:
        run_jobs(argv, config.jobs, began)
    else:
        work(sweep, began)
    return _finish(sweep)


def enter(sweep: Sweep) -> float:
    """Write what the sweep is made of into its folder, or join and extend the one that is there.

    A sweep may be continued with more data sets, methods and seeds; everything else has to be as it was. Returns when
    it was entered, by the clock that times the folder's files.

    Raises:
        InputError: what ``check_folder`` raises.
    """
    check_folder(sweep)
    file = sweep.out / MANIFEST
    sweep.out.mkdir(parents=True, exist_ok=True)
    with FileLock(sweep.out / SWEEP_LOCK):
        before, settings = check_folder(sweep), sweep.settings()
        lists = {name: list(getattr(sweep, name)) for name in ("data", "methods", "seeds", "sources")}
        if before is not None:
            settings["precision"] = before["settings"]["precision"]  # what its first worker has made of auto
            lists = {name: _joined(before[name], values) for name, values in lists.items()}
        write_json(file, {"format": FORMAT, "protocol": sweep.protocol, "settings": settings, **lists})
        return file.stat().st_mtime


def check_folder(sweep: Sweep) -> dict[str, Any] | None:
    """What the manifest in the sweep's folder says, None where there is none; nothing is written.

    Raises:
        InputError: the folder holds something else, a sweep of another protocol, of other options or of another
            version of the format.
    """
    if (sweep.out / MANIFEST).is_file():
        before = read_manifest(sweep.out)
        _check_same(before, sweep)
        return before
    if sweep.out.is_file():
        raise InputError(f"out is {str(sweep.out)!r}, which is a file")
    if sweep.out.is_dir() and (others := shown_names(sweep.out)):
        raise InputError(f"out is {str(sweep.out)!r}, a folder with other files in it ({others[0]}); valid: a new one")
    return None


def _begin(sweep: Sweep) -> None:
    """Before a worker's first run: may it make runs of this sweep, and what does it run on?

    What it runs on is added to environments.json, which outlives the runs' own files.

    Raises:
        InputError: what ``settle_precision`` raises.
    """
    device, precision = _device(sweep), settle_precision(sweep)
    if resolve_precision(sweep.settings()["precision"], device) != precision:
        print(f"precision {precision}, as this sweep began with; auto on this device ({device}) would be another")
    found = environment(device)
    for key in ("command", "platform"):  # a worker's own, of no weight for the numbers
        del found[key]
    file = sweep.out / ENVIRONMENTS
    with FileLock(sweep.out / SWEEP_LOCK):
        before = read_json(file, "environments file") if file.is_file() else []
        if found not in before:
            write_json(file, [*before, found])


def settle_precision(sweep: Sweep) -> str:
    """The precision of every run of a sweep: of ``auto`` what the device of its first worker makes of it.

    That then stands in the manifest: runs of several precisions do not compare, nor is one resumed in another.

    Raises:
        InputError: the device is not there or lacks the precision, a sweep that was not entered.
    """
    device = _device(sweep)
    with FileLock(sweep.out / SWEEP_LOCK):
        manifest = read_manifest(sweep.out)
        settings = manifest["settings"]
        try:
            precision = resolve_precision(settings["precision"], device)
        except InputError as error:
            raise InputError(
                f"{error}; the sweep in {sweep.out} is of this precision in all its runs: it goes on on devices that "
                "have it, or another --out begins a new one"
            ) from error
        if settings["precision"] != precision:
            write_json(sweep.out / MANIFEST, {**manifest, "settings": {**settings, "precision": precision}})
    return precision


def _device(sweep: Sweep) -> torch.device:
    return resolve_device(sweep.config(sweep.runs()[0]).device)


def read_manifest(out: Path) -> dict[str, Any]:
    """What ``sweep.json`` in ``out`` says; InputError where it is damaged or of another version."""
    values = read_json(out / MANIFEST, "sweep file")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise InputError(
            f"the sweep in {out} was made by another version (format {found!r}, this one has {FORMAT}); valid: another "
            "--out, or the version that made it"
        )
    missing = [key for key in ("protocol", "settings", "data", "methods", "seeds", "sources") if key not in values]
    if missing:
        raise InputError(f"sweep file {out / MANIFEST} is damaged: {missing[0]} is missing")
    return values


def _check_same(before: dict[str, Any], sweep: Sweep) -> None:
    if before["protocol"] != sweep.protocol:
        raise InputError(
            f"out is {str(sweep.out)!r}, where a sweep {before['protocol']} is; valid: that one, or another --out for "
            f"{sweep.protocol}"
        )
    now = sweep.settings()
    for name in {**before["settings"], **now}:
        old, new = before["settings"].get(name), now.get(name)
        if name == "precision" and new == "auto":
            continue
        if old != new and name not in FREE:
            raise InputError(
                f"{name} is {new!r}, but the sweep in {sweep.out} has {old!r}; valid: the same, or another --out"
            )


def _joined(before: Sequence[Any], now: Sequence[Any]) -> list[Any]:
    """What was there, then what is new; data sets are the same by their short names."""
    return list({short_name(str(value)): value for value in (*before, *now)}.values())


def is_done(sweep: Sweep, run: PlannedRun) -> bool:
    """Whether every result of ``run`` is there."""
    return all(file.is_file() for file in result_files(sweep, run))


def result_files(sweep: Sweep, run: PlannedRun) -> list[Path]:
    """The results.json of the training run and of each target."""
    folder = sweep.folder(run)
    return [folder / "run" / "results.json", *(target_folder(folder, t) / "results.json" for t in run.targets)]


def target_folder(folder: Path, target: str) -> Path:
    """Where the result of the run in ``folder`` on data set ``target`` lies."""
    return folder / "on" / short_name(target)


@contextlib.contextmanager
def claim(sweep: Sweep, run: PlannedRun) -> Iterator[bool]:
    """Inside, whether this process has ``run`` for itself."""
    folder = sweep.folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def work(sweep: Sweep, began: float) -> None:
    """Make every run that is not done and not another worker's; a run that fails is kept as failed.json.

    One that failed after ``began``, when the command entered the sweep, is left to the next command: it would fail
    again. All runs are gone through until nothing is left to make, for those whose workers are killed meanwhile.
    """
    tried: set[PlannedRun] = set()
    while _work_once(sweep, began, tried):
        pass


def _work_once(sweep: Sweep, began: float, tried: set[PlannedRun]) -> bool:
    """Go through the runs once and add to ``tried`` what is made; whether that was any."""

    def is_left(run: PlannedRun) -> bool:
        return run not in tried and not is_done(sweep, run) and not _failed_after(began, sweep, run)

    runs, before = sweep.runs(), len(tried)
    for number, run in enumerate(runs, start=1):
        if is_left(run):
            with claim(sweep, run) as mine:
                # Another worker may have made it between the look and the claim.
                if mine and is_left(run):
                    if not tried:
                        _begin(sweep)
                    tried.add(run)
                    print(f"[{number}/{len(runs)}] {run.key}", flush=True)
                    print(f"[{number}/{len(runs)}] {run.key}: {_attempt(sweep, run)}", flush=True)
        if sweep.keep == "results":
            _keep_results(sweep, run)
    return len(tried) > before


def _failed_after(began: float, sweep: Sweep, run: PlannedRun) -> bool:
    try:
        return (sweep.folder(run) / FAILURE).stat().st_mtime > began
    except FileNotFoundError:
        return False


def _keep_results(sweep: Sweep, run: PlannedRun) -> None:
    """Delete everything of a finished run but its results, where no other worker is at it."""
    folder, kept = sweep.folder(run), set(result_files(sweep, run))
    if not is_done(sweep, run) or all(path in kept for path in folder.rglob("*") if path.is_file()):
        return
    with claim(sweep, run) as mine:
        for path in sorted(folder.rglob("*"), reverse=True) if mine else ():  # what is in a folder before the folder
            if path.is_dir():
                with contextlib.suppress(OSError):  # one with results in it stays
                    path.rmdir()
            elif path not in kept and path.name != LOCK:
                path.unlink()
    if mine:
        # Whoever makes the lock anew meanwhile finds the run done.
        (folder / LOCK).unlink(missing_ok=True)


def _attempt(sweep: Sweep, run: PlannedRun) -> str:
    """Make ``run``; returns a sentence on how it went."""
    folder = sweep.folder(run)
    failure = folder / FAILURE
    began = time.perf_counter()
    try:
        with (folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            results = make_run(sweep, run)
        percent = ", ".join(f"{part} {value:.2f}" for part, value in results["accuracy"].items())
    except Exception as error:  # whatever it is, the other runs go on
        values = {"error": str(error), "kind": type(error).__name__, "traceback": traceback.format_exc()}
        write_json(failure, values)
        return f"failed: {type(error).__name__}: {error}"
    failure.unlink(missing_ok=True)
    return f"{percent} ({time.perf_counter() - began:.0f} s)"


def make_run(sweep: Sweep, run: PlannedRun) -> dict[str, Any]:
    """Make ``run`` and its tests on other data sets, as far as they are not there; returns the training's results.

    Raises:
        InputError: what ``settle_precision`` raises: the sweep is one that was entered.
    """
    method, folder = METHODS[run.method], sweep.folder(run)
    config = dataclasses.replace(sweep.config(run), precision=settle_precision(sweep))
    results_file = folder / "run" / "results.json"
    adapter = folder / "run" / "adapter"
    if run.seed is not None and results_file.is_file() and not is_done(sweep, run) and not adapter.is_dir():
        print(f"new targets, and the adapter in {folder} was not kept: it is trained and tested again")
        shutil.rmtree(folder / "run")
        shutil.rmtree(folder / "on", ignore_errors=True)
    results = read_json(results_file, "results file") if results_file.is_file() else method.train(config)
    loaded = None
    for target in run.targets:
        file = target_folder(folder, target) / "results.json"
        if file.is_file():
            continue
        where = placed(target, sweep.data_root)
        if run.seed is None:
            found = method.train(dataclasses.replace(config, **where, out=str(file.parent / "run")))
        elif method.evaluate is not None:
            found = method.evaluate(_test_on(where, config, adapter))
        else:
            test = _test_on(where, config, adapter)
            loaded = loaded or load_model(test)
            found = run_eval(test, loaded)
        write_json(file, {**found, "trained_on": short_name(run.data)})
    return results


def _test_on(where: dict[str, str | None], config: TrainConfig, adapter: Path) -> EvalConfig:
    """The evaluation on the data set ``where`` of what the run of ``config`` has trained; they differ in data alone."""
    names = {f.name for f in dataclasses.fields(EvalConfig)} & {f.name for f in dataclasses.fields(config)}
    names -= {"adapter", "classes", "out", "template", "model", "pretrained", "batch_size"}
    shared = {name: getattr(config, name) for name in names} | where
    return EvalConfig(
        **shared,
        adapter=str(adapter),
        classes="all",
        retention=False,
        batch_size=config.eval_batch_size,
    )


def _finish(sweep: Sweep) -> int:
    """Say what is done, what failed and what other workers have; the exit status."""
    found = state(sweep)
    counts = ", ".join(f"{len(getattr(found, name))} {name}" for name in ("done", "failed", "running", "open"))
    print(f"{len(sweep.runs())} runs in {sweep.out}: {counts}")
    for run in found.failed:
        error = read_json(sweep.folder(run) / FAILURE, "failure file")["error"]
        print(f"  failed: {run.key}: {error} ({sweep.folder(run) / 'log.txt'})")
    if found.failed:
        print("the same command tries failed runs again")
    if found.open:
        print("the same command makes open runs, whose workers ended early")
    print(f"tables: rmadapter report {sweep.out}")
    return 1 if found.failed or found.open else 0


@dataclass(frozen=True)
class State:
    """The runs of a sweep by how far they are."""

    done: list[PlannedRun]
    failed: list[PlannedRun]
    running: list[PlannedRun]
    open: list[PlannedRun]


def state(sweep: Sweep) -> State:
    """How far every run is, now; a run is running where some process holds its claim."""
    found = State([], [], [], [])
    for run in sweep.runs():
        if is_done(sweep, run):
            found.done.append(run)
            continue
        taken = False
        if (sweep.folder(run) / LOCK).exists():
            with claim(sweep, run) as mine:
                taken = not mine
        if taken:
            found.running.append(run)
        elif (sweep.folder(run) / FAILURE).is_file():
            found.failed.append(run)
        else:
            found.open.append(run)
    return found
