"""Evaluation and prediction by whatever kind of adapter a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmadapter.evaluation.evaluate import EvalConfig, run_eval
from rmadapter.evaluation.predict import PredictConfig, Predicted, run_predict
from rmadapter.evaluation.stored_probe import evaluate_probe, predict_with_probe
from rmadapter.tuners.probe import PROBE_CONFIG


def holds_probe(folder: str | Path | None) -> bool:
    """Whether what is stored in ``folder`` is a linear probe; the base model alone (None) is none."""
    return folder is not None and (Path(folder) / PROBE_CONFIG).is_file()


def evaluate_stored(config: EvalConfig) -> dict[str, Any]:
    """``rmadapter eval``; see ``evaluate.run_eval``."""
    return evaluate_probe(config) if holds_probe(config.adapter) else run_eval(config)


def predict_with_stored(config: PredictConfig) -> Predicted:
    """``rmadapter predict``; see ``predict.run_predict``."""
    return predict_with_probe(config) if holds_probe(config.adapter) else run_predict(config)
