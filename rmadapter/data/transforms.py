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

from rmadapter.errors import check_choice

Transform = Callable[[Image.Image], Tensor]


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
    """Random resized crop of at least ``min_crop`` of the area, flip, normalise; "none" is ``eval_transform``."""
    check_choice("augmentation", augmentation, ("crop_flip", "crop", "none"))
    if augmentation == "none":
        return eval_transform(preprocessing)
    crop = transforms.RandomResizedCrop(
        preprocessing.size, scale=(min_crop, 1.0), interpolation=InterpolationMode(preprocessing.interpolation)
    )
    flip = [transforms.RandomHorizontalFlip()] if augmentation == "crop_flip" else []
    normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)
    return transforms.Compose([crop, *flip, transforms.ToTensor(), normalize])
