"""Published numbers to stand beside, all for CLIP ViT-B/16 (OpenAI's weights) with 16 shots.

Base-to-new means over the eleven data sets: of CLIP, CoOp and CoCoOp from CoCoOp (CVPR 2022), of MaPLe (CVPR 2023),
PromptSRC (ICCV 2023), MMA (CVPR 2024), CoPrompt (ICLR 2024) and RMAdapter (AAAI 2026) from the papers themselves. CLIP
on single data sets is CoCoOp's too. Of the others the papers' tables for single data sets are not held here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rmadapter.data.catalog import CATALOG, FIELD, VARIANTS
from rmadapter.data.items import OWN_LISTS

HM_OF_MEANS, MEAN_OF_HMS = "hm_of_means", "mean_of_hms"


class BaseNew(NamedTuple):
    """Percent: base, new and the harmonic mean as the paper prints it, and which of the two kinds that is."""

    base: float
    new: float
    hm: float
    hm_is: str = HM_OF_MEANS


SETTING = "CLIP ViT-B/16 with OpenAI's weights, 16 shots"
MODEL = ("ViT-B-16", "openai")

BASE_NEW_MEAN: dict[str, BaseNew] = {
    "CLIP": BaseNew(69.34, 74.22, 71.70),
    "CoOp": BaseNew(82.69, 63.22, 71.66),
    "CoCoOp": BaseNew(80.47, 71.69, 75.83),
    "MaPLe": BaseNew(82.28, 75.14, 78.55),
    "PromptSRC": BaseNew(84.26, 76.10, 79.97),
    "MMA": BaseNew(83.20, 76.80, 79.87),
    "CoPrompt": BaseNew(84.00, 77.23, 80.48),
    "RMAdapter": BaseNew(84.52, 77.36, 80.62, MEAN_OF_HMS),  # the harmonic mean of its means is 80.78
}
CLIP_BASE_NEW: dict[str, tuple[float, float]] = {
    "imagenet": (72.43, 68.14),
    "caltech101": (96.84, 94.00),
    "oxford_pets": (91.17, 97.26),
    "stanford_cars": (63.37, 74.89),
    "oxford_flowers": (72.08, 77.80),
    "food101": (90.10, 91.22),
    "fgvc_aircraft": (27.19, 36.29),
    "sun397": (69.36, 75.35),
    "dtd": (53.24, 59.90),
    "eurosat": (56.48, 64.05),
    "ucf101": (70.53, 77.50),
}
# Mean accuracy over the ten data sets that are not ImageNet, and over ImageNet's four variants.
TRANSFER_MEAN: dict[str, dict[str, float]] = {
    "cross": {"MMA": 66.61, "CoPrompt": 67.00, "RMAdapter": 67.56},
    "domain": {"CoPrompt": 60.42, "PromptSRC": 60.65, "RMAdapter": 60.71},
}
TRANSFER_TARGETS = {"cross": frozenset(FIELD) - {"imagenet"}, "domain": frozenset(VARIANTS)}
# Which published method a method of ours is.
NAMES = {"zeroshot": "CLIP", "mma": "MMA", "rmadapter": "RMAdapter"}


def base_new(method: str, data: str) -> tuple[float, float] | None:
    """Published base and new accuracy of ``method`` (our name) on one data set, where it is held here."""
    return CLIP_BASE_NEW.get(data) if method == "zeroshot" else None


def base_new_mean(method: str, data: frozenset[str]) -> BaseNew | None:
    """Published means of ``method`` (our name), where ``data`` are the field's eleven data sets."""
    return BASE_NEW_MEAN.get(NAMES.get(method, "")) if data == frozenset(FIELD) else None


def transfer_mean(protocol: str, method: str, source: str, targets: frozenset[str]) -> float | None:
    """Published mean over the targets, where source and targets are the published table's."""
    if source != "imagenet" or targets != TRANSFER_TARGETS[protocol]:
        return None
    return TRANSFER_MEAN[protocol].get(NAMES.get(method, ""))


def obstacle(data: str, split: str | None, images: Mapping[str, int]) -> str | None:
    """Why accuracies on ``data`` do not compare with published ones; None where they do, or where none are held here.

    Args:
        split: ``ImageData.split_id``.
        images: test images by part of the classes.
    """
    record = CATALOG.get(data)
    if record is None:
        return None
    found, wanted = (split or "no split file").partition(",")[0], record.split_file or OWN_LISTS
    if found != wanted:
        return f"{found} in place of {wanted}"
    counts = {"all": record.test, **dict(zip(("base", "new"), record.base_new_test or (), strict=False))}
    if {"base", "new"} <= images.keys():
        images = {**images, "base and new": images["base"] + images["new"]}
        counts["base and new"] = record.test
    for part, count in images.items():
        if count != counts.get(part, count):
            return f"{count:,} test images of {part} classes in place of {counts[part]:,}"
    return None
