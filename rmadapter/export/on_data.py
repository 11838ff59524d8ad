"""Exported files and the model on one data set: accuracy and images a second of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rmadapter.data import ImageData, Item, eval_transform
from rmadapter.data.transforms import Transform
from rmadapter.errors import InputError, nearest
from rmadapter.evaluation.eval_images import Loading, readable_batches


@dataclass
class Measured:
    """Of one that answers: ``correct`` answers for ``images`` images, and the ``seconds`` that it took for them."""

    images: int = 0
    correct: int = 0
    seconds: float = 0.0

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct / self.images

    @property
    def images_a_second(self) -> float:
        """Images by the time of the answers alone; reading images is not counted."""
        return self.images / self.seconds


def known_items(items: Sequence[Item], data: ImageData, class_names: Sequence[str]) -> list[Item]:
    """Those of a class in ``class_names``, whose places there are then their labels.

    Where the names stand one after the other in the data set's order, that tells equal names apart.

    Raises:
        InputError: there are none.
    """
    names, wanted = data.class_names, list(class_names)
    starts = [first for first in range(len(names)) if names[first : first + len(wanted)] == wanted]
    if starts:
        places = {starts[0] + number: number for number in range(len(wanted))}
    else:
        places = {label: wanted.index(name) for label, name in enumerate(names) if name in wanted}
    found = [item._replace(label=places[item.label]) for item in items if item.label in places]
    if not found:
        raise InputError(
            f"check is {data.name!r}, which has no image of the exported classes, such as {wanted[0]!r}"
            f"{nearest(wanted[0], names)}; valid: a data set with some of them, or other classes"
        )
    return found


@dataclass(frozen=True)
class _BothForms:
    """An image as the model takes it, and its pixels; a class, since processes that decode images are sent it."""

    preprocess: Transform

    def __call__(self, image: Image) -> tuple[Tensor, Tensor]:
        return self.preprocess(image), pil_to_tensor(image)


@torch.no_grad()
def compare_on(
    data: ImageData,
    items: Sequence[Item],
    loading: Loading,
    model: Callable[[Tensor], Tensor],
    answers: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    pixels: bool,
) -> dict[str, Measured]:
    """What ``model`` and each of ``answers`` make of the same ``items``, by name, ``model`` first.

    Args:
        model, answers: images to probabilities [n, classes].
        pixels: the files take 8-bit images as they are read, and these one at a time.

    Raises:
        InputError: what ``readable_batches`` raises.
    """
    transform = None
    if pixels:
        transform, loading = _BothForms(eval_transform(loading.preprocessing)), replace(loading, batch_size=1)
    found = {name: Measured() for name in ("model", *answers)}
    for images, labels in readable_batches(data.read, items, loading, name="exported", transform=transform):
        prepared, read = images if pixels else (images, images)
        for name, measured in found.items():
            answer, given = (model, prepared) if name == "model" else (answers[name], read)
            if not measured.images:
                answer(given)  # the first call lays out weights
            began = time.perf_counter()
            probabilities = answer(given)
            measured.seconds += time.perf_counter() - began
            measured.correct += int((probabilities.argmax(-1) == labels).sum())
            measured.images += len(labels)
    return found
