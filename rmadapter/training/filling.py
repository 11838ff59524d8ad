"""What is put into a model before it is trained: features of training images (Tip-Adapter) and of several prompts."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from rmadapter.clip.finite import check_finite
from rmadapter.clip.prompts import encode_prompts
from rmadapter.data.templates import EIGHT_TEMPLATES, SEVEN_TEMPLATES
from rmadapter.step.batches import Batch
from rmadapter.step.plain import RMAdapterCLIP
from rmadapter.step.train_step import TrainStep
from rmadapter.training.loop import TrainingLoop
from rmadapter.tuners.feature_heads import ClassFeatures, ImageCache


def fill(run: TrainingLoop) -> None:
    """Put into the model of ``run`` what its tuners begin with and no generator draws.

    Raises:
        InputError: features that are not finite, an image that cannot be read.
    """
    for tuner in run.model.adapted.tuners:
        if isinstance(tuner, ClassFeatures):
            fill_class_features(tuner, run.model)
        elif isinstance(tuner, ImageCache):
            fill_cache(tuner, run)


@torch.no_grad()
def fill_class_features(kept: ClassFeatures, model: RMAdapterCLIP) -> None:
    """Make the features of the classes of ``model`` from the prompts for ImageNet."""
    templates = EIGHT_TEMPLATES if kept.prompts == "eight" else SEVEN_TEMPLATES
    with model.adapted.frozen_pass():
        each = [encode_prompts(model.clip, model.prompts_of(text).tokens) for text in templates]
    kept.fill(check_finite("text features", torch.stack(each)))


@torch.no_grad()
def fill_cache(cache: ImageCache, run: TrainingLoop) -> None:
    """Make the keys of ``cache``: of each image the mean over its first augmented views, in fp32.

    Features are those of the frozen model; with ``--views`` they are taken from what is kept, and kept.
    """
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
