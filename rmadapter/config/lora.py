"""Low-rank updates of the towers' matrices as options: the group ``lora`` of ``TrainConfig``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rmadapter.config.adapter import check_layers
from rmadapter.errors import InputError, check_range

MATRICES = ("q", "k", "v", "out")


@dataclass
class LoraConfig:
    """Low-rank updates beside the frozen matrices of attention (LoRA).

    Args:
        rank: of the updates; 0: none
        matrices: which of attention's matrices: q, k, v and out, separated by commas
        scale: factor on an update; default: 1/sqrt(rank), as in CLIP-LoRA
        dropout: share of an update's input that is left out at random in training
        vision_layers: blocks of the image tower: 'all', 'none', 'last:N', 'A-B', 'A,B,C' or a list
        text_layers: the same of the text tower
    """

    rank: int = 0
    matrices: str = "q,k,v"
    scale: float | None = None
    dropout: float = 0.0
    vision_layers: list[int] | str = "all"
    text_layers: list[int] | str = "all"

    def __post_init__(self) -> None:
        check_range("lora.rank", self.rank, 0)
        check_range("lora.dropout", self.dropout, 0, 1)
        if self.scale is not None:
            check_range("lora.scale", self.scale, 0, open_low=True)
        if not self.names or set(self.names) - set(MATRICES) or len(set(self.names)) < len(self.names):
            raise InputError(f"lora.matrices is {self.matrices!r}; valid: some of {','.join(MATRICES)}")
        self.vision_layers = check_layers("lora.vision_layers", self.vision_layers)
        self.text_layers = check_layers("lora.text_layers", self.text_layers)

    @property
    def names(self) -> list[str]:
        """The matrices."""
        return [name.strip() for name in self.matrices.split(",") if name.strip()]

    @property
    def factor(self) -> float:
        """The factor on an update."""
        return self.rank**-0.5 if self.scale is None else self.scale

    def layers(self, tower: str) -> Any:
        """The blocks of ``tower``, as written."""
        return self.vision_layers if tower == "vision" else self.text_layers

    @property
    def any(self) -> bool:
        """Whether there are updates."""
        return self.rank > 0
