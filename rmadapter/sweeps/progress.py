"""How far the runs of a sweep are: where each one's results lie, who is at it, what failed.

The results of a run lie in its folder, a results.json for the training and for each target, or as lines of the
sweep's table, ``results.jsonl``. What is in the table counts: the folder of such a run is on its way out.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rmadapter.errors import InputError
from rmadapter.evaluation.results_table import KeptResult
from rmadapter.files import read_json, read_object
from rmadapter.locks import Holder, ProcessLock
from rmadapter.sweeps.manifest import SWEEP_LOCK
from rmadapter.sweeps.protocols import PlannedRun, short_name
from rmadapter.sweeps.settings import Sweep

FAILURE = "failed.json"
LOCK = ".lock"


def is_done(sweep: Sweep, run: PlannedRun) -> bool:
    """Whether every result of ``run`` is there."""
    return len(results_there(sweep, run)) == 1 + len(run.targets)


def results_there(sweep: Sweep, run: PlannedRun) -> list[str | None]:
    """Which of its results ``run`` has: None stands for the training's, a short name for that on a target."""
    return [on for on in (None, *map(short_name, run.targets)) if find_result(sweep, run, on) is not None]


def results_that_stay(sweep: Sweep, run: PlannedRun) -> list[str | None]:
    """Of ``results_there`` those that are not made again: none where targets are left and no adapter was kept for them.

    Beside a line in the table an adapter is one whose deletion was stopped.
    """
    there = results_there(sweep, run)
    if run.seed is None or None not in there or len(there) == 1 + len(run.targets):
        return there
    kept = (sweep.folder(run) / "run" / "adapter").is_dir() and not sweep.table.of(run.key)
    return there if kept else []


def find_result(sweep: Sweep, run: PlannedRun, on: str | None) -> KeptResult | Path | None:
    """The result of ``run`` on ``on`` (see ``results_there``): its line in the table, its file, or None for neither.

    A file that cannot be read, as after a full disk, is none: the run is open.
    """
    if (kept := sweep.table.of(run.key).get(on)) is not None:
        return kept
    file = result_file(sweep.folder(run), on)
    with contextlib.suppress(FileNotFoundError):
        if _is_readable(file, file.stat().st_mtime_ns):
            return file
    # Another worker may have put it into the table, and deleted it, since that was looked at.
    return sweep.table.of(run.key).get(on)


@cache  # a worker looks at every run before each of its own
def _is_readable(file: Path, written: int) -> bool:
    """Whether ``file``, of that time, holds JSON."""
    try:
        read_json(file, "results file")
    except InputError:
        return False
    return True


def read_result(sweep: Sweep, run: PlannedRun, on: str | None) -> dict[str, Any]:
    """What the results.json of a result that is there holds, or held before it went into the table.

    Raises:
        InputError: it cannot be read.
    """
    found = find_result(sweep, run, on)
    if isinstance(found, KeptResult):
        return found.results
    return read_json(found or result_file(sweep.folder(run), on), "results file")


def result_file(folder: Path, on: str | None) -> Path:
    """Where the result of the run in ``folder`` on the data set of the short name ``on``, or of its training, lies."""
    return (folder / "run" if on is None else folder / "on" / on) / "results.json"


@contextlib.contextmanager
def hold(sweep: Sweep, run: PlannedRun) -> Iterator[bool]:
    """Inside, whether this process has ``run`` for itself."""
    folder = sweep.folder(run)
    with contextlib.ExitStack() as stack:
        with ProcessLock(sweep.out / SWEEP_LOCK).wait():  # else another might delete the folder in between
            folder.mkdir(parents=True, exist_ok=True)
            mine = stack.enter_context(ProcessLock(folder / LOCK).attempt())
        yield mine


def holder_of(sweep: Sweep, run: PlannedRun) -> Holder | None:
    """Who is at ``run``; None for nobody. It is looked at and not taken: a worker may try it at that moment."""
    return ProcessLock(sweep.folder(run) / LOCK).holder


def failure(sweep: Sweep, run: PlannedRun) -> str:
    """Why ``run`` has failed, for people; where its file is damaged, or another worker has just deleted it, that."""
    try:
        return read_object(sweep.folder(run) / FAILURE, "failure file", {"error": str})["error"]
    except InputError as error:
        return str(error)


def keep_results_alone(sweep: Sweep, run: PlannedRun) -> None:
    """Of a finished run put the results into the table and delete its folder, where no other worker is at it.

    One with a results.json of another target that cannot be read stays as it is.
    """
    folder = sweep.folder(run)
    if not folder.is_dir() or not is_done(sweep, run):
        return
    with ProcessLock(sweep.out / SWEEP_LOCK).wait():  # nobody claims the run while this is held
        if not folder.is_dir():
            return
        with ProcessLock(folder / LOCK).attempt() as mine:
            if not mine or not is_done(sweep, run):
                return
            # All that are there: a command may name fewer targets than the sweep has.
            files: dict[str | None, Path] = {None: result_file(folder, None)}
            files |= {file.parent.name: file for file in sorted((folder / "on").glob("*/results.json"))}
            try:
                found = {on: read_json(file, "results file") for on, file in files.items() if file.is_file()}
            except InputError:
                return
            sweep.table.add(run.key, found)
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # the first that holds other runs stays, and those above it
            for parent in folder.relative_to(sweep.out).parents[:-1]:
                (sweep.out / parent).rmdir()


@dataclass(frozen=True)
class Progress:
    """The runs of a sweep by how far they are."""

    done: list[PlannedRun]
    failed: list[PlannedRun]
    running: list[PlannedRun]
    open: list[PlannedRun]


def state(sweep: Sweep) -> Progress:
    """How far every run is, now; a run is running where some process holds its claim. Nothing is written or taken."""
    found = Progress([], [], [], [])
    for run in sweep.runs():
        if is_done(sweep, run):
            found.done.append(run)
            continue
        if holder_of(sweep, run) is not None:
            found.running.append(run)
        elif (sweep.folder(run) / FAILURE).is_file():
            found.failed.append(run)
        else:
            found.open.append(run)
    return found
