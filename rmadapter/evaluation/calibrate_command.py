"""``rmadapter calibrate``: a temperature and conformal scores from validation images, kept beside the adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rmadapter.config import PRECISIONS
from rmadapter.config.paths import ModelText, PathText
from rmadapter.data import FewShotSample, part_names, readable_sample
from rmadapter.data.catalog import PHOTO
from rmadapter.data.sampling import validation_items
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.evaluation.answers import answers_of, encode
from rmadapter.evaluation.calibration import Calibration, fit_temperature
from rmadapter.evaluation.conformal import APS, SCORES, true_scores
from rmadapter.evaluation.eval_images import Loading
from rmadapter.evaluation.evaluate import EvalConfig, load_tested
from rmadapter.evaluation.metrics import quality
from rmadapter.evaluation.stored import load_classifier
from rmadapter.files import check_may_write

METRICS = ("nll", "ece")


@dataclass
class CalibrateConfig:
    """Temperature and conformal sets of an adapter, from validation images; kept in its folder for predict.

    Args:
        adapter: folder of an adapter or a linear probe
        data: folder of images, its name in data_root, or a bundled data set; default: the bundled one of the training
        data_root: folder that holds the data sets
        style: whose drawings, for the bundled data sets; default: the adapter's
        classes: all, base or new; default: what was trained on
        whole: take all validation images, and not up to four a class as training does
        score: what the sets are made with, aps (larger for hard images) or lac (smallest on average)
        strength: how strongly the adapter counts
        model: open_clip model name; default: the adapter's
        pretrained: open_clip tag, weights file, or none for random weights; default: the adapter's
        trust_base: load the folder, hub repository or weights file that the adapter alone names as its base model
        precision: auto (the adapter's), bf16, fp16 or fp32
        device: auto, cpu, cuda or cuda:N
        batch_size: images a step
        workers: processes that decode images
        skip_bad_images: leave unreadable images out and count them
    """

    adapter: PathText | None = None
    data: PathText = ""
    data_root: PathText | None = None
    style: str | None = None
    classes: str | None = None
    whole: bool = False
    score: str = APS
    strength: float = 1.0
    model: ModelText | None = None
    pretrained: PathText | None = None
    trust_base: bool = False
    precision: str = "auto"
    device: str = "auto"
    batch_size: int = 64
    workers: int = 2
    skip_bad_images: bool = False

    def __post_init__(self) -> None:
        if self.adapter is None:
            raise InputError("adapter is missing; valid: rmadapter calibrate --adapter DIR")
        check_choice("classes", self.classes, ("all", "base", "new", None))
        check_choice("score", self.score, SCORES)
        check_choice("precision", self.precision, PRECISIONS)
        check_range("strength", self.strength, 0)
        check_range("batch_size", self.batch_size, 1)
        check_range("workers", self.workers, 0)


@torch.no_grad()
def run_calibrate(config: CalibrateConfig) -> Calibration:
    """``rmadapter calibrate``: fit, print, and write calibration.json into the adapter's folder.

    Raises:
        InputError: what loading the data and the adapter raises, an adapter's folder that may not be written, no
            validation images.
    """
    assert config.adapter is not None  # checked
    shared = ("adapter", "data", "data_root", "style", "model", "pretrained", "trust_base", "precision", "device")
    asked = EvalConfig(**{name: getattr(config, name) for name in shared}, retention=False)
    stored = load_classifier(asked)
    check_may_write("adapter", config.adapter)
    model, training = stored.model, stored.info.training or {}
    data = load_tested(asked, training, adapted=True)
    classes = config.classes or training.get("classes") or "all"
    names = part_names(data.class_names, classes)
    template = stored.info.template or PHOTO
    shots, seed = (1 if training.get(name) is None else training[name] for name in ("shots", "seed"))
    # As training drew it, which has left unreadable images out, or it would not have begun.
    train, val, _ = readable_sample(data.read, data, shots, seed, skip_bad=True)
    sample = FewShotSample(train, data.val if config.whole else val, shots, seed, data.name)
    items, whence = validation_items(data, sample, classes)
    if not items:
        raise InputError(
            f"{data.name} has no validation images and no training images beside the {shots} shots; test images are "
            "not calibrated with; valid: a data set with validation images, or fewer shots"
        )
    model.set_strength(config.strength)
    model.set_classes(names, template)
    loading = Loading(stored.preprocessing, config.batch_size, config.workers, config.skip_bad_images)
    encoded = encode(model, data.read, items, loading, name="calibration")
    answers = answers_of(model, encoded, model.text_features())
    temperature = fit_temperature(answers.logits, answers.labels)
    before, after = (quality(answers.logits / t, answers.labels, names) for t in (1, temperature))
    probabilities = answers.logits.softmax(-1)
    found = Calibration(
        weights_sha256=stored.info.weights_sha256,
        class_names=names,
        template=template,
        strength=config.strength,
        data=data.name,
        data_hash=data.content_hash,
        classes=classes,
        whence=whence,
        images=len(answers.items),
        temperature=temperature,
        before={name: before[name] for name in METRICS},
        after={name: after[name] for name in METRICS},
        score=config.score,
        scores={score: true_scores(score, probabilities, answers.labels) for score in SCORES},
    )
    found.save(Path(config.adapter))
    if answers.top1 == 100:
        print(f"all {found.images} images are answered right, which says nothing of how sure to be: temperature 1")
    print(_described(found, Path(config.adapter)))
    return found


def _described(found: Calibration, folder: Path) -> str:
    changes = ", ".join(f"{name.upper()} {found.before[name]:.3f} to {found.after[name]:.3f}" for name in METRICS)
    most = found.images / (found.images + 1)
    return (
        f"temperature {found.temperature:.3f} on {found.images} {found.whence} of {len(found.class_names)} classes: "
        f"{changes}\nsets by {found.score}, for coverages up to {most:.3f}; beyond, a set has every class\n"
        f"calibration: {folder}"
    )
