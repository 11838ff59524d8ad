"""A representation space that both towers share as options: the group ``space`` of ``TrainConfig``."""

from __future__ import annotations

from dataclasses import dataclass

from rmadapter.config.adapter import check_layers
from rmadapter.errors import check_range


@dataclass
class SpaceConfig:
    """Learned tokens of a space that both towers share, mapped into their upper blocks (MMRL).

    Args:
        tokens: learned tokens, which stand behind the first token of each tower; 0: none
        width: of the space that they lie in
        layers: blocks of both towers that they enter: 'all', 'last:N', 'A-B', 'A,B,C' or a list
        class_share: share of the class token's logits in the answer, and of their cross-entropy in the loss; the rest
            is those of these tokens' outputs
    """

    tokens: int = 0
    width: int = 512
    layers: list[int] | str = "last:7"
    class_share: float = 0.7

    def __post_init__(self) -> None:
        check_range("space.tokens", self.tokens, 0)
        check_range("space.width", self.width, 1)
        check_range("space.class_share", self.class_share, 0, 1)
        self.layers = check_layers("space.layers", self.layers)

    @property
    def any(self) -> bool:
        """Whether there are such tokens."""
        return self.tokens > 0
