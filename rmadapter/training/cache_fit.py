"""A cache of the training images (Tip-Adapter): its keys before training, and after it the search for its strength."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.finite import check_finite
from rmadapter.config import HeadConfig
from rmadapter.config.head import SEARCH_FROM
from rmadapter.step.batches import Batch
from rmadapter.step.train_step import TrainStep
from rmadapter.training.loop import TrainingLoop
from rmadapter.training.recipe import BestEpoch
from rmadapter.training.validation import Validation, evaluating
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.feature_heads import ImageCache

# Values of beta and of alpha that the search tries; the upper end is not among them.
SHARPNESSES, WEIGHTS = 200, 20


def cache_of(model: AdaptedCLIP) -> ImageCache | None:
    """The cache among what is trained, if there is one."""
    return next((tuner for tuner in model.tuners if isinstance(tuner, ImageCache)), None)


@torch.no_grad()
def fill_cache(run: TrainingLoop) -> None:
    """Make the keys of ``run``'s cache: of each image the mean over its first augmented views, in fp32.

    Features are those of the frozen model; with ``--views`` they are taken from what is kept, and kept.
    """
    cache = cache_of(run.model.adapted)
    if cache is None:
        return
    began, count = time.perf_counter(), run.config.head.cache_views
    kept = run.batches.cache is not None and run.batches.cache.views >= count and _untouched(run)
    sums = torch.zeros_like(cache.keys)
    for batch in run.batches.passes(count, kept=kept):
        features = check_finite("image features", _frozen_features(run, batch, kept))
        sums[batch.numbers[: batch.count]] += features[: batch.count].float()
    sums = run.ranks.world * run.ranks.mean(sums)  # each image is one process's, and zero in the others
    cache.fill(sums / count, torch.tensor([item.label for item in run.items]))
    seconds = time.perf_counter() - began
    run.seconds += seconds
    print(f"cache: {len(sums)} images of {len(cache.classes or ())} classes, {count} views each, {seconds:.1f} s")


def _untouched(run: TrainingLoop) -> bool:
    """Whether what the step keeps of an image are the frozen model's features."""
    return isinstance(run.step_module, TrainStep) and run.step_module.image.first is None


def _frozen_features(run: TrainingLoop, batch: Batch, kept: bool) -> Tensor:
    """Features [n, embed] of the images of ``batch``, not normalised."""
    if kept:
        views = run.views(batch)
        assert views is not None  # a run with a cache of views has them
        return views.entry.output
    assert batch.images is not None  # nothing is taken from a cache
    if _untouched(run):
        assert isinstance(run.step_module, TrainStep)
        return run.step_module.views(batch.images).entry.output
    with run.model.adapted.frozen_pass():
        return run.model.image_features(batch.images)


def choose(run: TrainingLoop, validation: Validation) -> dict[str, Any]:
    """What ``run`` has chosen by the validation images, for its files; searches the cache's strength, if it is to."""
    found: dict[str, Any] = {}
    if isinstance(run.kept, BestEpoch):
        found |= run.kept.values
    if run.config.head.searched:
        strength = search_strength(validation, run.config.head)
        accuracy = 100 * strength.correct / validation.count
        found |= {"accuracy": accuracy, "cache_weight": strength.weight, "cache_sharpness": strength.sharpness}
    listed = ", ".join(f"{name} {value:g}" for name, value in found.items())
    print(f"chosen on {validation.count} {validation.whence}: {listed}")
    return {"by": validation.whence, "images": validation.count, **found}


@dataclass(frozen=True)
class Strength:
    """How strongly a cache counts: alpha and beta, and the validation images that are classified rightly with them."""

    weight: float
    sharpness: float
    correct: int


@torch.no_grad()
def search_strength(validation: Validation, head: HeadConfig) -> Strength:
    """Choose alpha and beta on the validation images and let the model's cache count so.

    Of equals the first counts, beta in the outer loop; the values that ``head`` begins with stay where they are better
    than all of the grid.
    """
    model = validation.model
    cache = cache_of(model.adapted)
    assert cache is not None  # the caller has looked
    features, labels = validation.features()
    with evaluating(model):
        features = model.headed(*features)
        logits, nearness = CLIPClassifier.logits(model, *features), cache.nearness(features.image)
    grid = [(beta, _grid(head.max_weight, head.cache_weight, WEIGHTS)) for beta in _sharpnesses(head)]
    best: Strength | None = None
    for sharpness, weights in [*grid, (head.cache_sharpness, [head.cache_weight])]:
        votes = cache.votes(nearness, sharpness)
        found = torch.stack([((logits + weight * votes).argmax(-1) == labels).sum() for weight in weights])
        for weight, correct in zip(weights, found.tolist(), strict=True):
            if best is None or correct > best.correct:
                best = Strength(weight, sharpness, correct)
    assert best is not None  # there is at least one value
    cache.weight, cache.sharpness = best.weight, best.sharpness
    chosen = dataclasses.replace(head, cache_weight=best.weight, cache_sharpness=best.sharpness)
    model.adapted.tuned = dataclasses.replace(model.adapted.tuned, head=chosen)
    return best


def _sharpnesses(head: HeadConfig) -> list[float]:
    return _grid(head.max_sharpness, head.cache_sharpness, SHARPNESSES)


def _grid(end: float, given: float, steps: int) -> list[float]:
    """``steps`` values from SEARCH_FROM on, up to ``end`` without it; of no search the one that is given."""
    return [SEARCH_FROM + step * (end - SEARCH_FROM) / steps for step in range(steps)] if end else [given]
