"""Evaluation and prediction by whatever kind of adapter a folder holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rmadapter.evaluation.answers import Answers
from rmadapter.evaluation.evaluate import EvalConfig, check_out, load_model, run_eval
from rmadapter.evaluation.predict import PredictConfig, run_predict
from rmadapter.evaluation.stored_probe import evaluate_probe, predict_with_probe
from rmadapter.tuners.probe import PROBE_CONFIG


def holds_probe(folder: str | Path | None) -> bool:
    """Whether what is stored in ``folder`` is a linear probe; the base model alone (None) is none."""
    return folder is not None and (Path(folder) / PROBE_CONFIG).is_file()


def evaluate_stored(config: EvalConfig, kept: dict[str, Answers] | None = None) -> list[dict[str, Any]]:
    """``rmadapter eval``: what results.json holds, of each of the strengths; ``kept`` as in ``evaluate.run_eval``.

    Of several strengths each has its folder in ``config.out``, and the model is loaded once.
    """
    if holds_probe(config.adapter):
        return [evaluate_probe(config, kept)]
    if len(config.strengths) == 1:
        return [run_eval(config, kept=kept)]
    check_out(config)
    loaded = load_model(config)
    found = []
    for strength in config.strengths:
        print(f"strength {strength:g}")
        out = None if config.out is None else str(Path(config.out) / f"strength-{strength:g}")
        found.append(run_eval(replace(config, strength=repr(strength), out=out), loaded))
    return found


def predict_with_stored(config: PredictConfig) -> list[dict[str, Any]]:
    """``rmadapter predict``; see ``predict.run_predict``."""
    return predict_with_probe(config) if holds_probe(config.adapter) else run_predict(config)
