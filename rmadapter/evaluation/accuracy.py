"""Top-1 accuracy of a classifier on all classes or on the base and new halves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data import (
    EvalImages,
    ImageData,
    Item,
    Preprocessing,
    Read,
    base_new_split,
    collate_readable,
    eval_transform,
    part_names,
)
from rmadapter.errors import InputError
from rmadapter.evaluation.results_file import harmonic_mean


@dataclass(frozen=True)
class Loading:
    """How images come to an evaluation."""

    preprocessing: Preprocessing
    batch_size: int = 64
    workers: int = 2
    skip_bad: bool = False


@dataclass(frozen=True)
class Accuracy:
    """``top1`` in percent over ``images`` images; ``skipped`` could not be read."""

    top1: float
    images: int
    skipped: int


@torch.no_grad()
def accuracy(
    model: CLIPClassifier,
    read: Read,
    items: Sequence[Item],
    loading: Loading,
    *,
    name: str = "",
    text: Tensor,
) -> Accuracy:
    """Top-1 accuracy of ``model``, whose classes the labels of ``items`` count; the model is left in eval mode.

    ``text`` are its ``text_features()`` [classes, embed].

    Raises:
        InputError: no items, an unreadable image (without ``loading.skip_bad``).
    """
    if not items:
        raise InputError(f"there are no images to evaluate{' for ' + name if name else ''}")
    device = model.prompts.tokens.device
    images = EvalImages(read, items, eval_transform(loading.preprocessing))
    loader = DataLoader(
        images,
        loading.batch_size,
        num_workers=loading.workers,
        collate_fn=collate_readable,
        generator=torch.Generator(),
    )
    model.eval()
    seen, correct = 0, 0
    quiet = not sys.stderr.isatty()
    for batch, labels, unreadable in tqdm(
        loader, desc=f"evaluate {name}".strip(), unit="batch", disable=quiet, leave=False
    ):
        if unreadable and not loading.skip_bad:
            raise InputError(f"{unreadable[0]}; --skip-bad-images leaves such images out")
        if len(labels):
            logits = model.classify(batch.to(device), text)
            correct += int((logits.argmax(-1).cpu() == labels).sum())
            seen += len(labels)
    if not seen:
        raise InputError(f"none of {len(items)} images{' for ' + name if name else ''} could be read")
    return Accuracy(100 * correct / seen, seen, len(items) - seen)


def evaluate_parts(
    model: CLIPClassifier,
    data: ImageData,
    parts: Sequence[str],
    loading: Loading,
    *,
    split: str = "test",
) -> dict[str, Any]:
    """Accuracy for each of ``parts`` ("all", "base", "new"), each classified among its own classes.

    Returns ``{"accuracy": {part: percent, "hm": ...}, "images": {part: n}, "skipped": n}``, with ``retained_PART`` in
    ``accuracy`` too where the data set comes with an unseen style, and that ``retention_style``; where the model has
    several ways to answer, ``inference`` says by part which it took. The model is left with the classes of the last
    part.

    Raises:
        InputError: a part of fewer than two classes; what ``accuracy`` raises.
    """
    items = getattr(data, split)
    classes = len(data.class_names)
    found: dict[str, Any] = {"accuracy": {}, "images": {}, "skipped": 0}
    for part in parts:
        model.set_classes(part_names(data.class_names, part), model.template)
        if model.inference is not None:
            found.setdefault("inference", {})[part] = model.inference
        chosen = base_new_split(items, part, classes)
        with torch.no_grad():
            text = model.eval().text_features()
        result = accuracy(model, data.read, chosen, loading, name=part, text=text)
        found["accuracy"][part] = result.top1
        found["images"][part] = result.images
        found["skipped"] += result.skipped
        if data.retention is not None:
            unseen = data.retention
            kept = base_new_split(getattr(unseen, split), part)
            result = accuracy(model, unseen.read, kept, loading, name=f"{part}, {unseen.style}", text=text)
            found["accuracy"][f"retained_{part}"] = result.top1
            found["retention_style"] = unseen.style
    if {"base", "new"} <= set(parts):
        found["accuracy"]["hm"] = harmonic_mean(found["accuracy"]["base"], found["accuracy"]["new"])
    return found


def tested_parts(classes: str, class_names: Sequence[str]) -> tuple[str, ...]:
    """What ``evaluate_parts`` is asked for with "all", "base", "new" or "base_new".

    The new half of three classes is one class, on which every method is right: of "base_new" the base half is left.
    """
    if classes != "base_new":
        return (classes,)
    return ("base", "new") if len(class_names) > 3 else ("base",)
