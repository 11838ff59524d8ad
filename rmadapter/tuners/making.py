"""The tuners that a configuration asks for, beside the adapters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rmadapter.clip.types import ClipModel
from rmadapter.config import TunerConfig
from rmadapter.config.adapter import TOWERS
from rmadapter.errors import InputError
from rmadapter.tuners.feature_heads import ClassFeatures, ClassOffsets, FeatureAdapters, ImageCache
from rmadapter.tuners.low_rank_updates import LowRankUpdates
from rmadapter.tuners.prompt_tokens import PromptTokens
from rmadapter.tuners.representation_space import RepresentationSpace
from rmadapter.tuners.tuner import Tuner


def make_tuners(
    clip: ClipModel, config: TunerConfig, words: Tensor | None, class_names: Sequence[str] | None, images: int
) -> list[Tuner]:
    """What ``config`` asks for, in the order in which heads apply.

    Args:
        clip: the model that it is for.
        config: all that is trained.
        words: embeddings [text_tokens, D] that learned tokens begin as; None: they do not.
        class_names: for what each class has of its own.
        images: how many a cache is to keep.

    Raises:
        InputError: what each class has of its own without the names of the classes; two that do not go together; what a
            tuner says of the model.
    """
    prompt, head = config.prompt, config.head
    bound = {
        "prompt.class_specific": prompt.class_specific,
        "head.offset": head.offset > 0,
        "head.class_prompts": head.class_prompts != "run",
        "head.cache": head.cache != "none",
    }
    names = list(class_names or ())
    if class_names is None and any(bound.values()):
        field = next(field for field, on in bound.items() if on)
        raise InputError(f"{field} needs the names of the classes that it is trained on; valid: with class_names")
    found: list[Tuner] = []
    if prompt.any:
        found.append(PromptTokens(clip, prompt, words=words, class_names=names))
    if config.space.any:
        others = {"prompt.text_tokens": prompt.text_tokens, "prompt.vision_tokens": prompt.vision_tokens}
        adapted = any(config.adapter.tower(name).layers not in ("none", []) for name in TOWERS)
        others["adapter.reconstruct"] = adapted and config.adapter.reconstruct
        if given := next((field for field, on in others.items() if on), None):
            raise InputError(
                f"space.tokens is {config.space.tokens} and {given} is {others[given]}: inserted tokens move those "
                "that it counts by their places; valid: one of the two"
            )
        found.append(RepresentationSpace(clip, config.space))
    if config.lora.any:
        found.append(LowRankUpdates(clip, config.lora))
    if head.class_prompts != "run":
        found.append(ClassFeatures(clip, head, names))
    if head.image_ratio or head.text_ratio:
        found.append(FeatureAdapters(clip, head))
    if head.offset:
        found.append(ClassOffsets(clip, head, names))
    if head.cache != "none":
        found.append(ImageCache(clip, head, names, images))
    return found
