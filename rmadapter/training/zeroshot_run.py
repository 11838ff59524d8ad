"""Zero-shot CLIP as a run: nothing is trained, and the run folder has what training would have left of results."""

from __future__ import annotations

import dataclasses
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.data.catalog import PHOTO
from rmadapter.errors import InputError
from rmadapter.evaluation.evaluate import EvalConfig, run_eval
from rmadapter.evaluation.results_file import write_results
from rmadapter.files import write_json
from rmadapter.methods.naming import folder_of
from rmadapter.methods.zeroshot import ZEROSHOT
from rmadapter.runtime import environment, resolve_device
from rmadapter.training.run_folder import RunFolder, finished_run


def run_zeroshot(config: TrainConfig) -> dict[str, Any]:
    """Evaluate the base model as training would have evaluated its adapter; writes the run folder.

    The prompt is ``config.template`` where that is not the default, else the data set's (``data.catalog``).

    Raises:
        InputError: what ``run_eval`` raises, what the folder holds, ``evaluate`` is off.
    """
    if not config.evaluate:
        raise InputError(f"evaluate is False, but {ZEROSHOT.name} does nothing else; valid: True")
    folder = RunFolder(folder_of(config))
    if (done := finished_run(folder, config)) is not None:
        return done
    own = {"adapter", "method", "classes", "split", "retention", "template", "batch_size", "out"}
    names = {field.name for field in dataclasses.fields(EvalConfig)} - own
    shared = {name: getattr(config, name) for name in names}
    results = run_eval(
        EvalConfig(
            **shared,
            method=ZEROSHOT.name,
            classes="base_new" if config.classes == "base" else config.classes,
            template=config.template if config.template != PHOTO else None,
            batch_size=config.eval_batch_size,
        )
    )
    folder.prepare(config)
    write_json(folder.environment_file, environment(resolve_device(config.device)))
    write_results(folder.results_file, results)
    print(f"results: {folder.results_file}")
    return results
