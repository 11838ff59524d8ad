"""How far the runs of a sweep are: where each one's results lie, who is at it, what failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rmadapter.locks import ProcessLock
from rmadapter.sweeps.protocols import PlannedRun, short_name
from rmadapter.sweeps.settings import Sweep

FAILURE = "failed.json"
LOCK = ".lock"


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
    with ProcessLock(folder / LOCK).attempt() as mine:
        yield mine


@dataclass(frozen=True)
class Progress:
    """The runs of a sweep by how far they are."""

    done: list[PlannedRun]
    failed: list[PlannedRun]
    running: list[PlannedRun]
    open: list[PlannedRun]


def state(sweep: Sweep) -> Progress:
    """How far every run is, now; a run is running where some process holds its claim."""
    found = Progress([], [], [], [])
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
