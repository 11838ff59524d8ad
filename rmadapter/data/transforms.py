"""What an image goes through before the model: as open_clip defines it, and with random crops for training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import open_clip
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from rmadapter.config import AUGMENTATIONS
from rmadapter.errors import check_choice

Transform = Callable[[Image.Image], Tensor]
# CoPrompt's: operations of RandAugment on an image, and their strength on its scale from 0 to 30.
OPERATIONS, STRENGTH = 2, 10


@dataclass(frozen=True)
class Preprocessing:
    """Side in pixels, mean and standard deviation of each channel, and how images are resized."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    @classmethod
    def of(cls, clip: Any) -> Preprocessing:
        """What open_clip says of ``clip``; OpenAI's mean and deviation where it was not made by open_clip's factory."""
        config = getattr(clip.visual, "preprocess_cfg", {})
        size = config.get("size", clip.visual.image_size)
        return cls(
            size=size if isinstance(size, int) else size[0],
            mean=tuple(config.get("mean", open_clip.OPENAI_DATASET_MEAN)),
            std=tuple(config.get("std", open_clip.OPENAI_DATASET_STD)),
            interpolation=config.get("interpolation", "bicubic"),
            resize_mode=config.get("resize_mode", "shortest"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """Resize, centre crop, normalise: open_clip's own, PIL image -> float [3, size, size]."""
    return open_clip.image_transform(
        preprocessing.size,
        is_train=False,
        mean=preprocessing.mean,
        std=preprocessing.std,
        resize_mode=preprocessing.resize_mode,
        interpolation=preprocessing.interpolation,
    )


def train_transform(preprocessing: Preprocessing, augmentation: str = "crop_flip", min_crop: float = 0.08) -> Transform:
    """What ``augmentation`` does to an image, and normalisation: PIL image -> float [3, size, size].

    "crop_flip" is a random resized crop of at least ``min_crop`` of the area and a flip, "crop" the same without a
    flip; "randaugment" squeezes the whole image into the square and applies ``OPERATIONS`` random operations of
    RandAugment; "none" is ``eval_transform``.
    """
    check_choice("augmentation", augmentation, AUGMENTATIONS)
    if augmentation == "none":
        return eval_transform(preprocessing)
    size, interpolation = preprocessing.size, InterpolationMode(preprocessing.interpolation)
    if augmentation == "randaugment":
        squeeze = transforms.Resize((size, size), interpolation=interpolation)
        random = [squeeze, transforms.RandAugment(num_ops=OPERATIONS, magnitude=STRENGTH)]
    else:
        flip = [transforms.RandomHorizontalFlip()] if augmentation == "crop_flip" else []
        random = [transforms.RandomResizedCrop(size, scale=(min_crop, 1.0), interpolation=interpolation), *flip]
    normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)
    return transforms.Compose([*random, transforms.ToTensor(), normalize])
