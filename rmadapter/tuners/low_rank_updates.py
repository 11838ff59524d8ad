"""Low-rank updates of the towers' attention (LoRA; for CLIP as CLIP-LoRA, Zanella and Ben Ayed, CVPRW 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from rmadapter.clip.low_rank import LowRank, Update
from rmadapter.clip.towers import find_towers
from rmadapter.clip.types import ClipModel
from rmadapter.config import TOWERS, layer_numbers
from rmadapter.config.lora import LoraConfig
from rmadapter.errors import InputError
from rmadapter.tuners.sites import Sites
from rmadapter.tuners.tuner import Tuner


class LowRankUpdates(Tuner):
    """The updates that ``config`` asks for: ``a`` [rank, D] drawn, ``b`` [D, rank] zero, so that nothing changes yet.

    Raises:
        InputError: a block outside its tower, or one whose attention is not made of queries, keys and values alone.
    """

    def __init__(self, clip: ClipModel, config: LoraConfig):
        super().__init__()
        self.config = config
        self.blocks: dict[str, list[int]] = {}
        self.matrices = nn.ParameterDict()
        for name, tower in find_towers(clip).items():
            layers = layer_numbers(config.layers(name), tower.depth, f"lora.{name}_layers")
            self.blocks[name] = [layer - 1 for layer in layers]
            for layer in layers:
                if not tower.parts[layer - 1].plain or not hasattr(tower.blocks[layer - 1].attn, "in_proj_weight"):
                    raise InputError(
                        f"lora.{name}_layers is {config.layers(name)!r}, but the {name} tower is a {tower.kind.name}, "
                        "and updates need open_clip's own attention of queries, keys and values alone "
                        f"(nn.MultiheadAttention); valid: lora.{name}_layers none"
                    )
                for matrix in config.names:
                    place = f"{name}_{layer}_{matrix}"
                    self.matrices[f"{place}_a"] = nn.Parameter(torch.empty(config.rank, tower.width))
                    self.matrices[f"{place}_b"] = nn.Parameter(torch.empty(tower.width, config.rank))
        if not len(self.matrices):
            raise InputError("lora.vision_layers and lora.text_layers leave no block; valid: layers in one tower")

    def sites(self, tower: str) -> Sites:
        """In the blocks of the configuration."""
        blocks = frozenset(self.blocks[tower])
        return Sites(updates=blocks, random=bool(blocks) and self.config.dropout > 0)

    def update(self, tower: str, block: int) -> Update | None:
        """Those of one block, with dropout in training mode."""
        if block not in self.blocks[tower]:
            return None
        dropout = self.config.dropout if self.training else 0.0
        found = {}
        for matrix in self.config.names:
            a, b = (self.matrices[f"{tower}_{block + 1}_{matrix}_{key}"] for key in "ab")
            found[matrix] = LowRank(a, b, self.strength * self.config.factor, dropout)
        return Update(**found)

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``vision.1.q.a`` [rank, D], ``vision.1.q.b`` [D, rank] and so on."""
        for name in TOWERS:
            for block in self.blocks[name]:
                for matrix in self.config.names:
                    for key in "ab":
                        yield f"{name}.{block + 1}.{matrix}.{key}", self.matrices[f"{name}_{block + 1}_{matrix}_{key}"]

    def reset(self, generator_of: Callable[..., torch.Generator]) -> None:
        """``a`` uniform within 1/sqrt(D) (He et al. 2015 with slope sqrt 5), ``b`` zero."""
        with torch.no_grad():
            for name, parameter in self.weights():
                *place, key = name.split(".")
                if key == "b":
                    nn.init.zeros_(parameter)
                    continue
                bound = parameter.shape[1] ** -0.5
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator_of(*place, key))
                parameter.copy_(drawn)
