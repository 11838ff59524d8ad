"""Top-1 accuracy of a classifier on all classes or on the base and new halves."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
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

# What is done with classes that a method is bound away from, and who answers in the results.
UNKNOWN = ("refuse", "zeroshot")
REFUSE, ZEROSHOT = UNKNOWN
ADAPTER = "adapter"


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


def readable_batches(
    read: Read, items: Sequence[Item], loading: Loading, *, name: str = "", transform: Callable[..., Any] | None = None
) -> Iterator[tuple[Any, Tensor]]:
    """Images [n, 3, size, size] and labels [n] of ``items`` in order, as they go into a model that is tested.

    With ``transform`` the first is what that makes of images, batched.

    Raises:
        InputError: an unreadable image; with ``loading.skip_bad`` such are left out, and one has to be left.
    """
    loader = DataLoader(
        EvalImages(read, items, transform or eval_transform(loading.preprocessing)),
        loading.batch_size,
        num_workers=loading.workers,
        collate_fn=collate_readable,
        generator=torch.Generator(),
    )
    quiet, seen = not sys.stderr.isatty(), 0
    for images, labels, unreadable in tqdm(
        loader, desc=f"evaluate {name}".strip(), unit="batch", disable=quiet, leave=False
    ):
        if unreadable and not loading.skip_bad:
            raise InputError(f"{unreadable[0]}; --skip-bad-images leaves such images out")
        if len(labels):
            seen += len(labels)
            yield images, labels
    if not seen:
        raise InputError(f"none of {len(items)} images{' for ' + name if name else ''} could be read")


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
    model.eval()
    seen, correct = 0, 0
    for images, labels in readable_batches(read, items, loading, name=name):
        logits = model.classify(images.to(device), text)
        correct += int((logits.argmax(-1).cpu() == labels).sum())
        seen += len(labels)
    return Accuracy(100 * correct / seen, seen, len(items) - seen)


@contextlib.contextmanager
def answering(
    model: CLIPClassifier, zeroshot: CLIPClassifier | None, class_names: Sequence[str]
) -> Iterator[tuple[CLIPClassifier, bool]]:
    """Inside, who answers among ``class_names``, set to them, and whether that is ``model``: it is where it knows them.

    Raises:
        InputError: it does not, and there is no ``zeroshot``.
    """
    known = zeroshot is None or model.knows(class_names)
    answers = model if known or zeroshot is None else zeroshot
    with contextlib.nullcontext() if known else model.untouched():
        answers.set_classes(class_names, answers.template)
        yield answers, known


def answered_by(known: bool) -> str:
    """What results call who answered: the stored method, which knew the classes, or the frozen model."""
    return ADAPTER if known else ZEROSHOT


def evaluate_parts(
    model: CLIPClassifier,
    data: ImageData,
    parts: Sequence[str],
    loading: Loading,
    *,
    split: str = "test",
    zeroshot: CLIPClassifier | None = None,
) -> dict[str, Any]:
    """Accuracy for each of ``parts`` ("all", "base", "new"), each classified among its own classes.

    ``zeroshot``, of the same base model, answers in the place of ``model`` for a part with a class that ``model`` does
    not know, for all its classes: what the two say of classes cannot be compared. Which of them answered is then
    found too, by part: ``"answered_by": {part: "adapter" or "zeroshot"}``.

    Returns ``{"accuracy": {part: percent, "hm": ...}, "images": {part: n}, "skipped": n}``, with ``retained_PART`` in
    ``accuracy`` too where the data set comes with an unseen style, and that ``retention_style``; where the model has
    several ways to answer, ``inference`` says by part which it took. The model is left with the classes of the last
    part.

    Raises:
        InputError: a part of fewer than two classes; without ``zeroshot`` a class that ``model`` does not know; what
            ``accuracy`` raises.
    """
    items = getattr(data, split)
    classes = len(data.class_names)
    found: dict[str, Any] = {"accuracy": {}, "images": {}, "skipped": 0}
    for part in parts:
        names = part_names(data.class_names, part)
        with answering(model, zeroshot, names) as (answers, known):
            if answers.inference is not None:
                found.setdefault("inference", {})[part] = answers.inference
            with torch.no_grad():
                text = answers.eval().text_features()
            chosen = base_new_split(items, part, classes)
            result = accuracy(answers, data.read, chosen, loading, name=part, text=text)
            found["accuracy"][part] = result.top1
            found["images"][part] = result.images
            found["skipped"] += result.skipped
            if data.retention is not None:
                unseen = data.retention
                kept = base_new_split(getattr(unseen, split), part)
                result = accuracy(answers, unseen.read, kept, loading, name=f"{part}, {unseen.style}", text=text)
                found["accuracy"][f"retained_{part}"] = result.top1
                found["retention_style"] = unseen.style
        if zeroshot is not None:
            found.setdefault("answered_by", {})[part] = answered_by(known)
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
