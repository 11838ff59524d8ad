"""timm's VisionTransformer with relative positions, which may be shared by all blocks."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor

from rmadapter.clip.kinds.timm_trunks import timm_kind
from rmadapter.clip.parts import BlockParts
from rmadapter.clip.types import Block


def _embed(root: Any, images: Tensor) -> Tensor:
    x = root.trunk.patch_embed(images)
    first = root.trunk.cls_token
    return x if first is None else torch.cat([first.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)


def _parts(block: Block, root: Any) -> BlockParts:
    shared = root.trunk.shared_rel_pos

    def whole(x: Tensor, mask: Tensor | None) -> Tensor:
        return block.forward(x, shared_rel_pos=None if shared is None else shared.get_bias())

    return BlockParts(whole, block.norm1)


RELPOS = timm_kind(
    "timm ViT with relative positions", lambda root: isinstance(root.trunk, VisionTransformerRelPos), _parts, _embed
)
