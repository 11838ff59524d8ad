"""Zero-shot CLIP with each data set's published prompt; it trains nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.errors import InputError
from rmadapter.methods.method import Method, check_no_explain


def run(config: TrainConfig) -> dict[str, Any]:
    """Evaluate the base model as training would have evaluated its adapter; writes the run folder.

    The prompt is ``config.template`` where that is not the default, else the data set's (``data.catalog``).
    """
    from rmadapter.data.catalog import PHOTO
    from rmadapter.evaluation import EvalConfig, finished_run, run_eval
    from rmadapter.files import write_json
    from rmadapter.run_folder import RunFolder
    from rmadapter.runtime import environment, resolve_device

    check_no_explain(config, ZEROSHOT.name)
    if not config.evaluate:
        raise InputError(f"evaluate is False, but {ZEROSHOT.name} does nothing else; valid: True")
    folder = RunFolder(config.run_folder)
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
    write_json(folder.results_file, results)
    print(f"results: {folder.results_file}")
    return results


ZEROSHOT = Method("zeroshot", "the frozen model and the data set's own prompt", train=run, seeded=False)
