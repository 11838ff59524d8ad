"""``rmadapter eval`` and ``rmadapter predict`` of a folder that holds a linear probe."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rmadapter.clip.backbone import Backbone
from rmadapter.data import Preprocessing
from rmadapter.errors import InputError
from rmadapter.evaluation.accuracy import REFUSE, evaluate_parts, tested_parts
from rmadapter.evaluation.answers import PartAnswers
from rmadapter.evaluation.calibration import calibration_for
from rmadapter.evaluation.eval_images import Loading
from rmadapter.evaluation.evaluate import EvalConfig, answered, answers_to_keep, conclude, load_tested, other_answers
from rmadapter.evaluation.loaded_model import load_base, zeroshot_classifier
from rmadapter.evaluation.predict import (
    Answers,
    PredictConfig,
    Predicted,
    predict_among,
    wanted_images,
    wanted_texts,
)
from rmadapter.evaluation.results_file import results_of, trained_on
from rmadapter.evaluation.seen_images import seen_images
from rmadapter.methods.linear_probe import LINEAR_PROBE
from rmadapter.runtime import resolve_device
from rmadapter.tuners.probe import LinearProbe, ProbeInfo, load_probe, read_probe

PRECISION = "fp32"  # of a probe and of the base model below it


def _check_no_template(template: str | list[str] | None, unknown: str) -> None:
    if template and unknown == REFUSE:
        given = template if isinstance(template, str) else template[0]
        raise InputError(f"template is {given!r}, but a linear probe has no prompts; valid: without it")


def _load(
    config: EvalConfig | PredictConfig, folder: Path, info: ProbeInfo, device: torch.device
) -> tuple[Backbone, LinearProbe]:
    """The base model, and the probe in ``folder`` on it; both in fp32, which a probe is always fitted in."""
    what = f"the linear probe in {folder}"
    backbone = load_base(info, what, config.model, config.pretrained, device, trust_base=config.trust_base)
    return backbone, load_probe(folder, info, backbone)


def load_probe_classifier(config: EvalConfig) -> tuple[LinearProbe, ProbeInfo, Preprocessing]:
    """The probe that ``config`` names, what its file says, and what images go through."""
    assert config.adapter is not None  # a probe was found there
    folder = Path(config.adapter)
    info = read_probe(folder)
    backbone, probe = _load(config, folder, info, resolve_device(config.device))
    return probe, info, backbone.preprocessing


def evaluate_probe(config: EvalConfig, kept: dict[str, PartAnswers] | None = None) -> dict[str, Any]:
    """``rmadapter eval`` of a probe: on all classes, or on the half that it was trained on.

    ``kept`` is that of ``evaluate.run_eval``.
    """
    device = resolve_device(config.device)
    assert config.adapter is not None  # a probe was found there
    folder = Path(config.adapter)
    info = read_probe(folder)
    trained = info.training
    if config.method == "zeroshot":
        raise InputError(
            f"method is 'zeroshot', but {folder} holds a linear probe; valid: without --adapter, with --model "
            f"{info.source.name if info.source else 'NAME'}"
        )
    refuses = config.unknown == REFUSE
    if config.classes == "base_new" and refuses:
        raise InputError("classes is 'base_new', but a linear probe knows one half alone; valid: all, base, new")
    _check_no_template(config.template, config.unknown)
    data = load_tested(config, trained, adapted=True)
    half = trained.get("classes")
    if half in ("base", "new") and data.name == trained.get("data") and config.classes != half and refuses:
        raise InputError(f"classes is {config.classes!r}, but the linear probe knows one half alone; valid: {half}")
    backbone, probe = _load(config, folder, info, device)
    for strength in config.strengths:
        probe.set_strength(strength)
    others = other_answers(config, partial(zeroshot_classifier, backbone, PRECISION), info.class_names, data)
    loading = Loading(backbone.preprocessing, config.batch_size, config.workers, config.skip_bad_images)
    began = time.perf_counter()
    parts = tested_parts(config.classes, data.class_names)
    seen = seen_images(config.adapter, trained, data, parts, config.split)
    kept = answers_to_keep(config, kept)
    keep = None if kept is None else kept.__setitem__
    found = evaluate_parts(probe, data, parts, loading, split=config.split, zeroshot=others, keep=keep)
    results = results_of(
        method=LINEAR_PROBE.name,
        data=data,
        trained_on=trained_on(trained, info.weights_sha256),
        model=backbone.source.name,
        pretrained=backbone.source.pretrained,
        base_hash=backbone.base_hash,
        shots=trained.get("shots"),
        seed=trained.get("seed"),
        classes=half,
        split=config.split,
        found=found,
        trained_parameters=probe.weight.numel() + probe.bias.numel(),
        seconds={"eval": time.perf_counter() - began},
        precision=PRECISION,
        device=str(device),
        settings={**(trained.get("settings") or {}), **answered(found)},
        **seen,
    )
    conclude(config, results, kept)
    return results


def predict_with_probe(config: PredictConfig) -> Predicted:
    """``rmadapter predict`` with a probe, among the classes it was trained on or some of them."""
    device = resolve_device(config.device)
    _check_no_template(config.template, config.unknown)
    assert config.adapter is not None  # a probe was found there
    folder = Path(config.adapter)
    info = read_probe(folder)
    texts = wanted_texts(config, info.class_names, info.template)
    paths = wanted_images(config)
    backbone, probe = _load(config, folder, info, device)
    probe.set_strength(config.strength)
    zeroshot = None
    if config.unknown != REFUSE:
        zeroshot = zeroshot_classifier(backbone, PRECISION, info.class_names, info.template)
    calibration = calibration_for(
        config.adapter, info.weights_sha256, texts.names, texts.prompt, config.strength, config.sets
    )
    answers = Answers(probe, zeroshot, backbone, PRECISION, info.weights_sha256, calibration)
    return predict_among(config, paths, texts, answers)
