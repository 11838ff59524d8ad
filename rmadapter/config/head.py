"""What is trained after the towers as options: the group ``head`` of ``TrainConfig``."""

from __future__ import annotations

from dataclasses import dataclass

from rmadapter.errors import InputError, check_choice, check_range

CLASS_PROMPTS = ("run", "seven", "eight")
CACHES = ("none", "fixed", "trained")
# Where the search for alpha and beta begins.
SEARCH_FROM = 0.1


@dataclass
class HeadConfig:
    """What is trained on the towers' features: adapters after them, an offset a class, a cache of the training images.

    Args:
        image_ratio: share of a two-layer adapter's output in the image features, the rest is theirs; 0: no adapter
        text_ratio: the same of the text features
        reduction: the features' width over that of these adapters' hidden layer
        offset: factor on a vector a class that is added to the frozen text features (TaskRes); 0: none
        class_prompts: prompts of the classes: run (the run's template), seven (the mean of the normalised features of
            those that CLIP has for ImageNet) or eight (these and "a photo of a {}.", the mean of features as they are);
            a mean binds the result to its classes
        cache: a cache of the training images' features that adds to the logits (Tip-Adapter): none, fixed, or trained
        cache_weight: alpha, factor on what the cache adds
        cache_sharpness: beta, how fast that falls with the distance to a cached image
        cache_views: augmented views of an image whose mean features the cache keeps
        max_weight: upper end of the search for alpha on the validation images; 0: alpha stays as it is
        max_sharpness: upper end of the search for beta; 0: beta stays as it is
    """

    image_ratio: float = 0.0
    text_ratio: float = 0.0
    reduction: int = 4
    offset: float = 0.0
    class_prompts: str = "run"
    cache: str = "none"
    cache_weight: float = 1.0
    cache_sharpness: float = 1.0
    cache_views: int = 10
    max_weight: float = 0.0
    max_sharpness: float = 0.0

    def __post_init__(self) -> None:
        check_range("head.image_ratio", self.image_ratio, 0, 1)
        check_range("head.text_ratio", self.text_ratio, 0, 1)
        check_range("head.reduction", self.reduction, 1)
        check_range("head.offset", self.offset, 0)
        check_choice("head.class_prompts", self.class_prompts, CLASS_PROMPTS)
        check_choice("head.cache", self.cache, CACHES)
        check_range("head.cache_weight", self.cache_weight, 0)
        check_range("head.cache_sharpness", self.cache_sharpness, 0, open_low=True)
        check_range("head.cache_views", self.cache_views, 1)
        for name in ("max_weight", "max_sharpness"):
            end = getattr(self, name)
            check_range(f"head.{name}", end, 0)
            if 0 < end <= SEARCH_FROM:
                raise InputError(f"head.{name} is {end}, and the search begins at {SEARCH_FROM}; valid: more, or 0")
            if end and self.cache == "none":
                raise InputError(f"head.{name} is {end}, but head.cache is 'none'; valid: 0, or with a cache")

    @property
    def any(self) -> bool:
        """Whether there is anything after the towers."""
        return self.trains or self.cache != "none" or self.class_prompts != "run"

    @property
    def bound(self) -> bool:
        """Whether there is something of each class."""
        return self.offset > 0 or self.cache != "none" or self.class_prompts != "run"

    @property
    def searched(self) -> bool:
        """Whether alpha or beta is searched."""
        return self.max_weight + self.max_sharpness > 0

    @property
    def trains(self) -> bool:
        """Whether training changes anything of it: a fixed cache is filled and not trained."""
        return self.image_ratio + self.text_ratio + self.offset > 0 or self.cache == "trained"
