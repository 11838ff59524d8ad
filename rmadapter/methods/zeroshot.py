"""Zero-shot CLIP with each data set's published prompt; it trains nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.methods.method import Method


def run(config: TrainConfig) -> dict[str, Any]:
    """Evaluate the base model as training would have evaluated its adapter; writes results.json to the run folder.

    The prompt is ``config.template`` where that is not the default, else the data set's (``data.catalog``).
    """
    from rmadapter.data.catalog import PHOTO, zeroshot_template
    from rmadapter.evaluation import EvalConfig, run_eval

    own = {"adapter", "method", "classes", "split", "retention", "template", "batch_size", "out"}
    names = {field.name for field in dataclasses.fields(EvalConfig)} - own
    shared = {name: getattr(config, name) for name in names}
    template = config.template if config.template != PHOTO else zeroshot_template(_name(config))
    return run_eval(
        EvalConfig(
            **shared,
            method="zeroshot",
            classes="base_new" if config.classes == "base" else config.classes,
            template=template,
            batch_size=config.eval_batch_size,
            out=str(config.run_folder),
        )
    )


def _name(config: TrainConfig) -> str:
    """The catalog's name of the data set where it is one of the field's."""
    from rmadapter.data.named import find_named

    found = find_named(config.data, config.data_root)
    return found[1].name if found else Path(config.data).name


ZEROSHOT = Method("zeroshot", "the frozen model and the data set's own prompt", train=run, seeded=False)
