"""Tokens of a representation space that both towers share (MMRL, Guo and Gu, CVPR 2025)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from functools import partial

import torch
from torch import Tensor, nn

from rmadapter.clip.obstacles import is_causal
from rmadapter.clip.towers import find_towers, towers_embed
from rmadapter.clip.types import ClipModel
from rmadapter.config import TOWERS, layer_numbers
from rmadapter.config.space import SpaceConfig
from rmadapter.errors import InputError
from rmadapter.tuners.prompt_tokens import DEVIATION, check_image_tokens, check_text_tokens, draw_linear
from rmadapter.tuners.sites import INSERT, Sites, TokenEdit
from rmadapter.tuners.tuner import Features, Tuner, Values

BOTH, CLASS_ALONE = "class and representation features", "class features alone"


class RepresentationSpace(Tuner):
    """Learned ``tokens`` [count, width], and a linear map of them for each block of each tower that they enter.

    They are inserted behind the first token in front of the first of these blocks, and in front of each later one its
    own map of them takes the place of what the block before has made of them. Of the image tower their outputs are read
    too: ``ln_post``, mean, and a trained projection to the features' width, the representation features. They answer
    among the classes of training alone, beside the class token's; of other classes the class token's answer stands.

    Args:
        clip: the model whose towers they enter.
        config: how many, how wide, and where.

    Raises:
        InputError: blocks that a tower does not have, or none; an image tower that is not pooled at its class token; a
            text tower with a mask that is not the causal one.
    """

    # Between a token and none there is no scale.
    without_strength = "learned tokens (space.*)"

    def __init__(self, clip: ClipModel, config: SpaceConfig):
        super().__init__()
        self.config = config
        towers = find_towers(clip)
        check_image_tokens("space.tokens", clip)
        check_text_tokens("space.tokens", towers["text"])
        if towers["text"].mask is not None and not is_causal(towers["text"].mask):
            raise InputError("space.tokens needs a text tower with the causal mask, or without one; valid: 0")
        layers = {name: layer_numbers(config.layers, tower.depth, "space.layers") for name, tower in towers.items()}
        if not layers["vision"]:
            raise InputError(f"space.layers is {config.layers!r}, which leaves no block; valid: one or more")
        self.blocks = {name: [layer - 1 for layer in layers[name]] for name in TOWERS}
        self.tokens = nn.Parameter(torch.empty(config.tokens, config.width))
        self.maps = nn.ModuleDict(
            {name: nn.ModuleList(nn.Linear(config.width, towers[name].width) for _ in layers[name]) for name in TOWERS}
        )
        self.embed = towers_embed(clip)
        self.projection = nn.Parameter(torch.empty(towers["vision"].width, self.embed))
        self.familiar = False

    def _maps_of(self, tower: str) -> Iterator[tuple[int, nn.Linear]]:
        """The blocks that the tokens enter, from 0, and each one's map."""
        for block, linear in zip(self.blocks[tower], self.maps[tower].children(), strict=True):
            assert isinstance(linear, nn.Linear)
            yield block, linear

    def sites(self, tower: str) -> Sites:
        """Inserted in front of the first block, replaced in front of the others."""
        first, *later = self.blocks[tower]
        count = self.config.tokens
        edits = (TokenEdit(first, count, INSERT), *(TokenEdit(block, count) for block in later))
        return Sites(edits, read=count if tower == "vision" else 0)

    def values(self, image_features: Tensor | None) -> dict[str, Values]:
        """The tokens as each block's map has them."""
        return {name: {block: linear(self.tokens) for block, linear in self._maps_of(name)} for name in TOWERS}

    def head(self, features: Features) -> Features:
        """The class token's features, and beside them those of these tokens where they answer too."""
        classes, tokens = features.image.split([self.embed, features.image.shape[1] - self.embed], -1)
        if not (self.training or self.familiar):
            return features._replace(image=classes)
        second = (1 - self.config.class_share, tokens.to(self.projection.dtype) @ self.projection)
        return features._replace(image=classes, others=(*features.others, second))

    @property
    def changed(self) -> frozenset[str]:
        """The image features."""
        return frozenset({"image"})

    def operations(self, images: int, classes: int, trained: Set[str]) -> float:
        """Of the maps, of the projection, and of the second answer's logits."""
        maps = sum(linear.weight.numel() for name in TOWERS for _, linear in self._maps_of(name))
        return 6 * (self.config.tokens * maps + images * self.projection.numel() + images * classes * self.embed)

    def set_familiar(self, familiar: bool) -> None:
        """Whether the classes from now on are some that it was trained on; in training mode they are."""
        self.familiar = familiar

    @property
    def inference(self) -> str:
        """Which features answer."""
        return BOTH if self.familiar else CLASS_ALONE

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``space.tokens``, ``space.projection`` [D, embed], ``vision.6.space.weight`` [D, width], ``...bias``."""
        yield "space.tokens", self.tokens
        yield "space.projection", self.projection
        for name in TOWERS:
            for block, linear in self._maps_of(name):
                for key, parameter in linear.named_parameters():
                    yield f"{name}.{block + 1}.space.{key}", parameter

    def reset(self, generator_of: Callable[..., torch.Generator]) -> None:
        """Tokens N(0, 0.02), projection N(0, 1/sqrt(D)), the maps of a tower copies of one."""
        with torch.no_grad():
            for name, weight in (("tokens", self.tokens), ("projection", self.projection)):
                deviation = DEVIATION if name == "tokens" else len(weight) ** -0.5
                generator = generator_of("space", name)
                weight.copy_(torch.empty(weight.shape).normal_(0, deviation, generator=generator))
        for name in TOWERS:
            for _, linear in self._maps_of(name):
                draw_linear(linear, partial(generator_of, "space", name))
