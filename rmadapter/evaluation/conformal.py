"""Conformal sets: for each image the classes among which the true one is with a stated coverage.

A score says how strange a class is for an image. Of n images like those to come, the true classes' scores have a
quantile below which the true class of another image lies with the coverage that is asked for, whatever the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rmadapter.errors import check_choice, check_range

LAC, APS = "lac", "aps"
SCORES = (APS, LAC)


def class_scores(score: str, probabilities: Tensor) -> Tensor:
    """Scores [n, classes] in fp64 of ``probabilities`` [n, classes], small where a class is likely.

    ``lac`` (Sadinle et al., JASA 2019): 1 - p, whose sets are the smallest on average. ``aps`` (Romano et al., NeurIPS
    2020, without its random part): the sum of the probabilities of the classes before it, whose sets are larger for
    images that are hard.
    """
    check_choice("score", score, SCORES)
    found = probabilities.double()
    if score == LAC:
        return 1 - found
    ranked, order = found.sort(dim=-1, descending=True, stable=True)
    before = F.pad(ranked.cumsum(-1)[:, :-1], (1, 0))
    return torch.empty_like(found).scatter_(-1, order, before)


def true_scores(score: str, probabilities: Tensor, labels: Tensor) -> list[float]:
    """The scores of the true classes ``labels`` [n], ascending."""
    found = class_scores(score, probabilities).gather(-1, labels[:, None]).flatten()
    return found.sort().values.tolist()


def threshold(scores: Sequence[float], coverage: float) -> float:
    """The ``ceil((n + 1) coverage)``-th of n ascending ``scores``; infinity where there are too few of them."""
    place = max(1, math.ceil((len(scores) + 1) * coverage - 1e-9))  # 10 * 0.7 is a little above 7
    return scores[place - 1] if place <= len(scores) else math.inf


def conformal_sets(score: str, probabilities: Tensor, scores: Sequence[float], coverage: float) -> Tensor:
    """Which classes are in the set of each image: bool [n, classes]; the likeliest class always is.

    Args:
        score: one of ``SCORES``.
        probabilities: [n, classes].
        scores: ``true_scores`` of the images that were calibrated with.
        coverage: probability that a set has the true class, above 0 and below 1.
    """
    check_range("coverage", coverage, 0, 1)
    found = class_scores(score, probabilities) <= threshold(scores, coverage)
    return found.scatter(-1, probabilities.argmax(-1, keepdim=True), True)
