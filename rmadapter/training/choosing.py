"""What a run chooses on validation images when it has been trained: how strongly a cache counts (Tip-Adapter)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.config import HeadConfig
from rmadapter.config.head import SEARCH_FROM
from rmadapter.training.loop import TrainingLoop
from rmadapter.training.recipe import BestEpoch
from rmadapter.training.validation import Validation, evaluating
from rmadapter.tuners.feature_heads import ImageCache

# Values of beta and of alpha that the search tries; the upper end is not among them.
SHARPNESSES, WEIGHTS = 200, 20


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
    cache = next(tuner for tuner in model.adapted.tuners if isinstance(tuner, ImageCache))
    features, labels = validation.features()
    with evaluating(model):
        features = model.headed(features.image, features.text)
        logits = CLIPClassifier.logits(model, features.image, features.text)
        nearness = cache.nearness(features.image)
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
