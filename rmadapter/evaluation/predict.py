"""Classify images among any class names with a trained adapter; ``rmadapter predict``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.emoji_clip import untrained_words
from rmadapter.clip.names import MODEL
from rmadapter.config import PRECISIONS, check_template
from rmadapter.config.paths import ModelText, PathText
from rmadapter.data import Preprocessing, eval_transform, read_image
from rmadapter.data.catalog import PHOTO
from rmadapter.data.class_names import read_lines
from rmadapter.errors import InputError, check_choice, check_range, printable_line
from rmadapter.evaluation.accuracy import REFUSE, UNKNOWN, answered_by, answering
from rmadapter.evaluation.loaded_model import load_stored
from rmadapter.runtime import resolve_device
from rmadapter.tuners.adapter_file import read_info


@dataclass
class PredictConfig:
    """Ranked class probabilities for images, among any class names.

    Args:
        images: image files
        adapter: folder of an adapter; without one the base model alone classifies
        classes: class names, separated by commas; default: those the adapter was trained on
        classes_file: text file with one class name a line, in place of classes; a line that begins with "# " is none
        unknown: of classes that the adapter is bound away from: refuse, or zeroshot, the frozen model's answer for all
        template: prompt with {}; default: the adapter's, else 'a photo of a {}.'
        top: number of classes to print an image
        json: print JSON
        model: open_clip model name; default: the adapter's
        pretrained: open_clip tag, weights file, or none for random weights; default: the adapter's
        trust_base: load the folder, hub repository or weights file that the adapter alone names as its base model
        precision: auto (the adapter's), bf16, fp16 or fp32
        device: auto, cpu, cuda or cuda:N
        fused: use the fastest adapter backend there is
        backend: one adapter backend by name
        batch_size: images a step
    """

    images: list[PathText] = field(default_factory=list)
    adapter: PathText | None = None
    classes: str | None = None
    classes_file: PathText | None = None
    unknown: str = REFUSE
    template: str | None = None
    top: int = 5
    json: bool = False
    model: ModelText | None = None
    pretrained: PathText | None = None
    trust_base: bool = False
    precision: str = "auto"
    device: str = "auto"
    fused: bool = True
    backend: str | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("no image is given; valid: rmadapter predict --adapter DIR IMAGE...")
        if self.classes is not None and self.classes_file is not None:
            raise InputError("classes and classes_file are both given; valid: one of them")
        if self.template is not None:
            check_template(self.template)
        check_choice("unknown", self.unknown, UNKNOWN)
        check_choice("precision", self.precision, PRECISIONS)
        check_range("top", self.top, 1)
        check_range("batch_size", self.batch_size, 1)


@torch.no_grad()
def predict(model: CLIPClassifier, images: Iterable[Tensor], *, batch_size: int = 32) -> Tensor:
    """Probabilities [images, classes] in fp32 on the CPU of preprocessed images [3, size, size], taken as needed."""
    device = model.prompts.tokens.device
    model.eval()
    text = model.text_features()
    left, found = iter(images), []
    while batch := list(islice(left, batch_size)):
        found.append(model.classify(torch.stack(batch).to(device), text).softmax(-1).cpu())
    return torch.cat(found)


def preprocessed(paths: Iterable[str], preprocessing: Preprocessing) -> Iterator[Tensor]:
    """The images in files ``paths``, [3, size, size] each, read one by one as they are taken."""
    transform = eval_transform(preprocessing)
    return (transform(read_image(Path(path))) for path in paths)


def check_files(paths: Iterable[str]) -> None:
    """Raise InputError where an image is not there, before a model is loaded and thousands of others are read."""
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f"image {path} cannot be read: there is no such file")


def run_predict(config: PredictConfig) -> list[dict[str, Any]]:
    """``rmadapter predict``: classify, print, and return one record an image."""
    device = resolve_device(config.device)
    info = read_info(Path(config.adapter)) if config.adapter else None
    names = wanted_class_names(config, info.class_names if info else None)
    check_files(config.images)
    loaded = load_stored(
        config.adapter,
        config.model,
        config.pretrained,
        device=device,
        precision=config.precision,
        fused=config.fused,
        backend=config.backend,
        trust_base=config.trust_base,
    )
    template = config.template or (info.template if info else None) or PHOTO
    if loaded.backbone.source.name == MODEL and (words := untrained_words([template.replace("{}", " "), *names])):
        warnings.warn(
            f"{MODEL} was not pretrained on {', '.join(map(repr, words))}: what it says of such a class is chance",
            stacklevel=2,
        )
    bound = None if loaded.adapted is None or config.unknown == REFUSE else loaded.adapted.classes
    model = loaded.classifier(bound or names, template)
    zeroshot = None if bound is None else loaded.zeroshot(bound, template)
    return predict_among(config, names, model, zeroshot, loaded.backbone.preprocessing)


def predict_among(
    config: PredictConfig,
    names: list[str],
    model: CLIPClassifier,
    zeroshot: CLIPClassifier | None,
    preprocessing: Preprocessing,
) -> list[dict[str, Any]]:
    """One record an image of ``config``, classified among ``names``; printed as ``config`` asks for it.

    ``zeroshot`` answers where ``model`` does not know all of the names, which is said; each record then has
    ``answered_by``.

    Raises:
        InputError: an image that cannot be read, a name that ``model`` does not know without ``zeroshot``.
    """
    with answering(model, zeroshot, names) as (answers, known):
        images = preprocessed(config.images, preprocessing)
        probabilities = predict(answers, images, batch_size=config.batch_size)
    if not known:
        warnings.warn("not all of these classes were trained on: the frozen model answers", stacklevel=2)
    who = {} if zeroshot is None else {"answered_by": answered_by(known)}
    records = []
    for path, row in zip(config.images, probabilities, strict=True):
        values, indices = row.topk(min(config.top, len(names)))
        ranked = [
            {"class": names[i], "index": i, "probability": p}
            for i, p in zip(indices.tolist(), values.tolist(), strict=True)
        ]
        records.append({"image": path, **who, "predictions": ranked})
    print(json.dumps(records, indent=2, allow_nan=False) if config.json else _as_text(records))
    return records


class ClassChoice(Protocol):
    """Options that name classes."""

    classes: str | None
    classes_file: PathText | None


def wanted_class_names(config: ClassChoice, trained: list[str] | None) -> list[str]:
    """The class names that ``config`` asks for, else those trained on; InputError for fewer than two."""
    if config.classes_file is not None:
        names = [name for _, name in read_lines(Path(config.classes_file), "classes_file")]
    elif config.classes is not None:
        names = [name.strip() for name in config.classes.split(",") if name.strip()]
    elif trained is not None:
        names = trained
    else:
        raise InputError("classes is missing; valid: --classes 'cat,dog', --classes-file FILE, or an adapter's own")
    if len(names) < 2:
        raise InputError(f"classes are {names!r}; valid: at least two names")
    return names


def _as_text(records: list[dict[str, Any]]) -> str:
    lines = []
    for record in records:
        lines.append(printable_line(record["image"]))
        lines += [f"  {100 * p['probability']:6.2f} %  {printable_line(p['class'])}" for p in record["predictions"]]
    return "\n".join(lines)
