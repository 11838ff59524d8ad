"""What a run chooses by: its model on the few-shot validation images, during training and after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rmadapter.clip.finite import check_finite
from rmadapter.config import TrainConfig
from rmadapter.data import FewShotSample, ImageData, Item, Preprocessing, Read
from rmadapter.evaluation.accuracy import Loading, readable_batches
from rmadapter.training.few_shot import validation_items
from rmadapter.tuners.adapted_classifier import AdaptedClassifier
from rmadapter.tuners.tuner import Features


class Validation:
    """A model and the images that it is looked at with.

    Args:
        model: whose weights change meanwhile.
        read, items, loading: the images; labels count the model's classes.
        whence: where the images are from, for people.

    Attributes:
        count: images that could be read; 0 before ``features``.

    Features of a tower that nothing is trained in are computed once.
    """

    def __init__(self, model: AdaptedClassifier, read: Read, items: Sequence[Item], loading: Loading, whence: str):
        self.model, self.read, self.items, self.loading, self.whence = model, read, items, loading, whence
        self.count = 0
        self._images: tuple[Tensor, Tensor] | None = None
        self._text: Tensor | None = None

    @torch.no_grad()
    def features(self) -> tuple[Features, Tensor]:
        """The towers' features of images and classes, not normalised and before the heads, and the images' labels.

        Raises:
            InputError: an unreadable image; features that are not finite.
        """
        touches = self.model.adapted.touches
        with evaluating(self.model):
            if self._images is None or touches("vision"):
                self._images = self._encoded()
            if self._text is None or touches("text"):
                self._text = self.model.text_features()
            images, labels = self._images
            # Where the classes depend on the image they have features of each.
            text = self.model.text_features(images) if self.model.per_image else self._text
        return Features(images, text), labels

    @torch.no_grad()
    def accuracy(self) -> float:
        """Top-1 of the model as it is, in percent."""
        features, labels = self.features()
        with evaluating(self.model):
            logits = self.model.logits(features.image, features.text)
        return 100 * int((logits.argmax(-1) == labels).sum()) / len(labels)

    def _encoded(self) -> tuple[Tensor, Tensor]:
        device = self.model.prompts.tokens.device
        features, labels = [], []
        for images, numbers in readable_batches(self.read, self.items, self.loading, name="validation"):
            features.append(check_finite("image features", self.model.image_features(images.to(device))))
            labels.append(numbers.to(device))
        self.count = sum(map(len, labels))
        return torch.cat(features), torch.cat(labels)


def validation_of(
    config: TrainConfig,
    model: AdaptedClassifier,
    data: ImageData,
    sample: FewShotSample,
    preprocessing: Preprocessing,
) -> Validation | None:
    """What a run of ``config`` chooses by; None where it chooses nothing, or, which is said, has no images for it."""
    if config.select == "last" and not config.head.searched:
        return None
    items, whence = validation_items(config, data, sample)
    if not items:
        print(
            f"{data.name} has no validation images and no training images beside the sample: the last epoch's weights "
            "are taken, and the cache's strength stays as the options say"
        )
        return None
    loading = Loading(preprocessing, config.eval_batch_size, config.workers, config.skip_bad_images)
    return Validation(model, data.read, items, loading, whence)


@contextlib.contextmanager
def evaluating(model: AdaptedClassifier) -> Iterator[None]:
    """Inside, ``model`` is in eval mode."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
