"""What a tuner is: trained weights, where they enter the towers, and what enters there.

The adapters beside blocks are not among these: they are children of their blocks (``block_adapter``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import reduce
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from rmadapter.clip.low_rank import Update
from rmadapter.tuners.sites import Sites

# What enters before each block: [count, D] for all, [classes, count, D] or [images, count, D].
Values: TypeAlias = Mapping[int, Tensor]


class Features(NamedTuple):
    """What the towers make of images [n, embed] and of the classes [classes, embed], or [n, classes, embed].

    Attributes:
        image: where a tuner reads tokens beside the pooled one (``Sites.read``), the towers have their mean behind it,
            [n, embed + D], which that tuner's head takes off.
        others: further features [n, embed] of the images, each in front of it its share of the answer; the rest of the
            answer is that of ``image``.
    """

    image: Tensor
    text: Tensor
    others: tuple[tuple[float, Tensor], ...] = ()


class Answer(NamedTuple):
    """Logits [n, classes], and their share in the whole."""

    share: float
    logits: Tensor


def mixed(answers: Sequence[Answer]) -> Tensor:
    """The logits of ``answers`` together."""
    if len(answers) == 1:
        return answers[0].logits
    return reduce(torch.add, (share * logits for share, logits in answers))


class Tuner(nn.Module):
    """Something trained in a CLIP model. What a kind does not have is left as it is here.

    Attributes:
        classes: names that it is bound to and cannot leave, or None where it is open to any.
    """

    classes: list[str] | None = None

    @property
    def inference(self) -> str | None:
        """Which of its ways to answer it takes among the classes at hand, in words; None where it has but one."""
        return None

    def sites(self, tower: str) -> Sites:
        """Where it enters the tower "vision" or "text"."""
        return Sites()

    def values(self, image_features: Tensor | None) -> dict[str, Values]:
        """Tower -> what enters there, with a graph; made once a step.

        ``image_features`` [n, embed] are the frozen model's, not normalised, for those that depend on the image.
        """
        return {}

    def update(self, tower: str, block: int) -> Update | None:
        """The low-rank updates of a block, counted from 0."""
        return None

    def head(self, features: Features) -> Features:
        """What is trained after the towers."""
        return features

    def add_to_logits(self, logits: Tensor, image_features: Tensor) -> Tensor:
        """``logits`` [n, classes] with what it adds for ``image_features`` [n, embed]."""
        return logits

    @property
    def changed(self) -> frozenset[str]:
        """Which of the features, "image" and "text", its head has a trained part in."""
        return frozenset()

    def operations(self, images: int, classes: int, trained: Set[str]) -> float:
        """Floating-point operations of a step in what it has outside of the towers, forward and backward.

        ``trained`` are those of the features in front of its head that have a gradient, "image" and "text".
        """
        return 0.0

    def set_rows(self, rows: list[int]) -> None:
        """Classify among these of its ``classes`` from now on."""

    def set_familiar(self, familiar: bool) -> None:
        """Whether the classes from now on are some that it was trained on."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Its weights, and what is stored with them, by their names in an adapter file; blocks count from 1."""
        return iter(())

    def reset(self, generator_of: Callable[..., torch.Generator]) -> None:
        """Draw its weights anew, each from the CPU generator that ``generator_of`` gives for its name."""
