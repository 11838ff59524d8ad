"""The weights of the loss terms as options: the group ``loss`` of ``TrainConfig``."""

from __future__ import annotations

from dataclasses import dataclass

from rmadapter.errors import check_range


@dataclass
class LossConfig:
    """Weights of the loss terms beside cross-entropy; 0 leaves a term out and what only it needs uncomputed.

    The paper does not publish them. Reconstruction: 10, where a first trial saw an effect and 1 had none.
    Consistency: 10 and 25, the weights PromptSRC uses for the same mean absolute difference.

    Args:
        lambda1: reconstruction in the image tower
        lambda2: reconstruction in the text tower
        lambda3: L1 distance of adapted to frozen image features
        lambda4: L1 distance of adapted to frozen text features
    """

    lambda1: float = 10.0
    lambda2: float = 10.0
    lambda3: float = 10.0
    lambda4: float = 25.0

    def __post_init__(self) -> None:
        for name in ("lambda1", "lambda2", "lambda3", "lambda4"):
            check_range(f"loss.{name}", getattr(self, name), 0)
