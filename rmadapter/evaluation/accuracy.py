"""Accuracy and more of a classifier: on all classes, on the base and new halves, and on both among all classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data import ImageData, base_new_split, part_names
from rmadapter.evaluation.answers import Encoded, PartAnswers, answers_of, encode
from rmadapter.evaluation.eval_images import Loading
from rmadapter.evaluation.metrics import quality
from rmadapter.evaluation.results_file import harmonic_mean

# What is done with classes that a method is bound away from, and who answers in the results.
UNKNOWN = ("refuse", "zeroshot")
REFUSE, ZEROSHOT = UNKNOWN
ADAPTER = "adapter"
# Images of both halves among all classes, in metrics.
HALVES = ("base", "new")
OPEN = "open"
Keep = Callable[[str, PartAnswers], object]


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
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Accuracy and more for each of ``parts`` ("all", "base", "new"), each classified among its own classes.

    ``zeroshot``, of the same base model, answers in the place of ``model`` for a part with a class that ``model`` does
    not know, for all its classes: what the two say of classes cannot be compared. Which of them answered is then
    found too, by part: ``"answered_by": {part: "adapter" or "zeroshot"}``. ``keep`` is called with each part's name and
    answers.

    Returns ``{"accuracy": {part: percent, "hm": ...}, "images": {part: n}, "skipped": n, "metrics": {part: ...}}``,
    ``metrics`` as ``metrics.quality`` gives them. Of both halves ``metrics["open"]``
    says how the images of both are classified among all classes, with ``base``, ``new`` (``top1`` of each half's
    images) and ``hm``. Where the data set comes with an unseen style there is ``retained_PART`` in ``accuracy`` and
    ``metrics`` too, and that ``retention_style``; where the model has several ways to answer, ``inference`` says by
    part which it took. The model is left with the classes that it was tested on last.

    Raises:
        InputError: a part of fewer than two classes; without ``zeroshot`` a class that ``model`` does not know; no
            images, an unreadable one, answers that are not finite.
    """
    items = getattr(data, split)
    found: dict[str, Any] = {"accuracy": {}, "images": {}, "skipped": 0, "metrics": {}}
    encoded: dict[str, tuple[Encoded, bool]] = {}

    def note(part: str, by: CLIPClassifier, answers: PartAnswers) -> None:
        if by.inference is not None:
            found.setdefault("inference", {})[part] = by.inference
        found["accuracy"][part] = answers.top1
        found["metrics"][part] = quality(answers.logits, answers.labels, answers.class_names)
        if keep is not None:
            keep(part, answers)

    for part in parts:
        names = part_names(data.class_names, part)
        with answering(model, zeroshot, names) as (asked, known):
            with torch.no_grad():
                text = asked.eval().text_features()
            chosen = base_new_split(items, part, len(data.class_names))
            images = encode(asked, data.read, chosen, loading, name=part)
            encoded[part] = images, known
            note(part, asked, answers_of(asked, images, text))
            found["images"][part] = len(images.items)
            found["skipped"] += images.skipped
            if data.retention is not None:
                unseen = data.retention
                kept = base_new_split(getattr(unseen, split), part)
                images = encode(asked, unseen.read, kept, loading, name=f"{part}, {unseen.style}")
                with asked.answering_elsewhere():
                    note(f"retained_{part}", asked, answers_of(asked, images, text))
                found["retention_style"] = unseen.style
        if zeroshot is not None:
            found.setdefault("answered_by", {})[part] = answered_by(known)
    if set(HALVES) <= set(parts):
        found["accuracy"]["hm"] = harmonic_mean(found["accuracy"]["base"], found["accuracy"]["new"])
        with answering(model, zeroshot, data.class_names) as (asked, known):
            # Who answers among all classes may be another one than among a half.
            halves = [
                images if by == known else encode(asked, images.read, images.items, loading, name=f"{part}, {OPEN}")
                for part, (images, by) in ((part, encoded[part]) for part in HALVES)
            ]
            answers = _among_all(asked, halves, len(part_names(data.class_names, "base")))
        found["metrics"][OPEN] = _open_world(answers, len(halves[0].items))
        if zeroshot is not None:
            found["answered_by"][OPEN] = answered_by(known)
        if keep is not None:
            keep(OPEN, answers)
    return found


def _among_all(model: CLIPClassifier, halves: Sequence[Encoded], base_classes: int) -> PartAnswers:
    """What ``model`` answers for the images of both halves among all of its classes, those of base first."""
    with torch.no_grad():
        text = model.eval().text_features()
    base, new = (answers_of(model, images, text) for images in halves)
    return PartAnswers(
        torch.cat([base.logits, new.logits]),
        torch.cat([base.labels, new.labels + base_classes]),
        base.class_names,
        [*base.items, *new.items],
        base.read,
    )


def _open_world(answers: PartAnswers, base_images: int) -> dict[str, Any]:
    found = quality(answers.logits, answers.labels, answers.class_names)
    del found["per_class"]
    right = answers.logits.argmax(-1) == answers.labels
    base, new = (100 * int(half.sum()) / len(half) for half in (right[:base_images], right[base_images:]))
    return {**found, "base": base, "new": new, "hm": harmonic_mean(base, new)}


def tested_parts(classes: str, class_names: Sequence[str]) -> tuple[str, ...]:
    """What ``evaluate_parts`` is asked for with "all", "base", "new" or "base_new".

    The new half of three classes is one class, on which every method is right: of "base_new" the base half is left.
    """
    if classes != "base_new":
        return (classes,)
    return ("base", "new") if len(class_names) > 3 else ("base",)
