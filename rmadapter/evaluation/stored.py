"""Evaluation and prediction by whatever kind of adapter a folder holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data import Preprocessing
from rmadapter.data.catalog import PHOTO
from rmadapter.errors import InputError
from rmadapter.evaluation.answers import PartAnswers
from rmadapter.evaluation.evaluate import EvalConfig, check_out, load_model, run_eval
from rmadapter.evaluation.predict import PredictConfig, Predicted, run_predict
from rmadapter.evaluation.stored_probe import evaluate_probe, load_probe_classifier, predict_with_probe
from rmadapter.tuners.adapter_file import read_info
from rmadapter.tuners.probe import PROBE_CONFIG
from rmadapter.tuners.stored_facts import StoredFacts


def holds_probe(folder: str | Path | None) -> bool:
    """Whether what is stored in ``folder`` is a linear probe; the base model alone (None) is none."""
    return folder is not None and (Path(folder) / PROBE_CONFIG).is_file()


@dataclass(frozen=True)
class StoredClassifier:
    """What a folder holds, ready to classify among the classes that it was trained on.

    Attributes:
        model: the classifier.
        info: what its file says.
        preprocessing: what images go through.
    """

    model: CLIPClassifier
    info: StoredFacts
    preprocessing: Preprocessing


def load_classifier(config: EvalConfig) -> StoredClassifier:
    """The adapter or the linear probe that ``config`` names.

    Raises:
        InputError: everything that loading them raises; an adapter that does not say what it was trained on.
    """
    assert config.adapter is not None  # the caller has looked
    if holds_probe(config.adapter):
        return StoredClassifier(*load_probe_classifier(config))
    info = read_info(Path(config.adapter))
    if info.class_names is None:
        raise InputError(f"the adapter in {config.adapter} does not say which classes it was trained on")
    loaded = load_model(config, info)
    model = loaded.classifier(info.class_names, info.template or PHOTO)
    return StoredClassifier(model, info, loaded.backbone.preprocessing)


def evaluate_stored(config: EvalConfig, kept: dict[str, PartAnswers] | None = None) -> list[dict[str, Any]]:
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


def predict_with_stored(config: PredictConfig) -> Predicted:
    """``rmadapter predict``; see ``predict.run_predict``."""
    return predict_with_probe(config) if holds_probe(config.adapter) else run_predict(config)
