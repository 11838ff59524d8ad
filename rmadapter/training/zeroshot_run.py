"""Zero-shot CLIP as a run: nothing is trained, and the run folder has what training would have left of results."""

from __future__ import annotations

import dataclasses
from typing import Any

from rmadapter.config import PUBLISHED, TrainConfig
from rmadapter.data import ImageData, load_data
from rmadapter.data.catalog import PHOTO
from rmadapter.errors import InputError
from rmadapter.evaluation.evaluate import EvalConfig, run_eval
from rmadapter.evaluation.results_file import write_results
from rmadapter.files import write_json
from rmadapter.methods.naming import folder_of
from rmadapter.methods.zeroshot import ZEROSHOT
from rmadapter.runtime import environment, resolve_device
from rmadapter.step.batches import lost_workers_said
from rmadapter.training.run_folder import SMALL_FILES, RunFolder, finished_run


def run_zeroshot(config: TrainConfig, *, data: ImageData | None = None) -> dict[str, Any]:
    """Evaluate the base model as training would have evaluated its adapter; writes the run folder.

    ``data`` are taken in place of those that the configuration names; a finished run is compared with them.
    The prompt is ``config.template`` where that is not the default, else the data set's (``data.catalog``).

    Raises:
        InputError: what ``run_eval`` raises, what the folder holds, ``evaluate`` is off.
    """
    if not config.evaluate:
        raise InputError(f"evaluate is False, but {ZEROSHOT.name} does nothing else; valid: True")
    folder = RunFolder(folder_of(config), ZEROSHOT.kind)
    if data is None and config.resume:
        data = load_data(config.data, config.data_root, config.style)
    if (done := finished_run(folder, config, data)) is not None:
        return done
    with folder.held(), lost_workers_said():
        if (done := finished_run(folder, config, data)) is not None:  # another process may have had it until now
            return done
        folder.check_room(SMALL_FILES)
        return _run(config, folder, data)


def _run(config: TrainConfig, folder: RunFolder, data: ImageData | None) -> dict[str, Any]:
    for note in data.notes if data is not None else ():  # else the evaluation loads the data, and says them
        print(note)
    own = {"adapter", "classes", "template", "batch_size", "out"}
    names = {field.name for field in dataclasses.fields(EvalConfig)} - own
    names &= {field.name for field in dataclasses.fields(TrainConfig)}
    shared = {name: getattr(config, name) for name in names}
    results = run_eval(
        EvalConfig(
            **shared,
            method=ZEROSHOT.name,
            classes="base_new" if config.classes == "base" else config.classes,
            template=config.template if config.template not in (PHOTO, PUBLISHED) else None,
            batch_size=config.eval_batch_size,
        ),
        data=data,
    )
    folder.check_held()
    folder.prepare(config, {"data_hash": results["data_hash"]})
    write_json(folder.environment_file, environment(resolve_device(config.device)))
    write_results(folder.results_file, results)
    print(f"results: {folder.results_file}")
    return results
