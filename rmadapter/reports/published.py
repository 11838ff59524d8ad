"""Published numbers to stand beside, all for CLIP ViT-B/16 (OpenAI's weights).

Base-to-new means over the eleven data sets, 16 shots: of CLIP, CoOp and CoCoOp from CoCoOp (CVPR 2022); of KgCoOp (CVPR
2023), MaPLe (CVPR 2023), PromptSRC (ICCV 2023), MMA (CVPR 2024), CoPrompt (ICLR 2024), MMRL (CVPR 2025) and RMAdapter
(AAAI 2026) from their papers or the READMEs of their code; VPT and IVLP are the baselines of MaPLe's code. Of two
methods whose authors have no such row it is another paper's rerun: ProGrad by KgCoOp's authors, CLIP-Adapter by DePT's
(CVPR 2024). Of CoOp at least five rows are in circulation, from 82.69 / 63.22 to 81.50 / 69.77; this is CoCoOp's.

Single data sets are read from tables that repeat the papers': images/exp_results.png of zhengli97/PromptKD (CLIP, CoOp,
CoCoOp, MaPLe, PromptSRC), examples/base_to_new.png of Koorye/SkipTuning (KgCoOp, ProGrad), images/exp_results.png of
zhengli97/ATPrompt (CoPrompt), examples/base_to_new_performance.png of Koorye/DePT (CLIP-Adapter). Their means are the
printed ones. Cross-data-set and domain numbers: images/exp_results2.png of PromptKD and ATPrompt, the READMEs of
Vill-Lab/2024-AAAI-HPT and LwEIB, and RMAdapter's paper. Few-shot means: the README of megvii-research/CasPL, from
PromptSRC's table. Numbers for other towers are left out, as Tip-Adapter's and CLIP-Adapter's own ones of ResNet-50.
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


class Transfer(NamedTuple):
    """Percent, after training on ImageNet: the mean over the targets, and where known ImageNet and each target."""

    mean: float
    source: float | None = None
    targets: tuple[float, ...] = ()


def _base_new(numbers: str) -> dict[str, tuple[float, float]]:
    """Base and new accuracy of the field's data sets in their order, written as "72.43/68.14 96.84/94.00"."""
    pairs = [number.split("/") for number in numbers.split()]
    return {name: (float(base), float(new)) for name, (base, new) in zip(FIELD, pairs, strict=True)}


WEIGHTS = "CLIP ViT-B/16 with OpenAI's weights"
SETTING = f"{WEIGHTS}, 16 shots"
MODEL = ("ViT-B-16", "openai")
NOT_OURS = "these numbers are the papers', not measured here."
PRECISION_NOTE = (
    "The originals of CoOp, CoCoOp, KgCoOp and ProGrad keep what they train in fp16, those of IVLP, MaPLe, PromptSRC "
    "and CoPrompt a part of it; here it is fp32."
)

BASE_NEW_MEAN: dict[str, BaseNew] = {
    "CLIP": BaseNew(69.34, 74.22, 71.70),
    "CoOp": BaseNew(82.69, 63.22, 71.66),
    "CoCoOp": BaseNew(80.47, 71.69, 75.83),
    "KgCoOp": BaseNew(80.73, 73.60, 77.00),
    "ProGrad": BaseNew(82.48, 70.75, 76.16),
    "VPT": BaseNew(80.24, 73.43, 76.68),
    "IVLP": BaseNew(82.15, 74.07, 77.90),
    "MaPLe": BaseNew(82.28, 75.14, 78.55),
    "PromptSRC": BaseNew(84.26, 76.10, 79.97),
    "CoPrompt": BaseNew(84.00, 77.23, 80.48),
    "CLIP-Adapter": BaseNew(76.92, 73.52, 75.18),
    "MMA": BaseNew(83.20, 76.80, 79.87),
    "MMRL": BaseNew(85.68, 77.16, 81.20),
    "RMAdapter": BaseNew(84.52, 77.36, 80.62, MEAN_OF_HMS),  # the harmonic mean of its means is 80.78
}
BASE_NEW: dict[str, dict[str, tuple[float, float]]] = {
    "CLIP": _base_new(
        "72.43/68.14 96.84/94.00 91.17/97.26 63.37/74.89 72.08/77.80 90.10/91.22 "
        "27.19/36.29 69.36/75.35 53.24/59.90 56.48/64.05 70.53/77.50"
    ),
    "CoOp": _base_new(
        "76.47/67.88 98.00/89.81 93.67/95.29 78.12/60.40 97.60/59.67 88.33/82.26 "
        "40.44/22.30 80.60/65.89 79.44/41.18 92.19/54.74 84.69/56.05"
    ),
    "CoCoOp": _base_new(
        "75.98/70.43 97.96/93.81 95.20/97.69 70.49/73.59 94.87/71.75 90.70/91.29 "
        "33.41/23.71 79.74/76.86 77.01/56.00 87.49/60.04 82.33/73.45"
    ),
    "KgCoOp": _base_new(
        "75.83/69.96 97.72/94.39 94.65/97.76 71.76/75.04 95.00/74.73 90.50/91.70 "
        "36.21/33.55 80.29/76.53 77.55/54.99 85.64/64.34 82.89/76.67"
    ),
    "ProGrad": _base_new(
        "77.02/66.66 98.02/93.89 95.07/97.63 77.68/68.63 95.54/71.87 90.37/89.59 "
        "40.54/27.57 81.26/74.17 77.35/52.35 90.11/60.89 84.33/74.94"
    ),
    "MaPLe": _base_new(
        "76.66/70.54 97.74/94.36 95.43/97.76 72.94/74.00 95.92/72.46 90.71/92.05 "
        "37.44/35.61 80.82/78.70 80.36/59.18 94.07/73.23 83.00/78.66"
    ),
    "PromptSRC": _base_new(
        "77.60/70.73 98.10/94.03 95.33/97.30 78.27/74.97 98.07/76.50 90.67/91.53 "
        "42.73/37.87 82.67/78.47 83.37/62.97 92.90/73.90 87.10/78.80"
    ),
    "CoPrompt": _base_new(
        "77.67/71.27 98.27/94.90 95.67/98.10 76.97/74.40 97.27/76.60 90.73/92.07 "
        "40.20/39.33 82.63/80.03 83.13/64.73 94.60/78.57 86.90/79.57"
    ),
    "CLIP-Adapter": _base_new(
        "75.27/68.67 97.27/93.63 94.50/97.03 69.00/74.73 87.80/73.33 90.43/91.00 "
        "32.80/35.60 78.20/77.10 66.07/57.30 75.13/62.70 79.70/77.60"
    ),
}
# Targets in the order of FIELD without ImageNet, and in that of VARIANTS.
TRANSFER: dict[str, dict[str, Transfer]] = {
    "cross": {
        "CLIP": Transfer(65.15),
        "CoOp": Transfer(63.88, 71.51, (93.70, 89.14, 64.51, 68.71, 85.30, 18.47, 64.15, 41.92, 46.39, 66.55)),
        "CoCoOp": Transfer(65.74, 71.02, (94.43, 90.14, 65.32, 71.88, 86.06, 22.94, 67.36, 45.73, 45.37, 68.21)),
        "MaPLe": Transfer(66.30, 70.72, (93.53, 90.49, 65.57, 72.23, 86.20, 24.74, 67.01, 46.49, 48.06, 68.69)),
        "PromptSRC": Transfer(65.81, 71.27, (93.60, 90.25, 65.70, 70.25, 86.15, 23.90, 67.10, 46.87, 45.50, 68.75)),
        "KgCoOp": Transfer(65.51, 70.66),
        "ProGrad": Transfer(62.71, 72.24),
        "CLIP-Adapter": Transfer(64.85, 70.23, (93.50, 88.30, 63.93, 69.60, 85.43, 24.60, 65.20, 44.07, 48.93, 64.93)),
        "CoPrompt": Transfer(67.00),
        "MMA": Transfer(66.61),
        "RMAdapter": Transfer(67.56),
    },
    "domain": {
        "CLIP": Transfer(57.17, 66.73, (60.83, 46.15, 47.77, 73.96)),
        "CoOp": Transfer(59.28, 71.51, (64.20, 47.99, 49.71, 75.21)),
        "CoCoOp": Transfer(59.91, 71.02, (64.07, 48.75, 50.63, 76.18)),
        "MaPLe": Transfer(60.27, 70.72, (64.07, 49.15, 50.90, 76.98)),
        "KgCoOp": Transfer(60.11),
        "ProGrad": Transfer(59.07),
        "PromptSRC": Transfer(60.65),
        "CoPrompt": Transfer(60.42),
        "RMAdapter": Transfer(60.71),
    },
}
TRANSFER_TARGETS = {"cross": FIELD[1:], "domain": VARIANTS}
# On all classes of the eleven data sets, by shots.
FEW_SHOT_MEAN: dict[str, dict[int, float]] = {
    "linear probe": {1: 45.83, 2: 57.98, 4: 68.01, 8: 74.47, 16: 78.79},
    "CoOp": {1: 67.56, 2: 70.65, 4: 74.02, 8: 76.98, 16: 79.89},
    "CoCoOp": {1: 66.79, 2: 67.65, 4: 71.21, 8: 72.96, 16: 74.90},
    "MaPLe": {1: 69.27, 2: 72.58, 4: 75.37, 8: 78.89, 16: 81.79},
    "PromptSRC": {1: 72.32, 2: 75.29, 4: 78.35, 8: 80.69, 16: 82.87},
}
# Which published method a method of ours is.
NAMES = {
    "zeroshot": "CLIP",
    "linear-probe": "linear probe",
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "kgcoop": "KgCoOp",
    "prograd": "ProGrad",
    "vpt": "VPT",
    "ivlp": "IVLP",
    "maple": "MaPLe",
    "promptsrc": "PromptSRC",
    "coprompt": "CoPrompt",
    "clip-adapter": "CLIP-Adapter",
    "mma": "MMA",
    "mmrl": "MMRL",
    "rmadapter": "RMAdapter",
}


def base_new(method: str, data: str) -> tuple[float, float] | None:
    """Published base and new accuracy of ``method`` (our name) on one data set, where it is held here."""
    return BASE_NEW.get(NAMES.get(method, ""), {}).get(data)


def base_new_mean(method: str, data: frozenset[str]) -> BaseNew | None:
    """Published means of ``method`` (our name), where ``data`` are the field's eleven data sets."""
    return BASE_NEW_MEAN.get(NAMES.get(method, "")) if data == frozenset(FIELD) else None


def transfer_mean(protocol: str, method: str, source: str, targets: frozenset[str]) -> float | None:
    """Published mean over the targets, where source and targets are the published table's."""
    if source != "imagenet" or targets != frozenset(TRANSFER_TARGETS[protocol]):
        return None
    found = TRANSFER[protocol].get(NAMES.get(method, ""))
    return None if found is None else found.mean


def few_shot_mean(method: str, data: frozenset[str]) -> dict[int, float]:
    """Published means of ``method`` (our name) by shots, where ``data`` are the field's eleven; else empty."""
    return FEW_SHOT_MEAN.get(NAMES.get(method, ""), {}) if data == frozenset(FIELD) else {}


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
