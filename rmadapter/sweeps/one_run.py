"""One run of a sweep: training, and the tests on other data sets that its protocol wants."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.evaluation.evaluate import EvalConfig, load_model, run_eval
from rmadapter.evaluation.results_file import write_results
from rmadapter.evaluation.stored import holds_probe
from rmadapter.evaluation.stored_probe import evaluate_probe
from rmadapter.methods import METHODS
from rmadapter.sweeps.manifest import check_data, settle_precision
from rmadapter.sweeps.progress import read_result, result_file, results_that_stay, results_there
from rmadapter.sweeps.protocols import PlannedRun, load_planned, placed, short_name
from rmadapter.sweeps.settings import Sweep
from rmadapter.sweeps.taken_over import take_over
from rmadapter.training.by_method import train_method


def make_run(sweep: Sweep, run: PlannedRun) -> dict[str, Any]:
    """Make ``run`` and its tests on other data sets, as far as they are not there; returns the training's results.

    Raises:
        InputError: what ``settle_precision`` raises: the sweep is one that was entered; data that are no longer what
            they were to the sweep.
    """
    folder = sweep.folder(run)
    config = dataclasses.replace(sweep.config(run), precision=settle_precision(sweep))
    adapter = folder / "run" / "adapter"
    there = results_there(sweep, run)
    _remove_damaged(folder, [on for on in (None, *map(short_name, run.targets)) if on not in there])
    if there != (stay := results_that_stay(sweep, run)):
        print(f"new targets, and the adapter in {folder} was not kept: it is trained and tested again")
        for name in ("on", "run"):  # a stop in between is seen by what is left of the second
            shutil.rmtree(folder / name, ignore_errors=True)
        sweep.table.drop(run.key)
        there = stay
    left = [target for target in run.targets if short_name(target) not in there]
    method = METHODS[run.method]
    if None in there:
        results = read_result(sweep, run, None)
    else:
        data = load_planned(run.data, sweep.data_root)
        check_data(sweep, {run.data: data})
        taken = take_over(sweep, run, config, data)
        results = read_result(sweep, run, None) if taken else train_method(method, config, data=data)
    loaded = None
    for target in left:
        file = result_file(folder, short_name(target))
        where = placed(target, sweep.data_root)
        data = load_planned(target, sweep.data_root)
        check_data(sweep, {target: data})
        if run.seed is None:
            found = train_method(method, dataclasses.replace(config, **where, out=str(file.parent / "run")), data=data)
        elif holds_probe(adapter):
            found = evaluate_probe(_test_on(where, config, adapter))
        else:
            test = _test_on(where, config, adapter)
            loaded = loaded or load_model(test)
            found = run_eval(test, loaded)
        write_results(file, found)
    return results


def _remove_damaged(folder: Path, missing: Sequence[str | None]) -> None:
    """Delete the files of results that do not count as there though they are."""
    for on in missing:
        file = result_file(folder, on)
        if file.is_file():
            print(f"results file {file} cannot be read and is made again")
            file.unlink()


def _test_on(where: dict[str, str | None], config: TrainConfig, adapter: Path) -> EvalConfig:
    """The evaluation on the data set ``where`` of what the run of ``config`` has trained; they differ in data alone."""
    names = {f.name for f in dataclasses.fields(EvalConfig)} & {f.name for f in dataclasses.fields(config)}
    names -= {"adapter", "classes", "out", "template", "batch_size"}
    shared = {name: getattr(config, name) for name in names} | where
    return EvalConfig(
        **shared,
        adapter=str(adapter),
        classes="all",
        retention=False,
        batch_size=config.eval_batch_size,
    )
