"""What is trained after the towers as options: the group ``head`` of ``TrainConfig``."""

from __future__ import annotations

from dataclasses import dataclass

from rmadapter.errors import check_choice, check_range

CACHES = ("none", "fixed", "trained")


@dataclass
class HeadConfig:
    """What is trained on the towers' features: adapters after them, an offset a class, a cache of the training images.

    Args:
        image_ratio: share of a two-layer adapter's output in the image features, the rest is theirs; 0: no adapter
        text_ratio: the same of the text features
        reduction: the features' width over that of these adapters' hidden layer
        offset: factor on a vector a class that is added to the frozen text features (TaskRes); 0: none
        cache: a cache of the training images' features that adds to the logits (Tip-Adapter): none, fixed, or trained
        cache_weight: alpha, factor on what the cache adds
        cache_sharpness: beta, how fast that falls with the distance to a cached image
    """

    image_ratio: float = 0.0
    text_ratio: float = 0.0
    reduction: int = 4
    offset: float = 0.0
    cache: str = "none"
    cache_weight: float = 1.0
    cache_sharpness: float = 1.0

    def __post_init__(self) -> None:
        check_range("head.image_ratio", self.image_ratio, 0, 1)
        check_range("head.text_ratio", self.text_ratio, 0, 1)
        check_range("head.reduction", self.reduction, 1)
        check_range("head.offset", self.offset, 0)
        check_choice("head.cache", self.cache, CACHES)
        check_range("head.cache_weight", self.cache_weight, 0)
        check_range("head.cache_sharpness", self.cache_sharpness, 0, open_low=True)

    @property
    def any(self) -> bool:
        """Whether anything is trained after the towers."""
        return self.image_ratio + self.text_ratio + self.offset > 0 or self.cache != "none"
