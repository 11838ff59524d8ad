"""``rmadapter sweep``: all runs of a table, by any number of workers, continued wherever it stopped.

    OUT/sweep.json                            what the table is made of
    OUT/environments.json                     what its workers ran on
    OUT/runs/METHOD/DATA/seedN/run/           the training run (a run folder as ``rmadapter train`` makes it)
    OUT/runs/METHOD/DATA/seedN/on/TARGET/     results.json on another data set, for cross and domain
    OUT/runs/METHOD/DATA/seedN/log.txt, failed.json

``--keep results`` leaves of a finished run its results alone, as lines of OUT/results.jsonl (``ResultsTable``), one for
the training and one for each target; its folder is deleted.

A run is claimed by a lock that the operating system drops with the process, so that a killed worker leaves none. A
worker whose device fails ends itself, and its run goes to another process (``faults``). What is finished is never made
again; a run that was stopped goes on from its last state; one that failed is tried again by the next sweep command.
``one_run.make_run`` makes one run: a task of a scheduler (Slurm, Ray) may call it, after ``manifest.enter``, or start
the command on as many machines as share the folder.
"""

from __future__ import annotations

import contextlib
import time
import traceback

from rmadapter.files import write_json
from rmadapter.sweeps.dry_run import describe_cost
from rmadapter.sweeps.faults import FAULTS, MOST_FAULTS, DeviceFaultError, count_fault, is_device_fault
from rmadapter.sweeps.jobs import run_jobs
from rmadapter.sweeps.manifest import begin, check_data, check_folder, enter, load_all
from rmadapter.sweeps.one_run import make_run
from rmadapter.sweeps.progress import FAILURE, failure, hold, holder_of, is_done, keep_results_alone, state
from rmadapter.sweeps.protocols import PlannedRun
from rmadapter.sweeps.settings import Sweep, parse_sweep
from rmadapter.sweeps.taken_over import check_source

# How often new workers are started of which none gets a run done, after such as ended for faults of their devices.
FRUITLESS = 3


def run_sweep(argv: list[str]) -> int:
    """``rmadapter sweep``; the exit status is 1 where a run failed or is left open."""
    config, sweep = parse_sweep(argv)
    check_folder(sweep)
    loaded = load_all(sweep)  # before any work: is it there, is its split made, is it what it was?
    check_data(sweep, loaded)
    check_source(sweep, loaded)
    if config.dry_run:
        print(describe_cost(sweep, loaded))
        return 0
    for data in loaded.values():
        for note in data.notes:
            # Beside those of other data sets one that names neither the data set nor a file of it says nothing.
            print(note if data.name in note else f"{data.name}: {note}")
    began = enter(sweep, loaded)
    if config.jobs > 1:
        faulty = run_jobs(argv, config.jobs, began)
    else:
        faulty = False
        try:
            work(sweep, began)
        except DeviceFaultError as error:
            print(error)
            faulty = True
    _after_faults(sweep, argv, config.jobs, began, faulty)
    return _finish(sweep)


def _after_faults(sweep: Sweep, argv: list[str], jobs: int, began: float, faulty: bool) -> None:
    """While workers ended for faults of their devices, start new ones for the runs that are open.

    Not for ever: after ``FRUITLESS`` times in which no run was made, it is left to the user.
    """
    fruitless, found = 0, state(sweep)
    while faulty and found.open and fruitless < FRUITLESS:
        print(f"{len(found.open)} runs are left by workers whose devices failed; new processes make them")
        faulty = run_jobs(argv, min(jobs, len(found.open)), began)
        before, found = found, state(sweep)
        fruitless = 0 if len(found.done) > len(before.done) else fruitless + 1


def work(sweep: Sweep, began: float) -> None:
    """Make every run that is not done and not another worker's; a run that fails is kept as failed.json.

    One that failed after ``began``, when the command entered the sweep, is left to the next command: it would fail
    again. All runs are gone through until nothing is left to make, for those whose workers are killed meanwhile.

    Raises:
        DeviceFaultError: this process's device has failed, and with it all that it would do from here.
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
            with hold(sweep, run) as mine:
                # Another worker may have made it between the look and the claim.
                if mine and is_left(run):
                    if not tried:
                        begin(sweep)
                    tried.add(run)
                    print(f"[{number}/{len(runs)}] {run.key}", flush=True)
                    print(f"[{number}/{len(runs)}] {run.key}: {_attempt(sweep, run)}", flush=True)
        if sweep.keep == "results":
            keep_results_alone(sweep, run)
    return len(tried) > before


def _failed_after(began: float, sweep: Sweep, run: PlannedRun) -> bool:
    try:
        return (sweep.folder(run) / FAILURE).stat().st_mtime > began
    except FileNotFoundError:
        return False


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
        faulty = is_device_fault(error)
        if faulty and count_fault(folder, error) < MOST_FAULTS:
            raise DeviceFaultError(f"{run.key}: left to another process, since the device failed: {error}") from error
        values = {"error": str(error), "kind": type(error).__name__, "traceback": traceback.format_exc()}
        write_json(failure, values)
        (folder / FAULTS).unlink(missing_ok=True)
        if faulty:
            raise DeviceFaultError(f"{run.key}: failed, since the device failed under it again: {error}") from error
        return f"failed: {type(error).__name__}: {error}"
    for file in (failure, folder / FAULTS):
        file.unlink(missing_ok=True)
    return f"{percent} ({time.perf_counter() - began:.0f} s)"


def _finish(sweep: Sweep) -> int:
    """Say what is done, what failed and what other workers have; the exit status."""
    found = state(sweep)
    counts = ", ".join(f"{len(getattr(found, name))} {name}" for name in ("done", "failed", "running", "open"))
    print(f"{len(sweep.runs())} runs in {sweep.out}: {counts}")
    for run in found.running:
        print(f"  running: {run.key}: {holder_of(sweep, run) or 'just ended'}")
    for run in found.failed:
        print(f"  failed: {run.key}: {failure(sweep, run)} ({sweep.folder(run) / 'log.txt'})")
    if found.failed:
        print("the same command tries failed runs again")
    if found.open:
        print("the same command makes open runs, whose workers ended early")
    print(f"tables: rmadapter report {sweep.out}")
    return 1 if found.failed or found.open else 0
